"""How well electrons are found, since the simulator knows where they hit; beside stempy, at the same thresholds."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.benchmarks.centroids import centroid_errors
from mpistream.benchmarks.known_frames import DEFAULT_SIGMAS, KnownFrames
from mpistream.benchmarks.matching import DOUBLE_RADIUS, RADIUS, Quality, centres_of, match
from mpistream.benchmarks.recorded_frames import LAYOUT, XRAY
from mpistream.benchmarks.stempy_peer import StempyPeer
from mpistream.reduction.electron_counting import ElectronCounter, count_electrons

DENSITIES = (500, 2500, 8000)
SIGMAS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0)
PROGRAMS = ("mpistream", "stempy")
REFERENCES = ("none", "dark")

_DARK_FRAMES = 64


def measure(frames: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """All figures, as they are printed with --json, of ``frames`` frames with each of ``DENSITIES``.

    ``progress`` is told what comes next. Raises ConfigError without stempy.
    """
    sweep: list[dict[str, Any]] = []
    centroids: dict[str, dict[str, float]] = {}
    dark = _dark_reference(frames)
    with StempyPeer() as peer:
        for density in DENSITIES:
            progress(f"{frames} frames with {density} electrons, {len(SIGMAS)} thresholds, with and without dark")
            known = KnownFrames.simulate(SimulationOptions(rows=1, columns=frames, electrons=density))
            for references in REFERENCES:
                for figures in _sweep(known, peer, dark if references == "dark" else None):
                    sweep.append({"electrons": density, "references": references, **figures})
            centroids[str(density)] = _centroids(known)
        version = peer.version
    return {
        "frames": frames,
        "stempy_version": version,
        "matching_radius_pixels": RADIUS,
        "double_counting_radius_pixels": DOUBLE_RADIUS,
        "xray": XRAY,
        "sweep": sweep,
        "centroid_rms_pixels": centroids,
    }


def _dark_reference(frames: int) -> npt.NDArray[np.float32]:
    """The mean of dark frames of the same detector; none of them has the read noise of the first ``frames``."""
    options = SimulationOptions(rows=1, columns=frames + _DARK_FRAMES, electrons=0, xrays=0)
    return KnownFrames.simulate(options, first=frames).frames.mean(axis=0, dtype=np.float64).astype(np.float32)


def _sweep(known: KnownFrames, peer: StempyPeer, dark: npt.NDArray[np.float32] | None) -> Iterator[dict[str, Any]]:
    mean, sigma = known.pedestal(dark)
    for sigmas in SIGMAS:
        background = mean + sigmas * sigma
        indices, offsets = count_electrons(known.frames, background=background, xray=XRAY, dark=dark)
        ours = np.split(indices, offsets[1:-1].astype(np.intp))
        theirs = peer.count_frames(known.frames, background, XRAY, dark)
        yield {
            "sigmas": sigmas,
            "background": background,
            "mpistream": _shares(known, ours),
            "stempy": _shares(known, theirs),
        }


def _shares(known: KnownFrames, events: Sequence[npt.NDArray[np.uint32]]) -> dict[str, float]:
    quality = Quality()
    for indices, electrons in zip(events, known.electrons, strict=True):
        pairs = match(centres_of(indices), electrons)
        quality += Quality(len(indices), len(electrons), len(pairs.events), pairs.doubles)
    return {
        "precision": quality.precision,
        "recall": quality.recall,
        "double_counting": quality.double_counting,
        "events": quality.events,
    }


def _centroids(known: KnownFrames) -> dict[str, float]:
    mean, sigma = known.pedestal()
    background = mean + DEFAULT_SIGMAS * sigma
    counter = ElectronCounter(LAYOUT, background, XRAY, centroids=True)
    counted = [counter.count_block(addresses[np.newaxis]) for addresses in known.sector_addresses]
    return centroid_errors(known, counted, mean, background)
