"""What `mpistream status`, `scan` and `trace` find out, from a real etcd."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from mpistream.acquisition.sector_files import sector_file_name
from mpistream.control.coordination import Coordination
from mpistream.control.run_state import ScanState
from mpistream.launch import inspection, scan_control
from mpistream.launch.diagnosis import problems
from mpistream.launch.inspection import DeploymentView, find_scan, list_scans, look
from mpistream.launch.scan_control import abort_scan, redirect_scan
from mpistream.model.block_set import BlockSet
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, ScanFailed, StorageError
from mpistream.model.job_share import JobShare
from mpistream.model.scan import ScanRecord, SectorEnd
from tests.unit.registered import EVERYTHING, RANKS, Deployment, deployment, scan_record, summary

CONFIG = Config()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_RATE_SECONDS", 0.05)
    monkeypatch.setattr(scan_control, "NOBODY_SECONDS", 0.2)


@pytest.fixture
def running(etcd: Coordination) -> Iterator[Deployment]:
    """Everything is registered; the job conducts, and blocks are routed to it."""
    with deployment(etcd) as everything:
        role = everything.registry.take_conductor("job", "node", 100, lambda: None)
        assert role is not None
        everything.registry.publish_routing(role, RANKS)
        for sector in range(4):
            everything.registry.write_status("producers", str(sector), {"sector": sector, "scan": "", "table": 1})
        yield everything
        role.close()


def announce(running: Deployment, *states: ScanState, **changes: object) -> ScanRecord:
    record = scan_record(**changes)
    running.registry.announce(record)
    for state in states:
        assert running.registry.set_state(record.uid, state)
    return record


def end_of(sector: int, cut: str = "") -> SectorEnd:
    return SectorEnd(
        sector=sector,
        cut=cut,
        producer_id=sector,
        blocks=8,
        records=64,
        digest=1,
        sectors_duplicate=0,
        sectors_rejected=0,
        seconds_reading=0,
        seconds_sending=0,
    )


def share(record: ScanRecord, *blocks: int, **changes: object) -> JobShare:
    return JobShare("job", BlockSet.of(record.block_range, blocks), ready=True).changed(**changes)


def sentences(view: DeploymentView) -> str:
    return "\n".join(problems(view, CONFIG))


def test_a_deployment_that_waits_for_scans(running: Deployment) -> None:
    running.registry.write_status(
        "jobs", "job", {"ranks": [{"rank": 1, "group": 0, "host": "node", "silent_seconds": 0.5, "scans": {}}]}
    )
    view = look(running.registry, CONFIG)
    assert view.scans == ()
    assert (view.conductor, view.table and view.table.version) == ("job", 1)
    (job,) = view.jobs
    assert (job.conducts, job.is_routed_to, job.groups, job.groups_registered) == (True, True, 1, 1)
    assert [rank.silent_seconds for rank in job.ranks] == [None, 0.5]
    assert [producer.status["sector"] for producer in view.producers] == [0, 1, 2, 3]
    assert all(producer.age_seconds is not None and producer.age_seconds < 5 for producer in view.producers)
    assert [aggregator.name for aggregator in view.aggregators] == ["first"]
    assert problems(view, CONFIG) == []


def test_a_scan_that_streams(running: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    record = announce(running, ScanState.STREAMING)
    running.registry.write_share(record.uid, share(record, 0, 1, 5), None)
    running.registry.write_end(record.uid, end_of(2))
    running.registry.write_progress(record.uid, {"frames": 24, "raw_bytes": 1000})

    def half_a_second_passes(seconds: float) -> None:
        running.registry.write_progress(record.uid, {"frames": 34, "raw_bytes": 2000})

    monkeypatch.setattr(inspection.time, "sleep", half_a_second_passes)
    (scan,) = look(running.registry, CONFIG).scans
    assert (scan.uid, scan.state, scan.frames, scan.output) == (record.uid, ScanState.STREAMING, 64, "/data/scan.h5")
    assert (scan.blocks, scan.blocks_journaled, scan.ends, scan.cut) == (8, 3, (2,), {})
    assert scan.progress["frames"] == 34
    assert scan.rates["frames"] > 10
    assert scan.rates["raw_bytes"] == pytest.approx(100 * scan.rates["frames"])


def test_scans_that_have_ended(running: Deployment) -> None:
    old = announce(running, ScanState.ABORTED, announced_unix_seconds=1.0)
    record = announce(running, ScanState.STREAMING, ScanState.DRAINING, ScanState.ASSEMBLING)
    running.registry.write_summary(record.uid, summary())
    running.registry.set_state(record.uid, ScanState.COMMITTED)
    assert [scan.uid for scan in list_scans(running.registry)] == [old.uid, record.uid]
    (scan,) = look(running.registry, CONFIG).scans
    assert (scan.uid, scan.progress["frames"], scan.blocks_journaled, scan.complete) == (record.uid, 64, None, True)


def test_scans_are_found_by_their_uid(running: Deployment, etcd: Coordination) -> None:
    uids = [UUID(int=number << 96) for number in (0xABCD0001, 0xABCD0002)]
    for seconds, uid in enumerate(uids):
        announce(running, uid=uid, announced_unix_seconds=10.0 - seconds)
    etcd.put("scans/nonsense/state", {})
    etcd.put(f"scans/{uuid4()}/state", {"state": "no such"})

    def found(which: str) -> UUID:
        return find_scan(running.registry, which).facts.uid

    assert found("latest") == uids[0]
    assert found("abcd0002") == found(str(uids[1])) == found(str(uids[1])[:10].upper()) == uids[1]
    for wrong, message in (("abcd", "2 scans whose uid begins with abcd"), ("ff", "no scan ff"), ("", "no scan")):
        with pytest.raises(CoordinationError, match=message):
            found(wrong)


def test_without_a_scan_there_is_no_latest(running: Deployment) -> None:
    with pytest.raises(CoordinationError, match="no scan latest"):
        find_scan(running.registry, "latest")


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        ("groups/0", "no rank group is registered: nothing is counted"),
        ("producers/3", "no producer is registered for sector 3; start it again: mpistream produce --sector 3"),
        ("aggregators/first", "no aggregator is registered: only scans with --direct"),
    ],
)
def test_who_is_missing_is_said(running: Deployment, absent: str, sentence: str) -> None:
    running.end(absent)
    assert sentence in sentences(look(running.registry, CONFIG))


def test_a_job_that_does_not_serve_is_named(etcd: Coordination) -> None:
    with deployment(etcd, [name for name in EVERYTHING if name != "producers/0"]) as running:
        said = sentences(look(running.registry, CONFIG))
        assert "no job conducts" in said
        assert "job job gets no blocks" in said
        etcd.put("conductor", {"job": "earlier"})
        assert "the job that conducts is not registered (earlier)" in sentences(look(running.registry, CONFIG))


def test_who_is_silent_is_named(running: Deployment, etcd: Coordination) -> None:
    etcd.put("status/producers/2", {"sector": 2, "scan": "", "unix_seconds": 1.0})
    etcd.put("status/aggregators/first", {"refused": 3, "unix_seconds": 1.0})
    rank = {"rank": 1, "silent_seconds": 7.0}
    etcd.put("status/jobs/job", {"ranks": [rank], "unix_seconds": 1.0})
    said = sentences(look(running.registry, CONFIG))
    assert "the producer of sector 2 (pid 9 on camera) has said nothing for" in said
    assert "aggregator first (pid 20 on edge) has said nothing for" in said
    assert "aggregator first has refused 3 messages" in said
    assert "the leader of job job has said nothing" in said
    assert "rank 1 (pid 101 on node) has been silent for 7 s; after 10 s its job ends" in said


def test_what_a_scan_waits_for_is_said(running: Deployment) -> None:
    record = announce(running, ScanState.STREAMING)
    running.registry.write_share(record.uid, share(record, problem="the journal cannot be written"), None)
    running.registry.write_end(record.uid, end_of(1, cut="its producer was gone for 30 s"))
    said = sentences(look(running.registry, CONFIG))
    assert "job job cannot go on: the journal cannot be written" in said
    assert "goes on without the rest of sector 1: its producer was gone for 30 s" in said
    assert "the producer of sector 0 goes by routing table 0; the latest is 1" in said
    for state in (ScanState.DRAINING, ScanState.ASSEMBLING):
        running.registry.set_state(record.uid, state)
    running.registry.set_state(record.uid, ScanState.ASSEMBLING, ScanFailed("no room", "free some"))
    assert "waits: no room; free some" in sentences(look(running.registry, CONFIG))


@pytest.mark.parametrize("keep", [True, False])
def test_ending_a_scan(running: Deployment, etcd: Coordination, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    record = announce(running, ScanState.STREAMING)
    found = find_scan(running.registry, "latest")

    def job_ends_it(seconds: float) -> None:
        assert etcd.get(f"scans/{record.uid}/abort") == {"reason": "ended by the operator", "keep": keep}
        if keep:
            running.registry.write_summary(record.uid, summary(complete=False))
        running.registry.set_state(record.uid, ScanState.ABORTED, ScanFailed("ended by the operator"))

    monkeypatch.setattr(scan_control.time, "sleep", job_ends_it)
    status, dataset = abort_scan(running.registry, found, keep, 10.0)
    assert status.state is ScanState.ABORTED
    assert (dataset is not None) == keep
    with pytest.raises(ScanFailed, match="has ended already: it is aborted"):
        abort_scan(running.registry, find_scan(running.registry, "latest"), keep, 10.0)


def test_a_job_that_does_not_end_a_scan(running: Deployment) -> None:
    announce(running, ScanState.STREAMING)
    with pytest.raises(ScanFailed, match="still streaming after") as caught:
        abort_scan(running.registry, find_scan(running.registry, "latest"), False, 0.3)
    assert "the request stands" in caught.value.remedy


def test_ending_a_scan_that_no_job_serves(etcd: Coordination) -> None:
    """Nobody is there to write what has arrived; without that nobody is needed."""
    with deployment(etcd, []) as running:
        record = announce(running, ScanState.STREAMING)
        found = find_scan(running.registry, "latest")
        with pytest.raises(ScanFailed, match="as soon as an MPI job is there") as caught:
            abort_scan(running.registry, found, True, 10.0)
        assert f"mpistream scan abort {record.uid} --discard" in caught.value.remedy
        status, dataset = abort_scan(running.registry, found, False, 10.0)
        assert (status.state, dataset) == (ScanState.ABORTED, None)


def test_a_dataset_is_sent_elsewhere(running: Deployment, tmp_path: Path) -> None:
    announce(running, source="sim:8x8", output=str(tmp_path / "full.h5"))
    (tmp_path / "there.h5").touch()
    for wrong, message in (("there.h5", "exists"), ("no/scan.h5", "does not exist")):
        with pytest.raises(StorageError, match=message):
            redirect_scan(running.registry, find_scan(running.registry, "latest"), tmp_path / wrong)
    redirect_scan(running.registry, find_scan(running.registry, "latest"), tmp_path / "other.h5")
    (scan,) = list_scans(running.registry)
    assert scan.output == str(tmp_path / "other.h5")


@pytest.mark.parametrize("moved_away", [False, True])
def test_a_dataset_is_sent_elsewhere_though_its_source_has_made_room(
    running: Deployment, tmp_path: Path, moved_away: bool
) -> None:
    sectors = tmp_path / "sectors"
    sectors.mkdir()
    file = sectors / sector_file_name(1, 0, 0)
    file.touch()
    announce(running, source=f"files:{sectors}", output=str(tmp_path / "full.h5"), overwrite=True)
    if moved_away:
        file.unlink()
    else:
        with pytest.raises(StorageError, match="is read by this command"):
            redirect_scan(running.registry, find_scan(running.registry, "latest"), file)
    redirect_scan(running.registry, find_scan(running.registry, "latest"), tmp_path / "other.h5")
    (scan,) = list_scans(running.registry)
    assert scan.output == str(tmp_path / "other.h5")
