"""A batch job's record in etcd, kept up by the job itself, and what it says into its log."""

import threading
import time
from typing import Any

from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.allocation import Allocation
from mpistream.model.errors import CoordinationError
from mpistream.model.session import BatchJob, BatchJobState, JobStep, Mode
from mpistream.pipeline.courier import Courier

_CLOSE_SECONDS = 10.0


def say(text: str) -> None:
    """One line in the batch log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} job: {' '.join(text.split())}", flush=True)


class JobRecord:
    """Every change is written; where etcd is away, as soon as it answers. Without a registry nothing is."""

    def __init__(self, registry: SessionRegistry | None, allocation: Allocation, mode: Mode, session: str) -> None:
        self._registry = registry
        self._courier = Courier()
        fresh = BatchJob(
            scheduled=allocation.number,
            cluster=allocation.cluster,
            mode=mode,
            session=session,
            nodes=len(allocation.nodes),
            log=allocation.log,
            state=BatchJobState.RUNNING,
        )
        try:
            before = registry.batch_job(allocation.cluster, allocation.number) if registry else None
        except (CoordinationError, ValueError):
            before = None
        #: what earlier runs of the same job have left
        self._steps_before = before.steps if before and allocation.restarts else ()
        self.job = before or fresh
        began = time.time()
        self.first_begun_unix_seconds = min([began, *(step.started_unix_seconds for step in self._steps_before)])
        self.update(
            **fresh.model_dump(include={"mode", "session", "nodes", "state"}),
            log=fresh.log or self.job.log,
            reason="",
            remedy="",
            started_unix_seconds=began,
            ended_unix_seconds=None,
            steps=self._steps_before,
            bad_nodes=(),
        )

    def update(self, **values: Any) -> None:
        changed = self.job.model_copy(update=values)
        if changed != self.job:
            self.job = changed
            if (registry := self._registry) is not None:
                self._courier.do(lambda: registry.write_batch_job(changed))

    def steps(self, steps: tuple[JobStep, ...]) -> None:
        self.update(steps=(*self._steps_before, *steps))

    def ends(self, state: BatchJobState, reason: str, remedy: str) -> None:
        self.update(state=state, reason=reason, remedy=remedy, ended_unix_seconds=time.time())

    def flush(self, seconds: float = _CLOSE_SECONDS) -> bool:
        """Whether everything stands in etcd within ``seconds``."""
        written = threading.Event()
        self._courier.do(written.set)
        return written.wait(seconds)

    def close(self) -> None:
        self._courier.close(_CLOSE_SECONDS)
