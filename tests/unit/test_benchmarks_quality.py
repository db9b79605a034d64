"""Quality against truth: pairs, shares and centroids are right where the answer is known."""

from pathlib import Path

import numpy as np
import pytest

from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.benchmarks.centroids import AS_COUNTED, centroid_errors
from mpistream.benchmarks.known_frames import KnownFrames
from mpistream.benchmarks.matching import DOUBLE_RADIUS, RADIUS, Quality, centres_of, match
from mpistream.benchmarks.quality_report import check_plot_path, save_plot
from mpistream.benchmarks.recorded_frames import LAYOUT, XRAY
from mpistream.model.errors import StorageError
from mpistream.reduction.electron_counting import ElectronCounter, count_electrons


def pairs_one_by_one(events: np.ndarray, electrons: np.ndarray) -> set[tuple[int, int]]:
    """The definition: of all that fit, the nearest pair first."""
    distance = np.hypot(*(events[:, np.newaxis] - electrons).transpose(2, 0, 1))
    pairs: set[tuple[int, int]] = set()
    for flat in np.argsort(distance, axis=None, kind="stable"):
        event, electron = divmod(int(flat), len(electrons))
        taken = any(event == pair[0] or electron == pair[1] for pair in pairs)
        if distance[event, electron] <= RADIUS and not taken:
            pairs.add((event, electron))
    return pairs


@pytest.mark.parametrize("size", [6, 15, 60])
def test_pairs_are_made_one_to_one_the_nearest_first(size: int) -> None:
    random = np.random.default_rng(size)
    events = np.unique(random.integers(0, size, (60, 2)), axis=0).astype(float)
    electrons = random.uniform(0, size, (50, 2))
    found = match(events, electrons)
    assert set(zip(found.events.tolist(), found.electrons.tolist(), strict=True)) == pairs_one_by_one(events, electrons)
    others = np.delete(events, found.events, axis=0)
    distance = np.hypot(*(others[:, np.newaxis] - electrons).transpose(2, 0, 1))
    nearest = distance.argmin(axis=1)
    expected = (distance.min(axis=1) <= DOUBLE_RADIUS) & np.isin(nearest, found.electrons)
    assert found.doubles == expected.sum()


@pytest.mark.parametrize(("events", "electrons"), [(0, 3), (3, 0), (0, 0)])
def test_without_events_or_electrons_there_are_no_pairs(events: int, electrons: int) -> None:
    found = match(np.zeros((events, 2)), np.zeros((electrons, 2)))
    assert (len(found.events), len(found.electrons), found.doubles) == (0, 0, 0)


def test_pairs_false_events_and_double_counts() -> None:
    electrons = np.array([[10.2, 10.0], [50.0, 50.0]])
    events = np.array([[10.0, 10.0], [10.0, 12.0], [30.0, 30.0]])  # the second beside the first, the third anywhere
    found = match(events, electrons)
    assert (found.events.tolist(), found.electrons.tolist(), found.doubles) == ([0], [0], 1)
    quality = Quality(3, 2, 1, 1) + Quality(1, 2, 1, 0)
    assert (quality.precision, quality.recall, quality.double_counting) == (0.5, 0.5, 0.25)
    assert np.isnan([Quality().precision, Quality().recall, Quality().double_counting]).all()


def test_the_truth_belongs_to_the_frames() -> None:
    options = SimulationOptions(rows=1, columns=3, electrons=50, hot_pixels=0, dead_pixels=0)
    known = KnownFrames.simulate(options)
    mean, sigma = known.pedestal()
    assert (mean, sigma) == (pytest.approx(30, abs=0.2), pytest.approx(3, abs=0.3))
    indices, offsets = count_electrons(known.frames, background=mean + 6 * sigma, xray=XRAY)
    for frame, electrons in enumerate(known.electrons):
        events = indices[int(offsets[frame]) : int(offsets[frame + 1])]
        assert len(match(centres_of(events), electrons).events) > 0.9 * len(electrons) > 20
    np.testing.assert_array_equal(KnownFrames.simulate(options, first=1).frames, known.frames[1:])


def test_centroids_are_nearer_than_pixels() -> None:
    known = KnownFrames.simulate(SimulationOptions(rows=1, columns=4, electrons=200))
    mean, sigma = known.pedestal()
    background = mean + 4.5 * sigma
    counter = ElectronCounter(LAYOUT, background, XRAY, centroids=True)
    counted = [counter.count_block(addresses[np.newaxis]) for addresses in known.sector_addresses]
    errors = centroid_errors(known, counted, mean, background)
    # the standard deviation of a place anywhere in a square pixel, if the right pixel were always found
    assert errors["centre of the pixel"] == pytest.approx(np.sqrt(1 / 6), abs=0.03)
    assert errors[AS_COUNTED] < 0.5 * errors["centre of the pixel"]
    assert errors[AS_COUNTED] < errors["3 x 3, above the background threshold"]


@pytest.mark.parametrize("name", ["plot.jpeg", "plot", "nowhere/plot.png"])
def test_a_plot_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError):
        check_plot_path(tmp_path / name)


def test_a_plot_that_fails_to_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "plot.png"
    folder.mkdir()
    check_plot_path(folder)
    with pytest.raises(StorageError, match="cannot write"):
        save_plot({"sweep": []}, folder)
