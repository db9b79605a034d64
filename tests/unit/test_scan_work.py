"""Scans that a batch job announces itself: which of those that etcd knows it takes for its own; how it waits for those
that the camera begins.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.launch.announcement import ScanRequest
from mpistream.launch.cluster.scan_book import ScanBook
from mpistream.launch.cluster.scan_work import NotBegun, _begun, _deaf_producers, known_scan
from mpistream.launch.cluster.series_sources import CAMERA, sources_of_tilts, sources_of_times
from mpistream.launch.expectation import Expecting
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, EtcdUnreachable
from mpistream.model.scan import CountingParameters
from mpistream.model.session import Mode
from tests.unit.registered import deployment, scan_record

OUTPUT = Path("/data/scan.h5")


def found_by(registry: Registry, number: str, restarts: int, session: str = "") -> Any:
    """The uid of the scan that a run of a batch job takes for its own; None: it announces another one."""
    book = ScanBook(registry)
    try:
        run: Any = SimpleNamespace(
            allocation=SimpleNamespace(number=number, restarts=restarts),
            order=SimpleNamespace(session=session),
            book=book,
        )
        scan = known_scan(run, OUTPUT)
        return None if scan is None else scan.facts.uid
    finally:
        book.close()


@pytest.fixture
def registry(etcd: Coordination) -> Registry:
    return Registry(etcd, 5)


def test_a_job_that_begins_again_finds_its_scan(registry: Registry) -> None:
    record = scan_record(labels={"batch_job": "7"})
    registry.announce(record)
    registry.announce(scan_record(labels={"batch_job": "7"}, output="/data/other.h5"))
    assert found_by(registry, "7", restarts=1) == record.uid
    assert found_by(registry, "8", restarts=1) is None
    registry.set_state(record.uid, ScanState.FAILED)
    assert found_by(registry, "7", restarts=1) is None


def test_the_first_run_of_a_job_takes_none_of_an_earlier_job_of_its_number(registry: Registry) -> None:
    registry.announce(scan_record(labels={"batch_job": "7"}))
    assert found_by(registry, "7", restarts=0) is None


def test_what_another_job_of_the_session_has_left_is_taken_over(registry: Registry) -> None:
    record = scan_record(labels={"batch_job": "7"}, session="s")
    registry.announce(record)
    assert found_by(registry, "8", restarts=0, session="s") == record.uid
    assert found_by(registry, "8", restarts=0, session="other") is None


def test_sources_are_filled_in_as_people_name_folders() -> None:
    names = sources_of_tilts("files:/{tilt}/{index:03d}", [0, 0.1 * 3])
    assert names == ["files:/0/000", "files:/0.3/001"]
    assert sources_of_tilts("files:/{tilt:+.1f}", [-60]) == ["files:/-60.0"]
    assert sources_of_times("files:/{{{index}}}", 2) == ["files:/{0}", "files:/{1}"]
    with pytest.raises(ConfigError, match="cannot be filled in"):
        sources_of_times("files:/{angle}", 1)


def test_one_scan_needs_no_placeholder() -> None:
    assert sources_of_times("files:/x", 1) == ["files:/x"]
    with pytest.raises(ConfigError, match="is the same for all scans") as raised:
        sources_of_times("files:/x", 2)
    assert "{index}" in raised.value.remedy


def test_the_camera_is_the_same_for_all_scans() -> None:
    assert sources_of_times(CAMERA, 3) == [CAMERA] * 3


class WaitingRun:
    """As much of a batch run as waits for the camera. Of ``turns`` the last one is done again and again."""

    def __init__(self, registry: Registry, *turns: Callable[[], object]) -> None:
        self.registry = registry
        self.expecting = Expecting(registry, "7", Mode.RAW)
        self.book = SimpleNamespace(scans={})
        self.order = SimpleNamespace(session="evening")
        self.session_stopped = False
        self._turns = list(turns)

    def persist(self, action: Callable[[], Any]) -> Any:
        return action()

    def turn(self) -> None:
        time.sleep(0.01)
        (self._turns.pop(0) if len(self._turns) > 1 else self._turns[0])()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self.turn()

    def expect(self, output: Path) -> UUID:
        request = ScanRequest("camera", output, CountingParameters(), session="evening", recording=True)
        scan, _ = self.expecting.draft(request, Config(), None)
        self.expecting.expect(scan)
        return scan.uid


def test_the_cameras_next_scan_is_waited_for_though_etcd_is_away(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [EtcdUnreachable("away"), EtcdUnreachable("away")]

    def keep(uid: UUID) -> None:
        if answers:
            raise answers.pop()

    def announce() -> None:
        if not answers and uid not in run.book.scans:
            registry.announce(scan_record(uid=uid))
            run.book.scans[uid] = None

    monkeypatch.setattr("mpistream.launch.cluster.scan_work._LOOK_SECONDS", 0.05)
    run: Any = WaitingRun(registry, announce)
    uid = run.expect(tmp_path / "a.h5")
    run.expecting.keep = keep
    try:
        assert _begun(run, uid).uid == uid
    finally:
        run.expecting.close()
    assert answers == []


def test_a_session_that_is_stopped_before_the_camera_begins(registry: Registry, tmp_path: Path) -> None:
    run: Any = WaitingRun(registry, lambda: setattr(run, "session_stopped", True))
    uid = run.expect(tmp_path / "a.h5")
    try:
        with pytest.raises(NotBegun, match="session evening was stopped before the camera began"):
            _begun(run, uid)
    finally:
        run.expecting.close()


def test_it_is_said_which_producers_do_not_listen_to_the_camera(etcd: Coordination) -> None:
    with deployment(etcd) as running:
        run: Any = SimpleNamespace(registry=running.registry)
        assert _deaf_producers(run) == ""  # they have not said anything yet
        for sector in range(4):
            heard = {"camera_messages": 0} if sector < 2 else {}
            running.registry.write_status("producers", str(sector), {"sector": sector, **heard})
        assert _deaf_producers(run).startswith(
            "no producer of sector 2, 3 listens to the camera; start it with --camera"
        )
