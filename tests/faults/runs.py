"""One scan under way, with its faults."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.deployment import Deployment
from tests.faults.disks import SmallDisk
from tests.faults.expected import Variant
from tests.faults.injections import Fault, Injection, Scene
from tests.faults.scan_watch import ScanWatch
from tests.faults.surroundings import inject, label_of

RUN_SECONDS = 120.0  # beside the time that its faults last
_AFTERMATH_SECONDS = 2.0  # what is still done for a scan when it is committed
_TURN_SECONDS = 0.02


@dataclass(frozen=True)
class FaultResult:
    """``seconds``: the longest silence of the scan after the fault; None where the scan did not move after it.

    ``restarted``: an MPI job was started after it, while the scan lasted.
    """

    label: str
    struck: bool
    seconds: float | None = None
    restarted: bool = False


class Run:
    """A scan command, what becomes of its scan, and the faults. ``usual_seconds``: from announcement to commit."""

    def __init__(
        self,
        deployment: Deployment,
        variant: Variant,
        output: Path,
        overwrite: bool = False,
        faults: tuple[Fault, ...] = (),
        usual_seconds: float = 0.0,
        seed: str = "",
        disk: SmallDisk | None = None,
    ) -> None:
        stored = deployment.view.read("groups/")
        assert stored is not None, "etcd does not answer before the scan"
        self.deployment = deployment
        self.watch = ScanWatch(deployment, output, stored.revision)
        self.watch.jobs = {key.partition("/")[0]: 0.0 for key in stored.below("groups/")}
        self.scene = Scene(deployment, self.watch, random.Random(seed), disk)
        self.injections = [inject(fault, self.scene) for fault in faults]
        self._usual_seconds = usual_seconds
        self._log = deployment.folder / "scan.txt"
        self._log.unlink(missing_ok=True)
        for injection in self.injections:
            injection.turn(injection.fault.at < 0)
        options = (*variant.options, *(("--overwrite",) if overwrite else ()))
        self._ended_at: float | None = None
        self.began = time.monotonic()
        self._deadline = self.began + RUN_SECONDS + sum(fault.seconds for fault in faults)
        self.command = deployment.start_scan(variant.source, output, options, self._log)

    @property
    def output(self) -> Path:
        return self.scene.redirected or self.watch.output

    def turn(self) -> bool:
        """False once it is over, well or not."""
        self.deployment.tend()
        self.watch.look()
        now = time.monotonic()
        for injection in self.injections:
            injection.turn(self._is_due(injection, now))
        if self.command.poll() is not None and (self.watch.is_final or self.command.returncode != 0):
            self._ended_at = self._ended_at or now
            if self._is_over(now - self._ended_at):
                return False
        time.sleep(_TURN_SECONDS)
        return now < self._deadline

    def _is_over(self, seconds_ended: float) -> bool:
        """Once the scan has ended: whether every fault has come about and is cleared, or will not come about."""
        for injection in self.injections:
            late = injection.needs_scan and not injection.has_struck and seconds_ended > _AFTERMATH_SECONDS
            if injection.ends_with_scan or late or self.command.returncode:
                injection.withdraw()
        return self.command.returncode != 0 or all(
            injection.is_over or (injection.needs_scan and seconds_ended > _AFTERMATH_SECONDS)
            for injection in self.injections
        )

    def _is_due(self, injection: Injection, now: float) -> bool:
        """By the clock, or where the scan is faster than usual by what is counted of it."""
        announced_at, at = self.watch.announced_at, injection.fault.at
        if announced_at is None:
            return False
        return now >= announced_at + at * self._usual_seconds or self.watch.share_counted > max(at, 0.0)

    def finish(self) -> list[str]:
        """Clears what lasts and ends the command if it hangs: how it ended, where that was not well."""
        for injection in self.injections:
            injection.withdraw()
        if self.command.poll() is None:
            self.command.kill()
            self.command.wait()
            return [f"no end within {self._deadline - self.began:.0f} s; the scan is {self.watch.state or 'unknown'}"]
        if self.command.returncode:
            return [f"the scan command exited with {self.command.returncode}: {self.said()[-500:]}"]
        return []

    def said(self) -> str:
        return self._log.read_text(errors="replace").strip()

    def leftovers(self) -> list[str]:
        """What should be gone once the scan is committed. The folders of outputs hold nothing else."""
        left = {str(path) for folder in {self.output.parent, self.watch.output.parent} for path in folder.iterdir()}
        left.discard(str(self.output))
        if self.watch.journals is not None and self.watch.journals.exists():
            left.add(str(self.watch.journals))
        stored = self.deployment.view.read(f"scans/{self.watch.uid}/shares/")
        left.update(stored.values if stored else ["what is in etcd, which does not answer"])
        return sorted(left)

    def results(self) -> list[FaultResult]:
        """How long the scan was silent after each fault, up to the next one."""
        struck = sorted((one for one in self.injections if one.has_struck), key=lambda one: one.cleared or 0.0)
        found = [FaultResult(label_of(one.fault), False) for one in self.injections if not one.has_struck]
        last = self.watch.moves[-1][0] if self.watch.moves else 0.0
        for number, injection in enumerate(struck):
            assert injection.began is not None
            begin = injection.cleared or injection.began
            if injection.ends_with_scan:
                begin = self.watch.announced_at or injection.began
            later = [other.began for other in struck[number + 1 :] if other.began is not None and other.began > begin]
            seconds = self.watch.silence_after(begin, min(later, default=float("inf")))
            restarted = any(injection.began < first < last for first in self.watch.jobs.values())
            found.append(FaultResult(label_of(injection.fault), True, seconds, restarted))
        return found

    def notes(self) -> list[str]:
        return [note for injection in self.injections for note in injection.notes]
