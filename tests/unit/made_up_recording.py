"""Raw recordings made of made-up blocks, by one rank in this process."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from mpi4py import MPI

from mpistream.model.counted_block import of_kind
from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.geometry import SECTORS
from mpistream.model.protocol import blocks_digest
from mpistream.model.recorded_block import RecordedBlock
from mpistream.model.scan import UNCOUNTED, Counters, ScanRecord, SectorEnd, Thresholds
from mpistream.pipeline.ranks.rank_scan import RankScan
from mpistream.storage.delivery import rejected_records
from mpistream.storage.recording_pixels import pixels_path
from mpistream.storage.recording_writer import write_recording
from tests.unit.made_up_blocks import block_message, scan_record

Wrong = dict[int, dict[int, dict[str, int]]]


def recording_record(folder: Path, **changes: object) -> ScanRecord:
    values = {"uid": uuid4(), "recording": True, "counting": UNCOUNTED, "journals": str(folder / "journals")}
    return scan_record(output=str(folder / "recording.h5"), **(values | changes))


def everything(block: int, sector: int) -> int:
    """The bit map of a block of 4 frames of which all records come."""
    return 0b1111


def record_blocks(
    record: ScanRecord, present: Callable[[int, int], int] = everything, wrong: Wrong | None = None
) -> RankScan:
    """A rank to which all blocks have come, the records of ``present(block, sector)``; all journaled."""
    rank = RankScan.prepare(record, 0, 77)
    for block in record.block_range:
        for sector in range(SECTORS):
            assembled = rank.receive(*block_message(record, block, sector, present(block, sector), wrong))
            if assembled is not None:
                rank.count(assembled)
    rank.journal_counted(1.0)
    assert not rank.problem
    return rank


def ends_of(record: ScanRecord, present: Callable[[int, int], int]) -> tuple[SectorEnd, ...]:
    ends = []
    for sector in range(SECTORS):
        maps = [present(block, sector) for block in record.block_range]
        end = SectorEnd.cut_short(sector, "").model_copy(
            update={
                "blocks": len(maps),
                "records": sum(map(int.bit_count, maps)),
                "digest": blocks_digest(sector, record.block_range, maps),
                "sectors_duplicate": 10 + sector,
                "sectors_rejected": sector,
            }
        )
        ends.append(end)
    return tuple(ends)


def describe_recording(
    record: ScanRecord, blocks: list[RecordedBlock], ends: tuple[SectorEnd, ...]
) -> DatasetDescription:
    missing = [int(bits) for block in blocks for bits in block.missing]
    counters = Counters(
        frames=len(missing),
        electrons=0,
        frames_incomplete=sum(bits != 0 for bits in missing),
        sectors_missing=sum(map(int.bit_count, missing)),
        sectors_duplicate=46,
        sectors_rejected=6 + sum(block.records_rejected for block in blocks),
        frames_lost=record.last_frame - record.first_frame + 1 - len(missing),
        raw_bytes=sum(block.raw_bytes for block in blocks),
    )
    return DatasetDescription(
        record,
        Thresholds.given(record.counting),
        counters,
        provenance={"job": "made up"},
        ends=ends,
        rejected=rejected_records(blocks, record.block_frames),
    )


def make_recording(
    record: ScanRecord, present: Callable[[int, int], int] = everything, wrong: Wrong | None = None
) -> Path:
    """The file of a scan that one rank has recorded."""
    rank = record_blocks(record, present, wrong)
    finish(rank, present)
    rank.close(keep=False)
    return Path(record.output)


def finish(rank: RankScan, present: Callable[[int, int], int] = everything) -> None:
    """Gives the recording its name."""
    record, blocks = rank.record, of_kind(RecordedBlock, rank.take_blocks()[0])
    description = describe_recording(record, blocks, ends_of(record, present))
    target, pixels = Path(record.output), pixels_path(Path(record.journals))
    write_recording(MPI.COMM_SELF, blocks, pixels, description, target, record.overwrite, f"{record.uid.hex}.1-0")
