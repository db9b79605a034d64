"""Sessions: their names, their defaults, what became of their scans. With a real etcd."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpistream.cli.scan_start import parse_labels
from mpistream.cli.session_report import print_session, session_as_json, session_line
from mpistream.control.coordination import Coordination
from mpistream.control.run_state import ScanState
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch import session_history
from mpistream.launch.announcement import announce, draft_scan
from mpistream.launch.cluster.slurm import QueuedJob
from mpistream.launch.session_history import SessionView, list_sessions, show_session, wait_until_over
from mpistream.launch.sessions import (
    scan_defaults,
    session_request,
    start_session,
    stop_session,
    wait_until_served,
)
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, CoordinationError, MpistreamError, ScanFailed, StorageError
from mpistream.model.scan import CountingParameters, ScanRecord, SectorEnd
from mpistream.model.session import BatchJob, BatchJobState, JobStep, Mode, Session
from tests.unit.registered import EVERYTHING, Deployment, deployment, scan_record, summary

GIVEN = CountingParameters(background=60.0, xray=2000.0)


@pytest.fixture
def running(etcd: Coordination) -> Iterator[Deployment]:
    with deployment(etcd) as everything:
        yield everything


@pytest.fixture
def sessions(etcd: Coordination) -> SessionRegistry:
    return SessionRegistry(etcd)


@pytest.fixture
def session(sessions: SessionRegistry, tmp_path: Path) -> Session:
    return start_session(sessions, "monday", tmp_path, GIVEN)[0]


def become(running: Deployment, record: ScanRecord, *states: ScanState, reason: str = "") -> None:
    for state in states:
        error = ScanFailed(reason, "stream it again") if reason and state is states[-1] else None
        assert running.registry.set_state(record.uid, state, error)


def commit(running: Deployment, record: ScanRecord, state: ScanState = ScanState.COMMITTED, **changes: Any) -> None:
    running.registry.write_summary(record.uid, summary(dataset=record.output, **changes))
    reason = "" if state is ScanState.COMMITTED else "a producer was gone"
    become(running, record, ScanState.STREAMING, ScanState.DRAINING, ScanState.ASSEMBLING, state, reason=reason)


def batch_job(**changes: Any) -> BatchJob:
    values = {
        "scheduled": "1234",
        "cluster": "perlmutter",
        "mode": Mode.LIVE,
        "session": "monday",
        "nodes": 2,
        "log": "/logs/1234.out",
        "state": BatchJobState.RUNNING,
        "started_unix_seconds": 1.5e9,
    }
    return BatchJob.model_validate(values | changes)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_names_that_can_be_none(sessions: SessionRegistry, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can be no name of a session"):
        start_session(sessions, name, tmp_path, GIVEN)
    assert sessions.sessions() == {}


def test_a_name_is_used_once(sessions: SessionRegistry, session: Session, tmp_path: Path) -> None:
    for stopped in (False, True):
        if stopped:
            stop_session(sessions, "monday", "enough")
        with pytest.raises(ConfigError, match="there is a session monday already") as caught:
            start_session(sessions, "monday", tmp_path, CountingParameters())
        assert "session show monday" in caught.value.remedy
    assert sessions.session("monday") == session


def test_what_is_wrong_with_a_session_is_found_at_its_start(sessions: SessionRegistry, tmp_path: Path) -> None:
    cases: list[tuple[Path, CountingParameters, Path | None, str]] = [
        (tmp_path / "no", GIVEN, None, "does not exist"),
        (tmp_path, CountingParameters(dark=str(tmp_path / "no.npy")), None, "no.npy"),
        (tmp_path, CountingParameters(gain="ref:no"), None, "ref:no is no file"),
        (tmp_path, CountingParameters(dark="ref:no"), None, "there is no dark reference no"),
        (tmp_path, CountingParameters(), tmp_path / "no.json", "no.json"),
        (tmp_path, CountingParameters(), Path("ref:no"), "there is no set of thresholds no"),
        (tmp_path, GIVEN, tmp_path / "no.json", "give the one|--thresholds, and --background"),
    ]
    for folder, counting, thresholds, message in cases:
        with pytest.raises(MpistreamError, match=message) as caught:
            start_session(sessions, "monday", folder, counting, thresholds)
        assert caught.value.remedy
    assert sessions.sessions() == {}


def test_a_scan_of_a_session_is_named_by_its_place_and_its_uid(
    running: Deployment, sessions: SessionRegistry, session: Session, tmp_path: Path
) -> None:
    """The camera's scan number is the same for all of them."""
    records = []
    for _ in range(2):
        request = session_request(sessions, running.registry, "monday", "sim:8x8", labels={"tilt_degrees": -60})
        draft, _ = draft_scan(request, Config())
        records.append(announce(running.registry, draft))
    names = [f"scan_{place:04}_{str(record.uid)[:8]}.h5" for place, record in enumerate(records, 1)]
    assert [record.output for record in records] == [str(tmp_path / name) for name in names]
    assert {record.scan_number for record in records} == {records[0].scan_number}
    assert records[0].counting == GIVEN
    assert (records[0].session, records[0].labels) == ("monday", {"tilt_degrees": -60})


DEFAULTS = {
    "given": {"background": 60.0, "xray": 2000.0, "row_dark": "mean", "row_dark_level": 30.0},
    "calibrated": {"sample_frames": 8, "dark": "/dark.npy"},
}


@pytest.mark.parametrize(
    ("defaults", "thresholds", "given", "expected"),
    [
        ("given", None, {}, DEFAULTS["given"]),
        ("given", None, {"xray": 900.0}, DEFAULTS["given"] | {"xray": 900.0}),
        ("given", None, {"sample_frames": 9}, {"row_dark": "mean", "sample_frames": 9}),
        ("given", None, {"thresholds": "t"}, {"row_dark": "mean", "thresholds": "t"}),
        ("given", None, {"dark": "/d.npy"}, {"background": 60.0, "xray": 2000.0, "dark": "/d.npy"}),
        ("calibrated", None, {"row_dark": "mean"}, {"sample_frames": 8, "row_dark": "mean"}),
        ("calibrated", None, {"thresholds": "t"}, {"dark": "/dark.npy", "thresholds": "t"}),
        ("calibrated", None, {"background": 1.0, "xray": 2.0}, {"dark": "/dark.npy", "background": 1.0, "xray": 2.0}),
        ("calibrated", None, {"centroids": True}, DEFAULTS["calibrated"] | {"centroids": True}),
        ("none", "/t.json", {}, {"thresholds": "/t.json"}),
        ("none", "/t.json", {"background": 1.0, "xray": 2.0}, {"background": 1.0, "xray": 2.0}),
        ("none", "/t.json", {"xray_sigmas": 9.0}, {"xray_sigmas": 9.0}),
    ],
)
def test_options_of_a_scan_come_before_those_of_its_session(
    defaults: str, thresholds: str | None, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """And the defaults that do not go with them are left out."""
    parameters = CountingParameters(**DEFAULTS.get(defaults, {}))
    stored = Session(name="s", folder="/f", counting=parameters, thresholds=thresholds, started_unix_seconds=1.0)
    merged, file = scan_defaults(Session.model_validate(stored.model_dump(mode="json")), given)
    assert merged | ({} if file is None else {"thresholds": str(file)}) == expected
    CountingParameters(**merged)


def test_a_session_that_is_not_there_or_stopped(
    running: Deployment, sessions: SessionRegistry, session: Session, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="there is no session tuesday") as caught:
        session_request(sessions, running.registry, "tuesday", "sim:8x8")
    assert "monday" in caught.value.remedy
    request = session_request(sessions, running.registry, "monday", "sim:8x8")
    start_session(sessions, "open", tmp_path, GIVEN)
    assert stop_session(sessions, "monday", "the beam is gone").reason == "the beam is gone"
    assert stop_session(sessions, "monday", "again").reason == "the beam is gone"
    with pytest.raises(ScanFailed, match="has been stopped: the beam is gone") as refused:
        session_request(sessions, running.registry, "monday", "sim:8x8")
    assert "open" in refused.value.remedy
    draft, _ = draft_scan(request, Config())
    with pytest.raises(CoordinationError, match="session monday has been stopped"):
        announce(running.registry, draft)  # it was asked for before the session was stopped
    assert running.registry.record(draft.uid) is None


def test_nobody_serves_a_session(etcd: Coordination, sessions: SessionRegistry, session: Session) -> None:
    with deployment(etcd, [name for name in EVERYTHING if not name.startswith("groups")]) as running:
        cases = [
            ((), "no MPI job serves session monday", "mpistream job submit live --session monday"),
            ((batch_job(state="failed"),), "no MPI job serves", "submit or start one"),
            ((batch_job(state="submitted"),), "batch job 1234 has not begun", "wait for it"),
            ((batch_job(),), "batch job 1234 is running", "see its log"),
        ]
        for jobs, message, remedy in cases:
            for job in jobs:
                sessions.write_batch_job(job)
            with pytest.raises(ScanFailed, match=message) as caught:
                wait_until_served(sessions, running.registry, "monday", False, 0.0)
            assert remedy in caught.value.remedy
        running.start(["groups/0"])
        running.end("producers/2")
        with pytest.raises(ScanFailed, match="no producer is registered for sector 2"):
            wait_until_served(sessions, running.registry, "monday", False, 0.0)


def of_monday(running: Deployment, at: float, **changes: Any) -> ScanRecord:
    record = scan_record(session="monday", announced_unix_seconds=at, output=f"/data/{at:g}.h5", **changes)
    running.registry.announce(record)
    return record


def test_the_history_of_a_session(
    running: Deployment, sessions: SessionRegistry, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    later = of_monday(running, 30.0, labels={"tilt_degrees": 1.5})
    failed = of_monday(running, 20.0)
    first = of_monday(running, 10.0)
    running.registry.announce(scan_record(announced_unix_seconds=15.0))  # of no session
    commit(running, first, seconds={"streaming": 1.25, "last_frame_to_dataset": 0.5})
    become(running, failed, ScanState.FAILED, reason="the source is gone")
    counters = summary().counters.model_copy(update={"frames_incomplete": 12, "sectors_missing": 13, "frames_lost": 3})
    running.registry.write_end(later.uid, SectorEnd.cut_short(2, "producer 2 was gone"))
    commit(running, later, ScanState.INCOMPLETE, counters=counters, complete=False)
    last = of_monday(running, 40.0)
    running.registry.write_progress(last.uid, {"frames": 17, "electrons": 170})
    sessions.write_batch_job(batch_job(session="tuesday"))
    sessions.write_batch_job(
        batch_job(
            scheduled="1235",
            state="failed",
            reason="the job step died 3 times",
            remedy="look at its log",
            steps=[JobStep(nodes=("nid1",), started_unix_seconds=1.5e9, last_lines=("one", "two", "Bus error"))],
        )
    )
    view = show_session(sessions, running.registry, "monday")
    assert [scan.record.uid for scan in view.scans] == [record.uid for record in (first, failed, later, last)]
    assert view.states == {"announced": 1, "committed": 1, "incomplete": 1, "failed": 1}
    assert [scan.number for scan in view.unfinished] == [4]
    assert [job.scheduled for job in view.jobs] == ["1235"]
    assert view.serving == ()
    print_session(view)
    text = capsys.readouterr().out
    words = ("streaming 1.25 s, last frame to dataset 0.50 s", "42.0 MB raw, 0.1 MB counted", "640 electrons")
    words += ("why: the source is gone", "do:  stream it again", "tilt_degrees 1.5", "17 of 64 frames")
    words += ("missing: 12 frames without a sector, 13 sectors missing, 3 frames lost", "producer 2 was gone")
    words += ("1235 on perlmutter: live, failed", "the job step died 3 times", "| Bus error", "/logs/1234.out")
    words += ("4 scans: 1 announced, 1 committed, 1 incomplete, 1 failed", "background 60.0, xray 2000.0")
    for word in words:
        assert word in text
    assert session_line(view).startswith("monday ")
    found = session_as_json(view)
    assert [scan["state"] for scan in found["scans"]] == ["committed", "failed", "incomplete", "announced"]
    assert found["scans"][2]["cut"] == {2: "producer 2 was gone"}
    assert [entry.session.name for entry in list_sessions(sessions, running.registry)] == ["monday"]


def test_waiting_for_the_end_of_a_session(
    running: Deployment, sessions: SessionRegistry, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_history, "_TURN_SECONDS", 0.01)
    record = of_monday(running, 10.0)
    sessions.write_batch_job(batch_job())
    said: list[SessionView] = []

    def look(asks_scheduler: bool) -> SessionView:
        return show_session(sessions, running.registry, "monday")

    with pytest.raises(
        ScanFailed, match=r"after 0\.05 s 1 scan of session monday is unfinished, and 1 batch job serve"
    ):
        wait_until_over(look, 0.05, said.append)
    assert len(said) == 1

    def look_and_end(asks_scheduler: bool) -> SessionView:
        before = look(asks_scheduler)
        if before.unfinished:
            become(running, record, ScanState.ABORTED, reason="enough")
        elif before.serving:
            sessions.write_batch_job(batch_job(state="ended"))
        return before

    assert not wait_until_over(look_and_end, 20.0, said.append).serving
    assert len(said) == 3


class WithoutJobs:
    """The Slurm of a cluster, which knows no job; how often it was asked for its queue."""

    def __init__(self) -> None:
        self.asked = 0

    def cluster(self) -> str:
        return "perlmutter"

    def queue(self) -> list[QueuedJob]:
        self.asked += 1
        return []

    def job(self, number: str) -> dict[str, str] | None:
        return None


def test_a_lost_batch_job_serves_nobody(
    etcd: Coordination, sessions: SessionRegistry, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record says that it runs; the scheduler knows better."""
    with deployment(etcd, [name for name in EVERYTHING if not name.startswith("groups")]) as running:
        sessions.write_batch_job(batch_job())
        with pytest.raises(ScanFailed) as caught:
            wait_until_served(sessions, running.registry, "monday", False, 0.0, WithoutJobs())
        assert caught.value.message == "no MPI job serves session monday: no rank group is registered"
        for look in (show_session(sessions, running.registry, "monday"), *list_sessions(sessions, running.registry)):
            assert look.serving == ()
        sessions.write_batch_job(batch_job())
        view = show_session(sessions, running.registry, "monday", WithoutJobs())
        assert view.serving == list_sessions(sessions, running.registry)[0].serving == ()
        print_session(view)
        assert "1234 on perlmutter: live, lost since" in capsys.readouterr().out


def test_waiting_for_the_end_of_a_session_whose_batch_job_is_lost(
    running: Deployment, sessions: SessionRegistry, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_history, "_TURN_SECONDS", 0.01)
    monkeypatch.setattr(session_history, "_ASK_SECONDS", 0.5)
    sessions.write_batch_job(batch_job(scheduled="9", cluster="another"))  # of which nobody here knows anything
    slurm, turns = WithoutJobs(), []

    def look(asks_scheduler: bool) -> SessionView:
        turns.append(asks_scheduler)
        if turns.count(True) == 2:
            sessions.write_batch_job(batch_job(scheduled="9", cluster="another", state="ended"))
            sessions.write_batch_job(batch_job())
        return show_session(sessions, running.registry, "monday", slurm if asks_scheduler else None)

    assert not wait_until_over(look, 20.0, lambda view: None).serving
    assert turns[0]
    assert turns.count(True) == slurm.asked == 2, "now and then"
    assert turns.count(False) > 2


def test_what_somebody_else_wrote_is_no_traceback(etcd: Coordination, sessions: SessionRegistry) -> None:
    etcd.put("sessions/odd/record", {"name": "odd", "folder": 5})
    with pytest.raises(CoordinationError, match=r"sessions/odd/record in etcd cannot be read: folder"):
        sessions.session("odd")
    assert sessions.sessions() == {}


def test_labels() -> None:
    found = parse_labels(("tilt_degrees=-60.5", "time_index=3", "place=edge = 2", "run=007", "x=nan", "y=1e3", "z="))
    assert found == {
        "tilt_degrees": -60.5,
        "time_index": 3,
        "place": "edge = 2",
        "run": 7,
        "x": "nan",
        "y": 1000.0,
        "z": "",
    }
    assert [type(found[name]) for name in ("tilt_degrees", "time_index", "y")] == [float, int, float]
    assert parse_labels(("big=99999999999999999999",)) == {"big": 1e20}
    for wrong in ("tilt", "=3", "a b=3", "1a=3", "x=1e999", "x=\x07", "x=" + "y" * 1001):
        with pytest.raises(ConfigError):
            parse_labels((wrong,))
    with pytest.raises(ConfigError, match="given twice"):
        parse_labels(("a=1", "a=2"))


def test_labels_and_names_reach_the_record(running: Deployment, tmp_path: Path, sessions: SessionRegistry) -> None:
    start_session(sessions, "monday", tmp_path, GIVEN)
    request = session_request(sessions, running.registry, "monday", "sim:8x8", labels={"time_index": 3})
    draft, _ = draft_scan(replace(request, references={"dark": "d"}), Config())
    assert ScanRecord.model_validate_json(draft.model_dump_json()) == draft
    assert (draft.uid, draft.labels, draft.references) == (request.uid, {"time_index": 3}, {"dark": "d"})
    with pytest.raises(StorageError, match="does not exist"):
        draft_scan(
            session_request(sessions, running.registry, "monday", "sim:8x8", output=tmp_path / "no/x.h5"), Config()
        )
