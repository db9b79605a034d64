"""Sector files: what is read is what was written, and whatever is wrong with them is said once, with a remedy."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpistream.acquisition.sector_files import SectorFileWriter, sector_file_name, write_sector_files
from mpistream.acquisition.source import SourceDescription, absolute_specification, describe_source, open_source
from mpistream.model.errors import SourceError
from mpistream.model.geometry import (
    FRAME_SHAPE,
    HEADER_BYTES,
    RECORD_BYTES,
    RECORD_HEADER,
    SECTORS,
    ScanShape,
    SectorLayout,
)
from mpistream.model.protocol import Encoding

SCAN = 7
SHAPE = ScanShape(3, 5)
BLOCK_FRAMES = 4


def frame_image(frame_number: int) -> np.ndarray:
    """A frame unlike any other."""
    return np.random.default_rng(frame_number).integers(0, 60000, FRAME_SHAPE, np.uint16)


def write_scan(
    directory: Path,
    frames: range = range(6),
    layout: SectorLayout = SectorLayout.ROWS,
    sectors: tuple[int, ...] = (0, 1, 2, 3),
    files: int = 1,
    order: list[int] | None = None,
) -> None:
    """A small scan: frame number n of ``frames`` at position n - first."""
    for sector in sectors:
        part = layout.sector_slices(sector)
        records = [(number, number - frames[0], frame_image(number)[part]) for number in frames]
        write_sector_files(directory, sector, records, scan_number=SCAN, scan_shape=SHAPE, files=files, order=order)


def file_of(directory: Path, sector: int = 0, part: int = 0) -> Path:
    return directory / sector_file_name(SCAN, sector, part)


def change_header(path: Path, record: int, **fields: int) -> None:
    """Overwrites fields of one header."""
    with path.open("r+b") as file:
        file.seek(record * RECORD_BYTES)
        header = np.frombuffer(bytearray(file.read(HEADER_BYTES)), RECORD_HEADER)
        for name, value in fields.items():
            header[name] = value
        file.seek(record * RECORD_BYTES)
        file.write(header.tobytes())


def read_all(specification: str, description: SourceDescription) -> dict[int, np.ndarray]:
    """Every frame of a source put together from its sectors; missing ones are zero."""
    frames: dict[int, np.ndarray] = {}
    blocks = range(description.first_frame // BLOCK_FRAMES, description.last_frame // BLOCK_FRAMES + 1)
    layout = description.encoding.layout
    buffer = memoryview(bytearray(BLOCK_FRAMES * RECORD_BYTES))
    for sector in range(SECTORS):
        source = open_source(specification, sector)
        for block in blocks:
            present = source.read_block(block, BLOCK_FRAMES, buffer)
            numbers = [block * BLOCK_FRAMES + bit for bit in range(BLOCK_FRAMES) if present >> bit & 1]
            for place, number in enumerate(numbers):
                record = buffer[place * RECORD_BYTES : (place + 1) * RECORD_BYTES]
                header = np.frombuffer(record, RECORD_HEADER, 1)[0]
                assert (header["scan_number"], header["frame_number"]) == (description.scan_number, number)
                frame = frames.setdefault(number, np.zeros(FRAME_SHAPE, np.uint16))
                pixels = np.frombuffer(record, "<u2", offset=HEADER_BYTES)
                frame[layout.sector_slices(sector)] = pixels.reshape(layout.sector_shape)
        source.close()
    return frames


@pytest.mark.parametrize("layout", list(SectorLayout))
@pytest.mark.parametrize(
    ("files", "order"),
    [(1, None), (3, None), (1, [5, 3, 0, 1, 2, 4]), (3, [4, 2, 0, 5, 3, 1]), (2, [0, 1, 2, 3, 4, 5])],
)
def test_frames_read_are_those_written(
    tmp_path: Path, layout: SectorLayout, files: int, order: list[int] | None
) -> None:
    frames = range(1001, 1007)
    write_scan(tmp_path, frames, layout, files=files, order=order)
    specification = f"files:{tmp_path}?version={int(layout)}"
    description = describe_source(specification)
    assert description == SourceDescription(SCAN, SHAPE, 1001, 1006, Encoding(int(layout)), 24)
    read = read_all(specification, description)
    assert sorted(read) == list(frames)
    for number in frames:
        np.testing.assert_array_equal(read[number], frame_image(number))


def test_version_5_is_assumed(tmp_path: Path) -> None:
    write_scan(tmp_path)
    assert describe_source(f"files:{tmp_path}").encoding is Encoding.RECORDS_ROWS


def test_gaps_are_missing_not_zero(tmp_path: Path) -> None:
    write_scan(tmp_path, range(12), order=[0, 2, 3, 9])
    source = open_source(f"files:{tmp_path}", 1)
    buffer = memoryview(bytearray(4 * RECORD_BYTES))
    assert [source.read_block(block, 4, buffer) for block in range(4)] == [0b1101, 0, 0b10, 0]
    assert describe_source(f"files:{tmp_path}").records == 16


def test_the_buffer_holds_the_records_verbatim_and_contiguous(tmp_path: Path) -> None:
    write_scan(tmp_path, range(6), files=2, order=[3, 0, 1, 5, 2])
    first, second = (file_of(tmp_path, 0, part).read_bytes() for part in (0, 1))
    source = open_source(f"files:{tmp_path}", 0)
    buffer = bytearray(b"\xee" * 8 * RECORD_BYTES)
    assert source.read_block(0, 8, memoryview(buffer)) == 0b101111
    record = RECORD_BYTES
    expected = first[record:] + second[record:] + first[:record] + second[:record]
    assert bytes(buffer[: 5 * record]) == expected
    assert set(buffer[5 * record :]) == {0xEE}


def test_the_first_of_duplicates_wins_in_the_order_of_files_then_records(tmp_path: Path) -> None:
    images = [np.full(SectorLayout.ROWS.sector_shape, value, np.uint16) for value in (10, 20, 30, 40)]
    for part, records in enumerate(
        [[(1, images[0]), (0, images[1])], [(0, images[2]), (1, images[3]), (1, images[3])]]
    ):
        with SectorFileWriter(tmp_path / sector_file_name(SCAN, 0, part), SCAN, SHAPE) as writer:
            for place, (number, image) in enumerate(records):
                writer.write(place, number, number, image)
    source = open_source(f"files:{tmp_path}", 0)
    buffer = bytearray(2 * RECORD_BYTES)
    assert source.read_block(0, 2, memoryview(buffer)) == 0b11
    assert np.frombuffer(buffer, "<u2")[[HEADER_BYTES // 2, (RECORD_BYTES + HEADER_BYTES) // 2]].tolist() == [20, 10]
    assert source.sectors_duplicate == 3
    description = describe_source(f"files:{tmp_path}")
    assert (description.records, description.sectors_duplicate) == (2, 3)


def test_a_sector_without_files_is_all_missing(tmp_path: Path) -> None:
    write_scan(tmp_path, sectors=(0, 2, 3))
    description = describe_source(f"files:{tmp_path}")
    assert description.sectors_without_files == (1,)
    assert "sector 1" in description.notes[0]
    source = open_source(f"files:{tmp_path}", 1)
    assert source.read_block(0, 4, memoryview(bytearray(4 * RECORD_BYTES))) == 0


def test_header_and_name_may_differ_if_all_do(tmp_path: Path) -> None:
    write_scan(tmp_path, range(2))
    for sector in range(SECTORS):
        file_of(tmp_path, sector).rename(tmp_path / sector_file_name(9, sector, 0))
    description = describe_source(f"files:{tmp_path}")
    assert description.scan_number == SCAN
    assert "named after scan 9" in description.notes[0]


def truncate(directory: Path) -> None:
    os.truncate(file_of(directory), 2 * RECORD_BYTES + 100)


def empty(directory: Path) -> None:
    os.truncate(file_of(directory, 2), 0)


def add_sector_7(directory: Path) -> None:
    file_of(directory).rename(directory / "data_scan0000000007_module7.data")


def add_other_scans_file(directory: Path) -> None:
    file_of(directory).rename(directory / sector_file_name(8, 0, 0))


def change(record: int, **fields: int) -> Callable[[Path], None]:
    return lambda directory: change_header(file_of(directory, 1), record, **fields)


def zero_dimensions(directory: Path) -> None:
    for sector in range(SECTORS):
        for record in range(6):
            change_header(file_of(directory, sector), record, rows=0, columns=0)


def move_a_sector_far_away(directory: Path) -> None:
    for record in range(6):
        change_header(file_of(directory, 3), record, frame_number=4_000_000_000 + record)


DAMAGES = [
    (truncate, "truncated: 2 records of 165904 bytes and 100 bytes"),
    (empty, "is empty"),
    (add_sector_7, "of sector 7; a frame has sectors 0 to 3"),
    (add_other_scans_file, "files of different scans in .*: 7, 8"),
    (change(2, scan_number=8), r"module1_part000.data, record 2: it is of scan 8, the others of scan 7 \(1 record "),
    (change(5, rows=4), "record 5: it is of a scan of 4 x 5 positions, the others of 3 x 5"),
    (change(5, columns=0), "record 5: it is of a scan of 3 x 0 positions, the others of 3 x 5"),
    (change(1, x=5), "record 1: row 0, column 5 is outside the scan of 3 x 5"),
    (change(1, y=3), "record 1: row 3, column 1 is outside the scan of 3 x 5"),
    (zero_dimensions, "a scan of 0 rows or 0 columns"),
    (change(4, frame_number=0xFFFFFFF0), "record 4: the frame number 4294967280 is far from the others, around 3"),
    (move_a_sector_far_away, "frame numbers in .* reach from 0 to 4000000005, but there are only 12 frames"),
    (change(3, y=1, x=0), "frame 3 is at scan position 3 and at 5 in different sectors"),
    (change(3, frame_number=2), "frame 2 is at scan position 2 and at 3 in sector 1"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_one_error_with_a_remedy(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write_scan(tmp_path)
    damage(tmp_path)
    with pytest.raises(SourceError, match=message) as raised:
        describe_source(f"files:{tmp_path}")
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("damage", "sector", "records"),
    [
        (truncate, 0, 20),
        (change(2, scan_number=8), 1, 23),
        (change(5, rows=4), 1, 23),
        (change(1, x=5), 1, 23),
        (change(1, y=3), 1, 23),
        (change(0, rows=0, columns=0), 1, 23),
        (change(4, frame_number=0xFFFFFFF0), 1, 23),
    ],
)
def test_bad_records_are_left_out_and_counted_on_request(
    tmp_path: Path, damage: Callable[[Path], None], sector: int, records: int
) -> None:
    write_scan(tmp_path)
    damage(tmp_path)
    specification = f"files:{tmp_path}?skip_bad_records=yes"
    description = describe_source(specification)
    assert (description.records, description.sectors_rejected) == (records, 1)
    assert (description.first_frame, description.last_frame) == (0, 5)
    rejected = [open_source(specification, other).sectors_rejected for other in range(SECTORS)]
    assert rejected == [int(other == sector) for other in range(SECTORS)]
    read = read_all(specification, description)
    part = SectorLayout.ROWS.sector_slices(sector)
    whole = [np.array_equal(read[number][part], frame_image(number)[part]) for number in range(6)]
    assert whole.count(True) == records - 18
    assert all(not read[number][part].any() for number in range(6) if not whole[number])


def test_an_empty_file_is_allowed_when_bad_records_are_skipped(tmp_path: Path) -> None:
    write_scan(tmp_path)
    empty(tmp_path)
    description = describe_source(f"files:{tmp_path}?skip_bad_records=yes")
    assert (description.records, description.sectors_rejected) == (18, 0)


@pytest.mark.parametrize("damage", [add_sector_7, add_other_scans_file, zero_dimensions])
def test_what_cannot_be_skipped_stays_an_error(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_scan(tmp_path)
    damage(tmp_path)
    with pytest.raises(SourceError):
        describe_source(f"files:{tmp_path}?skip_bad_records=yes")


def test_nothing_but_bad_records_is_an_error_even_when_they_are_skipped(tmp_path: Path) -> None:
    write_scan(tmp_path, range(1), sectors=(0,))
    change_header(file_of(tmp_path), 0, x=9)
    with pytest.raises(SourceError, match=r"all records in .* are bad"):
        describe_source(f"files:{tmp_path}?skip_bad_records=yes")


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read the directory .*nowhere: No such file"):
        describe_source(f"files:{tmp_path}/nowhere")


def test_directory_without_sector_files(tmp_path: Path) -> None:
    (tmp_path / "data_scan12_module0.data").touch()
    with pytest.raises(SourceError, match="no sector files in") as raised:
        describe_source(f"files:{tmp_path}")
    assert "data_scan<10 digits>_module<0-3>*.data" in raised.value.remedy


def test_only_empty_files(tmp_path: Path) -> None:
    file_of(tmp_path).touch()
    with pytest.raises(SourceError, match="no complete record"):
        describe_source(f"files:{tmp_path}")


def test_a_file_truncated_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write_scan(tmp_path)
    source = open_source(f"files:{tmp_path}", 0)
    buffer = memoryview(bytearray(4 * RECORD_BYTES))
    assert source.read_block(0, 4, buffer) == 0b1111
    os.truncate(file_of(tmp_path), 4 * RECORD_BYTES + 50)
    with pytest.raises(SourceError, match="became shorter"):
        source.read_block(1, 4, buffer)


def test_a_file_changed_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write_scan(tmp_path)
    source = open_source(f"files:{tmp_path}", 0)
    change_header(file_of(tmp_path), 1, frame_number=3)
    with pytest.raises(SourceError, match="changed while they were read"):
        source.read_block(0, 4, memoryview(bytearray(4 * RECORD_BYTES)))


def test_a_sector_is_opened_without_looking_at_the_other_sectors_records(tmp_path: Path) -> None:
    write_scan(tmp_path)
    change_header(file_of(tmp_path, 1), 3, x=100)
    assert open_source(f"files:{tmp_path}", 0).sectors_rejected == 0
    with pytest.raises(SourceError, match="outside the scan"):
        open_source(f"files:{tmp_path}", 1)


@pytest.mark.parametrize(
    ("specification", "allowed"),
    [
        ("DIR", "files:DIRECTORY"),
        ("ftp:DIR", "files:DIRECTORY"),
        ("files:", "files:DIRECTORY"),
        ("files:DIR?version=6", "5 or 4"),
        ("files:DIR?skip_bad_records=maybe", "no or yes"),
        ("files:DIR?speed=3", "version"),
        ("files:DIR?version", "name=value"),
        ("files:DIR?version=4&version=5", "name=value"),
        ("sim:", "ROWSxCOLUMNS"),
        ("sim:64", "sim:64x65"),
        ("sim:0x4", "sim:64x65"),
        ("sim:4x4?electron=5", "electrons"),
        ("sim:4x4?electrons=many", "correct"),
        ("sim:4x4?loss=1.5", "correct"),
        ("sim:4x4?version=3", "correct"),
        ("sim:4x4?reorder=all", "files:DIRECTORY"),
        ("sim:4x4?first_frame=4294967290", "correct"),
    ],
)
def test_a_wrong_specification_says_what_is_allowed(tmp_path: Path, specification: str, allowed: str) -> None:
    write_scan(tmp_path, range(1))
    specification = specification.replace("DIR", str(tmp_path), 1)
    for look in (describe_source, lambda text: open_source(text, 0)):
        with pytest.raises(SourceError) as raised:
            look(specification)
        assert allowed in raised.value.remedy


def test_there_is_no_sector_4(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="sectors 0 to 3"):
        open_source("sim:2x2", 4)


def test_a_specification_can_be_made_independent_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_specification("files:sectors?version=4") == f"files:{tmp_path}/sectors?version=4"
    assert absolute_specification("sim:4x5?seed=2") == "sim:4x5?seed=2"
