"""Several jobs: who conducts, who gets blocks, and what becomes of what a lost one had. Against a real etcd."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.run_state import ScanState
from mpistream.model.errors import StorageError
from mpistream.model.job_messages import JobMessageKind
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import CountingParameters, Durability
from mpistream.pipeline.leading import job_scan
from mpistream.pipeline.leading.leader import DeclaredDead
from tests.etcd_server import EtcdServer
from tests.unit.etcd_values import revoke_lease
from tests.unit.made_up_job import MadeUpDeployment, MadeUpJob, failing
from tests.unit.made_up_registry import LEASE_SECONDS, MadeUpProducers, OtherProcess
from tests.unit.picture import until
from tests.unit.test_calibration import pedestal_frames, sample

ASSEMBLE, PREPARE, THRESHOLDS = JobMessageKind.ASSEMBLE, JobMessageKind.PREPARE, JobMessageKind.THRESHOLDS


@pytest.fixture
def made_up(
    server: EtcdServer, etcd: Coordination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MadeUpDeployment]:
    with MadeUpDeployment(etcd, tmp_path, monkeypatch, lambda: server.connect(etcd.prefix)) as deployment:
        yield deployment


@pytest.fixture
def producers(etcd: Coordination) -> Iterator[MadeUpProducers]:
    """They go by no table before they are told to."""
    with OtherProcess() as camera:
        producers = MadeUpProducers(etcd, camera.identity)
        yield producers
        producers.end()


def table_of(made_up: MadeUpDeployment, *jobs: str, seconds: float = 10.0) -> RoutingTable:
    """The latest table, once it has these jobs."""
    found: list[RoutingTable] = []

    def fits() -> bool:
        table = made_up.registry.latest_routing()
        found.extend([table] if table and table.jobs == set(jobs) else [])
        return bool(found)

    until(fits, seconds)
    return found[0]


def two_jobs(made_up: MadeUpDeployment) -> tuple[MadeUpJob, MadeUpJob]:
    """The first one conducts."""
    jobs = made_up.start_job("job-1"), made_up.start_job("job-2")
    table_of(made_up, "job-1", "job-2")
    return jobs


def streaming(made_up: MadeUpDeployment, **changes: Any) -> UUID:
    uid = made_up.announce_and_stream(**changes)
    until(lambda: len(made_up.registry.shares(uid)) == 2)
    return uid


# who gets blocks


def test_the_first_job_conducts_and_all_of_them_count(made_up: MadeUpDeployment) -> None:
    first, second = two_jobs(made_up)
    table = table_of(made_up, "job-1", "job-2")
    assert table.conducting == "job-1" == made_up.registry.conductor()
    assert [(rank.job, rank.rank) for rank in table.ranks] == [
        *(("job-1", 0), ("job-1", 1)),
        *(("job-2", 0), ("job-2", 1)),
    ]
    assert (first.conducts, second.conducts) == (True, False)
    time.sleep(1.5)
    assert made_up.registry.latest_routing() == table, "nothing has changed"
    for job in (first, second):
        until(lambda job=job: job.orders(JobMessageKind.TABLE)[-1]["table"]["version"] == table.version)


def test_a_job_gets_blocks_when_all_its_groups_are_registered(made_up: MadeUpDeployment) -> None:
    made_up.start_job("job-1")
    table_of(made_up, "job-1")
    second = made_up.make_job("job-2", ranks=4, groups=2)
    second.register(1)
    time.sleep(1.5)
    latest = made_up.registry.latest_routing()
    assert latest is not None
    assert latest.jobs == {"job-1"}
    second.register(0)
    table = table_of(made_up, "job-1", "job-2")
    assert [rank.rank for rank in table.ranks if rank.job == "job-2"] == [0, 1, 2, 3]


def test_a_job_that_comes_during_a_scan_gets_blocks_when_it_is_ready(made_up: MadeUpDeployment) -> None:
    first = made_up.start_job("job-1")
    uid = made_up.announce_and_stream()
    second = made_up.start_job("job-2", prepare=lambda job, record: None)
    until(lambda: PREPARE in second.kinds(uid))
    time.sleep(1.5)
    assert table_of(made_up, "job-1").jobs == {"job-1"}
    record = made_up.registry.record(uid)
    assert record is not None
    second.all_get_ready(record)
    table_of(made_up, "job-1", "job-2")
    assert THRESHOLDS in second.kinds(uid)
    second.count(uid, 1, 2)
    first.count(uid, 0, 0, 1, 3)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)
    assert first.read == [[2]]
    assert ASSEMBLE not in second.kinds()


def test_a_scan_waits_for_every_job_that_gets_blocks(made_up: MadeUpDeployment) -> None:
    _, second = two_jobs(made_up)
    second.prepare = lambda job, record: None
    uid = made_up.announce()
    until(lambda: PREPARE in second.kinds(uid))
    time.sleep(1.0)
    assert made_up.state(uid) is ScanState.ANNOUNCED
    record = made_up.registry.record(uid)
    assert record is not None
    second.all_get_ready(record)
    made_up.becomes(uid, ScanState.STREAMING)


def test_a_job_that_cannot_get_ready_conducts_only_while_no_other_one_can(made_up: MadeUpDeployment) -> None:
    first = made_up.start_job("job-1")
    uid = made_up.announce_and_stream()
    first.count(uid, 0, 0)
    first.die()
    second = made_up.start_job("job-2", prepare=lambda job, record: None)
    until(lambda: second.conducts)
    time.sleep(LEASE_SECONDS + 1.5)
    assert second.conducts, "there is nobody else"
    third = made_up.start_job("job-3")
    until(lambda: third.conducts, seconds=LEASE_SECONDS + 6)
    table_of(made_up, "job-3")
    third.count(uid, 0, 1, 2, 3)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)
    assert third.read == [[0]]


# a job that is lost


def test_what_a_lost_job_had_journaled_is_sealed_and_used(
    made_up: MadeUpDeployment, producers: MadeUpProducers
) -> None:
    """Also what it had told nobody of; a torn record behind it is left out."""
    first, second = two_jobs(made_up)
    uid = streaming(made_up)
    second.count(uid, 0, 0)
    until(lambda: made_up.blocks(uid)["job-2"] == [0])
    journal = second.journal(uid, 1, [3])
    with journal.path.open("ab") as file:
        file.write(b"MPJR torn")
    second.die()
    started = time.monotonic()
    table = table_of(made_up, "job-1")
    assert time.monotonic() - started < 1.5, "it is known to have died"
    time.sleep(0.7)
    assert not made_up.registry.shares(uid)["job-2"].sealed, "a producer may still take its acknowledgements"
    producers.follow(table.version)
    until(lambda: made_up.registry.shares(uid)["job-2"].sealed, seconds=1.5)
    sealed = made_up.registry.shares(uid)["job-2"]
    assert list(sealed.blocks) == [0, 3]
    assert [extent.bytes for extent in sealed.journals][1] == journal.bytes
    assert sealed.totals["frames"] == 4
    assert "job-2" not in made_up.registry.statuses("jobs")
    first.count(uid, 0, 1, 2)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)
    assert first.read == [[0, 3]]


def test_a_producer_that_follows_no_table_holds_nothing_up(
    made_up: MadeUpDeployment, producers: MadeUpProducers
) -> None:
    _, second = two_jobs(made_up)
    uid = streaming(made_up)
    second.die()
    table = table_of(made_up, "job-1")
    producers.follow(table.version, 0, 1, 3)
    started = time.monotonic()
    until(lambda: made_up.registry.shares(uid)["job-2"].sealed, seconds=LEASE_SECONDS + 2)
    assert time.monotonic() - started > 0.5


def test_a_job_that_leaves_is_sealed_too(made_up: MadeUpDeployment) -> None:
    """After the time in which a registration may be lost by mistake."""
    first, second = two_jobs(made_up)
    uid = streaming(made_up)
    second.count(uid, 1, 2)
    until(lambda: made_up.blocks(uid)["job-2"] == [2])
    second.close()
    until(lambda: made_up.registry.shares(uid)["job-2"].sealed, seconds=LEASE_SECONDS + 4)
    first.count(uid, 0, 0, 1, 3)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)


def test_a_registration_that_was_lost_for_a_moment_changes_nothing(made_up: MadeUpDeployment) -> None:
    _, second = two_jobs(made_up)
    uid = streaming(made_up)
    table = table_of(made_up, "job-1", "job-2")
    second.lose_leases()
    time.sleep(LEASE_SECONDS / 2)
    second.register(0)
    time.sleep(LEASE_SECONDS + 1.5)
    assert made_up.registry.latest_routing() == table
    assert not any(share.sealed for share in made_up.registry.shares(uid).values())


def test_a_job_that_is_taken_for_dead_ends(made_up: MadeUpDeployment) -> None:
    first, second = two_jobs(made_up)
    uid = streaming(made_up)
    second.lose_leases()
    until(lambda: second.errors, seconds=LEASE_SECONDS + 6)
    assert isinstance(second.errors[0], DeclaredDead)
    assert made_up.registry.shares(uid)["job-2"].sealed
    assert first.errors == []


def test_a_job_that_is_lost_without_journals_takes_the_scan_with_it(made_up: MadeUpDeployment) -> None:
    first, second = two_jobs(made_up)
    uid = streaming(made_up, durability=Durability.NONE)
    second.count(uid, 0, 1)
    second.die()
    made_up.becomes(uid, ScanState.FAILED)
    status = made_up.registry.status(uid)
    assert "durability is none" in status.reason
    assert status.remedy
    again = made_up.announce_and_stream(durability=Durability.NONE)
    first.count(again, 0, 0, 1, 2, 3)
    made_up.end_sectors(again)
    made_up.becomes(again, ScanState.COMMITTED)


def test_a_lost_journal_that_cannot_be_read_ends_no_other_job(made_up: MadeUpDeployment) -> None:
    """It may be readable again in a while, as on a file server that starts anew."""
    first, second = two_jobs(made_up)
    uid = streaming(made_up)
    second.count(uid, 0, 1)
    until(lambda: made_up.blocks(uid)["job-2"] == [1])
    path = second.journal(uid, 0, []).path
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    path.mkdir()  # even root cannot read it
    second.die()
    table_of(made_up, "job-1")
    time.sleep(LEASE_SECONDS + 2)
    assert first.errors == []
    assert not made_up.registry.shares(uid)["job-2"].sealed
    path.rmdir()
    hidden.rename(path)
    until(lambda: made_up.registry.shares(uid)["job-2"].sealed)
    assert made_up.blocks(uid)["job-2"] == [1]


# the conducting job is lost


@pytest.mark.parametrize("known_dead", [True, False])
def test_another_job_takes_over(made_up: MadeUpDeployment, producers: MadeUpProducers, known_dead: bool) -> None:
    """At once where the process is known to have died, otherwise when its leases have run out."""
    first, second = two_jobs(made_up)
    uid = streaming(made_up)
    first.count(uid, 1, 0)
    second.count(uid, 1, 3)
    until(lambda: made_up.blocks(uid) == {"job-1": [0], "job-2": [3]})
    before = table_of(made_up, "job-1", "job-2")
    if known_dead:
        first.die()
    else:
        first.stop_silently()
    started = time.monotonic()
    table = table_of(made_up, "job-2", seconds=3 if known_dead else 2 * LEASE_SECONDS + 5)
    assert (time.monotonic() - started < 2) == known_dead
    assert table.version > before.version
    assert table.conducting == "job-2" == made_up.registry.conductor()
    assert made_up.state(uid) is ScanState.STREAMING
    producers.follow(table.version)
    until(lambda: made_up.registry.shares(uid)["job-1"].sealed, seconds=3)
    second.count(uid, 0, 1, 2)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)
    assert second.read == [[0]]


@pytest.mark.parametrize("state", [ScanState.ANNOUNCED, ScanState.STREAMING, ScanState.DRAINING])
def test_a_scan_goes_on_from_the_state_that_it_had(made_up: MadeUpDeployment, state: ScanState) -> None:
    first = made_up.start_job("job-1", prepare=(lambda job, record: None) if state == "announced" else _get_ready)
    uid = made_up.announce()
    if state is not ScanState.ANNOUNCED:
        made_up.becomes(uid, ScanState.STREAMING)
        first.count(uid, 0, 1)
        until(lambda: made_up.blocks(uid) == {"job-1": [1]})
    if state is ScanState.DRAINING:
        made_up.end_sectors(uid)
        made_up.becomes(uid, ScanState.DRAINING)
    first.die()
    second = made_up.start_job("job-2")
    table_of(made_up, "job-2")
    made_up.becomes(uid, state if state is not ScanState.ANNOUNCED else ScanState.STREAMING)
    until(lambda: THRESHOLDS in second.kinds(uid))
    if state is not ScanState.DRAINING:
        made_up.end_sectors(uid)
    second.count(uid, 0, 0, 2, 3)
    second.count(uid, 1, *([1] if state is ScanState.ANNOUNCED else []))
    made_up.becomes(uid, ScanState.COMMITTED)


def test_a_dataset_is_written_by_another_job_where_the_first_one_dies(made_up: MadeUpDeployment) -> None:
    """Everything had been counted by the one that is lost, and not all of that stood in etcd."""
    first, second = two_jobs(made_up)
    first.assemble = lambda order: None
    uid = streaming(made_up)
    first.count(uid, 0, 0, 1)
    until(lambda: made_up.blocks(uid)["job-1"] == [0, 1])
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.DRAINING)
    first.count(uid, 1, 2, 3)
    until(lambda: ASSEMBLE in first.kinds(uid))
    first.die()
    until(lambda: ASSEMBLE in second.kinds(uid))
    assert second.read == [[0, 1, 2, 3]]
    made_up.becomes(uid, ScanState.COMMITTED)


def test_what_is_to_be_read_does_not_depend_on_when_the_lost_job_last_wrote_its_share(
    made_up: MadeUpDeployment, producers: MadeUpProducers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decides by what its ranks have said, and tells etcd of it later; and it is not sealed at once."""
    first, second = two_jobs(made_up)
    first.assemble = lambda order: None
    uid = streaming(made_up)
    first.count(uid, 0, 0, 1)
    until(lambda: made_up.blocks(uid)["job-1"] == [0, 1])
    scan = first.leader._scans[uid]
    monkeypatch.setattr(scan, "share_to_write", lambda now: None)  # as between two writes
    made_up.end_sectors(uid)
    first.count(uid, 1, 2, 3)
    time.sleep(2.0)
    first.die()
    until(lambda: ASSEMBLE in second.kinds(uid))
    assert second.read == [[0, 1, 2, 3]]


def cut_short_and_waiting(made_up: MadeUpDeployment, job: MadeUpJob) -> UUID:
    """A scan of which only blocks 1 and 2 came, and whose dataset cannot be written for now."""
    job.assemble = failing(StorageError("the disk is full", "free some"), 99)
    uid = made_up.announce_and_stream()
    job.count(uid, 0, 1, 2)
    made_up.registry.request_abort(uid, "that will do", keep=True)
    until(lambda: made_up.registry.status(uid).reason == "the disk is full")
    return uid


def test_a_dataset_of_what_had_come_is_written_by_a_job_that_comes_later(made_up: MadeUpDeployment) -> None:
    first = made_up.start_job("job-1")
    uid = cut_short_and_waiting(made_up, first)
    second = made_up.start_job("job-2")
    until(lambda: THRESHOLDS in second.kinds(uid))
    first.die()
    made_up.becomes(uid, ScanState.ABORTED)
    assert second.read == [[1, 2]]


def test_a_job_that_comes_while_a_dataset_waits_does_not_hold_it_up(
    made_up: MadeUpDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_scan, "_RETRY_SECONDS", 2.0)
    first = made_up.start_job("job-1")
    uid = cut_short_and_waiting(made_up, first)
    second = made_up.start_job("job-2")
    until(lambda: THRESHOLDS in second.kinds(uid))
    first.assemble = failing(StorageError("", ""), 0)
    made_up.becomes(uid, ScanState.ABORTED)


def test_a_job_that_cannot_prepare_does_not_hold_up_the_end(made_up: MadeUpDeployment) -> None:
    first = made_up.start_job("job-1")
    uid = made_up.announce_and_stream()

    def prepare(job: MadeUpJob, record: Any) -> None:
        job.say(JobMessageKind.FAULT, 0, record.uid, message="no such folder", remedy="make it", fatal=False)

    made_up.start_job("job-2", prepare=prepare)
    until(lambda: made_up.registry.shares(uid)["job-2"].problem if "job-2" in made_up.registry.shares(uid) else False)
    first.count(uid, 0, 1, 2)
    made_up.registry.request_abort(uid, "that will do", keep=True)
    made_up.becomes(uid, ScanState.ABORTED)


def test_thresholds_are_those_of_the_job_that_was_lost(made_up: MadeUpDeployment) -> None:
    first, second = two_jobs(made_up)
    uid = streaming(made_up, counting=CountingParameters(sample_frames=2))
    first.say(JobMessageKind.SAMPLE, 0, uid, sample(pedestal_frames(30, 4)).to_bytes(), block=0)
    until(lambda: THRESHOLDS in second.kinds(uid))
    first.die()
    table_of(made_up, "job-2")
    second.say(JobMessageKind.SAMPLE, 0, uid, sample(pedestal_frames(50, 9)).to_bytes(), block=0)
    third = made_up.start_job("job-3")
    until(lambda: THRESHOLDS in third.kinds(uid))
    told = [job.orders(THRESHOLDS) for job in (first, second, third)]
    assert [len(orders) for orders in told] == [1, 1, 1]
    assert told[0][0]["thresholds"] == told[1][0]["thresholds"] == told[2][0]["thresholds"]


def test_a_sample_that_was_lost_with_its_job_is_taken_again(made_up: MadeUpDeployment) -> None:
    first, second = two_jobs(made_up)
    uid = streaming(made_up, counting=CountingParameters(sample_frames=4))
    first.say(JobMessageKind.SAMPLE, 0, uid, sample(pedestal_frames(30, 4)).to_bytes(), block=0)
    time.sleep(0.5)
    first.die()
    table_of(made_up, "job-2")
    for block in (0, 1):
        second.say(JobMessageKind.SAMPLE, 0, uid, sample(pedestal_frames(30, 4, seed=block)).to_bytes(), block=block)
    until(lambda: THRESHOLDS in second.kinds(uid))
    assert second.orders(THRESHOLDS)[0]["thresholds"]["sample_frames"] == 4


def test_one_after_the_other_is_lost(made_up: MadeUpDeployment) -> None:
    jobs = [made_up.start_job(f"job-{number}") for number in range(4)]
    table_of(made_up, *(job.name for job in jobs))
    uid = made_up.announce_and_stream()
    for number, job in enumerate(jobs):
        job.count(uid, 0, number)
    for job in jobs[:3]:
        job.die()
        time.sleep(0.3)
    table_of(made_up, "job-3", seconds=15)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED, seconds=15)
    assert jobs[3].read == [[0, 1, 2]]


def test_a_job_that_lost_the_role_goes_on_counting(
    made_up: MadeUpDeployment, server: EtcdServer, etcd: Coordination
) -> None:
    """The role goes to another job, though neither has died."""
    first, second = two_jobs(made_up)
    uid = streaming(made_up)
    revoke_lease(server, etcd, "conductor")
    until(lambda: second.conducts and not first.conducts, seconds=LEASE_SECONDS + 5)
    until(lambda: made_up.registry.latest_routing().conducting == "job-2")  # type: ignore[union-attr]
    assert table_of(made_up, "job-1", "job-2").conducting == "job-2"
    first.count(uid, 0, 0, 1)
    second.count(uid, 0, 2, 3)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)
    assert second.read == [[0, 1]]
    assert ASSEMBLE not in first.kinds(uid)
    assert (first.errors, second.errors) == ([], [])


def test_facts_that_lag_behind_end_no_job(made_up: MadeUpDeployment, etcd: Coordination) -> None:
    """A job that has just taken over may not have heard yet how far the one before it got."""
    first = made_up.start_job("job-1")
    uid = made_up.announce_and_stream()
    first.leader._watches[0].close()
    for state in (ScanState.DRAINING, ScanState.ASSEMBLING):
        assert made_up.registry.set_state(uid, state)
    scan = first.leader._scans[uid]
    for sector in range(4):
        made_up.end_sectors(uid, sector)
    scan.facts.ends = made_up.registry.ends(uid)
    first.count(uid, 0, 0, 1, 2, 3)
    made_up.becomes(uid, ScanState.COMMITTED)
    assert first.errors == []


def _get_ready(job: MadeUpJob, record: Any) -> None:
    job.all_get_ready(record)
