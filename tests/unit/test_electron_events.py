"""The arrays of electron events, with and without centroids."""

from dataclasses import replace

import numpy as np
import pytest

from mpistream.model.electron_events import ElectronEvents
from tests.scans import Frame, centroids_of, make_frames, to_events

FRAMES = make_frames(4, 3, 5, frames_at_most=2, mean_events=20)
EMPTY_FRAME: Frame = (2, 77, 0, [])


def test_a_run_has_its_frames_and_their_centroids() -> None:
    events = to_events(FRAMES, centroids=True)
    run = events[3:12]
    np.testing.assert_array_equal(run.indices, to_events(FRAMES[3:12]).indices)
    np.testing.assert_array_equal(run.centroids, to_events(FRAMES[3:12], centroids=True).centroids)
    assert len(run.centroids) > 0
    assert to_events(FRAMES)[3:12].centroids is None
    assert events[7:7].centroids.shape == (0, 2)


@pytest.mark.parametrize("centroids", [True, False])
def test_parts_add_up_to_the_whole(centroids: bool) -> None:
    whole = to_events(FRAMES, centroids)
    parts = [whole[:4], ElectronEvents.empty(), whole[4:4], whole[4:]]
    added = ElectronEvents.concatenate(parts)
    added.validate(positions=15)
    for name in ("scan_position", "frame_number", "missing_sectors", "offsets", "indices", "centroids"):
        np.testing.assert_array_equal(getattr(added, name), getattr(whole, name), name)


@pytest.mark.parametrize("of_the_empty", [True, False])
@pytest.mark.parametrize("of_the_others", [True, False])
def test_a_part_without_events_is_neutral(of_the_empty: bool, of_the_others: bool) -> None:
    part = to_events(FRAMES, of_the_others)
    added = ElectronEvents.concatenate([to_events([EMPTY_FRAME], of_the_empty), part])
    added.validate(positions=15)
    assert len(added) == len(part) + 1
    assert (added.centroids is not None) == of_the_others


def test_without_any_event_centroids_remain_if_a_part_has_them() -> None:
    with_centroids = to_events([EMPTY_FRAME], centroids=True)
    assert ElectronEvents.concatenate([ElectronEvents.empty(), with_centroids]).centroids.shape == (0, 2)
    assert ElectronEvents.concatenate([ElectronEvents.empty()]).centroids is None


def test_centroids_of_some_events_only_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{len(to_events(FRAMES).indices)} events without centroids"):
        ElectronEvents.concatenate([to_events(FRAMES), to_events(FRAMES, centroids=True)])


def test_centroids_of_another_number_of_events_are_refused() -> None:
    events = to_events(FRAMES, centroids=True)
    torn = replace(events, centroids=events.centroids[1:])
    with pytest.raises(ValueError, match="centroids of the shape"):
        torn.validate(positions=15)


def test_coordinates_are_those_of_the_pixel_plus_the_centroid() -> None:
    frame: Frame = (0, 5, 0, [0, 576 * 3 + 4, 576 * 576 - 1])
    pixels = [[0.0, 0.0], [3.0, 4.0], [575.0, 575.0]]
    assert to_events([frame]).coordinates(576).tolist() == pixels
    found = to_events([frame], centroids=True).coordinates(576)
    assert found.dtype == np.float64
    assert found.tolist() == (np.array(pixels) + centroids_of(frame).astype(float) / 128).tolist()
