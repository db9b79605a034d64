"""Blocks of a camera that does not wait: taken in time, kept in the window or on the disk, or lost and counted."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from mpistream.acquisition.block_supply import LiveBlocks, SendWindow
from mpistream.acquisition.producer import SectorSender
from mpistream.acquisition.simulated_live import LiveSectorSource
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import SimulatedSectorSource
from mpistream.acquisition.source import describe_source, open_source
from mpistream.acquisition.spill import Spill, spill_path, spilled_scans
from mpistream.model.block_set import BlockSet
from mpistream.model.errors import SourceError
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.protocol import Ack, BlockHeader, blocks_digest
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from tests.unit.made_up_blocks import scan_record

#: 24 frames of the camera, 10 per second, from frame 8: blocks 2 to 7 of 4 frames each. Frame 13 is lost in the camera.
OPTIONS = SimulationOptions(rows=4, columns=6, first_frame=8, live=10, ring=8, loss=0.05, seed=3, electrons=10)
RECORD = scan_record(first_frame=8, last_frame=31, rows=4, columns=6, block_frames=4)
BLOCK_BYTES = 4 * RECORD_BYTES
STARTED = 1000.0
RANK = 5
TABLE = RoutingTable(1, "job", (RankEndpoints(0, 0, "node", 1, RANK, "", "", "job"),))


class Clock:
    def __init__(self) -> None:
        self.now = STARTED

    def __call__(self) -> float:
        return self.now


class Outlet:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[BlockHeader, bytes]] = []

    def send(self, header: bytes, payload: memoryview) -> None:
        self.sent.append((BlockHeader.unpack(header), bytes(payload)))


class Camera:
    """A sender of a live source, with a clock that is set by hand."""

    def __init__(self, window: int, spill: Spill | None = None, is_resumed: bool = False, clock: Clock | None = None):
        self.clock = clock or Clock()
        self.source = LiveSectorSource(OPTIONS, 2, STARTED, self.clock)
        self.supply = LiveBlocks(RECORD, self.source, SendWindow(window, BLOCK_BYTES), spill)
        self.outlet = Outlet()
        outlet_of = lambda destination: self.outlet  # noqa: E731
        self.sender = SectorSender(RECORD, self.source, self.supply, 2, 77, outlet_of, 1.0, is_resumed)  # type: ignore[arg-type]
        self.sender.adopt(TABLE)

    def frames(self, frames: float) -> None:
        """So many frames have come by now, and everything that can be done is done."""
        self.clock.now = STARTED + frames / 10
        while self.sender.capture() or self.sender.send_next():
            pass

    def blocks(self) -> list[int]:
        return [header.block for header, _ in self.outlet.sent]

    def acknowledge(self, *blocks: int) -> None:
        self.sender.take(Ack(2, RECORD.uid.bytes, 77, RANK, blocks))

    def check(self, *empty: int) -> None:
        """What was sent are the camera's records; of the blocks ``empty``, none."""
        camera = SimulatedSectorSource(OPTIONS, 2)
        for header, payload in self.outlet.sent:
            buffer = memoryview(bytearray(BLOCK_BYTES))
            present = camera.read_block(header.block, 4, buffer)
            if header.block in empty:
                assert (header.frames_present, payload) == (0, b"")
            else:
                assert (header.frames_present, payload) == (present, bytes(buffer[: len(payload)]))


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[Spill]:
    made = Spill(spill_path(tmp_path, RECORD.uid, 2), 2, 100 * BLOCK_BYTES)
    yield made
    made.close(remove=True)


def test_frames_come_one_by_one_and_are_written_over_a_ring_later() -> None:
    clock, buffer = Clock(), memoryview(bytearray(BLOCK_BYTES))
    source = LiveSectorSource(OPTIONS, 2, STARTED, clock)
    there = SimulatedSectorSource(OPTIONS, 2).frames_present(2, 4)
    assert source.frames_present(2, 4) is None
    assert [source.seconds_until(block, 4) for block in (2, 3, 7)] == pytest.approx([0.3, 0.7, 2.3])
    clock.now = STARTED + 0.75
    assert source.seconds_until(3, 4) == 0
    assert (source.read_block(2, 4, buffer), source.frames_lost) == (there, 0)
    clock.now = STARTED + 0.95  # frames 8 and 9 are written over by 16 and 17
    assert source.read_block(2, 4, buffer) == there & 0b1100
    assert source.frames_lost == (there & 0b0011).bit_count()
    clock.now = STARTED + 100  # nothing is written over after the scan
    assert source.read_block(7, 4, buffer) == SimulatedSectorSource(OPTIONS, 2).frames_present(7, 4)


def test_a_live_source_can_be_streamed_only() -> None:
    assert describe_source("sim:4x6?live=10").last_frame == 23
    with pytest.raises(SourceError, match="a live source can be streamed, and nothing else"):
        open_source("sim:4x6?live=10", 0)
    assert open_source("sim:4x6?live=10", 0, started_unix_seconds=0.0).is_live
    assert not open_source("sim:4x6", 0, started_unix_seconds=0.0).is_live
    with pytest.raises(SourceError, match="live=-1"):
        describe_source("sim:4x6?live=-1")


def test_blocks_are_sent_when_they_are_there() -> None:
    camera = Camera(window=10)
    camera.frames(2.9)
    assert camera.blocks() == []
    assert 0 < camera.supply.seconds_until_capture() < 0.03
    camera.frames(7.5)
    assert camera.blocks() == [2, 3]
    for frames in range(8, 24):
        camera.frames(frames)
    assert camera.blocks() == list(RECORD.block_range)
    camera.check()
    end = camera.sender.end()
    present = [SimulatedSectorSource(OPTIONS, 2).frames_present(block, 4) or 0 for block in RECORD.block_range]
    assert end.digest == blocks_digest(2, RECORD.block_range, present)
    assert (end.blocks, end.records) == (6, sum(map(int.bit_count, present)))
    assert camera.supply.seconds_until_capture() == float("inf")


def test_waiting_for_the_camera_does_not_use_up_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera(window=10)
    for seconds in range(10):
        monkeypatch.setattr("time.monotonic", lambda seconds=seconds: 1e9 + seconds)
        assert not camera.sender.silence()


def test_a_full_window_without_a_disk_drops_whole_blocks(caplog: pytest.LogCaptureFixture) -> None:
    camera = Camera(window=2)
    for frames in range(24):
        camera.frames(frames)
    assert camera.blocks() == [2, 3]
    camera.acknowledge(2, 3)
    camera.frames(23)
    camera.acknowledge(4, 5)
    camera.frames(23)
    assert camera.blocks() == [2, 3, 4, 5, 6, 7]
    camera.check(4, 5, 6, 7)
    assert camera.supply.blocks_dropped == 4
    end = camera.sender.end()
    sent = [header.frames_present for header, _ in camera.outlet.sent]
    assert end.digest == blocks_digest(2, RECORD.block_range, sent)
    assert camera.sender.status()["dropped"] == 4


def test_a_full_window_spills_and_sends_from_the_disk_in_order(spill: Spill) -> None:
    camera = Camera(window=2, spill=spill)
    for frames in range(18):
        camera.frames(frames)
    assert camera.blocks() == [2, 3]
    assert list(spill.frames_present) == [4, 5]
    assert camera.sender.status()["spilled_bytes"] == spill.path.stat().st_size > 2 * RECORD_BYTES
    camera.acknowledge(2)
    camera.frames(20)
    assert camera.blocks() == [2, 3, 4]
    camera.acknowledge(3, 4)
    camera.frames(24)
    camera.acknowledge(5, 6)
    camera.frames(24)
    assert camera.blocks() == [2, 3, 4, 5, 6, 7]
    camera.check()
    assert camera.supply.blocks_dropped == 0
    assert camera.sender.end().digest is not None


def test_a_spill_that_is_full_drops_blocks(tmp_path: Path) -> None:
    small = Spill(tmp_path / "small", 2, BLOCK_BYTES + 1000)
    camera = Camera(window=1, spill=small)
    for frames in range(24):
        camera.frames(frames)
    assert list(small.frames_present) == [3]
    assert camera.supply.blocks_dropped == 4
    camera.supply.close(is_over=True)
    assert not small.path.exists()


def test_a_disk_that_is_full_drops_blocks(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera(window=1, spill=spill)
    camera.frames(8)
    assert list(spill.frames_present) == [3]

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for frames in range(8, 24):
        camera.frames(frames)
    assert camera.supply.blocks_dropped == 4
    monkeypatch.undo()
    for block in range(2, 8):
        camera.acknowledge(block)
        camera.frames(24)
    assert camera.blocks() == [2, 3, 4, 5, 6, 7]
    camera.check(4, 5, 6, 7)


def test_a_restarted_producer_finds_what_was_spilled(spill: Spill) -> None:
    first = Camera(window=1, spill=spill)
    for frames in range(13):
        first.frames(frames)
    assert list(spill.frames_present) == [3, 4]
    again = Spill(spill.path, 2, 100 * BLOCK_BYTES)
    assert again.frames_present == spill.frames_present
    second = Camera(window=10, spill=again, is_resumed=True, clock=first.clock)
    for frames in range(13, 24):
        second.frames(frames)
    assert second.blocks() == [2, 3, 4, 5, 6, 7]
    second.check(2)  # what the first had in memory is gone
    end = second.sender.end()
    assert (end.blocks, end.digest) == (6, None)
    again.close(remove=False)


def test_a_restarted_producer_without_a_disk_ends_its_scan_with_empty_blocks() -> None:
    camera = Camera(window=2, is_resumed=True)
    journaled = BlockSet.of(RECORD.block_range, [2, 4])
    camera.sender.reconcile({"job": JobShare("job", journaled)})
    camera.frames(100)
    camera.acknowledge(3)
    camera.frames(100)
    assert camera.blocks() == [3, 5, 6, 7]
    camera.check(3, 5)  # the ring still has the last 8 frames
    assert camera.sender.has_sent_all
    assert camera.sender.end().digest is None


def test_what_a_sealed_job_lost_comes_from_the_disk_or_is_lost(spill: Spill) -> None:
    camera = Camera(window=1, spill=spill)
    camera.frames(3)
    for frames in range(4, 25):
        camera.frames(frames)
    for block in range(2, 8):
        camera.acknowledge(block)
        camera.frames(24)
    assert camera.sender.is_complete
    assert camera.sender.end().digest is not None
    sealed = JobShare("job", BlockSet.of(RECORD.block_range, [4, 5, 6, 7]), sealed=True)
    journals = (JournalExtent(0, RANK, ""),)
    camera.sender.reconcile({"job": sealed.changed(journals=journals)})
    camera.outlet.sent.clear()
    camera.sender.adopt(RoutingTable(2, "job", (RankEndpoints(0, 0, "node", 1, RANK + 1, "", "", "job"),)))
    camera.frames(24)
    camera.sender.take(Ack(2, RECORD.uid.bytes, 77, RANK + 1, (2,)))
    camera.frames(24)
    assert camera.blocks() == [2, 3]
    camera.check(2)
    assert camera.supply.blocks_dropped == 1
    assert camera.sender.end().digest is None


# the file


def records(block: int, count: int) -> memoryview:
    return memoryview(bytes([block]) * (count * RECORD_BYTES))


def test_a_spill_gives_back_what_it_was_given(spill: Spill) -> None:
    assert spill.append(7, 0b101, records(7, 2))
    assert spill.append(3, 0b1, records(3, 1))
    buffer = memoryview(bytearray(BLOCK_BYTES))
    assert spill.read(7, buffer) == 0b101
    assert buffer[: 2 * RECORD_BYTES] == records(7, 2)
    assert spill.read(3, buffer) == 0b1
    assert buffer[:RECORD_BYTES] == records(3, 1)
    assert spill.bytes == spill.path.stat().st_size


@pytest.mark.parametrize("kept", [1, 20, 40, RECORD_BYTES])
def test_a_torn_end_is_cut_off(spill: Spill, kept: int) -> None:
    spill.append(7, 0b1, records(7, 1))
    whole = spill.bytes
    spill.append(8, 0b11, records(8, 2))
    os.truncate(spill.path, whole + kept)
    again = Spill(spill.path, 2, 100 * BLOCK_BYTES)
    assert again.frames_present == {7: 0b1}
    assert again.bytes == whole == spill.path.stat().st_size
    assert again.append(8, 0b11, records(8, 2))
    assert again.read(8, memoryview(bytearray(BLOCK_BYTES))) == 0b11
    again.close(remove=False)


def test_damage_is_noticed_when_a_block_is_read(spill: Spill, caplog: pytest.LogCaptureFixture) -> None:
    spill.append(7, 0b1, records(7, 1))
    with spill.path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert spill.read(7, memoryview(bytearray(BLOCK_BYTES))) == 0
    assert "block 7 is lost" in caplog.text
    spill.append(8, 0b1, records(8, 1))
    os.truncate(spill.path, spill.bytes - 1)
    assert spill.read(8, memoryview(bytearray(BLOCK_BYTES))) == 0


def test_a_file_of_another_sector_or_of_no_spill_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(os.urandom(1000))
    assert Spill(tmp_path / "garbage", 2, 10**9).frames_present == {}
    other = Spill(tmp_path / "other", 1, 10**9)
    other.append(7, 0b1, records(7, 1))
    assert Spill(tmp_path / "other", 2, 10**9).frames_present == {}


def test_files_that_are_left_are_found_by_their_scan(tmp_path: Path) -> None:
    uids = [UUID(int=5), UUID(int=6)]
    for uid, sector in ((uids[0], 2), (uids[1], 2), (uids[1], 1)):
        Spill(spill_path(tmp_path, uid, sector), sector, 10**9).close(remove=False)
    (tmp_path / "something else").write_text("")
    assert spilled_scans(tmp_path, 2) == {uid: spill_path(tmp_path, uid, 2) for uid in uids}
    assert spilled_scans(tmp_path / "nowhere", 2) == {}


def test_a_folder_that_cannot_be_made_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot spill to") as caught:
        Spill(tmp_path / "file" / "spill", 2, 10**9)
    assert "spill_directory" in caught.value.remedy


@pytest.mark.parametrize("what", ["ftruncate", "fstat"])
def test_a_file_that_cannot_be_used_is_closed(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Spill(tmp_path / "spill", 2, 10**9).close(remove=False)
    files_open = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, what, refused)
    with pytest.raises(SourceError, match="cannot spill to"):
        Spill(tmp_path / "spill", 2, 10**9)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == files_open


def test_a_file_that_a_disk_does_not_let_go_of_stays(
    spill: Spill, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    again = Spill(spill.path, 2, 10**9)
    monkeypatch.setattr(Path, "unlink", refused)
    again.close(remove=True)
    monkeypatch.undo()
    assert f"cannot remove {spill.path}: Read-only file system" in caplog.text
    assert spill.path.exists()


def refused(*_: object, **__: object) -> int:
    raise OSError(30, "Read-only file system")
