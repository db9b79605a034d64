"""Child processes that never outlive the process that started them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from mpistream.model.errors import MpistreamError, ScanFailed


@dataclass
class Child:
    """A started process; everything it prints goes to ``log``."""

    role: str
    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def check_running(self) -> None:
        """Raises ScanFailed, with the process's own last words, when it has ended."""
        status = self.popen.poll()
        if status is not None:
            raise ScanFailed(f"{self.name} {_how_ended(status)}: {last_words(self.log)}", f"its log: {self.log}")

    def ask_to_end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(signal.SIGTERM)

    def end(self, patience_seconds: float) -> None:
        """Waits for the process to end by itself, then kills it and whatever it started in its session."""
        try:
            self.popen.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


def _how_ended(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    # what shells and mpiexec pass on when a process of theirs was killed by a signal
    if status - 128 in set(signal.Signals):
        return f"ended, since a process of it was killed by {signal.Signals(status - 128).name}"
    return f"exited with {status}"


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
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    return Child(role, name, popen, log)


def last_words(log: Path) -> str:
    """What a process said last that a user should read: its error message, or else its last line."""
    # mpiexec frames its messages with lines of dashes, and may complain of its own end at last
    noise = re.compile(r"[- ]*$|.*ORTE_ERROR_LOG|\[warn\] ")
    lines = [line for line in log.read_text(errors="replace").splitlines() if not noise.match(line)]
    errors = [number for number, line in enumerate(lines) if line.startswith("mpistream: error: ")]
    if not errors:
        return lines[-1].strip() if lines else "it said nothing"
    message = lines[errors[0]].removeprefix("mpistream: error: ")
    remedy = lines[errors[0] + 1 : errors[0] + 2]
    return f"{message}; {remedy[0].strip()}" if remedy and remedy[0].startswith("  ") else message


def has_ended(pid: int) -> bool:
    """Also for a process that is no child; one that only waits to be reaped has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_pid(pid: int, patience_seconds: float) -> None:
    """SIGKILL for a process that is not a child, once ``patience_seconds`` have not been enough for it to end."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if has_ended(pid):
            return
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        # the number may meanwhile be that of somebody else's process
        if b"mpistream" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
