"""The processes of a deployment as the kernel shows them, by the part that they play."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

#: What a fault may be aimed at. A leader is the rank 0 of an MPI job; the other ranks are "rank".
ROLES = ("producer", "aggregator", "rank", "leader", "mpiexec", "etcd", "supervisor")


@dataclass(frozen=True, order=True)
class Process:
    """``start`` tells it from a later one with the same pid; ``command`` is for people."""

    role: str
    pid: int
    start: str
    command: str

    def send(self, number: signal.Signals) -> bool:
        """False where it has ended meanwhile."""
        if _start_of(self.pid) != self.start:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    @property
    def is_running(self) -> bool:
        return _start_of(self.pid) == self.start


def processes_of(marker: str) -> list[Process]:
    """All that have ``marker`` in their command line or environment; "" is the role of those that play none."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            line, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended, or is somebody else's
            continue
        start = _start_of(int(folder.name))
        if line and start is not None and marker.encode() in line + environment:
            words = line.decode(errors="replace").rstrip("\0").split("\0")
            found.append(Process(_role(words, environment), int(folder.name), start, " ".join(words)))
    return sorted(found)


def _role(words: list[str], environment: bytes) -> str:
    program = Path(words[0]).name
    if program == "etcd" or program.startswith("mpiexec"):
        return "etcd" if program == "etcd" else "mpiexec"
    if not program.startswith("python"):
        return ""
    if "consume" in words:
        return "leader" if b"\0OMPI_COMM_WORLD_RANK=0\0" in b"\0" + environment else "rank"
    named = {"produce": "producer", "aggregate": "aggregator", "supervise": "supervisor"}
    return next((role for word, role in named.items() if word in words), "")


def _start_of(pid: int) -> str | None:
    """Clock ticks since the start of the machine; None for what has ended, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
