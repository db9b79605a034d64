"""One scan on one rank whose records are kept as they come: blocks in, recorded blocks out."""

import time
import zlib

import numpy as np

from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, SECTORS
from mpistream.model.recorded_block import PixelRun, RecordedBlock
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.reduction.scan_reduction import ScanReduction, frames_present


class ScanRecording(ScanReduction):
    """Counts nothing, and so needs no thresholds. ``seconds_counting`` is what the checksums have taken."""

    @property
    def has_thresholds(self) -> bool:
        """None are waited for."""
        return True

    def count(self, block: AssembledBlock) -> RecordedBlock:
        """The block's good records, with their pixels where they lie."""
        started = time.monotonic()
        checksums = np.zeros((len(block.frame_number), SECTORS), np.uint32)
        row_of = {number: row for row, number in enumerate(block.frame_number.tolist())}
        runs: list[PixelRun] = []
        for header, payload in zip(block.headers, block.payloads, strict=True):
            good = header.frames_present & ~block.frames_rejected[header.sector]
            places = (bit for bit in range(header.block_frames) if header.frames_present >> bit & 1)
            for place, bit in enumerate(places):
                if good >> bit & 1:
                    pixels = payload[place * RECORD_BYTES + HEADER_BYTES : (place + 1) * RECORD_BYTES]
                    frame = header.first_frame + bit
                    checksums[row_of[frame], header.sector] = zlib.crc32(pixels)
                    _append(runs, header.sector, frame, pixels)
        self.seconds_counting += time.monotonic() - started
        return RecordedBlock(
            block.block,
            sum(1 << header.sector for header in block.headers),
            frames_present(block),
            block.frames_rejected,
            block.raw_bytes,
            block.scan_position,
            block.frame_number,
            block.missing_sectors,
            checksums,
            runs,
        )


def _append(runs: list[PixelRun], sector: int, frame: int, pixels: memoryview) -> None:
    """To the last run, where it is the frame behind it."""
    if runs and runs[-1].sector == sector and runs[-1].first_frame + len(runs[-1].pixels) == frame:
        last = runs.pop()
        runs.append(PixelRun(sector, last.first_frame, (*last.pixels, pixels)))
    else:
        runs.append(PixelRun(sector, frame, (pixels,)))
