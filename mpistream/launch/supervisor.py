"""A testbed that keeps running in the background: `testbed up`, `ps` and `down` meet in its folder."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.launch.processes import has_ended, last_words
from mpistream.launch.testbed import Testbed, registered_processes
from mpistream.launch.testbed_folder import ProcessEntry, TestbedFolder, TestbedState
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, MpistreamError

_log = logging.getLogger(__name__)

_START_SECONDS = 90.0
_STOP_SECONDS = 60.0
_TURN_SECONDS = 0.1


def default_folder() -> Path:
    """Where a testbed lives unless told otherwise: MPISTREAM_TESTBED, or the XDG base directory specification."""
    if told := os.environ.get("MPISTREAM_TESTBED"):
        return Path(told)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mpistream" / "testbed"


def up(path: Path, layout: Sequence[str], base: Path | None = None, fresh: bool = False) -> bool:
    """Starts a supervisor in the background and returns when all its processes are registered.

    ``layout``: the subcommand of `mpistream testbed` that holds such a testbed, and its options. What the folder's last
    testbed has left unfinished goes on: then True is returned. ``fresh``: it is removed instead.
    """
    folder = TestbedFolder(path)
    if folder.is_running():
        raise folder.is_used()
    if folder.holds_something_else():
        raise MpistreamError(f"{path} holds something else than a testbed", "choose another --folder")
    with folder.held():
        goes_on = folder.state() is not None
        folder.end_leftovers()
        if fresh or not goes_on:
            folder.clear()
    command = [sys.executable, "-m", "mpistream", "testbed", *layout, "--folder", str(folder.path)]
    command += ["--config", str(base)] if base else []
    with folder.log.open("ab") as log:
        log_start = log.seek(0, os.SEEK_END)
        supervisor = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + _START_SECONDS
    try:
        while (state := folder.state()) is None or state.supervisor != supervisor.pid:
            if supervisor.poll() is not None:
                words = last_words(folder.log, log_start)
                raise MpistreamError(f"the testbed did not start: {words}", _after_failed_start(folder, goes_on))
            if time.monotonic() > deadline:
                raise MpistreamError(
                    f"the testbed did not start within {_START_SECONDS:g} s", _after_failed_start(folder, goes_on)
                )
            time.sleep(_TURN_SECONDS)
    except BaseException:
        supervisor.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(_STOP_SECONDS)
        raise
    return goes_on and not fresh


def _after_failed_start(folder: TestbedFolder, goes_on: bool) -> str:
    """What to do next."""
    without = "; without the scans that the last one left unfinished: mpistream testbed up --fresh" if goes_on else ""
    return f"logs: {folder.path}{without}"


def supervise(path: Path, make_testbed: Callable[[TestbedFolder], Testbed]) -> None:
    """The supervisor itself: holds a testbed until SIGTERM, and starts again those of its processes that end."""
    folder = TestbedFolder(path)
    with folder.held():
        ending = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            ending.set()

        with make_testbed(folder) as testbed:
            # Before, a signal interrupts the start.
            signal.signal(signal.SIGTERM, end)
            signal.signal(signal.SIGINT, end)
            written = _write_state(folder, testbed)
            complaint = ""
            while not ending.wait(_TURN_SECONDS):
                try:
                    try:
                        testbed.supervise()
                    finally:
                        written = _write_state(folder, testbed, written)
                except (MpistreamError, OSError) as error:
                    if str(error) != complaint:
                        _log.error("%s", error)
                    complaint = str(error)
        leave(folder, testbed)


def _write_state(folder: TestbedFolder, testbed: Testbed, written: TestbedState | None = None) -> TestbedState:
    """The state that the folder has then. Nothing is done where that has been ``written`` already."""
    state = TestbedState(os.getpid(), testbed.unregistered_processes(), testbed.cannot_live)
    if state != written:
        folder.write_state(state)
    return state


def leave(folder: TestbedFolder, testbed: Testbed) -> None:
    """After an end in order: keeps what unfinished scans need to go on."""
    if testbed.unfinished:
        folder.write_state(TestbedState(os.getpid(), unfinished=testbed.unfinished))
    else:
        folder.forget_state()


def _signal_holder(folder: TestbedFolder, pid: int, number: signal.Signals) -> None:
    """Nobody else gets the signal, should the holder have ended and its number been given away."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if folder.holder() == pid:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _state(folder: TestbedFolder) -> TestbedState:
    state = folder.state()
    if state is not None and folder.is_running():
        return state
    raise _is_not_running(folder)


def _is_not_running(folder: TestbedFolder) -> MpistreamError:
    remedy = "start one with `mpistream testbed up`"
    if folder.state() is not None:
        remedy += "; what the last one there has left unfinished then goes on"
    return MpistreamError(f"no testbed is running in {folder.path}", remedy)


def config_of(path: Path) -> Config:
    """The configuration of the running testbed."""
    folder = TestbedFolder(path)
    _state(folder)
    return Config.load(folder.config_path)


def cannot_live(path: Path) -> tuple[str, ...]:
    """Processes of the running testbed that cannot live, and how they ended."""
    return _state(TestbedFolder(path)).cannot_live


def ps(path: Path) -> list[ProcessEntry]:
    """What runs: the supervisor's children and whatever is registered in its etcd."""
    state = _state(TestbedFolder(path))
    config = config_of(path)
    entries = [ProcessEntry("supervisor", "supervisor", state.supervisor, "")]
    entries += [entry for entry in state.processes if not has_ended(entry.pid)]
    with Coordination(config.etcd.endpoints, config.etcd_prefix, config.etcd.timeout_seconds) as coordination:
        try:
            entries += registered_processes(Registry(coordination, config.etcd.lease_seconds))
        except CoordinationError as error:
            print(f"mpistream: {error}", file=sys.stderr)
    return entries


def down(path: Path) -> tuple[str, ...]:
    """Ends the testbed and waits until all its processes are gone; the uids of scans that it left unfinished."""
    folder = TestbedFolder(path)
    deadline = time.monotonic() + _STOP_SECONDS
    while (supervisor := folder.holder()) == 0 and time.monotonic() < deadline:
        time.sleep(_TURN_SECONDS)
    if not supervisor:
        raise _is_not_running(folder)
    _signal_holder(folder, supervisor, signal.SIGTERM)
    while folder.is_running() or not has_ended(supervisor):
        if time.monotonic() > deadline:
            _signal_holder(folder, supervisor, signal.SIGKILL)
            raise MpistreamError(
                f"the testbed did not end within {_STOP_SECONDS:g} s; its supervisor was killed",
                "its processes end by themselves; look with `ps aux | grep mpistream`",
            )
        time.sleep(_TURN_SECONDS)
    left = folder.state()
    return left.unfinished if left else ()
