"""A job that conducts takes scans from announced to their ends, against a real etcd."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.run_state import ScanState
from mpistream.model.errors import CoordinationError, ScanFailed, StorageError
from mpistream.model.job_messages import JobMessageKind
from mpistream.model.scan import CountingParameters, Durability
from mpistream.pipeline.leading import job_scan
from mpistream.pipeline.leading.leader import Assembled
from mpistream.reduction.calibration import SampleStatistics, fit_thresholds
from mpistream.storage.journal import SAMPLE_FILE
from tests.etcd_server import EtcdServer
from tests.unit.made_up_job import MadeUpDeployment, MadeUpJob, failing
from tests.unit.made_up_registry import MadeUpProducers, OtherProcess
from tests.unit.picture import until
from tests.unit.registered import summary
from tests.unit.test_calibration import pedestal_frames, sample

ASSEMBLE, CUT, DISCARD, FLUSH = (
    JobMessageKind.ASSEMBLE,
    JobMessageKind.CUT,
    JobMessageKind.DISCARD,
    JobMessageKind.FLUSH,
)
FULL = StorageError("the disk is full", "free some space")


@pytest.fixture
def made_up(
    server: EtcdServer, etcd: Coordination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MadeUpDeployment]:
    with MadeUpDeployment(etcd, tmp_path, monkeypatch, lambda: server.connect(etcd.prefix)) as deployment:
        yield deployment


@pytest.fixture
def job(made_up: MadeUpDeployment) -> MadeUpJob:
    return made_up.start_job("job-1")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again after half a second."""
    monkeypatch.setattr(job_scan, "_RETRY_SECONDS", 0.5)


def count_all(job: MadeUpJob, uid: UUID) -> None:
    for block in range(4):
        job.count(uid, block % 2, block)


# from announced to committed


def test_a_scan_from_its_announcement_to_its_dataset(made_up: MadeUpDeployment) -> None:
    job = made_up.start_job("job-1", assemble=lambda order: None)
    uid = made_up.announce_and_stream()
    record = made_up.registry.record(uid)
    assert record is not None
    job.count(uid, 1, 3, 0)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.DRAINING)
    time.sleep(0.5)
    assert made_up.state(uid) is ScanState.DRAINING
    job.count(uid, 0, 1, 2)
    made_up.becomes(uid, ScanState.ASSEMBLING)
    until(lambda: ASSEMBLE in job.kinds(uid))
    time.sleep(0.5)
    (order,) = job.orders(ASSEMBLE)
    assert order["journals"] == [], "the ranks have all of it in memory"
    assert order["output"] == record.output
    assert [end["sector"] for end in order["ends"]] == [0, 1, 2, 3]
    assert Path(record.journals).is_dir()
    job.leader.news.put(Assembled(uid, summary()))
    made_up.becomes(uid, ScanState.COMMITTED)
    assert made_up.registry.summary(uid) == summary()
    status = made_up.registry.status(uid)
    assert (status.reason, status.remedy) == ("", "")
    until(lambda: DISCARD in job.kinds(uid))
    until(lambda: not Path(record.journals).exists())
    until(lambda: made_up.registry.shares(uid) == {})


def test_a_block_that_comes_twice_does_not_stand_for_another(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    """Drained are equal sets, not equal numbers."""
    uid = made_up.announce_and_stream()
    for rank in range(2):
        job.count(uid, rank, 0, 1)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.DRAINING)
    time.sleep(1.0)
    assert made_up.state(uid) is ScanState.DRAINING
    job.count(uid, 0, 2, 3)
    made_up.becomes(uid, ScanState.COMMITTED)


@pytest.mark.parametrize("durability", list(Durability))
def test_every_durability_comes_to_its_end(made_up: MadeUpDeployment, job: MadeUpJob, durability: Durability) -> None:
    uid = made_up.announce_and_stream(durability=durability)
    count_all(job, uid)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)


# calibration


RECORD_OF_SAMPLE = {"counting": CountingParameters(sample_frames=3)}


def statistics_of(block: int, frames: int = 2) -> bytes:
    return sample(pedestal_frames(30, 4, frames=frames, seed=block)).to_bytes()


def test_thresholds_are_pinned_once_the_sample_is_there(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream(**RECORD_OF_SAMPLE)
    packed = {block: statistics_of(block) for block in range(4)}
    for block in (3, 1):
        job.say(JobMessageKind.SAMPLE, block % 2, uid, packed[block], block=block)
    time.sleep(0.5)
    assert JobMessageKind.THRESHOLDS not in job.kinds(uid)
    job.say(JobMessageKind.SAMPLE, 0, uid, packed[0], block=0)
    until(lambda: JobMessageKind.THRESHOLDS in job.kinds(uid))
    (message,) = [message for message in job.told if message.kind is JobMessageKind.THRESHOLDS]
    merged = SampleStatistics.from_bytes(packed[0]) + SampleStatistics.from_bytes(packed[1])
    assert SampleStatistics.from_bytes(message.binary) == merged
    expected = fit_thresholds(merged, 4.5, 175)
    assert message.fields["thresholds"] == expected.model_dump(mode="json")
    record = made_up.registry.record(uid)
    assert record is not None
    assert (Path(record.journals) / SAMPLE_FILE).read_bytes() == message.binary
    assert made_up.registry.write_thresholds(uid, expected.model_copy(update={"xray": 1e6})) == expected


def test_a_sample_without_thresholds_ends_the_scan(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream(**RECORD_OF_SAMPLE)
    dark = np.full((2, 576, 576), 7, np.uint16)
    for block in range(4):
        job.say(JobMessageKind.SAMPLE, 0, uid, sample(dark).to_bytes(), block=block)
    made_up.becomes(uid, ScanState.FAILED)
    status = made_up.registry.status(uid)
    assert "all pixels of the sample frames" in status.reason
    assert status.remedy


def test_a_scan_that_is_cut_short_is_calibrated_from_what_there_is(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream(**RECORD_OF_SAMPLE)
    job.say(JobMessageKind.SAMPLE, 0, uid, statistics_of(2), block=2)
    job.say(JobMessageKind.READY, 0, uid, incarnation=job.ranks[0].incarnation, journal="")  # in the same turn at last
    time.sleep(0.5)
    made_up.registry.request_abort(uid, "that will do", keep=True)
    made_up.becomes(uid, ScanState.ABORTED)
    assert job.kinds(uid).index(JobMessageKind.THRESHOLDS) < job.kinds(uid).index(FLUSH)
    assert job.orders(JobMessageKind.THRESHOLDS)[0]["thresholds"]["sample_frames"] == 2


# producers that are gone


def test_a_scan_goes_on_without_a_sector_whose_producer_is_gone(
    made_up: MadeUpDeployment, etcd: Coordination, soon: None
) -> None:
    made_up.values["stream.absent_seconds"] = 1.5
    with OtherProcess() as camera:
        producers = MadeUpProducers(etcd, camera.identity)
        job = made_up.start_job("job-1")
        uid = made_up.announce_and_stream()
        producers.end(2)
        started = time.monotonic()
        until(lambda: 2 in made_up.registry.ends(uid))
        assert time.monotonic() - started > 1
        end = made_up.registry.ends(uid)[2]
        assert (end.cut, end.digest, end.records) != ("", None, 0)
        assert "the producer of sector 2 was gone for more than 1.5 s" in end.cut
        until(lambda: CUT in job.kinds(uid))
        assert job.orders(CUT)[0]["sectors"] == [2]
        assert made_up.state(uid) is ScanState.STREAMING
        made_up.end_sectors(uid, 0, 1, 3)
        count_all(job, uid)
        made_up.becomes(uid, ScanState.INCOMPLETE)
        status = made_up.registry.status(uid)
        assert "the producer of sector 2 was gone" in status.reason
        assert status.remedy
        assert FLUSH not in job.kinds(uid)
        producers.end()


def test_a_producer_that_comes_back_in_time_is_waited_for(made_up: MadeUpDeployment, etcd: Coordination) -> None:
    made_up.values["stream.absent_seconds"] = 2.5
    with OtherProcess() as camera:
        producers = [MadeUpProducers(etcd, camera.identity, range(sector, sector + 1)) for sector in range(4)]
        made_up.start_job("job-1")
        uid = made_up.announce_and_stream()
        for _ in range(2):
            producers[1].end()
            time.sleep(1.5)
            producers[1] = MadeUpProducers(etcd, camera.identity, range(1, 2))
            time.sleep(1.5)
        assert made_up.registry.ends(uid) == {}
        for producer in producers:
            producer.end()


def test_a_producer_known_to_have_died_is_gone_before_its_lease(made_up: MadeUpDeployment, etcd: Coordination) -> None:
    made_up.values["stream.absent_seconds"] = 0.5
    with OtherProcess() as camera:
        producers = MadeUpProducers(etcd, camera.identity)
        made_up.start_job("job-1")
        uid = made_up.announce_and_stream()
        camera.kill()
        until(lambda: len(made_up.registry.ends(uid)) == 4, seconds=5)
        assert len(made_up.registry.producers()) == 4
        producers.end()


def test_a_producer_that_ended_its_sector_is_still_needed(made_up: MadeUpDeployment, etcd: Coordination) -> None:
    """It has what was under way, should that be lost; once it is gone for good nobody waits for that."""
    made_up.values["stream.absent_seconds"] = 0.5
    job = made_up.start_job("job-1")
    with OtherProcess() as camera:
        producers = MadeUpProducers(etcd, camera.identity)
        time.sleep(1.0)
        uid = made_up.announce_and_stream()
        made_up.end_sectors(uid)
        job.count(uid, 0, 1)
        producers.end()
        made_up.becomes(uid, ScanState.INCOMPLETE)
        assert all(end.cut for end in made_up.registry.ends(uid).values())


# by request


@pytest.mark.parametrize("keep", [True, False])
def test_a_scan_that_has_not_begun_is_given_up(made_up: MadeUpDeployment, keep: bool) -> None:
    made_up.start_job("job-1", prepare=lambda job, record: None)
    uid = made_up.announce()
    made_up.registry.request_abort(uid, "by the user", keep)
    made_up.becomes(uid, ScanState.ABORTED)
    assert made_up.registry.status(uid).reason == "by the user"


@pytest.mark.parametrize("draining", [True, False])
def test_a_scan_is_given_up_without_a_dataset(made_up: MadeUpDeployment, job: MadeUpJob, draining: bool) -> None:
    uid = made_up.announce_and_stream()
    job.count(uid, 0, 1, 2)
    if draining:
        made_up.end_sectors(uid)
        made_up.becomes(uid, ScanState.DRAINING)
    made_up.registry.request_abort(uid, "by the user")
    made_up.becomes(uid, ScanState.ABORTED)
    assert made_up.registry.status(uid).reason == "by the user"
    until(lambda: DISCARD in job.kinds(uid))
    record = made_up.registry.record(uid)
    assert record is not None
    until(lambda: not Path(record.journals).exists())
    until(lambda: made_up.registry.shares(uid) == {})
    assert ASSEMBLE not in job.kinds(uid)


def test_a_scan_is_ended_with_what_has_come(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    """Nothing more is waited for, not even of a sector that was sent to its end."""
    uid = made_up.announce_and_stream()
    job.count(uid, 0, 1, 2)
    made_up.end_sectors(uid, 3)
    made_up.registry.request_abort(uid, "that will do", keep=True)
    made_up.becomes(uid, ScanState.ABORTED)
    assert set().union(*(order["sectors"] for order in job.orders(CUT))) == {0, 1, 2, 3}
    assert made_up.registry.status(uid).reason == "that will do"
    assert made_up.registry.summary(uid) == summary()
    (order,) = job.orders(ASSEMBLE)
    assert [end["cut"] for end in order["ends"]] == ["that will do"] * 4


def test_a_scan_is_ended_with_what_has_come_though_all_is_sent(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    """Where what is missing will never come: its producer is gone, and so is the job that had it."""
    uid = made_up.announce_and_stream()
    job.count(uid, 0, 1, 2)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.DRAINING)
    made_up.registry.request_abort(uid, "that will do", keep=True)
    made_up.becomes(uid, ScanState.ABORTED)
    assert made_up.registry.status(uid).reason == "that will do"
    assert made_up.registry.summary(uid) == summary()


def test_a_scan_that_is_ended_before_anything_came_has_an_empty_dataset(
    made_up: MadeUpDeployment, job: MadeUpJob
) -> None:
    uid = made_up.announce_and_stream()
    made_up.registry.request_abort(uid, "that will do", keep=True)
    made_up.becomes(uid, ScanState.ABORTED)
    kinds = job.kinds(uid)
    assert kinds.index(CUT) < kinds.index(FLUSH) < kinds.index(ASSEMBLE)


# datasets that cannot be written


def test_a_dataset_that_cannot_be_written_is_tried_again_from_the_journals(
    made_up: MadeUpDeployment, soon: None
) -> None:
    job = made_up.start_job("job-1", assemble=failing(FULL, 2))
    uid = made_up.announce_and_stream()
    count_all(job, uid)
    made_up.end_sectors(uid)
    until(lambda: made_up.registry.status(uid).reason == "the disk is full")
    status = made_up.registry.status(uid)
    assert (status.state, status.remedy) == (ScanState.ASSEMBLING, "free some space")
    made_up.becomes(uid, ScanState.COMMITTED)
    assert made_up.registry.status(uid).reason == ""
    first, second, third = job.orders(ASSEMBLE)
    assert first["journals"] == []
    assert second["journals"] == third["journals"]
    assert sorted(Path(path).name for path, _ in second["journals"]) == sorted(
        f"rank-{rank.rank}-{rank.incarnation}.journal" for rank in job.ranks
    )
    assert len({order["attempt"] for order in (first, second, third)}) == 3
    assert job.read == [[], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_dataset_goes_where_it_is_redirected(made_up: MadeUpDeployment, soon: None) -> None:
    job = made_up.start_job("job-1", assemble=failing(FULL, 1))
    uid = made_up.announce_and_stream()
    count_all(job, uid)
    made_up.end_sectors(uid)
    until(lambda: made_up.registry.status(uid).reason)
    made_up.registry.redirect(uid, "/elsewhere/scan.h5")
    made_up.becomes(uid, ScanState.COMMITTED)
    assert [order["output"] for order in job.orders(ASSEMBLE)] == [
        str(made_up.folder / "scan.h5"),
        "/elsewhere/scan.h5",
    ]


def test_attempts_become_rarer(made_up: MadeUpDeployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_scan, "_RETRY_SECONDS", 0.4)
    monkeypatch.setattr(job_scan, "_LONGEST_RETRY_SECONDS", 1.2)
    attempts: list[float] = []
    fail = failing(FULL, 4)

    def assemble(order: dict[str, Any]) -> Any:
        attempts.append(time.monotonic())
        return fail(order)

    job = made_up.start_job("job-1", assemble=assemble)
    uid = made_up.announce_and_stream()
    count_all(job, uid)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED, seconds=15)
    pauses = np.diff(attempts)
    assert (pauses > [0.4, 0.8, 1.2, 1.2]).all()
    assert (pauses < np.array([0.4, 0.8, 1.2, 1.2]) + 0.9).all()


def test_a_scan_that_waits_for_its_dataset_can_be_given_up(made_up: MadeUpDeployment) -> None:
    job = made_up.start_job("job-1", assemble=failing(FULL, 99))
    uid = made_up.announce_and_stream()
    count_all(job, uid)
    made_up.end_sectors(uid)
    until(lambda: made_up.registry.status(uid).reason)
    made_up.registry.request_abort(uid, "by the user")
    made_up.becomes(uid, ScanState.ABORTED)


def test_other_scans_go_on_while_one_waits_for_its_dataset(made_up: MadeUpDeployment) -> None:
    outcomes = {True: failing(FULL, 99), False: failing(FULL, 0)}
    first: list[str] = []

    def assemble(order: dict[str, Any]) -> Any:
        first.append(order["uid"])
        return outcomes[order["uid"] == first[0]](order)

    job = made_up.start_job("job-1", assemble=assemble)
    uids = [made_up.announce_and_stream()]
    count_all(job, uids[0])
    made_up.end_sectors(uids[0])
    until(lambda: made_up.registry.status(uids[0]).reason)
    uids.append(made_up.announce_and_stream())
    count_all(job, uids[1])
    made_up.end_sectors(uids[1])
    made_up.becomes(uids[1], ScanState.COMMITTED)
    assert made_up.state(uids[0]) is ScanState.ASSEMBLING


@pytest.mark.parametrize("durability", [Durability.WRITE, Durability.NONE])
def test_what_cannot_be_mended_fails_the_scan_and_keeps_its_journals(
    made_up: MadeUpDeployment, durability: Durability
) -> None:
    """Without journals a full disk is such a thing, too."""
    error = FULL if durability is Durability.NONE else ScanFailed("the digests differ", "repeat the scan")
    job = made_up.start_job("job-1", assemble=failing(error, 99))
    uid = made_up.announce_and_stream(durability=durability)
    count_all(job, uid)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.FAILED)
    status = made_up.registry.status(uid)
    assert (status.reason, status.remedy) == (error.message, error.remedy)
    record = made_up.registry.record(uid)
    assert record is not None
    until(lambda: made_up.registry.shares(uid) == {})
    if durability is Durability.WRITE:
        assert len(list(Path(record.journals).glob("*.journal"))) == 2


# an etcd that is away for a while


@pytest.mark.parametrize("when", ["streaming", "draining", "assembling"])
def test_a_scan_goes_on_after_etcd_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """For longer than the leases last."""
    with EtcdServer(tmp_path) as server, server.connect(timeout_seconds=1.0) as etcd:
        made_up = MadeUpDeployment(etcd, tmp_path, monkeypatch, lambda: server.connect(timeout_seconds=1.0))
        made_up.values["etcd.timeout_seconds"] = 1.0
        with made_up:
            jobs = [made_up.start_job("job-1", assemble=lambda order: None), made_up.start_job("job-2")]
            uid = made_up.announce_and_stream()
            until(lambda: len(made_up.registry.shares(uid)) == 2)
            jobs[1].count(uid, 0, 3)
            if when != "streaming":
                made_up.end_sectors(uid)
                made_up.becomes(uid, ScanState.DRAINING)
            if when == "assembling":
                jobs[0].count(uid, 1, 0, 1, 2)
                until(lambda: ASSEMBLE in jobs[0].kinds(uid))
            server.kill()
            if when == "assembling":
                jobs[0].leader.news.put(Assembled(uid, summary()))
            else:
                jobs[0].count(uid, 1, 0, 1)
            time.sleep(5.0)
            server.start()
            until(lambda: reachable(made_up, uid), seconds=15)
            if when == "streaming":
                made_up.end_sectors(uid)
            if when != "assembling":
                jobs[1].count(uid, 1, 2)
                until(lambda: ASSEMBLE in jobs[0].kinds(uid), seconds=20)
                jobs[0].leader.news.put(Assembled(uid, summary()))
            made_up.becomes(uid, ScanState.COMMITTED, seconds=20)
            assert made_up.registry.summary(uid) == summary()
            assert [job.errors for job in jobs] == [[], []]
            assert not any(share.sealed for share in made_up.registry.shares(uid).values())


def reachable(made_up: MadeUpDeployment, uid: UUID) -> bool:
    try:
        return made_up.state(uid) is not None
    except CoordinationError:
        return False
