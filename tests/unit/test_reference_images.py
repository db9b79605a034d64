"""Dark and gain references and pixel masks: what is taken, what is refused, and what the refusal says."""

import re
from pathlib import Path

import numpy as np
import pytest

from mpistream.model.errors import ReferenceImageError
from mpistream.model.geometry import FRAME_SHAPE, SectorLayout
from mpistream.model.scan import CountingParameters
from mpistream.reduction.electron_counting import ElectronCounter
from mpistream.reduction.reference_images import References, load_pixel_mask, load_reference_image


def with_pixel(value: float) -> np.ndarray:
    image = np.ones(FRAME_SHAPE)
    image[3, 4] = value
    return image


BAD_IMAGES = [
    ("dark", with_pixel(np.nan), "1 pixels that are NaN"),
    ("dark", with_pixel(-np.inf), "1 pixels that are NaN"),
    ("dark", with_pixel(1e40), "beyond float32"),
    ("dark", with_pixel(2**24).astype(np.int64), "values beyond"),
    ("dark", with_pixel(-(2**63)).astype(np.int64), "values beyond"),
    ("dark", np.zeros((4, 4)), r"shape \(4, 4\)"),
    ("dark", np.zeros(FRAME_SHAPE, complex), "dtype complex128"),
    ("gain", with_pixel(0), "1 pixels of zero"),
    ("gain", with_pixel(1e-40), "1 pixels of zero"),
    ("gain", with_pixel(np.nan), "1 pixels that are NaN"),
    ("gain", with_pixel(np.inf), "1 pixels that are NaN"),
    ("gain", np.ones((144, 576)), r"shape \(144, 576\)"),
    ("gain", np.ones(FRAME_SHAPE, bool), "dtype bool"),
]


@pytest.mark.parametrize(("kind", "image", "message"), BAD_IMAGES)
def test_references_that_do_not_fit(kind: str, image: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ReferenceImageError, match=message) as caught:
        ElectronCounter(SectorLayout.ROWS, 10, 20, **{kind: image})
    assert caught.value.remedy
    path = tmp_path / f"{kind}.npy"
    np.save(path, image)
    with pytest.raises(ReferenceImageError, match=message) as caught:
        load_reference_image(path, kind)
    assert str(path) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint16, np.int64, ">f4"])
def test_references_from_files(dtype: str, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(1, 50, FRAME_SHAPE).astype(dtype)
    np.save(tmp_path / "image.npy", np.asfortranarray(image))
    for kind in ("dark", "gain"):
        loaded = load_reference_image(tmp_path / "image.npy", kind)
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, image)


def test_files_that_are_no_references(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.zeros(FRAME_SHAPE))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:100_000])
    for name in ("text.npy", "empty.npy", "objects.npy", "cut.npy", "absent.npy", "."):
        for load in (lambda path: load_reference_image(path, "dark"), load_pixel_mask):
            with pytest.raises(ReferenceImageError, match=re.escape(str(tmp_path / name))) as caught:
                load(tmp_path / name)
            assert caught.value.remedy


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.int64, ">u2"])
def test_masks_from_files(dtype: str, tmp_path: Path) -> None:
    """All but 0 is a bad pixel."""
    mask = (np.random.default_rng(1).random(FRAME_SHAPE) < 0.4).astype(int)
    np.save(tmp_path / "mask.npy", np.asfortranarray((mask * 256 if dtype == ">u2" else -mask).astype(dtype)))
    loaded = load_pixel_mask(tmp_path / "mask.npy")
    assert loaded.dtype == bool
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, mask == 1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(FRAME_SHAPE), "dtype float64"),
        (np.zeros((4, 144, 576), bool), r"shape \(4, 144, 576\)"),
        (np.ones(FRAME_SHAPE, bool), "every pixel"),
        (np.arange(576 * 576).reshape(FRAME_SHAPE) >= 30, "331746 of 331776 pixels"),
    ],
)
def test_masks_that_do_not_fit(mask: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(ReferenceImageError, match=message) as caught:
        load_pixel_mask(tmp_path / "mask.npy")
    assert str(tmp_path / "mask.npy") in caught.value.message
    assert caught.value.remedy


def test_the_references_of_a_scan(tmp_path: Path) -> None:
    nothing = References.load(CountingParameters())
    assert nothing.dark is nothing.gain is nothing.pixel_mask is None
    images = {"dark": with_pixel(3), "gain": with_pixel(2), "pixel_mask": with_pixel(0) == 0}
    for name, image in images.items():
        np.save(tmp_path / f"{name}.npy", image)
    used = References.load(CountingParameters(**{name: str(tmp_path / f"{name}.npy") for name in images}))
    for name, image in images.items():
        np.testing.assert_array_equal(getattr(used, name), image)
    with pytest.raises(ReferenceImageError, match=r"absent\.npy"):
        References.load(CountingParameters(gain=str(tmp_path / "absent.npy")))
