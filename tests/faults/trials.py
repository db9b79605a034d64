"""One trial: a scan is announced, faults are brought in, and what comes of the scan is compared with what must come."""

import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.deployment import Deployment
from tests.faults.disks import SmallDisk
from tests.faults.expected import Reference, Variant, differences, folder_bytes
from tests.faults.injections import Fault
from tests.faults.runs import FaultResult, Run

SETTLING_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What a trial is to be. ``where``: in the testbed, or in the deployment by hand."""

    number: int
    where: str
    variant: str
    faults: tuple[Fault, ...] = ()
    overwrite: bool = False


@dataclass
class TrialResult:
    plan: Plan
    seconds: float = 0.0
    faults: list[FaultResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class Stage:
    """A deployment that is whole, ready for trials, and the undisturbed runs in it. Evidence of what went wrong is
    kept in ``evidence``.
    """

    def __init__(self, deployment: Deployment, variants: dict[str, Variant], evidence: Path, seed: int) -> None:
        self.deployment = deployment
        self.variants = variants
        self.references: dict[str, Reference] = {}
        self._folders = {name: deployment.folder / name for name in ("outputs", "references", "redirected")}
        for folder in self._folders.values():
            folder.mkdir(exist_ok=True)
        self._evidence = evidence
        self._seed = seed

    def reference(self, name: str) -> Reference:
        """The undisturbed run of a variant. Raises AssertionError where even that goes wrong."""
        if name not in self.references:
            self.references[name] = self.undisturbed(self.variants[name])
        return self.references[name]

    def undisturbed(self, variant: Variant) -> Reference:
        self.deployment.wait_until_whole()
        path = self._folders["references"] / variant.name / "scan.h5"
        path.parent.mkdir(exist_ok=True)
        run = Run(self.deployment, variant, path)
        journal_bytes = 0
        while run.turn():
            journal_bytes = max(journal_bytes, folder_bytes(run.watch.journals) if run.watch.journals else 0)
        problems = run.finish()
        assert not problems, f"the undisturbed scan {variant.name} failed: {problems}"
        begin, draining, end = run.watch.announced_at, run.watch.when("draining"), run.watch.when("committed")
        assert begin is not None, run.said()
        assert end is not None, run.said()
        self.deployment.wait(lambda: not run.leftovers(), SETTLING_SECONDS, "the end of the journals")
        return Reference(path, end - begin, end - (draining or end), journal_bytes)

    def trial(self, plan: Plan) -> TrialResult:
        """Whatever goes wrong is in the result, with the evidence in a folder of its own."""
        begin = time.monotonic()
        try:
            reference = self.reference(plan.variant)
        except (AssertionError, TimeoutError) as error:
            return TrialResult(plan, time.monotonic() - begin, problems=[str(error)])
        sizes = {log: log.stat().st_size for log in self.deployment.logs}
        result = TrialResult(plan)
        with ExitStack() as stack:
            path, disk = self._output(plan, reference, stack)
            variant, seed = self.variants[plan.variant], f"{self._seed} {plan.number}"
            run = Run(self.deployment, variant, path, plan.overwrite, plan.faults, reference.seconds, seed, disk)
            while run.turn():
                pass
            result.problems += run.finish()
            if not result.problems:
                result.problems += self._wrong_with(run.output, plan)
            result.problems += self._settle(run)
            result.faults, result.notes = run.results(), run.notes()
            result.seconds = time.monotonic() - begin
            if result.problems:
                self._keep(run, sizes, result)
            run.output.unlink(missing_ok=True)
        if result.problems:
            self._clear()
        return result

    def _output(self, plan: Plan, reference: Reference, stack: ExitStack) -> tuple[Path, SmallDisk | None]:
        full = [fault for fault in plan.faults if fault.kind == "disk"]
        if full:
            journals, dataset = reference.journal_bytes, reference.path.stat().st_size
            size = journals // 2 if full[0].detail == "journals" else int(1.1 * journals) + dataset // 3
            disk = stack.enter_context(SmallDisk(self.deployment.folder / f"disk-{plan.number}", size))
            return disk.folder / "scan.h5", disk
        path = self._folders["outputs"] / f"scan-{plan.number}.h5"
        if plan.overwrite:
            shutil.copy(reference.path, path)
        return path, None

    def _wrong_with(self, output: Path, plan: Plan) -> list[str]:
        if not output.exists():
            return [f"there is no {output}"]
        wrong = differences(output, self._first_of_same_dataset(plan.variant).path)
        done = subprocess.run(
            self.deployment.command("verify", output),
            env=self.deployment.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return wrong + ([f"mpistream verify: {(done.stderr or done.stdout).strip()[-300:]}"] if done.returncode else [])

    def _first_of_same_dataset(self, name: str) -> Reference:
        dataset = self.variants[name].dataset
        return next(one for name, one in self.references.items() if self.variants[name].dataset == dataset)

    def _settle(self, run: Run) -> list[str]:
        """Waits until nothing of the scan is left, and every process is there again."""
        problems = []
        try:
            self.deployment.wait(lambda: not run.leftovers(), SETTLING_SECONDS, "")
        except TimeoutError:
            problems += [f"left over: {left}" for left in run.leftovers()]
        try:
            self.deployment.wait_until_whole(SETTLING_SECONDS)
        except TimeoutError as error:
            problems.append(str(error))
        troubles, self.deployment.troubles = self.deployment.troubles, []
        return problems + troubles

    def _keep(self, run: Run, sizes: dict[Path, int], result: TrialResult) -> None:
        """What the processes said during the trial, what stands in etcd, what runs."""
        folder = self._evidence / f"trial-{result.plan.number}"
        folder.mkdir(parents=True, exist_ok=True)
        for log in self.deployment.logs:
            with log.open("rb") as file:
                file.seek(sizes.get(log, 0))
                (folder / log.name).write_bytes(file.read())
        stored = self.deployment.view.read("producers/", "aggregators/", "groups/", "conductor", "routing/")
        facts = {
            "result": result.to_json(),
            "moves": [(round(moment - run.began, 3), what) for moment, what in run.watch.moves],
            "faults": [
                (one.began and one.began - run.began, one.cleared and one.cleared - run.began, one.notes)
                for one in run.injections
            ],
            "scan": run.watch.stored,
            "etcd": stored.values if stored else None,
            "processes": [process.command for process in self.deployment.processes()],
        }
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, default=str))
        (folder / "command.txt").write_text(run.said())

    def _clear(self) -> None:
        """After a trial that went wrong: the next one finds nothing of it."""
        for name in ("outputs", "redirected"):
            shutil.rmtree(self._folders[name])
            self._folders[name].mkdir()
        for armed in self.deployment.fault_points.iterdir():
            armed.unlink()
        if not self.deployment.is_whole():
            self.deployment.stop()
            self.deployment.kill_all()
            self.deployment.start()
            self.deployment.wait_until_whole()
