"""What counting refuses, with a remedy, and what it takes at the price of a copy."""

from collections.abc import Callable
from typing import Any

import mpistream._ext.electron_counting as kernel
import numpy as np
import pytest

from mpistream.model.errors import ConfigError, MpistreamError, ReferenceImageError, SourceError
from mpistream.model.geometry import FRAME_SHAPE, SectorLayout
from mpistream.reduction.electron_counting import ElectronCounter, FrameCounter, count_electrons
from tests.unit.slow_reference import count_frame

SHAPE = (6, 9)
random = np.random.default_rng(1)
FRAMES = random.integers(0, 100, (3, *SHAPE)).astype(np.uint16)
ONES = np.ones(SHAPE, np.float32)


def with_one(value: float, others: float = 1) -> np.ndarray:
    image = np.full(SHAPE, others, np.float64)
    image[2, 3] = value
    return image


def refused(error: type[MpistreamError], message: str, frames: Any = FRAMES, **options: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        count_electrons(frames, **({"background": 40, "xray": 90} | options))
    assert caught.value.remedy


# --- frames


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES.astype(np.int32), "dtype int32"),
        (FRAMES.astype(np.int16), "dtype int16"),
        (FRAMES.astype(np.uint8), "dtype uint8"),
        (FRAMES.astype(np.float32), "dtype float32"),
        (FRAMES.astype(object), "dtype object"),
        (FRAMES[0], r"shape \(6, 9\)"),
        (FRAMES[np.newaxis], r"shape \(1, 3, 6, 9\)"),
        (FRAMES[:, :0], "0 rows"),
        (FRAMES[:, :, :0], "0 columns"),
    ],
)
def test_frames_that_are_none(frames: np.ndarray, message: str) -> None:
    refused(SourceError, message, frames)


def unaligned(array: np.ndarray) -> np.ndarray:
    """The same values at an odd address."""
    memory = np.empty(array.nbytes + 2, np.uint8)
    start = 1 - memory.ctypes.data % 2
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    assert not copy.flags.aligned
    return copy


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.astype(image.dtype.newbyteorder(">")),
        np.asfortranarray,
        lambda image: np.repeat(image, 2, axis=-1)[..., ::2],
        lambda image: np.flip(np.flip(image).copy()),
        unaligned,
        read_only,
        lambda image: image.tolist() if image.dtype != np.uint16 else image,
    ],
    ids=["big-endian", "column-major", "every other column", "backwards", "unaligned", "read-only", "lists"],
)
def test_memory_of_another_kind_costs_a_copy_only(change: Callable[[np.ndarray], Any]) -> None:
    dark, gain, mask = random.normal(5, 2, SHAPE), random.normal(1, 0.1, SHAPE), random.random(SHAPE) < 0.2
    dark, gain = dark.astype(np.float32), gain.astype(np.float32)
    indices, offsets = count_electrons(
        change(FRAMES),
        background=40,
        xray=90,
        dark=change(dark),
        gain=change(gain),
        pixel_mask=change(mask.astype(np.int32)),
    )
    expected = [count_frame(frame, 40, 90, dark, gain, pixel_mask=mask).tolist() for frame in FRAMES]
    assert [indices[offsets[i] : offsets[i + 1]].tolist() for i in range(len(FRAMES))] == expected


# --- references


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dark": with_one(np.nan)}, "1 pixels that are NaN"),
        ({"dark": with_one(-np.inf)}, "1 pixels that are NaN, inf"),
        ({"dark": with_one(1e39)}, "beyond float32"),
        ({"dark": np.full(SHAPE, 2**24)}, "beyond"),
        ({"dark": ONES.astype(complex)}, "dtype complex"),
        ({"dark": ONES.astype(bool)}, "dtype bool"),
        ({"dark": ONES[:, 1:]}, r"shape \(6, 8\)"),
        ({"dark": ONES.T}, r"shape \(9, 6\)"),
        ({"dark": 3.0}, r"shape \(\)"),
        ({"gain": with_one(np.nan)}, "1 pixels that are NaN"),
        ({"gain": with_one(np.inf)}, "1 pixels that are NaN, inf"),
        ({"gain": with_one(0)}, "1 pixels of zero"),
        ({"gain": with_one(1e-42)}, "too close"),
        ({"gain": np.zeros(SHAPE)}, "54 pixels of zero"),
        ({"gain": ONES[1:]}, r"shape \(5, 9\)"),
        ({"gain": ONES.astype(str)}, "dtype <U"),
        ({"pixel_mask": ONES}, "dtype float32"),
        ({"pixel_mask": np.zeros((9, 6), bool)}, r"shape \(9, 6\)"),
        ({"pixel_mask": np.ones(SHAPE, bool)}, "every pixel"),
    ],
)
def test_references_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    refused(ReferenceImageError, message, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_dark": "mean"}, "level"),
        ({"row_dark": "median", "row_dark_level": 0}, "level"),
        ({"row_dark": "median", "row_dark_level": -3.0}, "level"),
        ({"row_dark": "median", "row_dark_level": np.nan}, "level"),
        ({"row_dark": "median", "row_dark_level": np.inf}, "level"),
        ({"row_dark": "median", "row_dark_level": 1e-50}, "level"),
        ({"row_dark": "mode", "row_dark_level": 30}, "mode"),
        ({"row_dark": "mean", "row_dark_level": 30, "dark": ONES}, "dark"),
    ],
)
def test_row_dark_that_makes_no_sense(options: dict[str, Any], message: str) -> None:
    refused(ConfigError, message, **options)


# --- thresholds and choices


@pytest.mark.parametrize(
    ("background", "xray"), [(np.nan, 5), (5, np.nan), (5, 5), (6, 5), (np.inf, np.inf), (-np.inf, -np.inf), (0, -0.0)]
)
def test_thresholds_that_keep_nothing(background: float, xray: float) -> None:
    refused(ConfigError, "threshold|below xray", background=background, xray=xray)


def test_an_instruction_set_that_there_is_not() -> None:
    refused(ConfigError, "sse9", simd="sse9")


@pytest.mark.parametrize(
    ("annuli", "message"), [([np.ones(SHAPE, bool)] * 9, "9 annuli"), ([np.ones((9, 6), bool)], r"shape \(9, 6\)")]
)
def test_annuli_that_do_not_fit(annuli: list[np.ndarray], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FrameCounter(SHAPE, 1, False, 10, 20, annuli=annuli)
    assert caught.value.remedy


# --- the extension itself


def addresses_of(frames: np.ndarray) -> np.ndarray:
    return np.array([[frame.ctypes.data] for frame in frames], np.uint64)


def block_counter(annuli: int = 1, **changes: Any) -> kernel.BlockCounter:
    values: dict[str, Any] = {
        "rows": SHAPE[0],
        "columns": SHAPE[1],
        "sectors": 1,
        "side_by_side": False,
        "background": 10.0,
        "xray": 90.0,
        "dark": None,
        "inverse_gain": None,
        "keep": None,
        "least": None,
        "row_dark": 0,
        "row_dark_level": 0.0,
        "half_row_gain": None,
        "labels": np.ones(SHAPE, np.uint8),
        "annuli": annuli,
        "pattern": np.zeros(SHAPE, np.uint32),
        "simd": kernel.simd_levels()[0],
    }
    return kernel.BlockCounter(**(values | changes))


def outputs(n_frames: int, most: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "indices": np.zeros(n_frames * most, np.uint32),
        "centroids": np.zeros((n_frames * most, 2), np.int8),
        "counts": np.zeros(n_frames, np.uint32),
        "moments": np.zeros((n_frames, 2), np.uint64),
        "on_annuli": np.zeros((n_frames, 1), np.uint64),
    }
    return values | changes


@pytest.mark.parametrize("simd", kernel.simd_levels())
@pytest.mark.parametrize("too_small", ["indices", "centroids", "counts", "moments", "on_annuli"])
def test_outputs_too_small_are_refused_before_anything_is_written(too_small: str, simd: str) -> None:
    counter = block_counter(simd=simd)
    assert counter.most_electrons == 3 * 5
    arrays = outputs(3, counter.most_electrons)
    assert counter.count(addresses_of(FRAMES), **arrays) == arrays["counts"].sum() > 0
    arrays = outputs(3, counter.most_electrons)
    arrays[too_small] = arrays[too_small][:-1]
    with pytest.raises(ValueError, match="too small"):
        counter.count(addresses_of(FRAMES), **arrays)
    assert not any(array.any() for array in arrays.values())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("indices", np.zeros(45, np.int32)),
        ("indices", np.zeros(45, ">u4")),
        ("indices", np.zeros(90, np.uint32)[::2]),
        ("centroids", np.zeros((45, 3), np.int8)),
        ("moments", np.zeros((3, 1), np.uint64)),
        ("on_annuli", np.zeros((3, 2), np.uint64)),
    ],
)
def test_outputs_of_another_kind_are_refused(name: str, array: np.ndarray) -> None:
    counter = block_counter()
    with pytest.raises(ValueError, match=r"Buffer|buffer|too small|contiguous"):
        counter.count(addresses_of(FRAMES), **outputs(3, counter.most_electrons, **{name: array}))


@pytest.mark.parametrize("addresses", [np.zeros((2, 4), np.int64), np.zeros((2, 3), np.uint64), np.zeros(4, np.uint64)])
def test_addresses_of_another_kind_are_refused(addresses: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"address|Buffer"):
        ElectronCounter(SectorLayout.ROWS, 10, 20).count_block(addresses)


@pytest.mark.parametrize(
    "changes",
    [
        {"sectors": 4},
        {"sectors": 2, "side_by_side": True},
        {"sectors": 0},
        {"rows": 0},
        {"dark": np.zeros(SHAPE, np.float32)},
        {"dark": np.zeros((9, 6), np.float32), "least": np.zeros(SHAPE, np.uint16)},
        {"dark": np.zeros(SHAPE, np.float64), "least": np.zeros(SHAPE, np.uint16)},
        {"keep": np.zeros(FRAME_SHAPE, np.uint8)},
        {"labels": None},
        {"annuli": 9},
        {"pattern": None},
        {"pattern": np.zeros((1, 1), np.uint32)},
        {"row_dark": 3},
        {"simd": "sse9"},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_the_extension_does_not_take_what_does_not_fit(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        block_counter(**changes)
