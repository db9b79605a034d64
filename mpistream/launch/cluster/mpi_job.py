"""The MPI job of a batch job: it is started, watched in etcd, and ended; on the nodes that are of use."""

import time
from pathlib import Path

from mpistream.control.registry import Registry
from mpistream.launch.cluster.allocation import Allocation
from mpistream.launch.cluster.course import BRIEF_SECONDS, StepState
from mpistream.launch.cluster.record import JobRecord, say
from mpistream.launch.cluster.step import Step
from mpistream.model.errors import CoordinationError
from mpistream.model.session import JobStep

_LOOK_SECONDS = 2.0


class SupervisedMpiJob:
    """Whatever it is told to do is said in the log, and stands in the record.

    absent_seconds, was_registered, starts, brief_lives, good: as in ``course.Facts``
    """

    def __init__(
        self,
        command: tuple[str, ...],
        registry: Registry | None,
        allocation: Allocation,
        record: JobRecord,
        folder: Path,
    ) -> None:
        self.starts = 0
        self.brief_lives = 0
        self.was_registered = False
        self.good: tuple[str, ...] = allocation.nodes
        self.is_interrupted = lambda: False
        self._command = command
        self._registry = registry
        self._allocation = allocation
        self._record = record
        self._folder = folder
        self._step: Step | None = None
        self._past: list[JobStep] = []
        self._ended = time.monotonic()
        self._looked = 0.0
        self._absent_since: float | None = None
        self._jobs_before: frozenset[str] = frozenset()
        self._jobs: frozenset[str] = frozenset()

    @property
    def state(self) -> StepState:
        if self._step is None:
            return StepState.NONE
        return StepState.RUNNING if self._step.asked is None else StepState.ENDING

    @property
    def state_seconds(self) -> float:
        if self._step is None:
            return time.monotonic() - self._ended
        return time.monotonic() - (self._step.asked or self._step.started)

    @property
    def absent_seconds(self) -> float:
        return 0.0 if self._absent_since is None else time.monotonic() - self._absent_since

    @property
    def last(self) -> JobStep | None:
        """The last one that has ended."""
        return self._past[-1] if self._past else None

    def turn(self) -> None:
        """To be called several times a second."""
        if self._step is None:
            return
        if self._step.turn():
            self._has_ended(self._step)
        elif time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._look()

    def start(self) -> None:
        name = f"mpistream-{self.starts}"
        self._jobs_before, self._jobs = self._registered(), frozenset()
        self.starts += 1
        self.was_registered = False
        self._absent_since = time.monotonic()
        command = self._allocation.launcher(self._command, name, self.good)
        log = self._folder / f"{name}.log"
        self._step = Step(name, command, self.good, log, self._allocation.number)
        say(f"the MPI job is started on {', '.join(self.good)}: {' '.join(command)}")
        self._write()

    def ask_to_end(self) -> None:
        """Through etcd, by which it ends in order: a launcher's signal leaves ranks little time."""
        if self._step is None:
            return
        jobs = self._registered() - self._jobs_before
        try:
            for job in jobs:
                assert self._registry is not None
                self._registry.request_stop(job)
        except CoordinationError as error:
            say(f"the MPI job could not be asked to end through etcd: {error.message}")
            jobs = frozenset()
        say("the MPI job is asked to end")
        self._step.ask_to_end(signal_launcher=not jobs)

    def kill(self, why: str) -> None:
        if self._step is not None:
            say(f"the MPI job is killed: {why}")
            self._step.kill(f"the MPI job was killed: {why}")
            self._allocation.cancel_step(self._step.name)

    def close(self) -> None:
        """Leaves nothing of it."""
        if self._step is not None:
            self._step.close()
            self._allocation.cancel_step(self._step.name)
            self._step = None

    def _has_ended(self, step: Step) -> None:
        assert step.ended is not None
        self._step, self._ended, self._absent_since = None, step.ended, None
        self._past.append(step.record())
        say(f"{step.how}; exit status {step.exit_status}, {step.ended - step.started:.0f} s after its start")
        self._write()
        if step.asked is not None:
            return
        is_brief = step.ended - step.started < BRIEF_SECONDS
        self.brief_lives = self.brief_lives + 1 if is_brief else 0
        bad = self._allocation.bad_nodes(self.is_interrupted)
        for node, why in bad.items():
            say(f"node {node} {why}: the MPI job does without it")
        self.good = tuple(node for node in self._allocation.nodes if node not in bad)
        self._record.update(bad_nodes=tuple(bad))

    def _look(self) -> None:
        """Is it registered? While etcd is away nobody knows."""
        try:
            found = self._own_groups() - self._jobs_before
        except CoordinationError:
            self._absent_since = None
            return
        if found and found != self._jobs:
            say(f"the MPI job is registered as {', '.join(sorted(found))}")
        if found:
            self.was_registered, self._absent_since, self._jobs = True, None, frozenset(found)
        elif self._absent_since is None:
            self._absent_since = time.monotonic()

    def _registered(self) -> frozenset[str]:
        try:
            return self._own_groups()
        except CoordinationError:
            return self._jobs

    def _own_groups(self) -> frozenset[str]:
        if self._registry is None:
            return frozenset()
        return frozenset(group.job for group in self._registry.groups() if group.batch_job == self._allocation.number)

    def _write(self) -> None:
        running = [self._step.record()] if self._step is not None else []
        self._record.steps((*self._past, *running))
