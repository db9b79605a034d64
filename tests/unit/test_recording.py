"""A recording in one process: what is kept of a scan, replayed, checked, and what goes wrong."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpistream.acquisition.source import absolute_specification, describe_source, files_of_source, open_source
from mpistream.model import recording_layout as layout
from mpistream.model.counted_block import CountedBlock, of_kind
from mpistream.model.errors import NoRoomError, ScanFailed, SourceError, StorageError
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, SECTORS
from mpistream.model.protocol import Encoding
from mpistream.model.recorded_block import RecordedBlock
from mpistream.model.recording_layout import PixelPlaces
from mpistream.model.scan import UNCOUNTED, Durability
from mpistream.storage.journal import read_journal
from mpistream.storage.reader import open_dataset
from mpistream.storage.recording_pixels import check_room, pixels_path
from mpistream.storage.recording_reader import is_recording, open_recording
from mpistream.storage.recording_verify import verify_recording
from mpistream.storage.recovery import dataset_of, read_summary
from tests.unit.made_up_blocks import block_message, camera_frame, camera_record, scan_record
from tests.unit.made_up_recording import finish, make_recording, record_blocks, recording_record

#: The scans below have the frames 6 to 16, in blocks of 4: blocks 1 and 4 are not whole.
FRAMES = {"first_frame": 6, "last_frame": 16, "rows": 3, "columns": 4}


def some(block: int, sector: int) -> int:
    """Of frame 10 no sector comes, of some others not all."""
    whole = {1: 0b1100, 4: 0b0001}.get(block, 0b1111)
    return whole & ~(0b0100 if block == 2 else 0) & ~(1 << sector if block == 3 else 0)


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("block_frames", [1, 4, 7])
def test_a_replay_is_the_records_as_they_came(tmp_path: Path, encoding: Encoding, block_frames: int) -> None:
    record = recording_record(tmp_path, encoding=encoding, **FRAMES)
    path = make_recording(record, some)
    assert not Path(record.journals).exists()
    camera = {
        frame: [sector for sector in range(SECTORS) if some(frame // 4, sector) >> frame % 4 & 1]
        for frame in range(6, 17)
    }
    buffer = memoryview(bytearray(block_frames * RECORD_BYTES))
    for sector in range(SECTORS):
        source = open_source(f"raw:{path}", sector)
        for block in range(40 // block_frames):
            numbers = range(block * block_frames, (block + 1) * block_frames)
            there = [frame for frame in numbers if sector in camera.get(frame, [])]
            present = source.read_block(block, block_frames, buffer)
            assert present == source.frames_present(block, block_frames)
            assert present == sum(1 << frame - numbers[0] for frame in there)
            assert bytes(buffer[: len(there) * RECORD_BYTES]) == b"".join(
                camera_record(record, frame, sector) for frame in there
            )
        assert (source.sectors_duplicate, source.sectors_rejected) == (10 + sector, sector)
        assert not source.is_live
        source.close()
    found = describe_source(f"raw:{path}")
    assert (found.first_frame, found.last_frame, found.encoding) == (6, 16, encoding)
    assert (found.scan_shape, found.scan_number) == (record.scan_shape, record.scan_number)
    assert found.records == sum(map(len, camera.values()))
    assert (found.sectors_duplicate, found.sectors_rejected, found.notes) == (46, 6, ())
    assert not verify_recording(path).findings


def test_frames_share_positions_and_bad_records_are_missing(tmp_path: Path) -> None:
    record = recording_record(tmp_path)
    there = {frame: {sector: {"x": 3, "y": 1} for sector in range(SECTORS)} for frame in (5, 6, 11)}
    wrong = {**there, 8: {2: {"scan_number": 99}}}
    path = make_recording(record, wrong=wrong)
    with open_recording(path) as recording:
        assert recording.read(layout.SCAN_POSITION, 0, 8).tolist() == [0, 7, 7, 3, 4, 5, 6, 7]
        assert recording.read(layout.MISSING_SECTORS, 0, 8).tolist() == [0, 0, 0, 0, 4, 0, 0, 0]
        assert recording.rejected.tolist() == [(8, 2)]
        assert not recording.pixels(2, 4, 5).any()
    assert not verify_recording(path).findings
    source = open_source(f"raw:{path}", 2)
    assert (source.frames_present(2, 4), source.sectors_rejected) == (0b1110, 3)
    source.close()


def test_with_plain_h5py(tmp_path: Path) -> None:
    for encoding in Encoding:
        path = make_recording(recording_record(tmp_path, encoding=encoding, overwrite=True), some)
        with h5py.File(path) as file:
            frames = file["recording/full_frames"]
            assert (frames.shape, frames.dtype) == ((8, 576, 576), np.dtype("<u2"))
            np.testing.assert_array_equal(frames[0], camera_frame(4) * 0)  # some() leaves it out
            np.testing.assert_array_equal(frames[2], camera_frame(6))
            np.testing.assert_array_equal(file["recording/frame_number"], np.arange(4, 12))
            assert file["recording/scan_position"][6] == layout.NOWHERE
            assert file["recording/sector_3"].shape == (8, *encoding.layout.sector_shape)
            assert file["recording/sector_3"].id.get_offset() == PixelPlaces(8, encoding.layout).begin(3)


def test_of_blocks_that_are_journaled_no_pixel_is_in_memory(tmp_path: Path) -> None:
    rank = record_blocks(recording_record(tmp_path))
    blocks = of_kind(RecordedBlock, rank.blocks)
    assert [(block.block, block.pixels, block.frames) for block in blocks] == [(1, [], 4), (2, [], 4)]
    assert rank.journal is not None
    read = of_kind(RecordedBlock, list(read_journal(rank.journal.path, rank.journal.bytes)))
    assert [block.checksum() for block in read] == [block.checksum() for block in blocks]
    with pytest.raises(ValueError, match="block 1 is a RecordedBlock"):
        of_kind(CountedBlock, read)
    rank.close(keep=True)


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("durability", list(Durability))
def test_what_cannot_be_written_is_not_acknowledged_and_tried_again(tmp_path: Path, durability: Durability) -> None:
    record = recording_record(tmp_path, durability=durability)
    rank = record_blocks(record, lambda block, sector: 0b1111 if sector < 3 else 0)
    assert len(rank.take_acknowledgements()) == SECTORS
    rank.close(keep=False)

    rank = type(rank).prepare(recording_record(tmp_path, durability=durability, journals=str(tmp_path / "again")), 0, 8)
    for sector in range(SECTORS):
        assembled = rank.receive(*block_message(rank.record, 1, sector))
    assert assembled is not None
    rank.count(assembled)
    with files_of_at_most(1 << 20):
        rank.journal_counted(1.0)
    assert "recording.h5 cannot be written" in rank.problem
    assert rank.take_acknowledgements() == []
    rank.journal_counted(1.5)
    assert rank.take_acknowledgements() == []
    rank.journal_counted(2.1)
    assert rank.problem == ""
    assert [ack.blocks for ack in rank.take_acknowledgements()] == [(1,)] * SECTORS
    path = pixels_path(Path(rank.record.journals))
    places = PixelPlaces(8, rank.record.encoding.layout)
    pixels = path.read_bytes()[places.begin(2, 1) : places.begin(2, 2)]
    assert pixels == camera_record(rank.record, 5, 2)[HEADER_BYTES:]
    rank.close(keep=False)


def test_verify_finds_a_bit_that_is_not_as_it_came(tmp_path: Path) -> None:
    record = recording_record(tmp_path)
    path = make_recording(record, some)
    with path.open("r+b") as file:
        file.seek(PixelPlaces(8, record.encoding.layout).begin(1, 3) + 1000)
        file.write(b"\xff\xff")
    (finding,) = verify_recording(path).findings
    assert finding == "pixels: not as they came: sector 1 of frame 7"


def test_verify_finds_a_record_too_few(tmp_path: Path) -> None:
    path = make_recording(recording_record(tmp_path), some)
    with h5py.File(path, "r+") as file:
        file[layout.MISSING_SECTORS][2] |= 8
        file["metadata/counters"].attrs["frames"] = 3
    checks = {check.name: check for check in verify_recording(path).checks}
    assert checks["sector 3"].outcome == checks["counters"].outcome == "bad"
    assert checks["sector 2"].outcome == checks["pixels"].outcome == "good"


def test_a_file_that_differs_from_its_checksums_gets_no_name(tmp_path: Path) -> None:
    record = recording_record(tmp_path)
    rank = record_blocks(record)
    path = pixels_path(Path(record.journals))
    with path.open("r+b") as file:
        file.seek(PixelPlaces(8, record.encoding.layout).begin(3, 7))
        file.write(b"spoilt")
    rank.close(keep=True)
    with pytest.raises(ScanFailed, match="sector 3 of frame 11 is not what came"):
        finish(rank)
    assert not Path(record.output).exists()
    assert path.exists()


def test_after_a_crash_the_file_says_how_its_scan_went(tmp_path: Path) -> None:
    record = recording_record(tmp_path)
    path = make_recording(record, some)
    assert is_recording(path)
    assert dataset_of(path) == record.uid
    summary = read_summary(path)
    assert summary.recording
    assert summary.complete
    assert (summary.counters.frames, summary.counters.frames_lost, summary.counters.electrons) == (5, 3, 0)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = make_recording(recording_record(tmp_path))
    with pytest.raises(StorageError, match="is a raw recording, not counted") as caught:
        open_dataset(path)
    assert f"raw:{path}" in caught.value.remedy
    other = tmp_path / "other.h5"
    h5py.File(other, "w").close()
    (tmp_path / "text.h5").write_text("text")
    for name in ("other.h5", "text.h5", "none.h5"):
        assert not is_recording(tmp_path / name)
        with pytest.raises(SourceError, match=name) as wrong:
            describe_source(f"raw:{tmp_path / name}")
        assert wrong.value.remedy
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(SourceError, match="has format version 2"):
        open_source(f"raw:{path}", 0)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 1
        del file[layout.MISSING_SECTORS]
    for use in (lambda: describe_source(f"raw:{path}"), lambda: open_source(f"raw:{path}", 0)):
        with pytest.raises(SourceError, match="is damaged"):
            use()
    with pytest.raises(StorageError, match="is damaged"):
        verify_recording(path)


def test_its_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_recording(recording_record(tmp_path))
    assert absolute_specification("raw:recording.h5?rate=5") == f"raw:{path}?rate=5"
    assert files_of_source("raw:recording.h5") == [Path("recording.h5")]
    with pytest.raises(SourceError, match="a recording has no option 'version'"):
        describe_source("raw:recording.h5?version=4")
    with pytest.raises(SourceError, match="names no file"):
        describe_source("raw:")


def test_one_that_has_no_room_is_not_announced(tmp_path: Path) -> None:
    check_room(recording_record(tmp_path))
    with pytest.raises(NoRoomError, match=r"needs 2\d\d\d\d\.\d TB, .* is free in") as caught:
        check_room(recording_record(tmp_path, last_frame=2**32 * 10))
    assert caught.value.remedy


def test_a_recording_is_not_counted() -> None:
    with pytest.raises(ValueError, match="is not counted"):
        scan_record(recording=True)
    assert len(scan_record(recording=True, counting=UNCOUNTED).blocks_for_conductor) == 0
