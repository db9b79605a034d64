"""The folder of a testbed: what lies in it, who runs it, and what an end has left unfinished there."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mpistream.launch.processes import end_marked
from mpistream.model.errors import MpistreamError

_LOCK = "mpistream-testbed.lock"
_STATE = "testbed.json"
_MARK = "MPISTREAM_PROCESS_OF"
_LEFTOVER_SECONDS = 10.0
_LOOK_SECONDS = 0.5  # whoever only looks whether a testbed runs is done sooner


@dataclass(frozen=True)
class ProcessEntry:
    """One process of a testbed, as ``mpistream testbed ps`` lists it."""

    role: str
    name: str
    pid: int
    endpoint: str


@dataclass(frozen=True)
class TestbedState:
    """What others know of a testbed.

    supervisor  the process that holds it
    processes   those of its children that are in no registry
    cannot_live children that have ended too soon too often, and how
    unfinished  uids of scans that were left when it ended
    """

    __test__ = False

    supervisor: int
    processes: tuple[ProcessEntry, ...] = ()
    cannot_live: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()


class TestbedFolder:
    """A running testbed holds its folder's lock. A state without a lock: scans may be unfinished, and can go on."""

    __test__ = False

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def config_path(self) -> Path:
        return self.path / "mpistream.toml"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def etcd(self) -> Path:
        return self.path / "etcd"

    @property
    def environment(self) -> dict[str, str]:
        """What marks the testbed's processes, and all that these start."""
        return {_MARK: str(self.path)}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises MpistreamError while another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a") as lock:
            deadline = time.monotonic() + _LOOK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise self.is_used() from None
                    time.sleep(0.05)
            os.truncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
            yield

    def is_running(self) -> bool:
        return self.holder() is not None

    def holder(self) -> int | None:
        """The pid of the process that holds the folder; 0 at the moment when it has only just got hold of it."""
        try:
            with (self.path / _LOCK).open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read().strip() or 0)
        except FileNotFoundError:
            return None
        return None

    def is_used(self) -> MpistreamError:
        return MpistreamError(f"a testbed is running in {self.path}", "use it, or end it with `mpistream testbed down`")

    def holds_something_else(self) -> bool:
        return self.path.exists() and any(self.path.iterdir()) and not (self.path / _LOCK).exists()

    def state(self) -> TestbedState | None:
        """None where no testbed runs, and the last one has left nothing unfinished."""
        try:
            value = json.loads((self.path / _STATE).read_text())
            return TestbedState(
                value["supervisor"],
                tuple(ProcessEntry(**entry) for entry in value["processes"]),
                tuple(value["cannot_live"]),
                tuple(value["unfinished"]),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return TestbedState(0)  # the machine went down while it was written, or another release wrote it

    def write_state(self, state: TestbedState) -> None:
        _write(self.path / _STATE, json.dumps(asdict(state)))

    def write_config(self, text: str) -> None:
        _write(self.config_path, text)

    def forget_state(self) -> None:
        (self.path / _STATE).unlink(missing_ok=True)

    def forget_scans(self) -> None:
        """Removes what a testbed keeps of its scans, and with it that there is anything unfinished."""
        self.forget_state()
        self.config_path.unlink(missing_ok=True)
        shutil.rmtree(self.etcd, ignore_errors=True)

    def clear(self) -> None:
        """Removes everything that an earlier testbed has left."""
        self.forget_scans()
        with contextlib.suppress(FileNotFoundError):
            self.log.unlink()
        shutil.rmtree(self.logs, ignore_errors=True)

    def end_leftovers(self) -> None:
        """Ends what a testbed that ended without order has left running. Raises MpistreamError where that fails."""
        for name, value in self.environment.items():
            end_marked(f"{name}={value}", _LEFTOVER_SECONDS)


def _write(path: Path, text: str) -> None:
    """Whoever reads it sees all of it, or what was there before."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.rename(path)
