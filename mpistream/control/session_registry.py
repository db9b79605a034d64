"""What stands in etcd of sessions, batch jobs and references. docs/control.md lists the keys."""

import logging
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mpistream.control.coordination import Coordination, Watch
from mpistream.model.errors import CoordinationError
from mpistream.model.session import BatchJob, Reference, ReferenceKind, Session, SessionStop

_log = logging.getLogger(__name__)

_Stored = TypeVar("_Stored", bound=BaseModel)


class SessionRegistry:
    """These keys of one deployment. Values are written as pydantic has them."""

    def __init__(self, coordination: Coordination) -> None:
        self._etcd = coordination

    # sessions: the record is written once, and so is its stop

    def start_session(self, session: Session) -> bool:
        """False where there is another session of this name, stopped or not."""
        key, value = f"sessions/{session.name}/record", session.model_dump(mode="json")
        return self._etcd.create(key, value) or self._etcd.get(key) == value

    def stop_session(self, name: str, stop: SessionStop) -> None:
        """The first stop holds."""
        self._etcd.create(f"sessions/{name}/stop", stop.model_dump(mode="json"))

    def session(self, name: str) -> Session | None:
        return self._one(f"sessions/{name}/record", Session)

    def session_stop(self, name: str) -> SessionStop | None:
        return self._one(f"sessions/{name}/stop", SessionStop)

    def sessions(self) -> dict[str, Session]:
        """By name, the oldest first."""
        found = self._all("sessions/", Session, "/record")
        return dict(sorted(found.items(), key=lambda item: item[1].started_unix_seconds))

    def watch_sessions(self, on_change: Callable[[], None]) -> Watch:
        return self._etcd.watch("sessions/", lambda change: on_change())

    # batch jobs

    def write_batch_job(self, job: BatchJob) -> None:
        self._etcd.put(f"batch/{job.cluster}/{job.scheduled}", job.model_dump(mode="json"))

    def note_submission(self, job: BatchJob) -> bool:
        """False where the job has begun already, and written its own record: that one stays."""
        return self._etcd.create(f"batch/{job.cluster}/{job.scheduled}", job.model_dump(mode="json"))

    def replace_batch_job(self, known: BatchJob, job: BatchJob) -> bool:
        """False, and nothing written, where the record is no longer the ``known`` one: the job has written its own."""
        values = (record.model_dump(mode="json") for record in (known, job))
        return self._etcd.replace(f"batch/{job.cluster}/{job.scheduled}", *values)

    def batch_job(self, cluster: str, scheduled: str) -> BatchJob | None:
        return self._one(f"batch/{cluster}/{scheduled}", BatchJob)

    def batch_jobs(self) -> list[BatchJob]:
        """In the order in which they were submitted or, where nobody noted that, started."""
        found = self._all("batch/", BatchJob).values()
        return sorted(found, key=lambda job: job.submitted_unix_seconds or job.started_unix_seconds or 0.0)

    # references

    def write_reference(self, reference: Reference) -> None:
        """Takes the place of an earlier one of the same kind and name."""
        self._etcd.put(f"references/{reference.kind}/{reference.name}", reference.model_dump(mode="json"))

    def reference(self, kind: ReferenceKind, name: str) -> Reference | None:
        return self._one(f"references/{kind}/{name}", Reference)

    def forget_reference(self, kind: ReferenceKind, name: str) -> None:
        """The file stays where it is."""
        self._etcd.delete(f"references/{kind}/{name}")

    def references(self, kind: ReferenceKind | None = None) -> list[Reference]:
        """By kind and name."""
        found = self._all(f"references/{kind}/" if kind else "references/", Reference)
        return [found[key] for key in sorted(found)]

    def _one(self, key: str, model: type[_Stored]) -> _Stored | None:
        """Raises CoordinationError for what is no such value."""
        value = self._etcd.get(key)
        try:
            return None if value is None else model.model_validate(value)
        except ValidationError as error:
            reason = error.errors()[0]
            where = ".".join(map(str, reason["loc"]))
            raise CoordinationError(
                f"{key} in etcd cannot be read: {where}: {reason['msg']}",
                "written by hand, or by another release; correct or delete the key",
            ) from error

    def _all(self, prefix: str, model: type[_Stored], suffix: str = "") -> dict[str, _Stored]:
        """What stands below ``prefix`` in keys that end in ``suffix``; what is no such value is left out."""
        found = {}
        for key, value in self._etcd.get_prefix(prefix).items():
            if not key.endswith(suffix):
                continue
            try:
                found[key.removesuffix(suffix)] = model.model_validate(value)
            except ValidationError as error:
                _log.error("ignored %s%s in etcd: %s", prefix, key, error)
        return found
