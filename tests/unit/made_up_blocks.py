"""A small scan with real camera frames, cut into the messages that its producers would send."""

from functools import lru_cache
from uuid import UUID

import numpy as np

from mpistream.model.geometry import FRAME_SHAPE, HEADER_BYTES, RECORD_BYTES, RECORD_HEADER
from mpistream.model.protocol import BlockHeader, Encoding
from mpistream.model.scan import CountingParameters, ScanRecord

BACKGROUND, XRAY = 60.0, 2000.0
GIVEN = CountingParameters(background=BACKGROUND, xray=XRAY)


def scan_record(**changes: object) -> ScanRecord:
    """8 frames, numbered from 4, in blocks 1 and 2 of 4 frames each, at 2 x 4 positions."""
    values: dict[str, object] = {
        "uid": UUID(int=0x0123456789ABCDEF << 64),
        "scan_number": 17,
        "rows": 2,
        "columns": 4,
        "source": "made up",
        "encoding": Encoding.RECORDS_ROWS,
        "first_frame": 4,
        "last_frame": 11,
        "block_frames": 4,
        "direct": False,
        "counting": GIVEN,
        "output": "scan.h5",
        "overwrite": False,
        "announced_unix_seconds": 1.5e9,
    }
    return ScanRecord.model_validate(values | changes)


@lru_cache
def camera_frame(number: int) -> np.ndarray:
    """uint16[576, 576]: noise around 30 ADU, a few hundred electrons, an x-ray; the same for the same number."""
    random = np.random.default_rng(number)
    frame = random.normal(30, 5, FRAME_SHAPE).round()
    frame += (random.random(FRAME_SHAPE) < 0.002) * random.integers(60, 300, FRAME_SHAPE)
    frame[number % FRAME_SHAPE[0], 100] = 5000
    return frame.astype(np.uint16)


def camera_record(record: ScanRecord, frame_number: int, sector: int, /, **header: int) -> bytes:
    """One sector of a frame as the camera stores it; ``header`` overrides fields of its header."""
    row, column = divmod(frame_number - record.first_frame, record.columns)
    fields = {
        "scan_number": record.scan_number,
        "frame_number": frame_number,
        "columns": record.columns,
        "rows": record.rows,
        "x": column,
        "y": row,
        **header,
    }
    head = np.array([tuple(fields[name] for name in RECORD_HEADER.names or ())], RECORD_HEADER)
    pixels = camera_frame(frame_number)[record.encoding.layout.sector_slices(sector)]
    raw = head.tobytes() + pixels.tobytes()
    assert len(raw) == RECORD_BYTES == HEADER_BYTES + pixels.nbytes
    return raw


def block_message(
    record: ScanRecord,
    block: int,
    sector: int,
    present: int = 0b1111,
    bad: dict[int, dict[int, dict[str, int]]] | None = None,
    **header: object,
) -> tuple[BlockHeader, memoryview]:
    """The message of one sector of a block. ``bad[frame_number][sector]`` are wrong fields of a record's header;
    ``header`` overrides the message's own.
    """
    frames = [block * record.block_frames + bit for bit in range(record.block_frames) if present >> bit & 1]
    wrong = bad or {}
    payload = b"".join(camera_record(record, frame, sector, **wrong.get(frame, {}).get(sector, {})) for frame in frames)
    values: dict[str, object] = {
        "encoding": record.encoding,
        "sector": sector,
        "block_frames": record.block_frames,
        "routing_version": 1,
        "destination": 0,
        "producer_id": sector,
        "scan_uid": record.uid.bytes,
        "producer_incarnation": 1000 + sector,
        "block": block,
        "frames_present": present,
        "payload_bytes": len(payload),
    }
    return BlockHeader(**(values | header)), memoryview(payload)  # type: ignore[arg-type]
