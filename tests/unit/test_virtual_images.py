import numpy as np
import pytest

from mpistream.model.virtual_images import (
    VirtualDetectors,
    annulus_mask,
    center_of_mass,
    diffraction_sum,
    frame_runs,
    frame_sums,
    virtual_image,
)
from tests.scans import make_frames, to_events

FRAME_SHAPE = (12, 20)
SCAN_SHAPE = (3, 7)


@pytest.fixture(params=[1, 3])
def frames(request):
    """Up to 1 or 3 frames per position, some positions without any."""
    return sorted(make_frames(8, *SCAN_SHAPE, frames_at_most=request.param, mean_events=30, pixels=12 * 20))


def slow_mask(inner, outer, center):
    rows, columns = FRAME_SHAPE
    return [
        [inner <= np.hypot(row - center[0], column - center[1]) < outer for column in range(columns)]
        for row in range(rows)
    ]


@pytest.mark.parametrize(("inner", "outer"), [(0, 1), (0, 5), (3, 4.5), (5, 1000)])
@pytest.mark.parametrize("center", [None, (0, 0), (4.25, 13.5), (-3, 30)])
def test_annulus(inner, outer, center):
    mask = annulus_mask(FRAME_SHAPE, inner, outer, center)
    np.testing.assert_array_equal(mask, slow_mask(inner, outer, center or (5.5, 9.5)))


def test_neighbouring_rings_share_no_pixel_and_leave_none_out():
    rings = [annulus_mask(FRAME_SHAPE, radius, radius + 2.5, (3, 4)) for radius in np.arange(0, 25, 2.5)]
    np.testing.assert_array_equal(np.sum(rings, axis=0), 1)


@pytest.mark.parametrize(("inner", "outer"), [(-1, 5), (5, 5), (6, 5)])
def test_radii_that_enclose_nothing_are_refused(inner, outer):
    with pytest.raises(ValueError, match="radii"):
        annulus_mask(FRAME_SHAPE, inner, outer)
    with pytest.raises(ValueError, match="radii"):
        VirtualDetectors(bright_field=(inner, outer))


@pytest.mark.parametrize("chunk_events", [1, 50, 10**6])
def test_images_are_what_adding_up_frame_by_frame_gives(frames, chunk_events, monkeypatch):
    monkeypatch.setattr("mpistream.model.virtual_images.CHUNK_EVENTS", chunk_events)
    events = to_events(frames)
    mask = annulus_mask(FRAME_SHAPE, 2, 7)
    pattern, image = np.zeros(FRAME_SHAPE, int), np.zeros(SCAN_SHAPE, int)
    for position, _, _, pixels in frames:
        for pixel in pixels:
            row, column = divmod(pixel, FRAME_SHAPE[1])
            pattern[row, column] += 1
            image[divmod(position, SCAN_SHAPE[1])] += mask[row, column]
    np.testing.assert_array_equal(virtual_image(events, mask, SCAN_SHAPE), image)
    np.testing.assert_array_equal(diffraction_sum(events.indices, FRAME_SHAPE), pattern)
    assert virtual_image(events, mask, SCAN_SHAPE).dtype == np.uint64


@pytest.mark.parametrize("chunk_events", [1, 7, 100, 10**6])
def test_runs_cover_every_frame_once_and_stay_within_bounds(frames, chunk_events):
    events = to_events(frames)
    runs = list(frame_runs(events.offsets, chunk_events))
    assert [index for run in runs for index in range(run.start, run.stop)] == list(range(len(events)))
    for run in runs:
        assert run.stop == run.start + 1 or len(events[run].indices) <= chunk_events


def test_a_scan_without_frames():
    events = to_events([])
    assert frame_sums(events, annulus_mask(FRAME_SHAPE, 0, 5)).shape == (0,)
    assert not virtual_image(events, annulus_mask(FRAME_SHAPE, 0, 5), SCAN_SHAPE).any()
    assert center_of_mass(diffraction_sum(events.indices, FRAME_SHAPE)) == (5.5, 9.5)


def test_events_outside_the_frame_are_refused():
    with pytest.raises(ValueError, match="2 events lie outside a frame of 12 x 20"):
        diffraction_sum(np.array([0, 240, 2**32 - 1], np.uint32), FRAME_SHAPE)


def test_center_of_mass_is_exact_for_sums_beyond_64_bits():
    pattern = np.zeros(FRAME_SHAPE, np.uint64)
    pattern[2, 3] = pattern[10, 19] = 2**62
    assert center_of_mass(pattern) == (6.0, 11.0)
    pattern[10, 19] = 0
    assert center_of_mass(pattern) == (2.0, 3.0)
