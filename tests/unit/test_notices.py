"""What a batch job is told while it runs."""

import os
import signal
import time
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from mpistream.launch.cluster.allocation import LocalAllocation
from mpistream.launch.cluster.course import HANDOVER_SECONDS, Rules
from mpistream.launch.cluster.notices import Notices, Signals
from mpistream.launch.cluster.record import JobRecord
from mpistream.model.session import BatchJobState, Mode
from tests.system.command_line import wait_until

RULES = Rules(finish_seconds=100.0)


class Limited(LocalAllocation):
    """With a time limit."""

    seconds_left: float | None = None

    def ends_by_unix_seconds(self) -> float | None:
        return None if self.seconds_left is None else time.time() + self.seconds_left


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = signal.getsignal(signal.SIGUSR1)
    with Signals() as entered:
        yield entered
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.fixture
def record() -> Iterator[JobRecord]:
    kept = JobRecord(None, LocalAllocation(), Mode.SINGLE, "")
    yield kept
    kept.close()


def notices_of(signals: Signals, record: JobRecord, seconds_left: float | None = None) -> Notices:
    allocation = Limited()
    allocation.seconds_left = seconds_left
    return Notices(signals, None, "", RULES, allocation, record)


def test_a_signal_is_noted(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    assert (signals.told, signals.drained) == (False, False)
    assert signals.warning == "Slurm says that the time limit is near"
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.drained
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.told


def test_what_has_begun_by_the_warning_is_in_hand(signals: Signals, record: JobRecord) -> None:
    """And still is for a moment after its end: its program hears of that a little later, and may be done."""
    notices, first, later = notices_of(signals, record), uuid4(), uuid4()
    begun: set[UUID] = {first}
    notices.look(lambda: begun)
    assert notices.warned_seconds is None
    assert not notices.has_in_hand(begun, is_working=False)
    os.kill(os.getpid(), signal.SIGUSR1)
    notices.look(lambda: begun)
    assert record.job.state is BatchJobState.FINISHING
    assert notices.has_in_hand({first, later}, is_working=False)
    assert notices.has_in_hand({later}, is_working=False)
    wait_until(lambda: not notices.has_in_hand({later}, is_working=False), 10, "an empty hand")
    assert notices.has_in_hand({later}, is_working=True)


def test_a_job_warns_itself(signals: Signals, record: JobRecord) -> None:
    early = notices_of(signals, record, RULES.finish_seconds + HANDOVER_SECONDS + 60)
    early.look(set)
    assert early.warned_seconds is None
    late = notices_of(signals, record, RULES.finish_seconds)
    late.look(set)
    assert late.warned_seconds is not None
    assert record.job.reason == "by the job's own clock the time limit is near"
