"""Dark and gain references and pixel masks: how they are read and checked, and brought to what counting works with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mpistream.model.errors import ReferenceImageError
from mpistream.model.geometry import FRAME_SHAPE
from mpistream.model.scan import CountingParameters

FloatImage = npt.NDArray[np.float32]
BoolImage = npt.NDArray[np.bool_]
Kind = Literal["dark", "gain"]

_TURN_ROUND = "0 (or False) stands for good pixels: turn the mask round with numpy.logical_not"

_Image = TypeVar("_Image", FloatImage, BoolImage)

#: An integer dark of less than this leaves differences with uint16 pixels that float32 holds exactly.
_EXACT_DARK_LIMIT = 2**24 - 2**16


@dataclass(frozen=True, eq=False)
class References:
    """What the pixels of a scan are corrected with; None for what it does not use.

    dark        float32[576, 576], in ADU
    gain        float32[576, 576]
    pixel_mask  bool[576, 576], True for bad pixels
    """

    dark: FloatImage | None = None
    gain: FloatImage | None = None
    pixel_mask: BoolImage | None = None

    @classmethod
    def load(cls, counting: CountingParameters) -> Self:
        """From the files that ``counting`` names. Raises ReferenceImageError."""
        return cls(
            load_reference_image(counting.dark, "dark") if counting.dark else None,
            load_reference_image(counting.gain, "gain") if counting.gain else None,
            load_pixel_mask(counting.pixel_mask) if counting.pixel_mask else None,
        )


def load_reference_image(path: str | Path, kind: Kind) -> FloatImage:
    """The reference image in a .npy file, float32 of the frame's shape (576, 576).

    Raises ReferenceImageError, naming the file, for whatever cannot serve as that kind of reference.
    """
    return _load(path, f"{kind} reference", check_dark if kind == "dark" else check_gain)


def load_pixel_mask(path: str | Path) -> BoolImage:
    """The pixel mask in a .npy file, bool of the frame's shape (576, 576), True for bad pixels.

    Raises ReferenceImageError, naming the file, for whatever cannot serve as one: also for one with more bad pixels
    than good ones, which is most likely the wrong way round.
    """
    mask = _load(path, "pixel mask", check_pixel_mask)
    if 2 * np.count_nonzero(mask) > mask.size:
        raise ReferenceImageError(
            f"{path}: the pixel mask marks {np.count_nonzero(mask)} of {mask.size} pixels as bad", _TURN_ROUND
        )
    return mask


def _load(path: str | Path, name: str, check: Callable[[Any, tuple[int, int]], _Image]) -> _Image:
    path = Path(path)
    save_it = f"save the {name} with numpy.save, as an array of {FRAME_SHAPE[0]} x {FRAME_SHAPE[1]} numbers"
    try:
        # mapped, so that nothing of a file of the wrong shape is read
        image = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ReferenceImageError(
            f"the {name} {path} cannot be read: {error.strerror or error}", "check the path"
        ) from error
    except (ValueError, EOFError) as error:
        raise ReferenceImageError(f"the {name} {path} is no .npy file of numbers: {error}", save_it) from error
    try:
        return np.array(check(image, FRAME_SHAPE))  # a copy: the file may change
    except ReferenceImageError as error:
        raise ReferenceImageError(f"{path}: {error.message}", error.remedy or save_it) from error


def check_dark(dark: Any, shape: tuple[int, int]) -> FloatImage:
    """A dark reference in ADU as contiguous float32[shape]; raises ReferenceImageError.

    Integers are refused where their differences with pixels are not exact in float32.
    """
    image = _of_shape(dark, shape, "uif", "dark reference")
    if image.dtype.kind in "ui" and image.size and max(int(image.max()), -int(image.min())) >= _EXACT_DARK_LIMIT:
        raise ReferenceImageError(
            f"the dark reference has values beyond +-{_EXACT_DARK_LIMIT}", "give it in ADU, as the camera's pixels"
        )
    return _finite_float32(image, "dark")


def check_gain(gain: Any, shape: tuple[int, int]) -> FloatImage:
    """A gain reference as contiguous float32[shape], without zeros; raises ReferenceImageError."""
    image = _finite_float32(_of_shape(gain, shape, "uif", "gain reference"), "gain")
    with np.errstate(divide="ignore", over="ignore"):
        unusable = np.count_nonzero(~np.isfinite(np.float32(1) / image))
    if unusable:
        raise ReferenceImageError(
            f"the gain reference has {unusable} pixels of zero, or too close to it to divide by",
            "set the gain of dead pixels to 1",
        )
    return image


def inverse(gain: FloatImage) -> FloatImage:
    """What corrected pixels are multiplied by: float32(1) / gain."""
    return np.float32(1) / gain


def check_pixel_mask(mask: Any, shape: tuple[int, int]) -> BoolImage:
    """A pixel mask as contiguous bool[shape], True for bad pixels; raises ReferenceImageError.

    It is of booleans or integers, where all but 0 is bad, and leaves at least one pixel.
    """
    image = np.ascontiguousarray(_of_shape(mask, shape, "bui", "pixel mask") != 0)
    if image.all():
        raise ReferenceImageError("the pixel mask marks every pixel as bad", _TURN_ROUND)
    return image


def _of_shape(image: Any, shape: tuple[int, int], kinds: str, name: str) -> npt.NDArray[Any]:
    """As an array of one of numpy's ``kinds`` of dtypes."""
    image = np.asarray(image)
    if image.dtype.kind not in kinds:
        raise ReferenceImageError(
            f"the {name} has the dtype {image.dtype}",
            "numpy.load the file: this takes arrays"
            if image.dtype.kind in "US"
            else f"make it an array of {'booleans or integers' if 'b' in kinds else 'integers or floats'}, "
            "unless it is another kind of reference",
        )
    if image.shape != shape:
        raise ReferenceImageError(
            f"the {name} has the shape {image.shape}, the frames {shape}",
            f"give a {name} of {shape[0]} rows and {shape[1]} columns",
        )
    return image


def _finite_float32(image: npt.NDArray[Any], kind: Kind) -> FloatImage:
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(image, dtype=np.float32)
    bad = np.count_nonzero(~np.isfinite(converted))
    if bad:
        raise ReferenceImageError(
            f"the {kind} reference has {bad} pixels that are NaN, infinite or beyond float32",
            f"replace them, for instance by the {'median' if kind == 'dark' else 'value 1'}",
        )
    return converted
