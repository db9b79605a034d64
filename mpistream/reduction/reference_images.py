"""Dark and gain references: how they are read, checked and brought to the float32 that counting calculates with."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpistream.model.errors import ReferenceImageError
from mpistream.model.geometry import FRAME_SHAPE

FloatImage = npt.NDArray[np.float32]
Kind = Literal["dark", "gain"]

#: An integer dark of less than this leaves differences with uint16 pixels that float32 holds exactly.
_EXACT_DARK_LIMIT = 2**24 - 2**16


def load_reference_image(path: str | Path, kind: Kind) -> FloatImage:
    """The reference image in a .npy file, float32 of the frame's shape (576, 576).

    Raises ReferenceImageError, naming the file, for whatever cannot serve as that kind of reference.
    """
    path = Path(path)
    save_it = f"save the {kind} reference with numpy.save, as an array of {FRAME_SHAPE[0]} x {FRAME_SHAPE[1]} numbers"
    try:
        # mapped, so that nothing of a file of the wrong shape is read
        image = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ReferenceImageError(
            f"the {kind} reference {path} cannot be read: {error.strerror or error}", "check the path"
        ) from error
    except (ValueError, EOFError) as error:
        raise ReferenceImageError(
            f"the {kind} reference {path} is no .npy file of numbers: {error}", save_it
        ) from error
    check = check_dark if kind == "dark" else check_gain
    try:
        return np.array(check(image, FRAME_SHAPE))  # a copy: the file may change
    except ReferenceImageError as error:
        raise ReferenceImageError(f"{path}: {error.message}", error.remedy or save_it) from error


def check_dark(dark: Any, shape: tuple[int, int]) -> FloatImage:
    """A dark reference in ADU as contiguous float32[shape]; raises ReferenceImageError.

    Integers are refused where their differences with pixels are not exact in float32.
    """
    image = _numbers(dark, shape, "dark")
    if image.dtype.kind in "ui" and image.size and max(int(image.max()), -int(image.min())) >= _EXACT_DARK_LIMIT:
        raise ReferenceImageError(
            f"the dark reference has values beyond +-{_EXACT_DARK_LIMIT}", "give it in ADU, as the camera's pixels"
        )
    return _finite_float32(image, "dark")


def check_gain(gain: Any, shape: tuple[int, int]) -> FloatImage:
    """A gain reference as contiguous float32[shape], without zeros; raises ReferenceImageError."""
    image = _finite_float32(_numbers(gain, shape, "gain"), "gain")
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


def _numbers(image: Any, shape: tuple[int, int], kind: Kind) -> npt.NDArray[Any]:
    image = np.asarray(image)
    if image.dtype.kind not in "uif":
        raise ReferenceImageError(
            f"the {kind} reference has the dtype {image.dtype}", "make it an array of integers or floats"
        )
    if image.shape != shape:
        raise ReferenceImageError(
            f"the {kind} reference has the shape {image.shape}, the frames {shape}",
            f"give a {kind} reference of {shape[0]} rows and {shape[1]} columns",
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
