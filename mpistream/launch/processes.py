"""Child processes that never outlive the process that started them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpistream.model.errors import MpistreamError, ScanFailed

_TURN_SECONDS = 0.02
_KILLED_SECONDS = 10.0  # what does not end within this time waits for a disk that does not answer


@dataclass
class Child:
    """A started process; everything it prints goes to ``log``, from byte ``log_start`` on."""

    role: str
    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path
    log_start: int = 0

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        """Also while it is stopped."""
        return self._status() is None

    @property
    def was_killed(self) -> bool:
        """By a signal, or it ended since a process of it was; False while it is running."""
        status = self._status()
        return status is not None and (status < 0 or _is_of_a_signal(status))

    def _status(self) -> int | None:
        """As Popen has it. The process is not reaped: until it is, its number, which is also that of its session, is
        nobody else's.
        """
        if self.popen.returncode is not None:
            return self.popen.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def how_it_ended(self) -> str:
        """For people, with the process's own last words. Only once it is not running."""
        return f"{self.name} {_how_ended(self.popen.wait())}: {last_words(self.log, self.log_start)}"

    def check_running(self) -> None:
        """Raises ScanFailed, with the process's own last words, when it has ended."""
        if not self.is_running:
            raise ScanFailed(self.how_it_ended(), f"its log: {self.log}")

    def session_is_gone(self) -> bool:
        """Kills what is left of an ended child's session; False while something of it is still there."""
        if self.popen.returncode is not None:
            return True
        members = session_members(self.pid)
        for pid in members:
            _kill(pid)
        if not members:
            self.popen.wait()
        return not members

    def ask_to_end(self) -> None:
        if self.is_running:
            os.kill(self.pid, signal.SIGTERM)

    def end(self, patience_seconds: float) -> None:
        """Waits for the process to end by itself, then kills it, and whatever it has left in its session."""
        if not _come_true(lambda: not self.is_running, patience_seconds):
            _kill(self.pid)
        _come_true(self.session_is_gone, _KILLED_SECONDS)


def _how_ended(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    if _is_of_a_signal(status):
        return f"ended, since a process of it was killed by {signal.Signals(status - 128).name}"
    return f"exited with {status}"


def _is_of_a_signal(status: int) -> bool:
    """What shells and mpiexec pass on when a process of theirs was killed by a signal."""
    return status - 128 in set(signal.Signals)


def start_child(
    role: str, name: str, command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Child:
    """Starts ``command`` in a session of its own. It gets SIGTERM should this process die first.

    Raises MpistreamError when the program is not installed.
    """
    if shutil.which(command[0]) is None:
        raise MpistreamError(f"{command[0]} is not installed", "run `make setup`, or see `mpistream doctor`")
    setpriv = shutil.which("setpriv")
    if setpriv:
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    with log.open("ab") as output:
        log_start = output.seek(0, os.SEEK_END)
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    return Child(role, name, popen, log, log_start)


def last_words(log: Path, start: int = 0) -> str:
    """What a process said last that a user should read: its error message, or else its last line.

    ``start``: the byte of the log with which it began.
    """
    # mpiexec frames its messages with lines of dashes, and may complain of its own end at last
    noise = re.compile(r"[- ]*$|.*ORTE_ERROR_LOG|\[warn\] ")
    try:
        with log.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"
    lines = [line for line in text.splitlines() if not noise.match(line)]
    errors = [number for number, line in enumerate(lines) if line.startswith("mpistream: error: ")]
    if not errors:
        return lines[-1].strip() if lines else "it said nothing"
    message = lines[errors[0]].removeprefix("mpistream: error: ")
    remedy = lines[errors[0] + 1 : errors[0] + 2]
    return f"{message}; {remedy[0].strip()}" if remedy and remedy[0].startswith("  ") else message


def has_ended(pid: int) -> bool:
    """Also for a process that is no child; one that only waits to be reaped has ended."""
    fields = _stat(pid)
    return not fields or fields[0] in "ZX"


def session_members(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    members = []
    for pid in _pids():
        fields = _stat(pid)
        if fields and fields[3] == str(session) and fields[0] not in "ZX":
            members.append(pid)
    return members


def _stat(pid: int) -> list[str]:
    """State, parent, process group, session, ...; empty for a process that is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def end_marked(mark: str, patience_seconds: float) -> None:
    """Ends every process that has ``mark`` ("NAME=VALUE") in its environment: by request, then by force.

    Raises MpistreamError where one cannot be ended.
    """
    for number, seconds in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, patience_seconds)):
        for pid in _marked(mark):
            _signal_marked(pid, mark, number)
        if _come_true(lambda: not _marked(mark), seconds):
            return
    left = ", ".join(map(str, _marked(mark)))
    raise MpistreamError(f"these processes of an earlier testbed do not end: {left}", "look at them with ps; end them")


def _signal_marked(pid: int, mark: str, number: signal.Signals) -> None:
    """The process that has the number now gets the signal only if it is one of those meant."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _has_mark(pid, mark):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _marked(mark: str) -> list[int]:
    return [pid for pid in _pids() if pid != os.getpid() and _has_mark(pid, mark) and not has_ended(pid)]


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _come_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` holds within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_TURN_SECONDS)
    return True
