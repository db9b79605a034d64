"""What batch jobs expect of the camera: each is taken by one scan, in their order, and by none once it is gone."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from mpistream.control.camera_registry import CameraRegistry
from mpistream.control.coordination import Coordination
from mpistream.control.expected_scans import ExpectedScan
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.announcement import ScanRequest
from mpistream.launch.expectation import Expecting
from mpistream.launch.inspection import look
from mpistream.launch.session_history import show_session
from mpistream.model.config import Config
from mpistream.model.errors import MpistreamError, StorageError
from mpistream.model.scan import UNCOUNTED, CountingParameters, ScanRecord
from mpistream.model.session import Mode, Session, SessionStop
from mpistream.pipeline.producing.camera_scans import CameraScans, Opening, counting_of_session
from tests.unit.registered import deployment
from tests.unit.registered import scan_record as made_up_record

GIVEN = CountingParameters(background=10.0, xray=100.0)
CONFIG = Config()


@pytest.fixture
def registry(etcd: Coordination) -> Registry:
    return Registry(etcd, 2)


@pytest.fixture
def expecting(registry: Registry) -> Iterator[Expecting]:
    expecting = Expecting(registry, "4711", Mode.TOMOGRAPHY)
    yield expecting
    expecting.close()


@pytest.fixture
def sessions(etcd: Coordination) -> SessionRegistry:
    """The session "evening" is open."""
    sessions = SessionRegistry(etcd)
    evening = Session(name="evening", folder="/data", counting=GIVEN, started_unix_seconds=1.0)
    assert sessions.start_session(evening)
    return sessions


@pytest.fixture
def producer(etcd: Coordination, sessions: SessionRegistry) -> CameraScans:
    return CameraScans(CONFIG, sessions, CameraRegistry(etcd), counting_of_session)


def opening(number: int, generation: int = 1) -> Opening:
    return Opening(number, generation, rows=3, columns=4, first_frame=100)


def request(output: Path, **changes: object) -> ScanRequest:
    return replace(ScanRequest("camera", output, GIVEN, session="evening"), **changes)  # type: ignore[arg-type]


def expect(expecting: Expecting, asked: ScanRequest) -> ExpectedScan:
    scan, _ = expecting.draft(asked, CONFIG, None)
    expecting.expect(scan)
    return scan


def scans_of(registry: Registry) -> list[ScanRecord]:
    records = [registry.record(uid) for uid in registry.scans()]
    return sorted((record for record in records if record), key=lambda record: record.scan_number)


def test_the_next_scan_is_the_one_that_was_expected(
    expecting: Expecting, registry: Registry, producer: CameraScans, tmp_path: Path
) -> None:
    asked = request(tmp_path / "a.h5", labels={"tilt_degrees": -10.0}, references={"dark": "night"}, overwrite=True)
    expected = expect(expecting, asked)
    assert producer.announce(opening(7)) == ""
    (record,) = scans_of(registry)
    assert (record.uid, record.output, record.overwrite) == (expected.uid, str(tmp_path / "a.h5"), True)
    assert (record.labels, record.references) == ({"tilt_degrees": -10.0}, {"dark": "night"})
    assert (record.counting, record.session, record.recording) == (GIVEN, "evening", False)
    assert (record.scan_number, record.rows, record.columns) == (7, 3, 4)
    assert (record.first_frame, record.last_frame) == (100, 111)
    assert record.source == "camera:7?generation=1&version=5&frames_per_position=1"
    assert record.journals == str(tmp_path / f"a.h5.journal.{record.uid.hex}")
    assert registry.status(record.uid).state is ScanState.ANNOUNCED
    assert registry.expected.waiting() == []


def test_a_recording_is_not_counted_and_journals_beside_its_output(
    expecting: Expecting, registry: Registry, producer: CameraScans, tmp_path: Path
) -> None:
    expect(expecting, request(tmp_path / "raw.h5", counting=CountingParameters(), recording=True, session=""))
    assert producer.announce(opening(7)) == ""
    (record,) = scans_of(registry)
    assert (record.recording, record.counting, record.session) == (True, UNCOUNTED, "")
    assert Path(record.journals).parent == tmp_path


def test_several_are_taken_in_order_and_then_the_open_session_gets_the_scans(
    expecting: Expecting, registry: Registry, producer: CameraScans, tmp_path: Path
) -> None:
    uids = [expect(expecting, request(tmp_path / f"{index}.h5")).uid for index in range(3)]
    assert [scan.uid for scan in registry.expected.waiting()] == uids
    for number in range(4):
        assert producer.announce(opening(number)) == ""
    *expected, other = scans_of(registry)
    assert [record.uid for record in expected] == uids
    assert Path(other.output).parent == Path("/data")


def test_four_producers_that_race_take_one(
    expecting: Expecting, registry: Registry, etcd: Coordination, sessions: SessionRegistry, tmp_path: Path
) -> None:
    uids = [expect(expecting, request(tmp_path / f"{index}.h5")).uid for index in range(8)]
    for number in range(8):
        barrier, connections, said = threading.Barrier(4), [etcd.sibling() for _ in range(4)], list[str]()

        def announce(connection: Coordination, number: int, barrier: threading.Barrier, said: list[str]) -> None:
            producer = CameraScans(CONFIG, sessions, CameraRegistry(connection), counting_of_session)
            barrier.wait()
            said.append(producer.announce(opening(number)))

        threads = [threading.Thread(target=announce, args=(each, number, barrier, said)) for each in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for connection in connections:
            connection.close()
        assert said == [""] * 4
        assert [scan.uid for scan in registry.expected.waiting()] == uids[number + 1 :]
    assert [record.uid for record in scans_of(registry)] == uids


def test_two_scans_that_race_for_one_do_not_both_get_it(
    expecting: Expecting, registry: Registry, producer: CameraScans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has seen the expectation, too, before the first took it."""
    expected = expect(expecting, request(tmp_path / "a.h5"))
    seen = registry.expected.waiting()
    assert producer.announce(opening(1)) == ""
    monkeypatch.setattr(producer.registry.expected, "waiting", lambda: seen)
    assert producer.announce(opening(2)) == ""
    first, second = scans_of(registry)
    assert first.uid == expected.uid
    assert second.uid != expected.uid
    assert second.output.startswith("/data/scan_2_")


def test_what_was_withdrawn_catches_no_scan(
    expecting: Expecting, registry: Registry, producer: CameraScans, etcd: Coordination, tmp_path: Path
) -> None:
    expect(expecting, request(tmp_path / "a.h5"))
    expecting.close()
    assert producer.announce(opening(1)) == ""
    assert scans_of(registry)[0].output.startswith("/data/scan_1_")
    assert (etcd.get_prefix("expected/"), etcd.get_prefix("expecting/")) == ({}, {})


def test_what_a_dead_job_expected_catches_no_scan(
    expecting: Expecting,
    registry: Registry,
    producer: CameraScans,
    etcd: Coordination,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lease runs out; even a producer that has just seen the expectation then leaves it alone."""
    expected = expect(expecting, request(tmp_path / "a.h5"))
    etcd.delete(f"expecting/{expected.holder}")
    assert registry.expected.waiting() == []
    monkeypatch.setattr(producer.registry.expected, "waiting", lambda: [expected])
    assert producer.announce(opening(1)) == ""
    assert scans_of(registry)[0].output.startswith("/data/scan_1_")


def test_what_is_expected_in_a_session_that_was_stopped_catches_no_scan(
    expecting: Expecting, registry: Registry, producer: CameraScans, sessions: SessionRegistry, tmp_path: Path
) -> None:
    expect(expecting, request(tmp_path / "a.h5"))
    later = expect(expecting, request(tmp_path / "b.h5", session=""))
    sessions.stop_session("evening", SessionStop(since_unix_seconds=2.0, reason="enough"))
    assert producer.announce(opening(1)) == ""
    assert [record.uid for record in scans_of(registry)] == [later.uid]
    assert "no session is open" in producer.announce(opening(2))


def test_it_is_expected_again_where_somebody_removed_it_but_not_once_it_is_taken(
    expecting: Expecting, registry: Registry, producer: CameraScans, etcd: Coordination, tmp_path: Path
) -> None:
    expected = expect(expecting, request(tmp_path / "a.h5"))
    etcd.delete(f"expected/{expected.uid}")
    expecting.keep(expected.uid)
    assert registry.expected.waiting() == [expected]
    assert producer.announce(opening(1)) == ""
    expecting.keep(expected.uid)
    expecting.keep(UUID(int=5))  # of an earlier run of the job
    assert registry.expected.waiting() == []


def test_what_is_wrong_is_found_before_the_camera_begins(
    expecting: Expecting, registry: Registry, tmp_path: Path
) -> None:
    there = tmp_path / "there.h5"
    there.touch()
    for wrong, message in (
        (request(there), "there.h5 exists"),
        (request(tmp_path / "a.h5", counting=GIVEN.model_copy(update={"dark": "/no/dark.npy"})), "no/dark.npy"),
        (request(tmp_path / "none" / "a.h5"), "none"),
    ):
        with pytest.raises(MpistreamError, match=message) as raised:
            expecting.draft(wrong, CONFIG, None)
        assert raised.value.remedy
    expect(expecting, request(tmp_path / "a.h5"))
    with pytest.raises(StorageError, match="that batch job 4711 expects of the camera"):
        expect(expecting, request(tmp_path / "a.h5"))
    unfinished = made_up_record(output=str(tmp_path / "b.h5"))
    registry.announce(unfinished)
    with pytest.raises(StorageError, match=f"is the output of scan {unfinished.uid}"):
        expect(expecting, request(tmp_path / "b.h5"))


def test_what_stands_in_etcd_by_hand_is_passed_over(etcd: Coordination, registry: Registry) -> None:
    etcd.put("expected/nonsense", {"output": 5})
    assert registry.expected.waiting() == []


def test_people_see_what_is_expected(
    expecting: Expecting, etcd: Coordination, sessions: SessionRegistry, tmp_path: Path
) -> None:
    with deployment(etcd) as running:
        expected = expect(expecting, request(tmp_path / "a.h5"))
        other = expect(expecting, request(tmp_path / "b.h5", session=""))
        assert look(running.registry, CONFIG).expected == (expected, other)
        assert show_session(sessions, running.registry, "evening").expected == (expected,)
    assert expected.in_words == f"batch job 4711 (tomography) waits for the camera's next scan -> {tmp_path}/a.h5"
