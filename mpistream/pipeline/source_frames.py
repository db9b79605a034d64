"""The frames of a source in this process, as a scan's ranks would see them: without MPI, etcd or a network."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

import numpy as np

from mpistream.acquisition.sector_source import SectorSource
from mpistream.acquisition.source import absolute_specification, describe_source, open_source
from mpistream.model.geometry import RECORD_BYTES, SECTORS
from mpistream.model.protocol import BlockHeader, blocks_digest
from mpistream.model.scan import CountingParameters, ScanRecord, SectorEnd
from mpistream.reduction.calibration import SampleStatistics, merge_sample, sample_block
from mpistream.reduction.frame_assembly import AssembledBlock, FrameAssembly
from mpistream.reduction.reference_images import References


def record_of_source(
    specification: str,
    block_frames: int,
    counting: CountingParameters,
    *,
    output: str = "",
    overwrite: bool = False,
    direct: bool = False,
) -> tuple[ScanRecord, tuple[str, ...]]:
    """The record of a scan of this source, but for the routing table, and notes for the user. Raises SourceError."""
    description = describe_source(specification)
    record = ScanRecord(
        uid=uuid.uuid4(),
        scan_number=description.scan_number,
        rows=description.scan_shape.rows,
        columns=description.scan_shape.columns,
        source=absolute_specification(specification),
        encoding=description.encoding,
        first_frame=description.first_frame,
        last_frame=description.last_frame,
        block_frames=block_frames,
        direct=direct,
        counting=counting,
        output=output,
        overwrite=overwrite,
        announced_unix_seconds=time.time(),
    )
    return record, description.notes


def source_blocks(record: ScanRecord, blocks: range | None = None) -> Iterator[AssembledBlock]:
    """The blocks of a scan's source, put together, in ascending order; ``blocks`` are some of ``record.block_range``.

    Each has memory of its own, which it keeps. Raises SourceError.
    """
    with ExitStack() as opened:
        sources = [opened.enter_context(closing(open_source(record.source, sector))) for sector in range(SECTORS)]
        yield from read_blocks(
            record, sources, record.block_range if blocks is None else blocks, FrameAssembly(record).add
        )


def read_blocks(
    record: ScanRecord,
    sources: Sequence[SectorSource],
    blocks: range,
    assemble: Callable[[BlockHeader, memoryview], AssembledBlock | None],
    seconds_reading: list[float] | None = None,
) -> Iterator[AssembledBlock]:
    """As ``source_blocks``, from sectors that are open. What reading takes is added to ``seconds_reading``, by sector.

    Raises SourceError.
    """
    for block in blocks:
        for source in sources:
            started = time.monotonic()
            header, payload = _message(record, source, block)
            if seconds_reading is not None:
                seconds_reading[source.sector] += time.monotonic() - started
            assembled = assemble(header, payload)
        assert assembled is not None, "four sectors make a block"
        yield assembled


def end_of_source(record: ScanRecord, source: SectorSource) -> SectorEnd:
    """What a producer that sends all of this sector would say in the end. Nothing but the index is looked at."""
    blocks = record.block_range
    present = [source.frames_present(block, record.block_frames) for block in blocks]
    known = [bit_map for bit_map in present if bit_map is not None]
    return SectorEnd(
        sector=source.sector,
        producer_id=source.sector,
        blocks=len(blocks),
        records=sum(bit_map.bit_count() for bit_map in known),
        digest=blocks_digest(source.sector, blocks, known) if len(known) == len(blocks) else None,
        sectors_duplicate=source.sectors_duplicate,
        sectors_rejected=source.sectors_rejected,
        seconds_reading=0.0,
        seconds_sending=0.0,
    )


def sample_source(record: ScanRecord) -> SampleStatistics:
    """The sample that a scan of this record is calibrated from. Raises SourceError, ReferenceImageError."""
    used, layout = References.load(record.counting), record.encoding.layout
    blocks = source_blocks(record, record.sample_blocks)
    sampled = (sample_block(block.sector_addresses, layout, used.dark, used.gain, used.pixel_mask) for block in blocks)
    return merge_sample(sampled, record.counting.sample_frames)


def _message(record: ScanRecord, source: SectorSource, block: int) -> tuple[BlockHeader, memoryview]:
    """One sector's block as its producer would send it."""
    buffer = np.empty(record.block_frames * RECORD_BYTES, np.uint8).data
    present = source.read_block(block, record.block_frames, buffer)
    payload = buffer[: present.bit_count() * RECORD_BYTES]
    header = BlockHeader(
        record.encoding,
        source.sector,
        record.block_frames,
        0,
        0,
        source.sector,
        record.uid.bytes,
        0,
        block,
        present,
        payload.nbytes,
    )
    return header, payload
