"""Which process wrote something, and whether it is known to have died: that is known on its own machine only."""

import os
from functools import cache
from pathlib import Path


@cache
def this_process() -> str:
    """BOOT/PID-NAMESPACE/PID/START: no other process of any machine ever has the same."""
    return f"{_machine()}/{os.getpid()}/{_start(os.getpid())}"


def is_known_dead(process: str) -> bool:
    """False also where it cannot be known: the process is another machine's, or in another namespace of pids."""
    machine, _, rest = process.rpartition("/")[0].rpartition("/")
    if machine != _machine() or not rest.isdecimal():
        return False
    try:
        return _start(int(rest)) != process.rpartition("/")[2]
    except PermissionError:
        return False


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown-{os.getpid()}"


def _start(pid: int) -> str:
    """In clock ticks since the machine started; empty for a process that is not there, or only waits to be reaped.

    Raises PermissionError where /proc hides the process.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        raise PermissionError(f"process {pid} is hidden") from None
    return "" if state in "ZX" else fields[18]
