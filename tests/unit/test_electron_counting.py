"""The counting kernel against its definition."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mpistream.model.errors import ConfigError, SourceError
from mpistream.model.geometry import FRAME_SHAPE, HEADER_BYTES, SECTORS, SectorLayout
from mpistream.reduction.electron_counting import ElectronCounter, count_electrons, simd_level
from tests.unit.slow_reference import count_frame

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


def electrons_of(frame: np.ndarray, background: float, xray: float, **references: np.ndarray) -> list[int]:
    indices, offsets = count_electrons(frame[np.newaxis], background=background, xray=xray, **references)
    assert offsets.tolist() == [0, len(indices)]
    return indices.tolist()


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


@settings(max_examples=200, deadline=None)
@given(data=st.data(), shape=shapes)
def test_raw_frames_of_any_shape(data: st.DataObject, shape: tuple[int, int]) -> None:
    frame = data.draw(st_numpy.arrays(np.uint16, shape, elements=pixels))
    background = data.draw(st.one_of(st.integers(-2, 12), st.floats(-2, 70000)))
    xray = data.draw(
        st.one_of(st.integers(1, 20), st.floats(0, 70000), st.just(np.inf)).filter(lambda x: x > background)
    )
    assert electrons_of(frame, background, xray) == count_frame(frame, background, xray).tolist()


@settings(max_examples=200, deadline=None)
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


def test_a_single_pixel_has_no_neighbours() -> None:
    assert electrons_of(np.array([[7]], np.uint16), 10, 20) == [0]
    assert count_frame(np.array([[7]], np.uint16), 10, 20).tolist() == [0]


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


@pytest.mark.parametrize("dark_value", [0.1, 1 / 3, -29.7])
def test_thresholds_at_a_corrected_value(dark_value: float) -> None:
    frame = np.zeros((3, 3), np.uint16)
    frame[1, 1] = 40
    dark, gain = np.full((3, 3), dark_value, np.float32), np.full((3, 3), 1.7, np.float32)
    dark[frame == 0] = 0
    value = float((np.float32(40) - dark[1, 1]) * (np.float32(1) / gain[1, 1]))
    for threshold in neighbouring_floats(value):
        assert electrons_of(frame, threshold, np.inf, dark=dark, gain=gain) == ([4] if value > threshold else [])
        assert electrons_of(frame, 0, threshold, dark=dark, gain=gain) == ([4] if value < threshold else [])


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
        indices, counts = ElectronCounter(layout, background, 2000, **images).count_block(addresses)
        assert len(buffers) == 24 - missing.sum()
        assert indices.dtype == counts.dtype == np.uint32
        expected = [
            count_frame(frame, background, 2000, **images, missing=missing_pixels(layout, gone))
            for frame, gone in zip(frames, missing, strict=True)
        ]
        assert counts.tolist() == [len(electrons) for electrons in expected]
        np.testing.assert_array_equal(indices, np.concatenate(expected))


@pytest.mark.parametrize("layout", SectorLayout)
def test_maxima_cross_sector_borders(layout: SectorLayout) -> None:
    frame = np.zeros((1, *FRAME_SHAPE), np.uint16)
    frame[0, 143, 143], frame[0, 144, 144] = 40, 41
    _buffers, addresses = scattered_sectors(frame, layout, np.zeros((1, SECTORS), bool))
    indices, _ = ElectronCounter(layout, 10, 1000).count_block(addresses)
    assert indices.tolist() == [144 * COLUMNS + 144]


def test_the_greatest_number_of_electrons_fits() -> None:
    frames = np.zeros((3, *FRAME_SHAPE), np.uint16)
    frames[:, ::2, ::2] = 100
    _buffers, addresses = scattered_sectors(frames, SectorLayout.ROWS, np.zeros((3, SECTORS), bool))
    counter = ElectronCounter(SectorLayout.ROWS, 10, 1000)
    _, first_counts = counter.count_block(addresses[:1])
    indices, counts = counter.count_block(addresses)
    assert first_counts.tolist() == [288 * 288]
    assert counts.tolist() == [288 * 288] * 3
    np.testing.assert_array_equal(indices, np.tile(np.flatnonzero(frames[0]), 3))


def test_blocks_own_their_results() -> None:
    frames = noisy_frames(5, (2, *FRAME_SHAPE))
    _buffers, addresses = scattered_sectors(frames, SectorLayout.ROWS, np.zeros((2, SECTORS), bool))
    counter = ElectronCounter(SectorLayout.ROWS, 50, 2000)
    first, _ = counter.count_block(addresses[:1])
    kept = first.copy()
    counter.count_block(addresses[1:])
    np.testing.assert_array_equal(first, kept)
    no_frames, no_counts = counter.count_block(addresses[:0])
    assert len(no_frames) == len(no_counts) == 0


@pytest.mark.parametrize("addresses", [np.zeros((2, 4), np.int64), np.zeros((2, 3), np.uint64), np.zeros(4, np.uint64)])
def test_addresses_of_another_kind_are_refused(addresses: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"address|Buffer"):
        ElectronCounter(SectorLayout.ROWS, 10, 20).count_block(addresses)


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


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, 4, 4), np.int32), "dtype int32"),
        (np.zeros((1, 4, 4), np.float32), "dtype float32"),
        (np.zeros((4, 4), np.uint16), r"shape \(4, 4\)"),
        (np.zeros((1, 0, 4), np.uint16), "0 rows"),
    ],
)
def test_frames_that_are_none(frames: np.ndarray, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        count_electrons(frames, background=1, xray=2)
    assert caught.value.remedy


@pytest.mark.parametrize(("background", "xray"), [(np.nan, 5), (5, np.nan), (5, 5), (6, 5), (np.inf, np.inf)])
def test_thresholds_that_keep_nothing(background: float, xray: float) -> None:
    with pytest.raises(ConfigError) as caught:
        count_electrons(np.zeros((1, 4, 4), np.uint16), background=background, xray=xray)
    assert caught.value.remedy


def test_simd_level_is_what_the_processor_has() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    best = "avx512" if {"avx512bw", "avx512vl", "avx512dq"} <= flags else "avx2" if "avx2" in flags else "portable"
    assert simd_level() == best
