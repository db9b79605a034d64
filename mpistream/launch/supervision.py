"""A program that is started again whenever it ends: at once, and after a pause where it cannot live."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpistream.launch.processes import Child, session_members, start_child
from mpistream.model.errors import ScanFailed

#: A program that has ended so often in a row, each time within so many seconds of its start, cannot live.
MOST_BRIEF_LIVES, BRIEF_SECONDS = 5, 10.0
#: It is tried again after so many seconds.
PAUSE_SECONDS = 30.0
#: A launcher that has lost one of its processes and does not end by itself is ended after so many seconds, one that
#: never had them all after the second number.
LOST_SECONDS, STARTING_SECONDS = 10.0, 60.0
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
        self._started = time.monotonic()
        self._ended: float | None = None
        self._brief_lives = 0
        self._pause: ScanFailed | None = None
        self._lost = _LostProcesses(program.processes)

    @property
    def cannot_live(self) -> str:
        """Why the program is not started at the moment; empty while it is."""
        return self._pause.message if self._pause else ""

    def turn(self) -> str:
        """To be called again and again: what has happened, for people; empty as a rule.

        Starts the program again where it has ended, as soon as nothing is left of its session. Raises ScanFailed during
        the pause that follows a row of brief lives.
        """
        if self.child.is_running:
            return self._lost.look(self.child)
        now = time.monotonic()
        if self._ended is None:
            self._ended = now
            self._brief_lives = self._brief_lives + 1 if now - self._started < BRIEF_SECONDS else 0
        if not self.child.session_is_gone():
            return ""
        how = self.child.how_it_ended()
        if self._brief_lives >= MOST_BRIEF_LIVES and now - self._ended < PAUSE_SECONDS:
            self._pause = self._pause or ScanFailed(
                f"{how}; it has ended {self._brief_lives} times in a row within {BRIEF_SECONDS:g} s of its start",
                f"it is started again every {PAUSE_SECONDS:g} s; its log: {self.program.log}",
            )
            raise self._pause
        self._start()
        return f"{how}; it was started again, as pid {self.child.pid}"

    def _start(self) -> None:
        try:
            self.child = self.program.start()
        except OSError as error:
            raise ScanFailed(
                f"{self.program.name} cannot be started: {error}", f"mend that; its log: {self.program.log}"
            ) from error
        self._started, self._ended, self._pause = time.monotonic(), None, None
        self._lost = _LostProcesses(self.program.processes)


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
        """Ends the launcher, and says so, where a process has been missing for too long."""
        now = time.monotonic()
        if self._processes == 1 or now - self._counted < _COUNT_SECONDS:
            return ""
        self._counted = now
        if len(session_members(child.pid)) >= self._processes:
            self._complete, self._missing_since = True, None
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since > (LOST_SECONDS if self._complete else STARTING_SECONDS):
            child.end(patience_seconds=0)
            what = "had lost a process" if self._complete else f"had not started all of its {self._processes - 1} ranks"
            return f"{child.name} {what} and did not end by itself"
        return ""
