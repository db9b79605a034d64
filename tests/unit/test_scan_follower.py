"""Who is taken for dead while a scan is followed."""

from types import SimpleNamespace
from typing import Any

import pytest

from mpistream.control.run_state import ScanState
from mpistream.launch import scan_follower
from mpistream.launch.scan_follower import RegistrationCheck
from mpistream.model.errors import ScanFailed
from tests.unit.made_up_blocks import scan_record
from tests.unit.made_up_registry import MadeUpRegistry


class Following:
    """A registration check whose clock goes on only when it is told to."""

    def __init__(self, **record: object) -> None:
        self.registry: Any = MadeUpRegistry()
        self.seconds = 100.0
        self._check = RegistrationCheck(self.registry, scan_record(**record))

    def check(self, state: ScanState = ScanState.STREAMING, after_seconds: float = 0.0) -> None:
        self.seconds += after_seconds
        self._check(state)


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> Following:
    following = Following()
    monkeypatch.setattr(scan_follower, "time", SimpleNamespace(monotonic=lambda: following.seconds))
    return following


ABSENCES = {"jobs": "the MPI job .* has ended", "sectors": "no producer .* 0, 1, 2, 3", "names": "no aggregator"}


@pytest.mark.parametrize(("what", "message"), ABSENCES.items(), ids=ABSENCES)
def test_what_stays_away_for_longer_than_its_lease_is_dead(following: Following, what: str, message: str) -> None:
    following.check()
    getattr(following.registry, what).clear()
    following.check()
    following.check(after_seconds=6.9)
    with pytest.raises(ScanFailed, match=message) as caught:
        following.check(after_seconds=0.2)
    assert caught.value.remedy


def test_a_registration_that_comes_back_is_forgiven(following: Following) -> None:
    for _ in range(3):
        following.registry.sectors = [0, 1, 3]
        following.check()
        following.check(after_seconds=6.9)
        following.registry.sectors = [0, 1, 2, 3]
        following.check(after_seconds=0.2)


def test_while_etcd_is_away_nobody_is_dead(following: Following) -> None:
    following.registry.jobs = []
    following.check()
    following.registry.is_away = True
    following.check(after_seconds=100)
    following.registry.is_away = False
    following.check(after_seconds=100)
    following.check(after_seconds=6.9)
    with pytest.raises(ScanFailed):
        following.check(after_seconds=0.2)


def test_a_dataset_is_written_without_those_that_send_but_not_without_the_job(following: Following) -> None:
    following.registry.sectors, following.registry.names = [], []
    following.check(ScanState.ASSEMBLING)
    following.check(ScanState.ASSEMBLING, after_seconds=100)
    following.registry.jobs = []
    following.check(ScanState.ASSEMBLING)
    with pytest.raises(ScanFailed, match="the MPI job"):
        following.check(ScanState.ASSEMBLING, after_seconds=7.1)


def test_a_direct_scan_needs_no_aggregator(following: Following) -> None:
    direct = RegistrationCheck(following.registry, scan_record(direct=True))
    following.registry.names = []
    for _ in range(3):
        direct(ScanState.STREAMING)
        following.seconds += 100
