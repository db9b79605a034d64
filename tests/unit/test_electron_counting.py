"""The counting kernel against its definition."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mpistream.model.geometry import FRAME_SHAPE, HEADER_BYTES, SECTORS, SectorLayout
from mpistream.reduction.electron_counting import ElectronCounter, count_electrons, simd_levels
from tests.unit.counting_cases import electrons_of
from tests.unit.slow_reference import corrected_values, count_frame

ROWS, COLUMNS = FRAME_SHAPE
shapes = st.tuples(st.integers(1, 40), st.integers(1, 70))
pixels = st.one_of(st.integers(0, 12), st.integers(0, 0xFFFF))


def noisy_frames(seed: int, shape: tuple[int, ...], electrons: float = 0.02) -> np.ndarray:
    """Noise around 30 with single bright pixels and clusters of equal neighbours; a few x-rays."""
    random = np.random.default_rng(seed)
    frames = random.normal(30, 5, shape).round()
    frames += (random.random(shape) < electrons) * random.integers(20, 300, shape)
    frames[random.random(shape) < electrons / 50] = 5000
    return frames.astype(np.uint16)


def scattered_sectors(
    frames: np.ndarray, layout: SectorLayout, missing: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Each sector in a buffer of its own behind a header, at an odd address: (buffers, addresses uint64[n, 4])."""
    buffers, addresses = [], np.zeros((len(frames), SECTORS), np.uint64)
    for i, frame in enumerate(frames):
        for sector in range(SECTORS):
            if missing[i, sector]:
                continue
            raw = np.ascontiguousarray(frame[layout.sector_slices(sector)]).view(np.uint8).ravel()
            buffer = np.empty(HEADER_BYTES + len(raw) + 2, np.uint8)
            start = HEADER_BYTES + 1 - buffer.ctypes.data % 2
            buffer[start : start + len(raw)] = raw
            buffers.append(buffer)
            addresses[i, sector] = buffer.ctypes.data + start
    return buffers, addresses


def missing_pixels(layout: SectorLayout, missing: np.ndarray) -> np.ndarray:
    mask = np.zeros(FRAME_SHAPE, bool)
    for sector in np.flatnonzero(missing):
        mask[layout.sector_slices(int(sector))] = True
    return mask


# --- the definition


@settings(max_examples=200)
@given(data=st.data(), shape=shapes)
def test_raw_frames_of_any_shape(data: st.DataObject, shape: tuple[int, int]) -> None:
    frame = data.draw(st_numpy.arrays(np.uint16, shape, elements=pixels))
    background = data.draw(st.one_of(st.integers(-2, 12), st.floats(-2, 70000)))
    xray = data.draw(
        st.one_of(st.integers(1, 20), st.floats(0, 70000), st.just(np.inf)).filter(lambda x: x > background)
    )
    assert electrons_of(frame, background, xray) == count_frame(frame, background, xray).tolist()


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=shapes,
    dark=st.sampled_from(["none", "float", "integer", "negative integer"]),
    gain=st.sampled_from(["none", "near 1", "powers of 2", "negative"]),
    background=st.floats(-40, 60),
    width=st.floats(1, 3000),
)
def test_dark_and_gain(
    seed: int, shape: tuple[int, int], dark: str, gain: str, background: float, width: float
) -> None:
    random = np.random.default_rng(seed)
    frame = noisy_frames(seed, shape)
    references = {}
    if dark == "float":
        references["dark"] = random.normal(29, 3, shape).astype(np.float32)
    elif dark != "none":
        references["dark"] = random.integers(20, 40, shape) * (1 if dark == "integer" else -1000)
    if gain == "near 1":
        references["gain"] = random.normal(1, 0.1, shape)
    elif gain != "none":
        references["gain"] = 2.0 ** random.integers(-3, 4, shape) * (1 if gain == "powers of 2" else -1)
    expected = count_frame(frame, background, background + width, **references)
    assert electrons_of(frame, background, background + width, **references) == expected.tolist()


def test_edges_and_corners_do_not_wrap() -> None:
    frame = np.zeros((5, 7), np.uint16)
    frame[[0, 0, 4, 4], [0, 6, 0, 6]] = [50, 60, 70, 80]
    frame[2, 0], frame[2, 6] = 90, 91
    assert electrons_of(frame, 10, 1000) == [0, 6, 14, 20, 28, 34]


def test_a_plateau_is_no_electron_and_a_step_on_it_is_one() -> None:
    frame = np.zeros((6, 9), np.uint16)
    frame[1, 1:3] = 50
    frame[3:5, 5:7] = 50
    assert electrons_of(frame, 10, 1000) == []
    frame[4, 6] = 51
    assert electrons_of(frame, 10, 1000) == [4 * 9 + 6]


def test_an_xray_does_not_hide_its_neighbours() -> None:
    frame = np.zeros((5, 5), np.uint16)
    frame[2, 2], frame[2, 3] = 2000, 40
    assert electrons_of(frame, 10, 2000) == [13]
    assert electrons_of(frame, 10, 2001) == [12]


@pytest.mark.parametrize("xray", [0.0, 1000.0])
def test_a_negative_background_keeps_negative_values(xray: float) -> None:
    frame = np.zeros((3, 5), np.uint16)
    frame[1, 1], frame[1, 3] = 8, 20
    dark = np.full((3, 5), 10.0, np.float32)
    # Values: -10 with -2 and +10 in them; an x-ray's 0 is then greater than its negative neighbours.
    assert electrons_of(frame, -11, xray, dark=dark) == [6, 8]
    # Zeroed neighbours are greater than a kept negative value.
    assert electrons_of(frame, -3, xray, dark=dark) == ([8] if xray else [])


def test_a_pixel_without_neighbours_counts_where_the_thresholds_keep_it() -> None:
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    for value, electrons in ((10, 0), (11, 1), (19, 1), (20, 0)):
        single, among_masked = np.array([[value]], np.uint16), np.full((3, 3), value, np.uint16)
        assert electrons_of(single, 10, 20) == [0] * electrons
        assert electrons_of(among_masked, 10, 20, pixel_mask=mask) == [4] * electrons
        assert count_frame(single, 10, 20).tolist() == [0] * electrons


def test_masked_pixels_neither_are_electrons_nor_hinder_a_neighbour() -> None:
    frame = np.zeros((3, 6), np.uint16)
    frame[1, 1:5] = [50, 60, 70, 65]
    for mask_dtype in (bool, np.uint8, np.int64):
        mask = np.zeros((3, 6), mask_dtype)
        assert electrons_of(frame, 10, 100, pixel_mask=mask) == [9]
        mask[1, 3] = 1
        assert electrons_of(frame, 10, 100, pixel_mask=mask) == [8, 10]


def neighbouring_floats(value: float) -> list[float]:
    """``value`` and the nearest other float64 and float32 numbers."""
    single = np.float32(value)
    return [
        value,
        np.nextafter(value, -np.inf),
        np.nextafter(value, np.inf),
        float(np.nextafter(single, np.float32(-np.inf))),
        float(np.nextafter(single, np.float32(np.inf))),
    ]


@pytest.mark.parametrize("value", [1, 40, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
def test_thresholds_at_a_raw_value(value: int) -> None:
    frame = np.zeros((3, 3), np.uint16)
    frame[1, 1] = value
    for threshold in neighbouring_floats(value):
        assert electrons_of(frame, threshold, np.inf) == ([4] if value > threshold else [])
        assert electrons_of(frame, 0, threshold) == ([4] if value < threshold else [])


@pytest.mark.parametrize("correction", ["dark", "gain", "dark and gain", "row-dark and gain"])
def test_thresholds_at_a_corrected_value(correction: str) -> None:
    """What is rounded must be rounded before it is compared, also where few pixels are looked at closely."""
    random = np.random.default_rng(4)
    frame = np.zeros((3, 3), np.uint16)
    for _ in range(100):
        frame[1, 1] = random.integers(40, 5000)
        options: dict[str, Any] = {}
        if "gain" in correction:
            options["gain"] = np.full((3, 3), random.uniform(0.01, 3), np.float32)
        if correction.startswith("dark"):
            options["dark"] = np.where(frame == 0, 0, random.uniform(-30, 30)).astype(np.float32)
        if correction.startswith("row-dark"):
            options |= {"row_dark": "mean", "row_dark_level": random.uniform(10, 50)}
        value = float(corrected_values(frame, **options)[1, 1])
        assert value > 0
        for threshold in neighbouring_floats(value):
            assert electrons_of(frame, threshold, np.inf, **options) == ([4] if value > threshold else [])
            assert electrons_of(frame, 0, threshold, **options) == ([4] if value < threshold else [])


@pytest.mark.parametrize(("background", "xray"), [(-np.inf, np.inf), (-1e300, 1e300), (1e300, np.inf), (70000, 80000)])
def test_thresholds_beyond_all_values(background: float, xray: float) -> None:
    frame = noisy_frames(1, (20, 20))
    dark = np.full((20, 20), 31.5, np.float32)
    gain = np.full((20, 20), 1e-37, np.float32)  # the quotients overflow float32
    for references in ({}, {"dark": dark}, {"dark": dark, "gain": gain}):
        with np.errstate(over="ignore"):
            expected = count_frame(frame, background, xray, **references)
        assert electrons_of(frame, background, xray, **references) == expected.tolist()


# --- frames in sectors


@pytest.mark.parametrize("layout", SectorLayout)
@pytest.mark.parametrize("references", ["none", "dark", "dark and gain"])
def test_sectors_where_they_lie(layout: SectorLayout, references: str) -> None:
    random = np.random.default_rng(7)
    frames = noisy_frames(3, (6, ROWS, COLUMNS))
    missing = np.array([[bits >> sector & 1 for sector in range(SECTORS)] for bits in (0, 1, 8, 6, 13, 15)], bool)
    images = {}
    if references != "none":
        images["dark"] = random.normal(29, 1, FRAME_SHAPE).astype(np.float32)
    if references == "dark and gain":
        images["gain"] = random.normal(1, 0.1, FRAME_SHAPE).astype(np.float32)
    for background in (50.5, -3.0):
        buffers, addresses = scattered_sectors(frames, layout, missing)
        counted = ElectronCounter(layout, background, 2000, **images).count_block(addresses)
        assert len(buffers) == 24 - missing.sum()
        assert counted.indices.dtype == counted.counts.dtype == np.uint32
        assert counted.centroids is None
        expected = [
            count_frame(frame, background, 2000, **images, missing=missing_pixels(layout, gone))
            for frame, gone in zip(frames, missing, strict=True)
        ]
        assert counted.counts.tolist() == [len(electrons) for electrons in expected]
        np.testing.assert_array_equal(counted.indices, np.concatenate(expected))


@pytest.mark.parametrize("layout", SectorLayout)
def test_maxima_cross_sector_borders(layout: SectorLayout) -> None:
    frame = np.zeros((1, *FRAME_SHAPE), np.uint16)
    frame[0, 143, 143], frame[0, 144, 144] = 40, 41
    _buffers, addresses = scattered_sectors(frame, layout, np.zeros((1, SECTORS), bool))
    assert ElectronCounter(layout, 10, 1000).count_block(addresses).indices.tolist() == [144 * COLUMNS + 144]


def test_the_greatest_number_of_electrons_fits() -> None:
    frames = np.zeros((3, *FRAME_SHAPE), np.uint16)
    frames[:, ::2, ::2] = 100
    _buffers, addresses = scattered_sectors(frames, SectorLayout.ROWS, np.zeros((3, SECTORS), bool))
    counter = ElectronCounter(SectorLayout.ROWS, 10, 1000)
    first, counted = counter.count_block(addresses[:1]), counter.count_block(addresses)
    assert first.counts.tolist() == [288 * 288]
    assert counted.counts.tolist() == [288 * 288] * 3
    np.testing.assert_array_equal(counted.indices, np.tile(np.flatnonzero(frames[0]), 3))
    np.testing.assert_array_equal(counter.diffraction_sum, 4 * (frames[0] > 0))


def test_blocks_own_their_results() -> None:
    frames = noisy_frames(5, (2, *FRAME_SHAPE))
    _buffers, addresses = scattered_sectors(frames, SectorLayout.ROWS, np.zeros((2, SECTORS), bool))
    counter = ElectronCounter(SectorLayout.ROWS, 50, 2000, centroids=True, annuli=[np.ones(FRAME_SHAPE, bool)])
    first = counter.count_block(addresses[:1])
    kept = [array.copy() for array in vars(first).values()]
    counter.count_block(addresses[1:])
    for array, copied in zip(vars(first).values(), kept, strict=True):
        np.testing.assert_array_equal(array, copied)


def test_a_block_without_frames() -> None:
    counter = ElectronCounter(SectorLayout.ROWS, 50, 2000, centroids=True, annuli=[np.ones(FRAME_SHAPE, bool)])
    counted = counter.count_block(np.empty((0, SECTORS), np.uint64))
    shapes = {name: array.shape for name, array in vars(counted).items()}
    assert shapes == {"indices": (0,), "counts": (0,), "centroids": (0, 2), "moments": (0, 2), "annuli": (0, 1)}


# --- the public function


def test_many_frames_and_their_offsets() -> None:
    frames = noisy_frames(11, (150, 20, 30))
    indices, offsets = count_electrons(frames, background=50, xray=2000)
    assert indices.dtype == np.uint32
    assert offsets.dtype == np.uint64
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(indices[offsets[i] : offsets[i + 1]], count_frame(frame, 50, 2000))


def test_strides_byte_order_and_no_frames() -> None:
    frames = noisy_frames(12, (8, 20, 30))
    for view in (frames[::2, ::3, ::-1], frames.transpose(0, 2, 1), frames.astype(">u2")):
        indices, offsets = count_electrons(view, background=50, xray=2000)
        plain = np.ascontiguousarray(view, np.uint16)
        expected = [count_frame(frame, 50, 2000) for frame in plain]
        np.testing.assert_array_equal(indices, np.concatenate(expected))
        assert np.diff(offsets).tolist() == [len(electrons) for electrons in expected]
    indices, offsets = count_electrons(frames[:0], background=50, xray=2000)
    assert indices.tolist() == []
    assert offsets.tolist() == [0]


def test_simd_levels_are_what_the_processor_has() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    expected = ["portable"]
    if {"avx2", "bmi2"} <= flags:
        expected.insert(0, "avx2")
        if {"avx512bw", "avx512vl", "avx512dq"} <= flags:
            expected.insert(0, "avx512")
    assert list(simd_levels()) == (["neon"] if platform.machine() == "aarch64" else expected)
