"""Scans of the camera in etcd: announced once, whoever tries; refused where the camera is not listened to."""

from uuid import uuid4

import pytest

from mpistream.control.camera_registry import CameraGenerations, CameraRegistry
from mpistream.control.coordination import Coordination
from mpistream.control.registry import ProducerEntry, Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.control.scan_facts import ScanFacts
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.diagnosis import problems
from mpistream.launch.inspection import look
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, SourceError
from mpistream.model.session import Session, SessionStop
from mpistream.pipeline.producing.camera_scans import check_alike, is_of_camera
from mpistream.pipeline.producing.early_source import EarlySource
from mpistream.pipeline.producing.sector_stream import SectorStream
from tests.unit.made_up_blocks import scan_record
from tests.unit.picture import Picture, until
from tests.unit.registered import deployment

SOURCE = "camera:17?generation=1&version=5&frames_per_position=1"
ME = ProducerEntry(2, 2, "camera", 7, 77)


def test_of_several_announcements_one_holds(etcd: Coordination) -> None:
    registry, scans = CameraRegistry(etcd), Registry(etcd, 5)
    first, second, third = (scan_record(uid=uuid4(), source=SOURCE) for _ in range(3))
    assert all(registry.announce(generation, scan) for generation, scan in ((1, first), (1, second), (2, third)))
    assert scans.record(first.uid) == first
    assert scans.record(second.uid) is None
    assert scans.status(third.uid).state is ScanState.ANNOUNCED
    assert set(scans.scans()) == {first.uid, third.uid}


def test_a_session_that_is_stopped_gets_no_more_scans(etcd: Coordination) -> None:
    registry, sessions = CameraRegistry(etcd), SessionRegistry(etcd)
    record = scan_record(uid=uuid4(), source=SOURCE).model_copy(update={"session": "monday"})
    sessions.start_session(Session(name="monday", folder="/data", started_unix_seconds=1.0))
    sessions.stop_session("monday", SessionStop(since_unix_seconds=2.0, reason="enough"))
    assert not registry.announce(1, record)
    assert etcd.get_prefix("scans/") == {}


def test_what_stands_in_etcd_is_told(etcd: Coordination) -> None:
    registry, generations = CameraRegistry(etcd), CameraGenerations()
    record = scan_record(uid=uuid4(), source=SOURCE)
    registry.announce(3, record)
    registry.write_ended(17, 3, 2, "every frame has come")
    registry.write_ended(17, 3, 2, "the first one holds")
    etcd.put("camera/17/nonsense", {})
    etcd.put("camera/17/4/scan", {"uid": "none"})
    picture = Picture()
    watch = registry.watch(picture)
    try:
        until(lambda: "17/3/ended/2" in picture.values)
    finally:
        watch.close()
    for change in picture.changes:
        generations.take(change)
    latest = generations.latest(17)
    assert latest is not None
    assert (latest.generation, latest.uid) == (3, record.uid)
    assert list(latest.ended) == [2]
    assert etcd.get("camera/17/3/ended/2")["how"] == "every frame has come"
    assert generations.latest(18) is None


def test_a_producer_that_does_not_listen_to_the_camera_refuses_its_scans() -> None:
    record = scan_record(source=SOURCE)
    assert is_of_camera(record)
    facts = ScanFacts(record.uid, record, ScanStatus(ScanState.STREAMING, 0.0))
    with pytest.raises(SourceError, match="the producer of sector 2 does not listen to the camera") as caught:
        SectorStream.open(Config(), ME, facts, None, EarlySource(2), lambda end: None, False)  # type: ignore[arg-type]
    assert "--camera tcp://HOST:PORT" in caught.value.remedy


def test_a_producer_that_was_told_something_else_refuses_them() -> None:
    check_alike(scan_record(source=SOURCE), 1, Config())
    for camera in ({"layout": 4}, {"frames_per_position": 2}):
        with pytest.raises(ConfigError, match="disagree about the camera"):
            check_alike(scan_record(source=SOURCE), 1, Config.model_validate({"camera": camera}))


def test_status_says_once_why_scans_are_dropped(etcd: Coordination) -> None:
    with deployment(etcd) as running:
        for sector in range(4):
            status = {"sector": sector, "scan": "", "table": 0, "camera_problem": "scan 5 is dropped" if sector else ""}
            running.registry.write_status("producers", str(sector), status)
        found = problems(look(running.registry, Config()), Config())
    assert found.count("scan 5 is dropped") == 1
