"""A campaign: both deployments kept running, trial after trial in one or the other, and what is left at the end."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.by_hand import HandDeployment
from tests.faults.deployment import LEASE_SECONDS, Deployment, TestbedDeployment
from tests.faults.expected import Variant, false_losses, roomy_folder, variants, without_loss
from tests.faults.namespaces import Network, lacking
from tests.faults.plans import BY_HAND, TESTBED
from tests.faults.trials import Plan, Stage, TrialResult

#: A supervisor pauses where a program has ended 5 times in a row within 10 s of its start, which takes a few seconds
#: itself. Two ends are kept in reserve.
_MOST_ENDS, _LIFE_SECONDS = 3, 16.0
_LOSS_SECONDS = 2.0
_MOST_AGAIN = 3


@dataclass
class Pace:
    """When which program of the testbed was ended last, so that its supervisor does not pause."""

    _row: dict[str, tuple[float, int]] = field(default_factory=dict)  # the last end, and how many came in a row

    def allows(self, plan: Plan) -> bool:
        return plan.where != TESTBED or all(
            self._in_a_row(program) + count <= _MOST_ENDS for program, count in _programs_ended(plan).items()
        )

    def note(self, plan: Plan) -> None:
        for program, count in _programs_ended(plan).items():
            self._row[program] = time.monotonic(), self._in_a_row(program) + count

    def _in_a_row(self, program: str) -> int:
        last, count = self._row.get(program, (0.0, 0))
        return count if time.monotonic() - last < _LIFE_SECONDS else 0


def _programs_ended(plan: Plan) -> dict[str, int]:
    programs: dict[str, int] = {}
    for fault in plan.faults:
        role = fault.target.partition(".")[0]
        if fault.kind in ("kill", "point", "stop"):
            program = "mpi" if role in ("rank", "leader", "mpiexec") else role
            programs[program] = programs.get(program, 0) + 1
    return programs


class Campaign:
    """Runs trials; those whose faults did not strike are tried again with the same plan and another moment."""

    def __init__(self, stages: dict[str, Stage]) -> None:
        self.stages = stages
        self.results: list[TrialResult] = []
        self._pace = Pace()

    def run(self, plans: list[Plan]) -> None:
        waiting = list(plans)
        again: dict[int, int] = {}
        while waiting:
            plan = self._next(waiting)
            result = self.stages[plan.where].trial(plan)
            self._pace.note(plan)
            self.results.append(result)
            _say(result, len(waiting))
            original = plan.number % 10_000
            missed = [fault for fault in result.faults if not fault.struck]
            if missed and not result.problems:
                again[original] = again.get(original, 0) + 1
                if again[original] <= _MOST_AGAIN:
                    waiting.append(_sooner(replace(plan, number=original + 10_000 * again[original])))
                else:
                    result.problems.append(f"{missed[0].label} never struck")

    def _next(self, waiting: list[Plan]) -> Plan:
        """The first that the pace allows."""
        while True:
            for plan in waiting:
                if self._pace.allows(plan):
                    waiting.remove(plan)
                    return plan
            for stage in self.stages.values():
                stage.deployment.tend()
            time.sleep(0.2)

    def losses(self) -> list[str]:
        """Whether single sectors lost at the source cost anything but those sectors."""
        stage = self.stages[TESTBED]
        lossy = stage.variants["lossy"]
        name = "lossless"
        stage.variants[name] = replace(lossy, name=name, source=without_loss(lossy.source), dataset=name)
        with_loss, lossless = stage.reference("lossy"), stage.reference(name)
        wrong = false_losses(with_loss.path, lossy.source, lossless.path)
        longer = with_loss.draining_seconds - lossless.draining_seconds
        if longer > _LOSS_SECONDS:
            wrong.append(f"with lost sectors the scan ended {longer:.1f} s later than without")
        return wrong


def _sooner(plan: Plan) -> Plan:
    return replace(
        plan, faults=tuple(replace(fault, at=0.6 * fault.at if fault.at > 0 else fault.at) for fault in plan.faults)
    )


def _say(result: TrialResult, left: int) -> None:
    def figure(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds:.1f} s"

    faults = "; ".join(
        f"{fault.label} ({figure(fault.seconds)}{', job restarted' if fault.restarted else ''})"
        if fault.struck
        else f"{fault.label} (did not strike)"
        for fault in result.faults
    )
    print(
        f"{'FAILED' if result.problems else 'ok':<7}{result.plan.number:>6} {result.seconds:5.1f} s, {left} left; "
        f"{result.plan.where}, {result.plan.variant}: {faults}",
        *(f"          {problem}" for problem in result.problems),
        sep="\n",
        flush=True,
    )


def leftovers(deployment: Deployment) -> list[str]:
    """What an idle deployment should not have: leases that nobody holds, shares, processes that play a part twice."""
    deadline = time.monotonic() + 2 * LEASE_SECONDS + 4
    while True:
        left = _leftovers(deployment)
        if not left or time.monotonic() > deadline:
            return left
        deployment.tend()
        time.sleep(0.2)


def _leftovers(deployment: Deployment) -> list[str]:
    leases = deployment.view.leases()
    stored = deployment.view.read("")
    if leases is None or stored is None:
        return ["etcd does not answer"]
    left = [f"a lease without a key: {lease}" for lease in leases - set(stored.leased.values())]
    left += [f"a share of a finished scan: {key}" for key in stored.values if "/shares/" in key]
    counted = Counter(process.role for process in deployment.processes())
    wanted = {"producer": 4, "aggregator": 1, "rank": deployment.ranks - deployment.jobs, "leader": deployment.jobs}
    left += [
        f"{counted[role]} processes are {role}, not {wanted[role]}" for role in wanted if counted[role] != wanted[role]
    ]
    return left


@contextmanager
def stages(
    folder: Path, seed: int, side: int, ranks: int, places: set[str], evidence: Path
) -> Iterator[dict[str, Stage]]:
    """Deployments for trials in ``places``, each with ``ranks`` ranks per job; nothing of them is left afterwards."""
    memory = roomy_folder(f"mpistream-faults-{folder.name}", folder)
    try:
        scans: dict[str, Variant] = variants(memory, side)
        with ExitStack() as stack:
            found = {}
            if TESTBED in places:
                testbed = stack.enter_context(TestbedDeployment(folder / "testbed", ranks))
                found[TESTBED] = Stage(testbed, dict(scans), evidence, seed)
            if BY_HAND in places:
                network = None
                if lacking():
                    print(f"no cut, lossy and slow links: {lacking()}", file=sys.stderr)
                else:
                    network = stack.enter_context(Network("producers", "aggregator", "job-0", "job-1"))
                by_hand = stack.enter_context(HandDeployment(folder / "by-hand", max(1, ranks // 2), network))
                found[BY_HAND] = Stage(by_hand, dict(scans), evidence, seed)
            yield found
    finally:
        shutil.rmtree(memory, ignore_errors=True)
