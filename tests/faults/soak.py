"""A session of many scans in one testbed: nothing may grow with their number."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults.deployment import TestbedDeployment
from tests.faults.expected import Variant
from tests.faults.processes import Process
from tests.faults.trials import Stage

FIRST_COUNTED = 10  # the scans before fill caches and pools
_SETTLING_SECONDS = 20.0
_GROWTH = 0.05
_GROWTH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Figures:
    """Of one process, after one scan."""

    resident_bytes: int
    descriptors: int
    threads: int
    sockets: int


def measure(process: Process) -> Figures:
    folder = Path(f"/proc/{process.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    links = []
    for name in os.listdir(folder / "fd"):
        try:
            links.append(os.readlink(folder / "fd" / name))
        except OSError:  # closed meanwhile
            continue
    sockets = sum(link.startswith("socket:") for link in links)
    return Figures(int(status["VmRSS"].split()[0]) * 1024, len(links), int(status["Threads"]), sockets)


class Soak:
    """``history``: by process, its figures after each scan."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._deployment = stage.deployment
        self.history: dict[str, list[Figures]] = {}
        self.problems: list[str] = []

    def run(self, scans: int, variant: Variant) -> None:
        assert isinstance(self._deployment, TestbedDeployment)
        processes = self._deployment.processes()
        idle = self._leases()
        self.history = {f"{one.role} {one.pid}": [] for one in processes}
        for number in range(scans):
            try:
                self._scan(number, variant)
            except (AssertionError, TimeoutError) as error:
                self.problems.append(f"scan {number + 1} of {scans}: {error}")
                return
            if not all(one.is_running for one in processes):
                self.problems.append("a process ended during the session")
                return
            for one in processes:
                self.history[f"{one.role} {one.pid}"].append(measure(one))
            if (number + 1) % 10 == 0:
                print(f"{number + 1} of {scans} scans", flush=True)
        leases = self._leases()
        if leases != idle:
            self.problems.append(f"{leases} leases after the session, {idle} before")
        self.problems += [problem for name in self.history for problem in growth(name, self.history[name])]

    def _scan(self, number: int, variant: Variant) -> None:
        """Returns when nothing of it is left."""
        reference = self._stage.undisturbed(Variant(f"soak-{number}", variant.source, variant.options, variant.dataset))
        shutil.rmtree(reference.path.parent)

    def _leases(self) -> int:
        """Once it has come to rest."""
        deadline = time.monotonic() + _SETTLING_SECONDS
        counted = [-1, -2]
        while counted[-1] != counted[-2] and time.monotonic() < deadline:
            time.sleep(1.0)
            counted.append(len(self._deployment.view.leases() or ()))
        return counted[-1]


def growth(name: str, figures: list[Figures]) -> list[str]:
    """What has become more from scan FIRST_COUNTED to the last: memory by the straight line through it, the others by
    the least in the first and in the last quarter, since what comes and goes is no leak.
    """
    counted = figures[FIRST_COUNTED:]
    quarter = max(1, len(counted) // 4)
    resident = [one.resident_bytes for one in counted]
    slope, start = np.polyfit(np.arange(len(resident)), resident, 1)
    grown = slope * len(resident)
    problems = []
    if grown > max(_GROWTH * start, _GROWTH_BYTES):
        problems.append(f"{name}: its resident memory grew from {start / 2**20:.0f} MiB by {grown / 2**20:.0f} MiB")
    for what in ("descriptors", "threads", "sockets"):
        before, after = (min(getattr(one, what) for one in part) for part in (counted[:quarter], counted[-quarter:]))
        # Go's runtime starts threads as it needs them, and keeps them
        if after > before and not (what == "threads" and name.startswith("etcd")):
            problems.append(f"{name}: {what} grew from {before} to {after}")
    return problems
