"""A program that is started again whenever it ends, until it has ended too often."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpistream.launch.processes import Child, session_members, start_child
from mpistream.model.errors import ScanFailed

#: A program that ends so often within so many seconds is not started again.
MOST_ENDS, WITHIN_SECONDS = 5, 60.0
#: A launcher that has lost one of its processes and does not end by itself is ended after so many seconds.
LOST_SECONDS = 10.0
_COUNT_SECONDS = 2.0


@dataclass(frozen=True)
class Program:
    """How a process is started. ``processes``: how many its session has, a launcher's own one included."""

    role: str
    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str]
    processes: int = 1

    def start(self) -> Child:
        return start_child(self.role, self.name, list(self.command), self.log, dict(self.environment))


class SupervisedProgram:
    """One program, and the process that runs it at the moment. A process that is stopped is not dead."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.child = program.start()
        self._ends: deque[float] = deque(maxlen=MOST_ENDS)
        self._end_is_known = False
        self._given_up: ScanFailed | None = None
        self._lost = _LostProcesses(program.processes)

    @property
    def given_up(self) -> str:
        """Why the program is not started any more; empty while it is."""
        return self._given_up.message if self._given_up else ""

    def turn(self) -> str:
        """To be called again and again: what has happened, for people; empty as a rule.

        Starts the program again where it has ended, as soon as nothing is left of its session. Raises ScanFailed, from
        then on each time, where it has ended too often.
        """
        if self._given_up is not None:
            raise self._given_up
        if self.child.is_running:
            return self._lost.look(self.child)
        if not self._end_is_known:
            self._end_is_known = True
            self._ends.append(time.monotonic())
        if not self.child.session_is_gone():
            return ""
        how = self.child.how_it_ended()
        if len(self._ends) == MOST_ENDS and self._ends[-1] - self._ends[0] < WITHIN_SECONDS:
            self._given_up = ScanFailed(
                f"{how}; it has ended {MOST_ENDS} times within {WITHIN_SECONDS:g} s and is not started again",
                f"its log: {self.program.log}",
            )
            raise self._given_up
        self.child = self.program.start()
        self._end_is_known = False
        self._lost = _LostProcesses(self.program.processes)
        return f"{how}; it was started again, as pid {self.child.pid}"


class _LostProcesses:
    """Notices a launcher that goes on without one of its processes: mpiexec may hang when a rank dies at a bad moment,
    or be stopped itself.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._counted = 0.0
        self._complete = False
        self._missing_since: float | None = None

    def look(self, child: Child) -> str:
        """Ends the launcher, and says so, where a process has been missing for ``LOST_SECONDS``."""
        now = time.monotonic()
        if self._processes == 1 or now - self._counted < _COUNT_SECONDS:
            return ""
        self._counted = now
        if len(session_members(child.pid)) >= self._processes:
            self._complete, self._missing_since = True, None
        elif self._complete and self._missing_since is None:
            self._missing_since = now
        elif self._missing_since is not None and now - self._missing_since > LOST_SECONDS:
            child.end(patience_seconds=0)
            return f"{child.name} had lost a process and did not end by itself"
        return ""
