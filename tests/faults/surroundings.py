"""Faults of what a deployment stands on: etcd, the network, the aggregator's good conduct, the disk."""

import json
import signal
import subprocess
import time
from dataclasses import dataclass, field

from tests.faults.chaos import Rule, counts_file
from tests.faults.injections import Fault, Injection, Kill, Point, Scene, Stop
from tests.faults.processes import Process


@dataclass
class EtcdLeader(Injection):
    """SIGKILL for the member that leads; it comes back when the fault is over."""

    @staticmethod
    def label(fault: Fault) -> str:
        return "etcd's leader lost, of three"

    def begin(self) -> bool:
        process = self.choose(self.scene.by_hand.etcd_leader())
        if process is None:
            return False
        self.scene.by_hand.hold("etcd", True)
        return process.send(signal.SIGKILL)

    def end(self) -> None:
        self.scene.by_hand.hold("etcd", False)

    def turn(self, due: bool) -> None:
        super().turn(due)
        if self.cleared is not None:
            self.cleared = self.began  # the others go on: nothing has to be mended first


@dataclass
class EtcdAway(Injection):
    """All members, killed or stopped."""

    processes: list[Process] = field(default_factory=list)

    @staticmethod
    def label(fault: Fault) -> str:
        return f"all of etcd {'stopped' if fault.detail == 'STOP' else 'killed'} for {fault.seconds:.0f} s"

    def begin(self) -> bool:
        self.processes = self.scene.deployment.processes("etcd")
        if self.fault.detail == "KILL":
            self.scene.by_hand.hold("etcd", True)
        for process in self.processes:
            process.send(signal.Signals[f"SIG{self.fault.detail}"])
        return bool(self.processes)

    def end(self) -> None:
        if self.fault.detail == "KILL":
            self.scene.by_hand.hold("etcd", False)
        for process in self.processes:
            process.send(signal.SIGCONT)


@dataclass
class CutLink(Injection):
    """A namespace's link goes down, and comes up again."""

    @staticmethod
    def label(fault: Fault) -> str:
        return f"link of {fault.target} cut for {fault.seconds:.0f} s"

    def begin(self) -> bool:
        assert self.scene.by_hand.network is not None
        self.scene.by_hand.network.cut(self.fault.target)
        return True

    def end(self) -> None:
        assert self.scene.by_hand.network is not None
        self.scene.by_hand.network.mend(self.fault.target)


@dataclass
class _WholeScan(Injection):
    """What lasts until the scan has ended."""

    ends_with_scan = True

    def turn(self, due: bool) -> None:
        if due and self.began is None and self.begin():
            self.began = time.monotonic()


@dataclass
class LossyLink(_WholeScan):
    """``detail``: packets lost of a thousand."""

    @staticmethod
    def label(fault: Fault) -> str:
        return f"link of {fault.target} loses {int(fault.detail) / 10:g} % of the packets"

    def begin(self) -> bool:
        assert self.scene.by_hand.network is not None
        self.scene.by_hand.network.lose(self.fault.target, int(self.fault.detail))
        return True

    def end(self) -> None:
        assert self.scene.by_hand.network is not None
        self.scene.by_hand.network.lose(self.fault.target, 0)


@dataclass
class SlowLink(_WholeScan):
    """``detail``: Mbit/s."""

    @staticmethod
    def label(fault: Fault) -> str:
        return f"link of {fault.target} slowed to {fault.detail} Mbit/s"

    def begin(self) -> bool:
        assert self.scene.by_hand.network is not None
        self.scene.by_hand.network.slow(self.fault.target, int(self.fault.detail))
        return True

    def end(self) -> None:
        assert self.scene.by_hand.network is not None
        self.scene.by_hand.network.slow(self.fault.target, 0)


@dataclass
class Chaos(_WholeScan):
    """The aggregator loses, doubles, delays and reorders. ``detail``: the seed. It has struck when it has done each."""

    counts: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def label(fault: Fault) -> str:
        return "aggregator drops, doubles, delays, reorders"

    def begin(self) -> bool:
        Rule(int(self.fault.detail), drop=0.02, duplicate=0.05, delay=0.1).write(self.scene.by_hand.chaos)
        return True

    def end(self) -> None:
        rule = self.scene.by_hand.chaos
        rule.unlink(missing_ok=True)
        counts = counts_file(rule, "blocks")
        if counts.exists():
            self.counts = json.loads(counts.read_text())
            self.notes.append(f"blocks: {self.counts}")
            counts.unlink()

    @property
    def has_struck(self) -> bool:
        return bool(self.counts) and all(self.counts.values())


@dataclass
class FullDisk(Injection):
    """The disk of the output is full until there is room again, or the scan is redirected.

    ``detail``: whether the journals or the dataset do not fit. It has struck when the scan says so.
    """

    needs_scan = True
    struck: float | None = None

    @staticmethod
    def label(fault: Fault) -> str:
        return f"disk full, {fault.detail}, then {fault.target}"

    def begin(self) -> bool:
        return True  # the disk was made small before the scan was announced

    def turn(self, due: bool) -> None:
        now = time.monotonic()
        problems = self.scene.watch.problems()
        if self.struck is None and problems:
            self.struck = self.began = now
            self.notes.append(f"the scan says: {problems[0]}")
        elif self.struck is not None and self.cleared is None and now > self.struck + self.fault.seconds:
            self.end()
            self.cleared = time.monotonic()

    def end(self) -> None:
        assert self.scene.disk is not None
        if self.fault.target == "room":
            self.scene.disk.grow()
            return
        self.scene.redirected = self.scene.deployment.folder / "redirected" / "scan.h5"
        config = ["--config", str(self.scene.deployment.config)]
        target = ["--output", str(self.scene.redirected)]
        command = self.scene.deployment.command("scan", "redirect", self.scene.watch.uid, *target)
        done = subprocess.run(
            [*command, *config], env=self.scene.deployment.environment, capture_output=True, text=True, timeout=60
        )
        self.notes.append(f"redirect: {done.returncode} {done.stdout.strip()} {done.stderr.strip()}")

    def withdraw(self) -> None:
        """Nothing lasts: the disk is the trial's own."""

    @property
    def has_struck(self) -> bool:
        return self.struck is not None


KINDS: dict[str, type[Injection]] = {
    "kill": Kill,
    "stop": Stop,
    "point": Point,
    "etcd-leader": EtcdLeader,
    "etcd-away": EtcdAway,
    "cut": CutLink,
    "lossy": LossyLink,
    "slow": SlowLink,
    "chaos": Chaos,
    "disk": FullDisk,
}


def inject(fault: Fault, scene: Scene) -> Injection:
    return KINDS[fault.kind](fault, scene)


def label_of(fault: Fault) -> str:
    """Its row in the table."""
    return KINDS[fault.kind].label(fault)
