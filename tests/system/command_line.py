"""The ``mpistream`` command as a user runs it, and the processes that it starts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 120  # the deadline of a command; what a healthy one needs is far below, even on a slow machine
_TURN_SECONDS = 0.02
#: Options of a scan, and a small one, with which nothing is wrong.
THRESHOLDS = ("--background", 60, "--xray", 2000)
SMALL = ("--source", "sim:2x2?electrons=50", *THRESHOLDS)


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``condition`` returns once that is true. Fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        time.sleep(_TURN_SECONDS)
    return value


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    def succeeded(self) -> "Finished":
        assert self.status == 0, self
        return self

    @property
    def last_json(self) -> Any:
        """The last line of output of a command called with --json."""
        return json.loads(self.succeeded().stdout.splitlines()[-1])

    def failed_with(self, *words: str) -> "Finished":
        """Checks that there is one error message with a remedy, and no traceback. ``words`` stand in the message."""
        assert self.status != 0, self
        assert "Traceback" not in self.stdout + self.stderr, self
        lines = self.stderr.splitlines()
        places = [number for number, line in enumerate(lines) if line.startswith("mpistream: error: ")]
        assert len(places) == 1, self
        remedy = lines[places[0] + 1] if places[0] + 1 < len(lines) else ""
        assert remedy.startswith("  "), self
        assert remedy.strip(), self
        message = lines[places[0]]
        assert all(word in message for word in words), self
        return self


class CommandLine:
    """Runs mpistream with all of its temporary files under ``folder``, which marks every process that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        temporary = folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "TMPDIR": str(temporary), "MPISTREAM_TESTBED": str(folder / "testbed")}

    def start(self, *arguments: object, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*launcher, sys.executable, "-m", "mpistream", *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: object, seconds: float = SECONDS, launcher: tuple[str, ...] = ()) -> Finished:
        return finish(self.start(*arguments, launcher=launcher), seconds)

    def etcd_values(self, prefix: str) -> dict[str, Any]:
        """What stands in the etcd of the one testbed that is running under the folder."""
        configs = [*self.folder.glob("tmp/mpistream-testbed-*/mpistream.toml"), *self.folder.glob("testbed/*.toml")]
        return etcd_values(configs[0], prefix) if configs else {}

    def wait_for_stream(self, command: "subprocess.Popen[str]", frames: int = 1) -> None:
        """Returns while the scan that ``command`` follows is streaming, at least ``frames`` of it counted."""

        def is_streaming() -> bool:
            assert command.poll() is None, finish(command)
            stored = self.etcd_values("/testbed/")
            states = {key.split("/")[3]: value["state"] for key, value in stored.items() if key.endswith("/state")}
            return any(
                state == "streaming" and stored.get(f"/testbed/progress/{uid}", {"frames": 0})["frames"] >= frames
                for uid, state in states.items()
            )

        wait_until(is_streaming, 60, "a stream")

    def processes(self, *words: str) -> dict[int, str]:
        """Our running processes whose command line has all of ``words``: pid -> command line."""
        found = processes_with(str(self.folder))
        return {pid: line for pid, line in found.items() if all(word in line.split() for word in words)}

    def ranks(self) -> list[int]:
        """The pids of the MPI ranks."""
        return [pid for pid, line in self.processes("consume").items() if "mpiexec" not in line]


def finish(command: "subprocess.Popen[str]", seconds: float = SECONDS) -> Finished:
    """Waits for a started command. Fails, and ends it, when that takes longer than ``seconds``."""
    try:
        stdout, stderr = command.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        command.send_signal(signal.SIGTERM)
        try:
            stdout, stderr = command.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            command.kill()
            stdout, stderr = command.communicate()
        raise AssertionError(
            f"{' '.join(map(str, command.args))} did not end within {seconds:g} s\n{stdout}\n{stderr}"
        ) from None
    return Finished(command.returncode, stdout, stderr)


def refused(cli: CommandLine, output: Path, *arguments: object, words: tuple[str, ...]) -> Finished:
    """A whole run that is refused, without a file at the output."""
    before = sorted(output.parent.iterdir())
    result = cli.run("testbed", "run", "--output", output, *arguments).failed_with(*words)
    assert sorted(output.parent.iterdir()) == before
    return result


def processes_with(marker: str) -> dict[int, str]:
    """The running processes that have ``marker`` in their command line or environment: pid -> command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            line, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended, or is somebody else's
            continue
        if line and marker.encode() in line + environment:
            found[int(folder.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@contextmanager
def nothing_is_left(marker: str, spared: Iterable[int] = ()) -> Iterator[None]:
    """Fails when processes with ``marker`` (beside the pids ``spared``) are still there after what is done meanwhile.

    They have a while to end by themselves.
    """
    spared = set(spared)

    def find() -> dict[int, str]:
        return {pid: line for pid, line in processes_with(marker).items() if pid not in spared}

    try:
        yield
    finally:
        deadline = time.monotonic() + 15
        while (left := find()) and time.monotonic() < deadline:
            time.sleep(_TURN_SECONDS)
        kill(list(left))
    assert not left, "these processes were left behind:\n" + "\n".join(left.values())


def etcdctl(endpoint: str, *arguments: str) -> str:
    done = subprocess.run(
        ["etcdctl", "--endpoints", endpoint, *arguments],
        env={**os.environ, "ETCDCTL_API": "3"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.stdout if done.returncode == 0 else ""


def endpoint_in(config: Path) -> str:
    """The etcd address in a configuration file."""
    (line,) = [line for line in config.read_text().splitlines() if line.startswith("endpoints")]
    return line.split('"')[1]


def etcd_values(config: Path, prefix: str) -> dict[str, Any]:
    """Keys and values below ``prefix``; none while etcd does not answer."""
    lines = etcdctl(endpoint_in(config), "get", "--prefix", prefix).splitlines()
    return {key: json.loads(value) for key, value in zip(lines[::2], lines[1::2], strict=True)}
