"""One start of a batch job's MPI job: its launcher, what it prints, how it ends."""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpistream.launch.processes import Child, start_child
from mpistream.model.session import JobStep

#: So many of the last lines are kept in etcd, for `mpistream job show`.
LAST_LINES = 12
_MOST_LINE_CHARACTERS = 300
_READ_BYTES = 2**20


class Step:
    """The command as a child. What it prints is kept in ``log``, and passed on to this process's own output.

    The launcher gets SIGTERM should this process die.
    """

    def __init__(self, name: str, command: Sequence[str], nodes: Sequence[str], log: Path, batch_job: str) -> None:
        self.name = name
        self.nodes = tuple(nodes)
        self.started = time.monotonic()
        self.asked: float | None = None
        self.ended: float | None = None
        self.how = ""
        self._started_unix_seconds = time.time()
        self._ended_unix_seconds: float | None = None
        self._passed_on = 0
        self._rest = b""
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        environment: Mapping[str, str] = {"MPISTREAM_BATCH_JOB": batch_job}
        self._child: Child = start_child("step", "the MPI job", list(command), log, dict(environment))

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_status(self) -> int | None:
        """As a shell has it: 128 and the signal's number where it was killed. None while it runs."""
        status = self._child.popen.returncode
        return 128 - status if status is not None and status < 0 else status

    def turn(self) -> bool:
        """To be called again and again; whether the launcher has ended just now, and nothing of it is left here."""
        self._pass_on()
        if self.ended is not None or self._child.is_running or not self._child.session_is_gone():
            return False
        self._pass_on(everything=True)
        self.ended, self._ended_unix_seconds = time.monotonic(), time.time()
        in_order = self.asked is not None and self.exit_status == 0
        self.how = self.how or ("the MPI job has ended, as asked" if in_order else self._child.how_it_ended())
        return True

    def ask_to_end(self, signal_launcher: bool) -> None:
        """``signal_launcher``: its ranks could not be asked through etcd."""
        self.asked = self.asked or time.monotonic()
        if signal_launcher:
            self._child.ask_to_end()

    def kill(self, why: str) -> None:
        self.how = why
        self._child.end(patience_seconds=0)

    def close(self) -> None:
        """Leaves nothing, whatever state it was in."""
        if self.ended is None:
            self._child.ask_to_end()
            self._child.end(patience_seconds=5.0)
            self._pass_on(everything=True)

    def record(self) -> JobStep:
        return JobStep(
            nodes=self.nodes,
            started_unix_seconds=self._started_unix_seconds,
            ended_unix_seconds=self._ended_unix_seconds,
            exit_status=self.exit_status,
            how=self.how if self.ended is not None else "",
            last_lines=tuple(self._last_lines),
        )

    def _pass_on(self, everything: bool = False) -> None:
        """Whole lines only, unless that was ``everything``: several ranks and this process write to the same log."""
        while True:
            with self._child.log.open("rb") as file:
                file.seek(self._child.log_start + self._passed_on)
                found = file.read(_READ_BYTES)
            self._passed_on += len(found)
            *lines, self._rest = (self._rest + found).split(b"\n")
            if everything and len(found) < _READ_BYTES and self._rest:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                print(text)
                if text:
                    self._last_lines.append(text[:_MOST_LINE_CHARACTERS])
            sys.stdout.flush()
            if len(found) < _READ_BYTES:
                return
