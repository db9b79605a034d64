"""Messages of the camera in whatever order they come become blocks in order: nothing twice, nothing made up."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpistream.acquisition.block_supply import LiveBlocks, SendWindow
from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.acquisition.camera_source import CameraSectorSource, Outcome
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, SECTOR_BYTES
from tests.unit.made_up_blocks import scan_record

#: 23 frames from frame 6, in blocks 1 to 7 of 4 frames: the first one has 2 frames of the scan, the last one 1.
FIRST, LAST, BLOCK_FRAMES = 6, 28, 4
RECORD = scan_record(first_frame=FIRST, last_frame=LAST, rows=1, columns=23, block_frames=BLOCK_FRAMES)
REORDER = 6
PIXELS = [memoryview(bytes([seed]) * SECTOR_BYTES) for seed in range(LAST + 1)]


def header_of(frame: int, **changes: int) -> CameraHeader:
    header = CameraHeader(RECORD.scan_number, frame, 23, 1, max(0, frame - FIRST), 0, thread_id=frame % 3, module=2)
    return header._replace(**changes)


def source() -> CameraSectorSource:
    return CameraSectorSource(RECORD, 2, REORDER)


def offer(source: CameraSectorSource, *frames: int) -> list[Outcome]:
    return [source.offer(header_of(frame), PIXELS[frame]) for frame in frames]


def buffer() -> memoryview:
    return memoryview(bytearray(BLOCK_FRAMES * RECORD_BYTES))


def frames_in(block: int, frames_present: int, payload: memoryview) -> list[int]:
    """The frames of a block, checked to the last byte."""
    frames = [block * BLOCK_FRAMES + bit for bit in range(BLOCK_FRAMES) if frames_present >> bit & 1]
    for place, frame in enumerate(frames):
        record = payload[place * RECORD_BYTES : (place + 1) * RECORD_BYTES]
        expected = struct.pack("<IIHHHH", RECORD.scan_number, frame, 23, 1, frame - FIRST, 0)
        assert record[:HEADER_BYTES] == expected
        assert record[HEADER_BYTES:] == PIXELS[frame]
    return frames


def test_a_block_is_there_when_all_of_its_frames_are() -> None:
    camera = source()
    assert camera.seconds_until(1, BLOCK_FRAMES) == float("inf")
    offer(camera, 7, 6)
    assert camera.seconds_until(1, BLOCK_FRAMES) == 0  # frames 4 and 5 are not of the scan
    offer(camera, 9, 10, 11)
    assert camera.seconds_until(2, BLOCK_FRAMES) == float("inf")
    offer(camera, 8)
    assert camera.seconds_until(2, BLOCK_FRAMES) == 0
    assert camera.frames_present(2, BLOCK_FRAMES) is None
    payload = buffer()
    assert frames_in(2, camera.read_block(2, BLOCK_FRAMES, payload), payload) == [8, 9, 10, 11]


def test_a_gap_is_waited_for_until_frames_far_behind_it_come() -> None:
    camera = source()
    offer(camera, 6, 12)
    assert camera.seconds_until(1, BLOCK_FRAMES) == float("inf")
    offer(camera, 13)
    assert camera.seconds_until(1, BLOCK_FRAMES) == 0
    payload = buffer()
    assert frames_in(1, camera.read_block(1, BLOCK_FRAMES, payload), payload) == [6]
    assert camera.frames_lost == 1
    assert offer(camera, 7) == [Outcome.REJECTED]
    assert camera.sectors_rejected == 1


def test_the_end_of_the_scan_ends_every_block() -> None:
    camera = source()
    offer(camera, 10)
    camera.end()
    assert [camera.seconds_until(block, BLOCK_FRAMES) for block in (1, 2, 7)] == [0, 0, 0]
    assert offer(camera, 11) == [Outcome.REJECTED]


def test_what_comes_again_is_counted_and_left() -> None:
    camera = source()
    assert offer(camera, 8, 8) == [Outcome.TAKEN, Outcome.DUPLICATE]
    assert camera.offer(header_of(8), PIXELS[9]) is Outcome.DUPLICATE
    camera.end()
    payload = buffer()
    assert frames_in(2, camera.read_block(2, BLOCK_FRAMES, payload), payload) == [8]
    assert offer(camera, 8) == [Outcome.DUPLICATE]
    assert (camera.sectors_duplicate, camera.sectors_rejected, camera.frames_came) == (3, 0, 1)


@pytest.mark.parametrize("changes", [{"frame_number": FIRST - 1}, {"frame_number": LAST + 1}, {"columns": 24}])
@pytest.mark.parametrize("also", [{}, {"scan_number": 99}])
def test_what_is_not_of_the_scan_is_rejected(changes: dict[str, int], also: dict[str, int]) -> None:
    camera = source()
    assert camera.offer(header_of(8, **changes, **also), PIXELS[8]) is Outcome.REJECTED
    assert (camera.sectors_rejected, camera.frames_came) == (1, 0)


def test_blocks_that_nobody_reads_are_forgotten() -> None:
    camera = source()
    offer(camera, *range(6, 16))
    camera.seconds_until(4, BLOCK_FRAMES)
    assert offer(camera, 9) == [Outcome.DUPLICATE]
    payload = buffer()
    assert camera.read_block(2, BLOCK_FRAMES, payload) == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_within_the_bound_gives_the_same_blocks(data: st.DataObject) -> None:
    """Captured as a producer does. Frames further behind than the bound may be rejected, and are never misplaced."""
    present = data.draw(st.sets(st.integers(FIRST, LAST)))
    bound = data.draw(st.sampled_from([0, REORDER - 1, 40]))
    places = {frame: frame + data.draw(st.integers(0, bound)) for frame in sorted(present)}
    arrivals = sorted(present, key=lambda frame: (places[frame], frame))
    for frame in data.draw(st.lists(st.sampled_from(sorted(present)), max_size=5)) if present else []:
        arrivals.insert(data.draw(st.integers(arrivals.index(frame) + 1, len(arrivals))), frame)
    camera = source()
    supply = LiveBlocks(RECORD, camera, SendWindow(100, BLOCK_FRAMES * RECORD_BYTES), None)
    outcomes = []
    for frame in arrivals:
        outcomes += offer(camera, frame)
        while supply.capture(lambda block: False):
            pass
        assert sum(map(len, camera._waiting.values())) <= REORDER + 2 * BLOCK_FRAMES
    camera.end()
    while supply.capture(lambda block: False):
        pass
    found = []
    for block in RECORD.block_range:
        held = supply.take(block, is_lowest=False)
        assert held is not None
        found += frames_in(block, held.frames_present, held.payload)
    rejected = outcomes.count(Outcome.REJECTED)
    assert outcomes.count(Outcome.TAKEN) == len(found) == camera.frames_came
    assert set(found) <= present
    if bound < REORDER:
        assert (found, rejected) == (sorted(present), 0)
        assert camera.sectors_duplicate == len(arrivals) - len(present)
    assert camera.frames_lost == camera.frames - len(found)
