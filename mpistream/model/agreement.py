"""Errors that all ranks of a communicator share, so that one rank's failure leaves no other waiting for ever."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mpistream.model.errors import MpistreamError


class Communicator(Protocol):
    """What is needed of an mpi4py communicator."""

    @property
    def rank(self) -> int: ...

    def allreduce(self, sendobj: int) -> int: ...

    def allgather(self, sendobj: Any) -> list[Any]: ...


@contextmanager
def agreed(comm: Communicator, error_type: type[MpistreamError], what: str, remedy: str = "") -> Iterator[None]:
    """Collective: leaves the block normally on every rank, or raises the same error on every rank.

    It is the error of the lowest rank that failed; one that is not an MpistreamError becomes ``error_type``, saying
    ``what`` and which rank, with ``remedy``. The block itself must hold no collective call that a failure before it
    would skip.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if not comm.allreduce(int(failure is not None)):
        return
    report: MpistreamError | None = None
    if isinstance(failure, MpistreamError):
        report = failure
    elif failure is not None:
        report = error_type(f"{what}: rank {comm.rank}: {_describe(failure)}", remedy)
    shared = next(error for error in comm.allgather(report) if error is not None)
    raise shared from failure


def _describe(error: Exception) -> str:
    if isinstance(error, OSError):
        return (
            f"{error.strerror} ({error.filename})"
            if error.strerror and error.filename
            else error.strerror or str(error)
        )
    return f"{type(error).__name__}: {error}"
