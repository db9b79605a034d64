"""Scans made up for tests: the same on every rank and in every process, from a seed."""

from collections.abc import Sequence
from uuid import UUID

import numpy as np
import numpy.typing as npt

from mpistream.model.dataset_description import DatasetDescription, SampleHistogram
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.frame_sums import FrameSums
from mpistream.model.h5_layout import REJECTED_DTYPE
from mpistream.model.protocol import Encoding, blocks_digest
from mpistream.model.scan import Counters, CountingParameters, ScanRecord, SectorEnd, Thresholds
from mpistream.model.virtual_images import VirtualDetectors

FIRST_FRAME = 1000
CALIBRATED = CountingParameters()
#: (row, column) of what the pixel mask of ``describe`` leaves out
BAD_PIXEL = 3, 570
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


def to_events(frames: list[Frame], centroids: bool = False) -> ElectronEvents:
    """The frames in the order given."""
    return ElectronEvents.from_counts(
        np.array([frame[0] for frame in frames], np.uint32),
        np.array([frame[1] for frame in frames], np.uint64),
        np.array([frame[2] for frame in frames], np.uint8),
        np.array([len(frame[3]) for frame in frames], np.uint32),
        np.array([event for frame in frames for event in frame[3]], np.uint32),
        np.concatenate([np.empty((0, 2), np.int8), *map(centroids_of, frames)]) if centroids else None,
    )


def centroids_of(frame: Frame) -> npt.NDArray[np.int8]:
    """int8[n, 2]: another centroid, row and column, for every event of every frame."""
    _, number, _, events = frame
    pixels = np.array(events, np.int64)
    return np.stack([(pixels * 7 + number) % 255 - 127, (pixels * 3 - number) % 255 - 127], axis=1).astype(np.int8)


def to_sums(frames: list[Frame], detectors: VirtualDetectors) -> FrameSums:
    """What counting adds up of each of the frames, the slow way; within the detectors where their center is given."""
    masks = detectors.masks((576, 576), detectors.center) if detectors.center is not None else ()
    sums = FrameSums(np.zeros((len(frames), 2), np.uint32), np.zeros((len(frames), len(masks)), np.uint32))
    for number, (_, _, _, events) in enumerate(frames):
        for pixel in events:
            row, column = divmod(pixel, 576)
            sums.moments[number] += np.array([row, column], np.uint32)
            sums.annuli[number] += np.array([mask[row, column] for mask in masks], np.uint32)
    return sums


def to_pattern(frames: list[Frame]) -> npt.NDArray[np.uint32]:
    """uint32[576, 576]: the electrons of all frames on each pixel."""
    pixels = np.array([pixel for _, _, _, events in frames for pixel in events], np.intp)
    return np.bincount(pixels, minlength=576 * 576).astype(np.uint32).reshape(576, 576)


def to_ends(frames: list[Frame], record: ScanRecord, rejected: Sequence[tuple[int, int]] = ()) -> list[SectorEnd]:
    """What the four producers sent for these frames and for the rejected records (frame number, sector)."""
    ends = []
    for sector in range(4):
        sent = {number for _, number, missing, _ in frames if not missing >> sector & 1}
        sent |= {number for number, of_sector in rejected if of_sector == sector}
        first = [block * record.block_frames for block in record.block_range]
        bit_maps = [sum(1 << bit for bit in range(record.block_frames) if number + bit in sent) for number in first]
        ends.append(
            SectorEnd(
                sector=sector,
                producer_id=sector + 1,
                blocks=len(record.block_range),
                records=len(sent),
                digest=blocks_digest(sector, record.block_range, bit_maps),
                sectors_duplicate=0,
                sectors_rejected=0,
                seconds_reading=0.5,
                seconds_sending=0.25,
            )
        )
    return ends


def to_rejected(records: Sequence[tuple[int, int]]) -> npt.NDArray[np.void]:
    return np.array(list(records), REJECTED_DTYPE)


def describe(
    frames: list[Frame],
    rows: int,
    columns: int,
    counting: CountingParameters = CALIBRATED,
    rejected: Sequence[tuple[int, int]] = (),
    **changes: object,
) -> DatasetDescription:
    """``rejected`` are records (frame number, sector) of sectors that are missing."""
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
        direct=False,
        counting=counting,
        detectors=VirtualDetectors((0, 100), (100, 250), (280.5, 290.25)),
        output="scan.h5",
        overwrite=False,
        announced_unix_seconds=1.5e9,
    )
    counters = Counters(
        frames=len(frames),
        electrons=sum(len(frame[3]) for frame in frames),
        frames_incomplete=sum(frame[2] != 0 for frame in frames),
        frames_lost=max(len(frames), 1) - len(frames),
        sectors_missing=sum(frame[2].bit_count() for frame in frames),
        sectors_duplicate=1,
        sectors_rejected=2,
        raw_bytes=3,
    )
    pixel_mask = np.zeros((576, 576), np.int32)
    pixel_mask[BAD_PIXEL] = 4
    description = {
        "thresholds": Thresholds(
            background=21.5,
            xray=2000.25,
            row_dark_level=counting.row_dark_level,
            calibrated=True,
            sample_frames=64,
            statistics={"mean": 7.5, "std_dev": 2.25},
        ),
        "dark": np.full((576, 576), 1.5, np.float32),
        "pixel_mask": pixel_mask,
        "sample_histogram": SampleHistogram(-2, np.array([3, 0, 2**40], np.uint64)),
        "seconds": {"receiving": 1.25},
        "provenance": {"job": {"nodes": 2}},
        "ends": tuple(to_ends(frames, scan, rejected)),
        "rejected": to_rejected(rejected),
    }
    return DatasetDescription(scan=scan, counters=counters, **(description | changes))  # type: ignore[arg-type]
