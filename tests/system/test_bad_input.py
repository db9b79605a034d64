"""Whatever is wrong with a request gets one clear message with a remedy, and leaves nothing behind."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.system.command_line import CommandLine, Finished, finish, nothing_is_left, wait_until
from tests.system.sector_writer import FRAME, RECORD_BYTES, SECTORS, file_name, pack_record, write_plain_scan

THRESHOLDS = ("--background", 60, "--xray", 2000)
SMALL = ("--source", "sim:2x2?electrons=50", *THRESHOLDS)
EMPTY = np.zeros(FRAME * FRAME // SECTORS, np.uint16)


@pytest.fixture(autouse=True)
def _no_process_is_left(cli: CommandLine) -> Iterator[None]:
    """Beside those of the module's testbed."""
    running = cli.processes()
    yield
    with nothing_is_left(str(cli.folder), spared=running):
        pass


def refused(cli: CommandLine, output: Path, *arguments: object, words: tuple[str, ...]) -> Finished:
    """A whole run that is refused, without a file at the output."""
    before = sorted(output.parent.iterdir())
    result = cli.run("testbed", "run", "--output", output, *arguments).failed_with(*words)
    assert sorted(output.parent.iterdir()) == before
    return result


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


def write_frames(folder: Path, pixels: np.ndarray, sectors: int = SECTORS) -> Path:
    """Two frames of four equal sectors each."""
    folder.mkdir()
    for sector in range(sectors):
        records = [pack_record(1, number, 1, 2, number, pixels) for number in range(2)]
        (folder / file_name(1, sector)).write_bytes(b"".join(records))
    return folder


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


# --- the output


def test_an_output_that_exists(cli: CommandLine, output: Path) -> None:
    output.write_bytes(b"precious")
    refused(cli, output, *SMALL, words=("scan.h5", "exists"))
    assert output.read_bytes() == b"precious"
    cli.run("testbed", "run", "--output", output, "--overwrite", "--groups", 1, *SMALL).succeeded()
    cli.run("info", output).succeeded()


def test_an_output_that_exists_is_kept_when_its_replacement_fails(testbed: CommandLine, output: Path) -> None:
    output.write_bytes(b"precious")
    zeros = write_frames(output.parent / "sectors", EMPTY)
    testbed.run("testbed", "scan", "--source", f"files:{zeros}", "--output", output, "--overwrite").failed_with(
        "sample"
    )
    assert output.read_bytes() == b"precious"


def test_an_output_that_is_a_folder(cli: CommandLine, output: Path) -> None:
    output.mkdir()
    refused(cli, output, *SMALL, "--overwrite", words=("scan.h5", "folder"))


def test_an_output_in_a_folder_that_is_missing(cli: CommandLine, output: Path) -> None:
    wanted = output.parent / "not-there" / "scan.h5"
    cli.run("testbed", "run", "--output", wanted, *SMALL).failed_with("not-there")
    assert list(output.parent.iterdir()) == []


@contextmanager
def small_filesystem(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in ``folder``; skips where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, timeout=20
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_an_output_folder_that_is_not_writable(cli: CommandLine, output: Path) -> None:
    with small_filesystem(output.parent / "read-only", "size=1m,ro") as folder:
        refused(cli, folder / "scan.h5", *SMALL, words=("read-only", "not writable"))


def test_an_output_folder_that_takes_no_files(testbed: CommandLine) -> None:
    """/proc looks writable to root: the ranks find out."""
    output = Path("/proc/mpistream-scan.h5")
    testbed.run("testbed", "scan", "--output", output, *SMALL).failed_with("/proc")
    assert not output.exists()


def test_a_disk_without_room_for_journals(testbed: CommandLine, output: Path) -> None:
    """Nothing can be begun."""
    with small_filesystem(output.parent / "full", "size=64m,nr_inodes=1") as folder:
        result = testbed.run(
            *("testbed", "scan", "--source", "sim:8x8?electrons=3000", *THRESHOLDS, "--output", folder / "scan.h5")
        )
        result.failed_with(str(folder))
        assert "space" in result.stderr
        assert list(folder.iterdir()) == []
    testbed.run("testbed", "scan", "--output", output, *SMALL).succeeded()


def test_a_full_disk(testbed: CommandLine, output: Path) -> None:
    """The scan waits, and says for what; it is finished when there is room."""
    with small_filesystem(output.parent / "full", "size=64k") as folder:
        command = testbed.start(
            *("testbed", "scan", "--source", "sim:8x8?electrons=3000", *THRESHOLDS, "--output", folder / "scan.h5")
        )

        def problem() -> str:
            shares = testbed.etcd_values("/testbed/scans/").items()
            return next((share["problem"] for key, share in shares if "/shares/" in key and share["problem"]), "")

        assert "space" in wait_until(problem, 60, "a journal that cannot be written")
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        ended = finish(command).succeeded()
        assert "No space left on device" in ended.stderr
        assert [path.name for path in folder.iterdir()] == ["scan.h5"]


# --- configuration and surroundings


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[stream]\nblock_frame = 4\n", ("block_frame", "[stream]")),
        ("[streams]\nblock_frames = 4\n", ("streams",)),
        ("deployments = 'x'\n", ("deployments",)),
        ("[stream]\nblock_frames = 'four'\n", ("stream.block_frames", "four")),
        ("[stream]\nblock_frames = 0\n", ("stream.block_frames",)),
        ("[etcd]\nendpoints = 'localhost:2379'\n", ("etcd.endpoints",)),
        ("[etcd]\nendpoints = ['localhost']\n", ("etcd.endpoints", "localhost")),
        ("stream = 3\n", ("stream",)),
        ("[stream]\nwindow_bytes = 1000\n", ("window_bytes",)),
        ("[stream\nblock_frames = 4\n", ("TOML",)),
        (b"\xff\xfe", ("TOML",)),
        (None, ("No such file",)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value).replace("\n", " "),
)
def test_configuration_files(
    cli: CommandLine, output: Path, content: str | bytes | None, words: tuple[str, ...]
) -> None:
    config = output.parent / "mpistream.toml"
    if content is not None:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(cli, output, *SMALL, "--config", config, words=("mpistream.toml", *words))
    cli.run("produce", "--sector", 0, "--config", config).failed_with("mpistream.toml", *words)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which something listens that is not etcd."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def dead_endpoint() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("process", ["produce", "aggregate", "consume", "scan"])
def test_no_etcd(cli: CommandLine, output: Path, dead_endpoint: str, process: str) -> None:
    config = output.parent / "mpistream.toml"
    config.write_text(f"[etcd]\nendpoints = ['{dead_endpoint}']\n")
    arguments = {
        "produce": ("produce", "--sector", 1),
        "scan": ("testbed", "scan", "--output", output, *SMALL),
    }.get(process, (process,))
    result = cli.run(*arguments, "--config", config, seconds=40)
    result.failed_with("no etcd", dead_endpoint)
    assert not output.exists()


def test_something_else_than_etcd(cli: CommandLine, taken_port: int) -> None:
    cli.run("produce", "--sector", 1, "--etcd", f"127.0.0.1:{taken_port}", seconds=40).failed_with("no etcd")


@pytest.mark.parametrize("option", ["--data-port", "--answer-port"])
def test_a_port_that_is_taken(testbed: CommandLine, taken_port: int, option: str) -> None:
    config = testbed.folder / "testbed" / "mpistream.toml"
    testbed.run("aggregate", "--config", config, "--name", "second", option, taken_port).failed_with(
        str(taken_port), "taken"
    )
    assert "second" not in testbed.run("testbed", "ps").succeeded().stdout


def test_an_address_that_is_not_ours(testbed: CommandLine) -> None:
    config = testbed.folder / "testbed" / "mpistream.toml"
    testbed.run("aggregate", "--config", config, "--name", "second", "--host", "192.0.2.1").failed_with("192.0.2.1")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("testbed", "run"),
        ("testbed", "run", "--source", "sim:2x2"),
        ("testbed", "run", *SMALL, "--output", "x.h5", "--groups", "0"),
        ("testbed", "run", *SMALL, "--output", "x.h5", "--speed", "full"),
        ("produce",),
        ("produce", "--sector", "4"),
        ("fly",),
    ],
    ids=lambda arguments: " ".join(map(str, arguments))[-30:],
)
def test_wrong_usage(cli: CommandLine, arguments: tuple[object, ...]) -> None:
    """Exit status 2, and what is wrong, or how the command is used."""
    result = cli.run(*arguments)
    assert result.status == 2, result
    assert "Usage: " in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_program_that_is_not_installed(cli: CommandLine, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.environment, "PATH", "/nowhere")
    refused(cli, output, *SMALL, words=("etcd", "not installed"))
