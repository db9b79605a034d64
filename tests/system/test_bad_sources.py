"""Sources, references and thresholds that cannot be used: a message with a remedy, and nothing is left."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.system.command_line import SMALL, THRESHOLDS, CommandLine, refused
from tests.system.sector_writer import (
    EMPTY,
    FRAME,
    RECORD_BYTES,
    SECTORS,
    file_name,
    pack_record,
    write_frames,
    write_plain_scan,
)

pytestmark = pytest.mark.usefixtures("no_process_is_left")


# --- sector files


@pytest.fixture
def sectors(output: Path) -> Path:
    """A good scan of 2 x 3 positions, to be spoilt."""
    folder = output.parent / "sectors"
    return write_plain_scan(folder, 2, 3)


def change_header(path: Path, record: int, offset: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(record * RECORD_BYTES + offset)
        file.write(value.to_bytes(2, "little"))


def truncate(folder: Path) -> None:
    path = folder / file_name(1, 2)
    os.truncate(path, path.stat().st_size - 1000)


def empty_a_file(folder: Path) -> None:
    os.truncate(folder / file_name(1, 3), 0)


def empty_all_files(folder: Path) -> None:
    for path in folder.iterdir():
        os.truncate(path, 0)


def name_an_unknown_sector(folder: Path) -> None:
    (folder / file_name(1, 3)).rename(folder / file_name(1, 4))


def add_a_file_of_another_scan(folder: Path) -> None:
    (folder / file_name(2, 0)).write_bytes(pack_record(2, 0, 2, 3, 0, EMPTY))


def add_a_record_of_another_scan(folder: Path) -> None:
    with (folder / file_name(1, 1)).open("ab") as file:
        file.write(pack_record(2, 6, 2, 3, 0, EMPTY))


def add_a_record_of_another_shape(folder: Path) -> None:
    with (folder / file_name(1, 1)).open("ab") as file:
        file.write(pack_record(1, 6, 5, 5, 0, EMPTY))


def leave_the_scan_by_column(folder: Path) -> None:
    change_header(folder / file_name(1, 0), record=1, offset=12, value=3)


def leave_the_scan_by_row(folder: Path) -> None:
    change_header(folder / file_name(1, 0), record=1, offset=14, value=2)


def put_a_frame_at_two_positions(folder: Path) -> None:
    with (folder / file_name(1, 1)).open("r+b") as file:
        header = file.read(16)
        file.seek(0)
        file.write(header[:12] + bytes([header[12] ^ 1, 0]) + header[14:])


def have_no_positions(folder: Path) -> None:
    for sector in range(SECTORS):
        (folder / file_name(1, sector)).write_bytes(pack_record(1, 0, 0, 1, 0, EMPTY))


def delete_all_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def delete_the_folder(folder: Path) -> None:
    delete_all_files(folder)
    folder.rmdir()


def put_a_file_in_its_place(folder: Path) -> None:
    delete_the_folder(folder)
    folder.write_text("no folder")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, ("module2", "truncated")),
        (empty_a_file, ("module3", "empty")),
        (empty_all_files, ("empty",)),
        (name_an_unknown_sector, ("module4", "sector 4")),
        (add_a_file_of_another_scan, ("different scans", "1, 2")),
        (add_a_record_of_another_scan, ("module1", "record 6", "scan 2")),
        (add_a_record_of_another_shape, ("module1", "record 6", "5 x 5")),
        (leave_the_scan_by_column, ("module0", "record 1", "outside the scan")),
        (leave_the_scan_by_row, ("module0", "record 1", "outside the scan")),
        (put_a_frame_at_two_positions, ("different sectors", "position")),
        (have_no_positions, ("0 rows",)),
        (delete_all_files, ("no sector files",)),
        (delete_the_folder, ("cannot read", "No such file")),
        (put_a_file_in_its_place, ("cannot read",)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_sector_files(
    cli: CommandLine, output: Path, sectors: Path, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    spoil(sectors)
    refused(cli, output, "--source", f"files:{sectors}", *THRESHOLDS, words=words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("tape:/dev/st0", ("tape:",)),
        ("2x2", ("2x2", "no source")),
        ("", ("source",)),
        ("files:", ("directory",)),
        ("sim:", ("scan shape",)),
        ("sim:2by2", ("2by2",)),
        ("sim:0x4", ("0 x 4",)),
        ("sim:2x2?electron=5", ("'electron'",)),
        ("sim:2x2?electrons=many", ("electrons=many",)),
        ("sim:2x2?electrons=-1", ("electrons=-1",)),
        ("sim:2x2?loss=2", ("loss=2",)),
        ("sim:2x2?seed", ("'seed'",)),
        ("sim:2x2?seed=1&seed=2", ("seed=2", "twice")),
        ("files:.?version=3", ("version=3",)),
        ("files:.?seed=1", ("'seed'",)),
    ],
)
def test_sources(cli: CommandLine, output: Path, source: str, words: tuple[str, ...]) -> None:
    refused(cli, output, "--source", source, *THRESHOLDS, words=words)


# --- references and thresholds


def with_nan() -> np.ndarray:
    image = np.zeros((FRAME, FRAME), np.float32)
    image[3, 4] = np.nan
    return image


@pytest.mark.parametrize("kind", ["dark", "gain"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.ones((FRAME, FRAME - 1), np.float32), ("shape", "(576, 575)")),
        (np.ones(FRAME * FRAME, np.float32), ("shape",)),
        (np.ones((FRAME, FRAME), np.complex64), ("dtype", "complex64")),
        (np.full((FRAME, FRAME), "1"), ("dtype",)),
        (with_nan(), ("NaN",)),
        (b"not a NumPy file", ("no .npy file",)),
        (b"", ("no .npy file",)),
        (None, ("cannot be read", "No such file")),
    ],
    ids=["too-narrow", "flat", "complex", "text", "nan", "no-npy", "empty", "missing"],
)
def test_reference_images(cli: CommandLine, output: Path, kind: str, content: object, words: tuple[str, ...]) -> None:
    path = output.parent / f"{kind}.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    refused(cli, output, *SMALL, f"--{kind}", path, words=(f"{kind}.npy", *words))


def test_a_gain_of_zero(cli: CommandLine, output: Path) -> None:
    path = output.parent / "gain.npy"
    np.save(path, np.zeros((FRAME, FRAME), np.float32))
    refused(cli, output, *SMALL, "--gain", path, words=("gain.npy", "zero"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--background", 100, "--xray", 50), ("background (100)", "xray (50)")),
        (("--background", 100, "--xray", 100), ("background (100)", "xray (100)")),
        (("--background", "nan", "--xray", 100), ("background",)),
        (("--background", 50), ("background", "xray")),
        (("--xray", 50), ("background", "xray")),
        (("--background-sigmas", -1), ("--background-sigmas",)),
        (("--xray-sigmas", 0), ("--xray-sigmas",)),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, tuple) and "--" in str(value[0]) else "",
)
def test_thresholds(cli: CommandLine, output: Path, options: tuple[object, ...], words: tuple[str, ...]) -> None:
    refused(cli, output, "--source", "sim:2x2", *options, words=words)


@pytest.mark.parametrize(
    ("pixels", "sectors"),
    [
        (EMPTY, SECTORS),
        (np.full_like(EMPTY, 65535), SECTORS),
        (np.arange(len(EMPTY)).astype(np.uint16), SECTORS),
        (EMPTY + np.uint16(20), SECTORS - 1),
    ],
    ids=["zeros", "saturated", "no-peak", "no-complete-frame"],
)
def test_a_sample_without_a_peak_to_fit(testbed: CommandLine, output: Path, pixels: np.ndarray, sectors: int) -> None:
    folder = write_frames(output.parent / "sectors", pixels, sectors)
    result = testbed.run("testbed", "scan", "--source", f"files:{folder}", "--output", output)
    result.failed_with("sample")
    assert "--background" in result.stderr
    assert not output.exists()


def test_a_sample_that_does_not_fit_the_window(testbed: CommandLine, output: Path) -> None:
    testbed.run("testbed", "scan", "--source", "sim:64x64", "--output", output, "--sample-frames", 4000).failed_with(
        "calibration", "blocks"
    )
    assert not output.exists()
