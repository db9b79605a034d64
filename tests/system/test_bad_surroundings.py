"""Outputs, configurations and surroundings that cannot be used: a message with a remedy, and nothing is left."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.command_line import SMALL, THRESHOLDS, CommandLine, finish, refused, wait_until
from tests.system.sector_writer import EMPTY, write_frames

pytestmark = pytest.mark.usefixtures("no_process_is_left")


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
