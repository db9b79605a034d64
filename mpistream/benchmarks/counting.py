"""How many frames per second one core counts: by each path, beside stempy, and beside a pass that only reads.

All of it is measured in the same run, on the same frames and the same core, in rounds that go through everything once;
ratios are taken within a round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream._ext.memory_limit import sectors_above, vector_bytes
from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.benchmarks import recorded_frames
from mpistream.benchmarks.measurement import (
    Bar,
    Spread,
    in_rounds,
    last_level_cache_bytes,
    median_seconds,
    one_core,
    processor_name,
    quotients,
)
from mpistream.benchmarks.recorded_frames import (
    BACKGROUND,
    BACKGROUND_AFTER_DARK,
    BLOCK_FRAMES,
    LAYOUT,
    PEDESTAL,
    XRAY,
    RecordedFrames,
    References,
)
from mpistream.benchmarks.stempy_peer import CLASSIC, MULTI_PASS, CountedByStempy, CountingTask, StempyPeer
from mpistream.model.errors import MpistreamError
from mpistream.model.geometry import FRAME_PIXELS, FRAME_SHAPE, SECTORS
from mpistream.model.virtual_images import VirtualDetectors
from mpistream.reduction.electron_counting import ElectronCounter, simd_levels

ELECTRONS = 2400
SWEEP = (0, 500, 2400, 8000, 20000)

NO_DARK, DARK, DARK_AND_GAIN = "no dark", "dark", "dark and gain"
COMPARED = (NO_DARK, DARK, DARK_AND_GAIN)
#: How many times faster than stempy's faster path, for ``COMPARED``, by the vectors that the CPU has.
OVER_STEMPY = {"avx512": (40.0, 25.0, 15.0), "avx2": (20.0, 12.5, 7.5)}
OF_THE_LIMIT = 0.30
FLATNESS = 1.2
#: Timing noise that a comparison of two slopes is allowed.
SLOPE_TOLERANCE = 1.1


class EventsDiffer(MpistreamError):
    """stempy and mpistream did not find the same electrons, so comparing their speed means nothing."""


@dataclass(frozen=True)
class Extent:
    """How much is measured. ``sweep_frames`` are those of each number of electrons; both are multiples of 8."""

    frames: int = 1024
    sweep_frames: int = 256
    rounds: int = 5
    passes: int = 3

    @classmethod
    def of(cls, frames: int | None, quick: bool) -> "Extent":
        """``frames`` is rounded up to whole blocks of 8."""
        least = cls(16, 8, 2, 1) if quick else cls()
        if frames is None:
            return least
        blocks = -(-frames // BLOCK_FRAMES)
        return cls(blocks * BLOCK_FRAMES, -(-blocks // 4) * BLOCK_FRAMES, least.rounds, least.passes)

    @property
    def sizes(self) -> list[int]:
        """Numbers of frames of scans of several sizes: 64, 256 and 1024. Below 64 the first block would decide."""
        least = min(64, self.frames)
        return sorted({max(self.frames // part // BLOCK_FRAMES * BLOCK_FRAMES, least) for part in (16, 4, 1)})


def measure(extent: Extent, progress: Callable[[str], None]) -> dict[str, Any]:
    """All figures, as they are printed with --json. ``progress`` is told what comes next.

    Raises EventsDiffer, and ConfigError without stempy.
    """
    options = recorded_frames.scan_of(extent.frames, ELECTRONS)
    raw_bytes = extent.frames * FRAME_PIXELS * 2
    with one_core() as core, StempyPeer() as peer, recorded_frames.folder_in_memory(raw_bytes) as folder:
        progress(f"simulating {extent.frames} frames")
        simulate_to_files(options, folder)
        frames = recorded_frames.load(folder, extent.frames)
        references = recorded_frames.references_of(options)
        progress("counting the same frames with stempy and mpistream: are the electrons the same?")
        tasks = stempy_tasks(folder, (options.rows, options.columns), references)
        events = compare_events(peer, tasks, frames, references)
        progress(f"measuring {extent.rounds} rounds: every path, stempy, and a pass that only reads")
        paths, stempy, limit = _measure_paths(extent, frames, references, peer, tasks)
        progress("measuring scans of several sizes, and frames with few and with many electrons")
        sizes = _measure_sizes(extent, frames)
        stempy_version = peer.version
    with one_core():
        sweep = _measure_sweep(extent)
    return {
        "machine": {
            "processor": processor_name(),
            "core": core,
            "last_level_cache_bytes": last_level_cache_bytes(),
            "bytes_per_load": vector_bytes(),
        },
        "frames": extent.frames,
        "raw_bytes": raw_bytes,
        "electrons_per_frame": events / extent.frames,
        "rounds": extent.rounds,
        "passes_per_round": extent.passes,
        "same_events_as_stempy": True,
        "stempy_version": stempy_version,
        "frames_per_second": paths,
        "stempy_frames_per_second": stempy,
        "limit_frames_per_second": limit,
        "microseconds_per_frame_by_electrons": sweep,
        "microseconds_per_frame_by_frames": sizes,
        "bars": {name: bar.as_json() for name, bar in _bars(paths, stempy, limit, sweep, sizes).items()},
    }


def counter_of(path: str, references: References, level: str | None = None) -> ElectronCounter:
    """The counter of one of ``PATHS``; ``level`` is one of ``simd_levels()``, the best by default."""
    corrections, options = _PATHS[path](references)
    background = BACKGROUND_AFTER_DARK if corrections else BACKGROUND
    return ElectronCounter(LAYOUT, background, XRAY, *corrections, simd=level, **options)


#: Name -> (dark and gain, options of ElectronCounter).
_PATHS: dict[str, Callable[[References], tuple[tuple[npt.NDArray[np.float32], ...], dict[str, Any]]]] = {
    NO_DARK: lambda references: ((), {}),
    DARK: lambda references: ((references.dark,), {}),
    DARK_AND_GAIN: lambda references: ((references.dark, references.gain), {}),
    "row-dark mean": lambda references: ((), {"row_dark": "mean", "row_dark_level": PEDESTAL}),
    "row-dark median": lambda references: ((), {"row_dark": "median", "row_dark_level": PEDESTAL}),
    "pixel mask": lambda references: ((), {"pixel_mask": references.bad_pixels}),
    "centroids": lambda references: ((), {"centroids": True}),
    "two annuli": lambda references: (
        (),
        {"annuli": VirtualDetectors().masks(FRAME_SHAPE, (FRAME_SHAPE[0] / 2, FRAME_SHAPE[1] / 2))},
    ),
}
PATHS = tuple(_PATHS)


def stempy_tasks(folder: Path, scan_shape: tuple[int, int], references: References) -> dict[str, CountingTask]:
    """What stempy counts, by ``COMPARED``."""
    task = partial(CountingTask, folder, scan_shape)
    return {
        NO_DARK: task(BACKGROUND, XRAY),
        DARK: task(BACKGROUND_AFTER_DARK, XRAY, references.dark),
        DARK_AND_GAIN: task(BACKGROUND_AFTER_DARK, XRAY, references.dark, references.gain),
    }


def compare_events(
    peer: StempyPeer, tasks: dict[str, CountingTask], frames: RecordedFrames, references: References
) -> int:
    """Raises EventsDiffer unless all simd levels and both paths of stempy find the same electrons. Returns how many.

    Without a gain stempy subtracts a dark reference in integers: its classic path as if every fraction were rounded up,
    its multi-pass path as if it were cut off. Compared is what both count with that. And the multi-pass path
    calibrates: compared is what both count with its thresholds.
    """
    total = 0
    for name, task in tasks.items():
        for path, whole in ((CLASSIC, np.ceil), (MULTI_PASS, np.trunc)):
            theirs = peer.count(path, task)
            dark = None if name == NO_DARK else references.dark if name == DARK_AND_GAIN else whole(references.dark)
            gain = references.gain if name == DARK_AND_GAIN else None
            for level in simd_levels() if path == CLASSIC else simd_levels()[:1]:
                counter = ElectronCounter(LAYOUT, theirs.background, theirs.xray, dark, gain, simd=level)
                _compare(theirs, counter, frames, f"{name}, {level}, and stempy's {path} path")
            if name == NO_DARK and path == CLASSIC:
                total = len(theirs.indices)
    return total


def _compare(theirs: CountedByStempy, counter: ElectronCounter, frames: RecordedFrames, what: str) -> None:
    counted = [counter.count_block(addresses) for addresses in frames.blocks]
    indices = np.concatenate([block.indices for block in counted])
    counts = np.concatenate([block.counts for block in counted])
    if not (np.array_equal(counts, theirs.counts) and np.array_equal(indices, theirs.indices)):
        raise EventsDiffer(f"other electrons: {what}", "is it stempy 3.6.0? Run the tests: make test")


def _measure_paths(
    extent: Extent, frames: RecordedFrames, references: References, peer: StempyPeer, tasks: dict[str, CountingTask]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, list[float]]], list[float]]:
    """Frames/s round by round: by simd level and path, by stempy's path and what it corrects, and of the limit."""
    contenders: dict[str, Callable[[], float]] = {}
    for path in PATHS:
        for level in simd_levels():
            counter = counter_of(path, references, level)
            contenders[f"{level}/{path}"] = partial(_rate, extent, frames, partial(_count, counter, frames.blocks))
        contenders[f"limit/{path}"] = partial(_rate, extent, frames, partial(read_and_compare, frames.blocks))
    for name, task in tasks.items():
        for path in (CLASSIC, MULTI_PASS):
            contenders[f"{path}/{name}"] = partial(_stempy_rate, peer, path, task)
    measured = in_rounds(contenders, extent.rounds)
    ours = {level: {path: measured[f"{level}/{path}"] for path in PATHS} for level in simd_levels()}
    stempy = {path: {name: measured[f"{path}/{name}"] for name in tasks} for path in (CLASSIC, MULTI_PASS)}
    # The limit is measured beside every path.
    of_rounds = zip(*(measured[f"limit/{path}"] for path in PATHS), strict=True)
    limit = [Spread.of(values).median for values in of_rounds]
    return ours, stempy, limit


def _rate(extent: Extent, frames: RecordedFrames, work: Callable[[], object]) -> float:
    return frames.frames / median_seconds(work, extent.passes)


def _stempy_rate(peer: StempyPeer, path: str, task: CountingTask) -> float:
    return peer.count(path, task).frames_per_second


def _count(counter: ElectronCounter, blocks: Sequence[npt.NDArray[np.uint64]]) -> None:
    for addresses in blocks:
        counter.count_block(addresses)


def read_and_compare(blocks: Sequence[npt.NDArray[np.uint64]]) -> int:
    """The limit: reads every pixel once; returns how many sectors have one above the background."""
    return sum(sectors_above(addresses, FRAME_PIXELS // SECTORS, int(BACKGROUND)) for addresses in blocks)


def _measure_sizes(extent: Extent, frames: RecordedFrames) -> dict[str, list[float]]:
    """Microseconds per frame without dark, round by round, of scans of several sizes."""
    counter = ElectronCounter(LAYOUT, BACKGROUND, XRAY)
    scans = {str(size): frames.first(size) for size in extent.sizes}

    def cost(scan: RecordedFrames) -> float:
        seconds = []
        # Small scans are over so soon that they are measured more often.
        for _ in range(extent.passes * (frames.frames // scan.frames)):
            # What the last pass left in the caches would make a small scan look cheap.
            read_and_compare(frames.blocks)
            seconds.append(median_seconds(partial(_count, counter, scan.blocks), 1))
        return Spread.of(seconds).median / scan.frames * 1e6

    return in_rounds({size: partial(cost, scan) for size, scan in scans.items()}, extent.rounds)


def _measure_sweep(extent: Extent) -> dict[str, dict[str, list[float]]]:
    """Microseconds per frame without dark, round by round: by simd level, then by mean electrons per frame."""
    contenders: dict[str, Callable[[], float]] = {}
    for electrons in SWEEP:
        frames = recorded_frames.simulate(recorded_frames.scan_of(extent.sweep_frames, electrons))
        for level in simd_levels():
            counter = ElectronCounter(LAYOUT, BACKGROUND, XRAY, simd=level)
            rate = partial(_rate, extent, frames, partial(_count, counter, frames.blocks))
            contenders[f"{level}/{electrons}"] = rate
    measured = in_rounds(contenders, extent.rounds)
    return {
        level: {str(electrons): [1e6 / rate for rate in measured[f"{level}/{electrons}"]] for electrons in SWEEP}
        for level in simd_levels()
    }


def over_stempy(
    paths: dict[str, dict[str, list[float]]], stempy: dict[str, dict[str, list[float]]], level: str, name: str
) -> list[float]:
    """Round by round, how many times faster than the faster of stempy's paths."""
    faster = [max(rates) for rates in zip(stempy[CLASSIC][name], stempy[MULTI_PASS][name], strict=True)]
    return quotients(paths[level][name], faster)


def _bars(
    paths: dict[str, dict[str, list[float]]],
    stempy: dict[str, dict[str, list[float]]],
    limit: list[float],
    sweep: dict[str, dict[str, list[float]]],
    sizes: dict[str, list[float]],
) -> dict[str, Bar]:
    """What was asked for, and what it is; ratios are medians over the rounds."""
    best = simd_levels()[0]
    bars = {}
    for level, least in OVER_STEMPY.items():
        for name, bar in zip(COMPARED, least, strict=True):
            if level in paths:
                bars[f"{level}, {name}, times stempy"] = Bar(
                    Spread.of(over_stempy(paths, stempy, level, name)).median, bar
                )
    bars["no dark, share of the limit"] = Bar(Spread.of(quotients(paths[best][NO_DARK], limit)).median, OF_THE_LIMIT)
    cost = {int(electrons): Spread.of(values).median for electrons, values in sweep[best].items()}
    bars["20,000 electrons, times the cost of 2,400"] = Bar(cost[20000] / cost[2400], 20000 / 2400, at_most=True)
    slope_below = (cost[2400] - cost[0]) / 2400
    slope_above = (cost[20000] - cost[2400]) / (20000 - 2400)
    bars["each electron beyond 2,400, times the cost of one below"] = Bar(
        slope_above / slope_below, SLOPE_TOLERANCE, at_most=True
    )
    of_sizes = [Spread.of(values).median for values in sizes.values()]
    bars["largest over smallest cost by scan size"] = Bar(max(of_sizes) / min(of_sizes), FLATNESS, at_most=True)
    return bars
