"""The leader of a job: what it makes of the keys in etcd, and what it tells its ranks and etcd."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.run_state import ScanState
from mpistream.model.errors import EtcdUnreachable
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.scan import ScanRecord, SectorEnd
from mpistream.pipeline.leading import job_scan
from mpistream.pipeline.leading.leader import DeclaredDead
from tests.etcd_server import EtcdServer
from tests.unit.made_up_job import MadeUpDeployment, MadeUpJob
from tests.unit.picture import until

PREPARE, THRESHOLDS, DISCARD = JobMessageKind.PREPARE, JobMessageKind.THRESHOLDS, JobMessageKind.DISCARD


@pytest.fixture
def made_up(
    server: EtcdServer, etcd: Coordination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MadeUpDeployment]:
    with MadeUpDeployment(etcd, tmp_path, monkeypatch, lambda: server.connect(etcd.prefix)) as deployment:
        yield deployment


@pytest.fixture
def job(made_up: MadeUpDeployment) -> MadeUpJob:
    return made_up.start_job("job-1")


# what its ranks are told


def test_the_ranks_are_told_what_a_scan_needs_of_them(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream()
    until(lambda: THRESHOLDS in job.kinds(uid))
    assert job.kinds(uid) == [PREPARE, THRESHOLDS]
    (prepare,) = job.orders(PREPARE)
    record = made_up.registry.record(uid)
    assert record is not None
    assert prepare["record"] == record.model_dump(mode="json")
    assert job.orders(THRESHOLDS)[0]["thresholds"]["background"] == 60.0
    (table,) = job.orders(JobMessageKind.TABLE)
    assert table["table"]["ranks"][1]["job"] == "job-1"


def test_a_scan_streams_once_every_rank_is_ready(made_up: MadeUpDeployment) -> None:
    job = made_up.start_job("job-1", prepare=lambda job, record: None)
    uid = made_up.announce()
    until(lambda: PREPARE in job.kinds(uid))
    record = made_up.registry.record(uid)
    assert record is not None
    job.get_ready(record, 0)
    time.sleep(1.5)
    assert made_up.state(uid) is ScanState.ANNOUNCED
    assert made_up.registry.shares(uid) == {}
    job.get_ready(record, 1)
    made_up.becomes(uid, ScanState.STREAMING)
    share = made_up.registry.shares(uid)["job-1"]
    assert share.ready
    assert [journal.rank for journal in share.journals] == [0, 1]
    assert {journal.path for journal in share.journals} == {str(path) for path in Path(record.journals).iterdir()}


def test_scans_stream_one_after_the_other(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    """The next one is prepared meanwhile, and begins as soon as everything of the one before is sent."""
    uids = [made_up.announce_and_stream(), made_up.announce(), made_up.announce()]
    until(lambda: all(made_up.registry.shares(uid) for uid in uids))
    time.sleep(0.5)
    assert [made_up.state(uid) for uid in uids] == [ScanState.STREAMING, ScanState.ANNOUNCED, ScanState.ANNOUNCED]
    made_up.end_sectors(uids[0])
    made_up.becomes(uids[1], ScanState.STREAMING)
    assert made_up.state(uids[0]) is ScanState.DRAINING
    assert made_up.state(uids[2]) is ScanState.ANNOUNCED


def test_what_the_ranks_count_stands_in_etcd_soon(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream()
    job.count(uid, 0, 2)
    job.count(uid, 1, 1, 3)
    until(lambda: made_up.blocks(uid) == {"job-1": [1, 2, 3]}, seconds=3)
    share = made_up.registry.shares(uid)["job-1"]
    assert share.totals["frames"] == 6
    assert [journal.bytes for journal in share.journals] == [
        Path(journal.path).stat().st_size for journal in share.journals
    ]
    until(lambda: made_up.registry.progress(uid).get("blocks") == 3)
    assert made_up.registry.progress(uid) == {
        "blocks": 3,
        "frames": 6,
        "electrons": 60,
        "raw_bytes": 3000,
        "frames_incomplete": 0,
    }


def test_what_a_job_says_of_itself(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream()
    job.count(uid, 1, 2)
    job.leader.news.put(JobMessage(JobMessageKind.HEARTBEAT, 1))
    until(lambda: made_up.registry.statuses("jobs")["job-1"]["ranks"][1]["scans"].get(str(uid)))
    status = made_up.registry.statuses("jobs")["job-1"]
    assert status["conducts"] is True
    assert [rank["rank"] for rank in status["ranks"]] == [0, 1]
    assert status["ranks"][1]["scans"][str(uid)]["frames"] == 2
    assert status["ranks"][1]["silent_seconds"] < 2
    assert abs(status["unix_seconds"] - time.time()) < 5
    job.close()
    assert made_up.registry.statuses("jobs") == {}


def test_a_request_to_stop_reaches_the_ranks(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    made_up.registry.request_stop("job-1")
    until(lambda: JobMessageKind.STOP in job.kinds())
    job.leader.news.put(JobMessage(JobMessageKind.STOP, 1))
    until(lambda: job.kinds().count(JobMessageKind.STOP) == 2)


# a rank that cannot


def fault(job: MadeUpJob, uid: Any, fatal: bool = False, message: str = "no dark reference") -> None:
    job.say(JobMessageKind.FAULT, 1, uid, message=message, remedy="make one", fatal=fatal)


def test_a_rank_that_cannot_prepare_ends_a_scan_that_has_not_begun(made_up: MadeUpDeployment) -> None:
    job = made_up.start_job("job-1", prepare=lambda job, record: fault(job, record.uid))
    uid = made_up.announce()
    made_up.becomes(uid, ScanState.FAILED)
    status = made_up.registry.status(uid)
    assert (status.reason, status.remedy) == ("no dark reference", "make one")
    until(lambda: DISCARD in job.kinds(uid))


def test_a_fault_that_no_rank_could_do_anything_about_ends_a_scan(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream()
    fault(job, uid, fatal=True, message="no such thresholds")
    made_up.becomes(uid, ScanState.FAILED)
    assert made_up.registry.status(uid).reason == "no such thresholds"


def test_a_job_that_cannot_take_on_a_scan_under_way_tries_again(
    made_up: MadeUpDeployment, job: MadeUpJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted elsewhere is not thrown away for it, and the job gets no blocks until it is ready."""
    monkeypatch.setattr(job_scan, "_PREPARE_SECONDS", 0.5)
    uid = made_up.announce_and_stream()
    attempts: list[int] = []

    def prepare(second: MadeUpJob, record: ScanRecord) -> None:
        attempts.append(1)
        if len(attempts) < 4:
            fault(second, record.uid, message="the folder of the journals is not there")
            second.get_ready(record, 0)
        else:
            second.all_get_ready(record)

    second = made_up.start_job("job-2", prepare=prepare)
    until(lambda: "job-2" in made_up.registry.shares(uid))
    share = made_up.registry.shares(uid)["job-2"]
    assert (share.ready, share.problem) == (False, "the folder of the journals is not there")
    until(lambda: len(attempts) == 3)
    latest = made_up.registry.latest_routing()
    assert latest is not None
    assert latest.jobs == {"job-1"}
    until(lambda: made_up.registry.shares(uid)["job-2"].ready)
    assert made_up.registry.shares(uid)["job-2"].problem == ""
    until(lambda: made_up.registry.latest_routing() != latest)
    assert made_up.state(uid) is ScanState.STREAMING
    until(lambda: second.kinds(uid)[-2:] == [PREPARE, THRESHOLDS])


def test_a_journal_that_cannot_be_written_is_shown(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    uid = made_up.announce_and_stream()
    job.count(uid, 1, 2)
    until(lambda: made_up.blocks(uid)["job-1"])
    for problem in ("the disk is full", ""):
        job.say(
            JobMessageKind.COUNTED,
            0,
            uid,
            bytes=36,
            totals=dict.fromkeys(("frames", "electrons", "raw_bytes", "frames_incomplete"), 0),
            flushed=False,
            problem=problem,
        )
        until(lambda problem=problem: made_up.registry.shares(uid)["job-1"].problem == problem)
    assert made_up.blocks(uid) == {"job-1": [2]}


# keys that others write


BAD_KEYS: dict[str, Any] = {
    "nonsense": 5,
    "nonsense/record": {"uid": 5},
    "nonsense/state": {"state": "failed", "since_unix_seconds": 1.0, "reason": "", "remedy": ""},
    "UID/record": {"uid": "5"},
    "UID/state": {"state": "unheard of"},
    "UID/ends/0": [],
    "UID/faults/me": {},
    "UID/abort": "now",
    "UID/output": ["/elsewhere"],
    "UID/thresholds": {"background": 5},
    "UID/shares/job-9": {"job": "job-9"},
    "UID/shares/job-1": [1, 2],
    "UID/shares/job-8": {"job": "job-8", "journals": [], "blocks": {"first": 0, "blocks": 4, "bits": "#"}},
}


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_malformed_key_is_logged_and_harms_nothing(
    made_up: MadeUpDeployment, etcd: Coordination, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """There before the scan is announced, and changed while it streams."""
    job = made_up.start_job("job-1")
    uid = uuid4()
    name = key.replace("UID", str(uid))
    if key not in ("UID/record", "UID/state", "UID/thresholds", "UID/shares/job-1"):
        etcd.put(f"scans/{name}", BAD_KEYS[key])
        until(lambda: f"ignored scans/{name} in etcd" in caplog.text)
    until(lambda: job.kinds() == [JobMessageKind.TABLE])
    made_up.announce(uid=uid, journals=str(made_up.folder / "journals"))
    made_up.becomes(uid, ScanState.STREAMING)
    if key not in ("UID/state", "UID/shares/job-1", "UID/ends/0"):  # those are read again where they are written
        etcd.put(f"scans/{name}", BAD_KEYS[key])
        until(lambda: f"ignored scans/{name} in etcd" in caplog.text)
    if key == "UID/ends/0":
        etcd.delete(f"scans/{name}")
    made_up.end_sectors(uid)
    for block in range(4):
        job.count(uid, block % 2, block)
    made_up.becomes(uid, ScanState.COMMITTED)
    assert job.errors == []


def test_a_record_that_is_seen_before_the_state_is_not_forgotten(
    made_up: MadeUpDeployment, job: MadeUpJob, etcd: Coordination
) -> None:
    """A watch that was lost lists the keys in alphabetical order."""
    uid = made_up.announce()
    until(lambda: PREPARE in job.kinds(uid))
    record, status = etcd.get(f"scans/{uid}/record"), etcd.get(f"scans/{uid}/state")
    late = str(uuid4())
    etcd.put(f"scans/{late}/record", {**record, "uid": late})
    time.sleep(1.0)
    etcd.put(f"scans/{late}/state", status)
    until(lambda: any(order["record"]["uid"] == late for order in job.orders(PREPARE)))


def test_scans_that_have_ended_are_forgotten(made_up: MadeUpDeployment, job: MadeUpJob) -> None:
    """By those jobs, too, that do not conduct."""
    second = made_up.start_job("job-2")
    uid = made_up.announce_and_stream()
    made_up.end_sectors(uid)
    for block in range(4):
        job.count(uid, block % 2, block)
    made_up.becomes(uid, ScanState.COMMITTED)
    for each in (job, second):
        until(lambda each=each: each.kinds(uid)[-1] is DISCARD)
        until(lambda each=each: not each.leader._scans, seconds=5)
    late = made_up.start_job("job-3")
    assert late.leader._scans == {}
    assert late.kinds(uid) == []


# a lost answer, an etcd that is away, a share that was sealed


@pytest.mark.parametrize("method", ["create", "replace"])
def test_a_share_whose_answer_was_lost_is_no_end_of_it(
    made_up: MadeUpDeployment, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Nor where more was counted before the next attempt."""
    job = made_up.start_job("job-1")
    etcd: Any = job.registry._etcd
    carry_out, lost = getattr(etcd, method), []

    def lose_the_answer(key: str, *arguments: Any) -> bool:
        written = bool(carry_out(key, *arguments))
        if "/shares/" in key and not lost:
            lost.append(key)
            job.count(UUID(key.split("/")[1]), 1, 3)
            raise EtcdUnreachable("no etcd reachable")
        return written

    monkeypatch.setattr(etcd, method, lose_the_answer)
    uid = made_up.announce_and_stream()
    job.count(uid, 0, 2)
    until(lambda: lost)
    until(lambda: made_up.blocks(uid) == {"job-1": [2, 3]}, seconds=5)
    job.count(uid, 0, 0, 1)
    made_up.end_sectors(uid)
    made_up.becomes(uid, ScanState.COMMITTED)


@pytest.mark.parametrize("conducts", [True, False])
def test_a_job_whose_share_was_sealed_ends(made_up: MadeUpDeployment, etcd: Coordination, conducts: bool) -> None:
    jobs = [made_up.start_job("job-1"), made_up.start_job("job-2")]
    uid = made_up.announce_and_stream()
    until(lambda: len(made_up.registry.shares(uid)) == 2)
    victim = jobs[0 if conducts else 1]
    sealed = made_up.registry.shares(uid)[victim.name].changed(sealed=True)
    etcd.put(f"scans/{uid}/shares/{victim.name}", sealed.to_json())
    until(lambda: victim.errors)
    (error,) = victim.errors
    assert isinstance(error, DeclaredDead)
    assert error.remedy
    assert not victim.leader._thread.is_alive()


def test_a_job_that_writes_its_sealed_share_ends(made_up: MadeUpDeployment, etcd: Coordination) -> None:
    """Though its watch has not told it yet."""
    job = made_up.start_job("job-1")
    uid = made_up.announce_and_stream()
    until(lambda: made_up.registry.shares(uid))
    job.leader._watches[0].close()
    sealed = made_up.registry.shares(uid)["job-1"].changed(sealed=True)
    etcd.put(f"scans/{uid}/shares/job-1", sealed.to_json())
    job.count(uid, 0, 2)
    until(lambda: job.errors)
    assert isinstance(job.errors[0], DeclaredDead)
    assert made_up.registry.shares(uid)["job-1"] == sealed


def test_an_etcd_that_stays_away_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EtcdServer(tmp_path) as server, server.connect(timeout_seconds=1.0) as etcd:
        made_up = MadeUpDeployment(etcd, tmp_path, monkeypatch, lambda: server.connect(timeout_seconds=1.0))
        made_up.values |= {"stream.patience_seconds": 2.0, "etcd.timeout_seconds": 1.0}
        with made_up:
            job = made_up.start_job("job-1")
            server.kill()
            started = time.monotonic()
            until(lambda: job.errors, seconds=10)
            assert time.monotonic() - started > 1.5
            assert isinstance(job.errors[0], EtcdUnreachable)


def test_a_leader_that_was_closed_leaves_nothing(made_up: MadeUpDeployment, etcd: Coordination) -> None:
    threads = threading.active_count()
    job = made_up.start_job("job-1")
    job.close()
    assert etcd.get("conductor") is None
    assert etcd.get_prefix("groups/") == {}
    until(lambda: threading.active_count() <= threads + 1)
    assert job.errors == []


def test_faults_of_a_scan_are_written_once(made_up: MadeUpDeployment, job: MadeUpJob, etcd: Coordination) -> None:
    uid = made_up.announce_and_stream()
    made_up.registry.write_end(uid, SectorEnd.cut_short(0, "gone"))
    fault(job, uid, fatal=True)
    made_up.becomes(uid, ScanState.FAILED)
    assert etcd.get_prefix(f"scans/{uid}/faults/") == {
        "job-1-rank-1": {"message": "no dark reference", "remedy": "make one"}
    }
