"""Sessions, the batch jobs that serve them, and the references that their scans use by name."""

import re
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mpistream.model.errors import ConfigError
from mpistream.model.scan import CountingParameters

#: Names that stand in keys, file names and job names.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def check_name(what: str, name: str) -> None:
    """Raises ConfigError for what can be no name; ``what`` it is to be the name of."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"{name!r} can be no name of {what}",
            "up to 64 letters, digits, dots, underscores and hyphens of ASCII, the first a letter or a digit",
        )


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mode(StrEnum):
    """What a batch job is for. docs/modes.md describes each."""

    LIVE = "live"
    SINGLE = "single"
    DARK = "dark"
    CALIBRATE = "calibrate"
    TIMESERIES = "timeseries"
    TOMOGRAPHY = "tomography"
    RAW = "raw"
    REPLAY = "replay"
    FILEBASED = "filebased"
    BENCHMARK = "benchmark"


class Session(_Record):
    """A series of scans: where their datasets go, and how they are counted unless a scan says otherwise.

    ``folder`` is an absolute path that the ranks of all its jobs see. ``thresholds``: an absolute path of a dataset or
    of a file of `mpistream calibrate`, from which each scan takes them. It, and the dark reference and the pixel mask
    in ``counting``, may be references by name (``ref:NAME``): each scan takes what has the name then.
    """

    name: Name
    folder: str
    counting: CountingParameters = CountingParameters()
    thresholds: str | None = None
    started_unix_seconds: float


class SessionStop(_Record):
    """A session that takes no more scans; its jobs end once those that it has are finished."""

    since_unix_seconds: float
    reason: str


class BatchJobState(StrEnum):
    SUBMITTED = "submitted"  # the scheduler has it; it has not begun
    RUNNING = "running"
    FINISHING = "finishing"  # told to end, or its time is nearly up: the scan in hand is finished or handed over
    REQUEUED = "requeued"  # it has given its scans back and waits in the queue once more
    ENDED = "ended"  # it did what it was for, or was told to end
    FAILED = "failed"
    LOST = "lost"  # over, and could not say so itself: written by who has noticed

    @property
    def is_final(self) -> bool:
        return self in (BatchJobState.ENDED, BatchJobState.FAILED, BatchJobState.LOST)


class JobStep(_Record):
    """One start of the MPI job within a batch job. ``how`` says how it ended, empty while it runs; ``last_lines`` are
    the last of its log.
    """

    nodes: tuple[str, ...]
    started_unix_seconds: float
    ended_unix_seconds: float | None = None
    exit_status: int | None = None
    how: str = ""
    last_lines: tuple[str, ...] = ()


class BatchJob(_Record):
    """A job of the scheduler. Written by who submits it, from its start on by the job itself; once it is lost, by who
    notices.

    ``scheduled`` is the scheduler's number of it. ``bad_nodes`` are those of its nodes that it does without.
    """

    scheduled: str
    cluster: str
    mode: Mode
    session: str
    nodes: int
    log: str
    state: BatchJobState
    reason: str = ""
    remedy: str = ""
    submitted_unix_seconds: float | None = None
    started_unix_seconds: float | None = None
    ends_by_unix_seconds: float | None = None
    ended_unix_seconds: float | None = None
    steps: tuple[JobStep, ...] = ()
    bad_nodes: tuple[str, ...] = ()


class ReferenceKind(StrEnum):
    DARK = "dark"
    MASK = "mask"
    THRESHOLDS = "thresholds"


_REFERENCE_PREFIX = "ref:"


def referred_name(path: str) -> str | None:
    """The name in ``ref:NAME``; None for a path. A file of such a name is given as an absolute path."""
    return path.removeprefix(_REFERENCE_PREFIX) if path.startswith(_REFERENCE_PREFIX) else None


class Reference(_Record):
    """A file that later scans use by its name, written as ``ref:NAME`` where a path could stand.

    ``sha256`` is of the file's bytes: a file that was altered or replaced is not what was taken. ``about`` is for
    people: the source it was made from, how many frames.
    """

    kind: ReferenceKind
    name: Name
    path: str
    sha256: str
    session: str = ""
    made_unix_seconds: float
    about: dict[str, str | int | float] = Field(default_factory=dict)
