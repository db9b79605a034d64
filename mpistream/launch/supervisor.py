"""A testbed that keeps running in the background: `testbed up`, `ps` and `down` meet in its folder."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.launch.processes import has_ended, last_words
from mpistream.launch.testbed import ProcessEntry, Testbed, registered_processes
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, MpistreamError

_log = logging.getLogger(__name__)

_START_SECONDS = 90.0
_STOP_SECONDS = 30.0
_TURN_SECONDS = 0.1
_LOCK = "mpistream-testbed.lock"
_STATE = "testbed.json"
_LOG = "supervisor.log"
#: What a testbed leaves in its folder, and the next one there removes.
_FILES = (_STATE, _LOG, "mpistream.toml")
_FOLDERS = ("etcd", "logs")


def default_folder() -> Path:
    """Where a testbed lives unless told otherwise (XDG base directory specification)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mpistream" / "testbed"


def is_running(folder: Path) -> bool:
    """A running supervisor holds its folder's lock."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def up(folder: Path, groups: int, ranks_per_group: int, base: Path | None = None) -> None:
    """Starts a supervisor in the background and returns when all its processes are registered."""
    if is_running(folder):
        raise MpistreamError(f"a testbed is running in {folder}", "use it, or end it with `mpistream testbed down`")
    if folder.exists() and any(folder.iterdir()) and not (folder / _LOCK).exists():
        raise MpistreamError(f"{folder} holds something else than a testbed", "choose another --folder")
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mpistream", "testbed", "supervise", "--folder", str(folder)]
    command += ["--groups", str(groups), "--ranks-per-group", str(ranks_per_group)]
    command += ["--config", str(base)] if base else []
    with (folder / _LOG).open("ab") as log:
        supervisor = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + _START_SECONDS
    try:
        while not (folder / _STATE).exists():
            if supervisor.poll() is not None:
                raise MpistreamError(f"the testbed did not start: {last_words(folder / _LOG)}", f"logs: {folder}")
            if time.monotonic() > deadline:
                raise MpistreamError(f"the testbed did not start within {_START_SECONDS:g} s", f"logs: {folder}")
            time.sleep(_TURN_SECONDS)
    except BaseException:
        supervisor.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(_STOP_SECONDS)
        raise


def supervise(folder: Path, groups: int, ranks_per_group: int, base: Config) -> None:
    """The supervisor itself: holds a testbed until SIGTERM, and logs when one of its processes ends."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        signals = {signal.SIGTERM, signal.SIGINT}
        with Testbed(folder, groups, ranks_per_group, base=base) as testbed:
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            started = [asdict(entry) for entry in testbed.processes() if entry.role in ("etcd", "mpiexec")]
            state = {"supervisor": os.getpid(), "processes": started}
            partial = folder / (_STATE + ".partial")
            partial.write_text(json.dumps(state))
            partial.rename(folder / _STATE)
            complained = False
            while signal.sigtimedwait(signals, 1.0) is None:
                try:
                    testbed.check_alive()
                except MpistreamError as error:
                    if not complained:
                        _log.error("%s", error)
                    complained = True
        (folder / _STATE).unlink()


def _state(folder: Path) -> dict[str, object]:
    if not is_running(folder) or not (folder / _STATE).exists():
        raise MpistreamError(f"no testbed is running in {folder}", "start one with `mpistream testbed up`")
    state: dict[str, object] = json.loads((folder / _STATE).read_text())
    return state


def config_of(folder: Path) -> Config:
    """The configuration of the running testbed."""
    _state(folder)
    return Config.load(folder / "mpistream.toml")


def ps(folder: Path) -> list[ProcessEntry]:
    """What runs: the supervisor's children and whatever is registered in its etcd."""
    state = _state(folder)
    config = config_of(folder)
    entries = [ProcessEntry("supervisor", "supervisor", int(str(state["supervisor"])), "")]
    children = state["processes"]
    assert isinstance(children, list)
    entries += [ProcessEntry(**child) for child in children if Path(f"/proc/{child['pid']}").exists()]
    with Coordination(config.etcd.endpoints, config.etcd_prefix, config.etcd.timeout_seconds) as coordination:
        try:
            entries += registered_processes(Registry(coordination, config.etcd.lease_seconds))
        except CoordinationError as error:
            print(f"mpistream: {error}", file=sys.stderr)
    return entries


def down(folder: Path) -> None:
    """Ends the testbed and waits until all its processes are gone."""
    supervisor = int(str(_state(folder)["supervisor"]))
    os.kill(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while is_running(folder) or not has_ended(supervisor):
        if time.monotonic() > deadline:
            os.kill(supervisor, signal.SIGKILL)
            raise MpistreamError(
                f"the testbed did not end within {_STOP_SECONDS:g} s; its supervisor was killed",
                "its processes end by themselves; look with `ps aux | grep mpistream`",
            )
        time.sleep(_TURN_SECONDS)
