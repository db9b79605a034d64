"""Faults: what they are, and how they are brought into a deployment while a scan is under way."""

import random
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tests.faults.by_hand import HandDeployment
from tests.faults.deployment import Deployment
from tests.faults.disks import SmallDisk
from tests.faults.processes import Process
from tests.faults.scan_watch import ScanWatch


@dataclass(frozen=True)
class Fault:
    """One fault of a trial.

    kind     a key of KINDS in tests.faults.surroundings
    target   a role, a fault point, a namespace, or how the fault is to be mended
    at       when, as a share of the scan's usual time from announcement to commit; below 0: before it is announced
    seconds  how long it lasts
    detail   of some kinds: a signal, a number
    """

    kind: str
    target: str
    at: float = -1.0
    seconds: float = 0.0
    detail: str = ""


@dataclass
class Scene:
    """Where faults are brought in. ``disk`` holds the outputs of scans whose disk is to be full."""

    deployment: Deployment
    watch: ScanWatch
    random: random.Random
    disk: SmallDisk | None = None
    redirected: Path | None = None

    @property
    def by_hand(self) -> HandDeployment:
        assert isinstance(self.deployment, HandDeployment)
        return self.deployment


@dataclass
class Injection(ABC):
    """A fault on its way: waits for its moment, begins, lasts, is cleared. ``turn`` is called many times a second.

    ``began`` and ``cleared`` are seconds of the monotonic clock; recovery is counted from ``cleared``.
    """

    fault: Fault
    scene: Scene
    began: float | None = None
    cleared: float | None = None
    notes: list[str] = field(default_factory=list)

    @staticmethod
    @abstractmethod
    def label(fault: Fault) -> str:
        """Its row in the table."""

    def turn(self, due: bool) -> None:
        now = time.monotonic()
        if self.began is None:
            if due and self.begin():
                self.began = now
        elif self.cleared is None and now >= self.began + self.fault.seconds:
            self.end()
            self.cleared = time.monotonic()

    @abstractmethod
    def begin(self) -> bool:
        """False where it cannot be done yet: there is no such process at the moment."""

    def end(self) -> None:  # noqa: B027
        """Nothing, where nothing has to be undone."""

    def withdraw(self) -> None:
        """The scan has ended: a fault that has not come about does not any more, one that lasts is cleared."""
        if self.began is not None and self.cleared is None:
            self.end()
            self.cleared = time.monotonic()

    #: not cleared before the scan has ended
    ends_with_scan: ClassVar[bool] = False
    #: strikes only while something is done for the scan
    needs_scan: ClassVar[bool] = False

    @property
    def has_struck(self) -> bool:
        return self.began is not None

    @property
    def is_over(self) -> bool:
        return self.cleared is not None

    def choose(self, found: list[Process]) -> Process | None:
        return self.scene.random.choice(found) if found else None


@dataclass
class Kill(Injection):
    """SIGKILL for one process."""

    @staticmethod
    def label(fault: Fault) -> str:
        return f"SIGKILL {fault.target}"

    def begin(self) -> bool:
        process = self.choose(self.scene.deployment.processes(self.fault.target))
        if process is None or not process.send(signal.SIGKILL):
            return False
        self.notes.append(f"killed {process.role} {process.pid}")
        return True


@dataclass
class Stop(Injection):
    """SIGSTOP, and SIGCONT later."""

    process: Process | None = None

    @staticmethod
    def label(fault: Fault) -> str:
        return f"SIGSTOP {fault.target}, {'long' if fault.detail == 'long' else 'short'}"

    def begin(self) -> bool:
        self.process = self.choose(self.scene.deployment.processes(self.fault.target))
        if self.process is None or not self.process.send(signal.SIGSTOP):
            return False
        self.notes.append(f"stopped {self.process.role} {self.process.pid} for {self.fault.seconds:.1f} s")
        return True

    def end(self) -> None:
        if self.process is not None:
            self.process.send(signal.SIGCONT)


@dataclass
class Point(Injection):
    """A named place in the program at which the first process that comes by kills or stops itself."""

    needs_scan = True
    pid: int | None = None

    @staticmethod
    def label(fault: Fault) -> str:
        return f"at {fault.target}"

    @property
    def armed(self) -> Path:
        return self.scene.deployment.fault_points / self.fault.target

    def begin(self) -> bool:
        for old in self.armed.parent.glob(f"{self.fault.target}.taken-by-*"):
            old.unlink()
        partial = self.armed.with_name(f"{self.fault.target}.partial")
        partial.write_text(self.fault.detail or "KILL")
        partial.rename(self.armed)
        return True

    def turn(self, due: bool) -> None:
        if self.began is None:
            if due and self.begin():
                self.began = time.monotonic()
            return
        if self.pid is None:
            taken = next(iter(self.armed.parent.glob(f"{self.fault.target}.taken-by-*")), None)
            if taken is None:
                return
            self.pid = int(taken.name.rpartition("-")[2])
            # the moment at which it was renamed, on this clock
            self.began = time.monotonic() - max(0.0, time.time() - taken.stat().st_ctime)
            self.notes.append(f"pid {self.pid} came to {self.fault.target}")
        if self.cleared is None and time.monotonic() >= self.began + self.fault.seconds:
            self.end()
            self.cleared = time.monotonic() if self.fault.seconds else self.began

    def end(self) -> None:
        if self.fault.detail == "STOP" and self.pid is not None:
            with_that_pid = [one for one in self.scene.deployment.processes() if one.pid == self.pid]
            for process in with_that_pid:
                process.send(signal.SIGCONT)

    def withdraw(self) -> None:
        if self.began is not None:
            self.turn(True)
        if self.pid is None:
            self.armed.unlink(missing_ok=True)
        elif self.cleared is None:
            self.end()
            self.cleared = time.monotonic()

    @property
    def has_struck(self) -> bool:
        return self.pid is not None
