"""Scans made up for tests: the same on every rank and in every process, from a seed."""

from uuid import UUID

import numpy as np

from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.protocol import Encoding
from mpistream.model.scan import Counters, CountingParameters, ScanRecord, Thresholds
from mpistream.model.virtual_images import VirtualDetectors

FIRST_FRAME = 1000
Frame = tuple[int, int, int, list[int]]  # position, frame number, missing sectors, events


def make_frames(
    seed: int, rows: int, columns: int, frames_at_most: int, mean_events: float, pixels: int = 576 * 576
) -> list[Frame]:
    """0 to ``frames_at_most`` frames at each position, numbered in a random order; some of them empty."""
    random = np.random.default_rng(seed)
    positions = np.repeat(np.arange(rows * columns), random.integers(0, frames_at_most + 1, rows * columns))
    numbers = random.permutation(len(positions)) + FIRST_FRAME
    frames = []
    for position, number in zip(positions.tolist(), numbers.tolist(), strict=True):
        count = min(pixels, int(random.poisson(mean_events) * random.integers(0, 2)))
        events = np.sort(random.choice(pixels, count, replace=False)).tolist()
        frames.append((position, number, int(random.choice([0, 0, 0, 0b0010, 0b1001])), events))
    random.shuffle(frames)  # type: ignore[arg-type]
    return frames


def to_events(frames: list[Frame]) -> ElectronEvents:
    """The frames in the order given."""
    return ElectronEvents.from_counts(
        np.array([frame[0] for frame in frames], np.uint32),
        np.array([frame[1] for frame in frames], np.uint64),
        np.array([frame[2] for frame in frames], np.uint8),
        np.array([len(frame[3]) for frame in frames], np.uint32),
        np.array([event for frame in frames for event in frame[3]], np.uint32),
    )


def describe(
    frames: list[Frame], rows: int, columns: int, frame_shape: tuple[int, int] = (576, 576), **changes: object
) -> DatasetDescription:
    scan = ScanRecord(
        uid=UUID(int=0x1234),
        scan_number=17,
        rows=rows,
        columns=columns,
        source="made up",
        encoding=Encoding.RECORDS_ROWS,
        first_frame=FIRST_FRAME,
        last_frame=FIRST_FRAME + max(len(frames), 1) - 1,
        block_frames=8,
        routing_version=1,
        direct=False,
        counting=CountingParameters(),
        output="scan.h5",
        overwrite=False,
        announced_unix_seconds=1.5e9,
    )
    counters = Counters(
        frames=len(frames),
        electrons=sum(len(frame[3]) for frame in frames),
        frames_incomplete=sum(frame[2] != 0 for frame in frames),
        frames_lost=0,
        sectors_missing=sum(frame[2].bit_count() for frame in frames),
        sectors_duplicate=1,
        sectors_rejected=2,
        raw_bytes=3,
    )
    description = {
        "thresholds": Thresholds(
            background=21.5, xray=2000.25, calibrated=True, sample_frames=64, statistics={"mean": 7.5, "std_dev": 2.25}
        ),
        "dark": np.full(frame_shape, 1.5, np.float32),
        "detectors": VirtualDetectors((0, 100), (100, 250), (280.5, 290.25)),
        "seconds": {"receiving": 1.25},
        "provenance": {"job": {"nodes": 2}},
        "frame_shape": frame_shape,
    }
    return DatasetDescription(scan=scan, counters=counters, **(description | changes))  # type: ignore[arg-type]
