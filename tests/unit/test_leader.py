"""What the leader makes of the keys in etcd."""

from typing import Any

import pytest

from mpistream.control.run_state import ScanState
from mpistream.model.errors import EtcdUnreachable
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.pipeline.leader import JobLeader
from tests.unit.made_up_blocks import scan_record
from tests.unit.made_up_registry import TABLE, MadeUpRegistry

RECORD = scan_record()
GOOD = (f"{RECORD.uid}/record", RECORD.model_dump(mode="json"))
STATUS = {"state": "failed", "since_unix_seconds": 1.0, "reason": "", "remedy": ""}


class Leading:
    """A leader whose thread is not started: the test hands it the news."""

    def __init__(self) -> None:
        self.registry: Any = MadeUpRegistry()
        self.told: list[JobMessage] = []
        self.leader = JobLeader(self.registry, TABLE, self.told.append, 0.0, lambda error: None)

    def take(self, key: str, value: Any) -> None:
        self.leader._take((key, value))


@pytest.fixture
def leading() -> Leading:
    return Leading()


BAD_KEYS: dict[str, Any] = {
    "nonsense": 5,
    "nonsense/record": GOOD[1],
    "nonsense/state": STATUS,
    f"{RECORD.uid}/record": {"uid": "5"},
    f"{RECORD.uid}/state": {"state": "unheard of"},
    f"{RECORD.uid}/ends/0": [],
    f"{RECORD.uid}/faults/me": {},
    f"{RECORD.uid}/abort": "now",
}


@pytest.mark.parametrize(("key", "value"), BAD_KEYS.items(), ids=lambda item: str(item)[:50])
def test_a_malformed_key_is_logged_and_harms_nothing(
    leading: Leading, key: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    leading.take(key, value)
    assert f"ignored {key} in etcd" in caplog.text
    assert leading.told == []
    leading.take(*GOOD)
    leading.take(key, value)
    assert [message.kind for message in leading.told] == [JobMessageKind.PREPARE, JobMessageKind.THRESHOLDS]
    assert leading.registry.states == []


def test_an_etcd_that_stays_away_is_no_malformed_key(leading: Leading) -> None:
    leading.registry.is_away = True
    with pytest.raises(EtcdUnreachable):
        leading.take(*GOOD)


def test_a_scan_whose_job_is_gone_for_longer_than_its_lease_is_ended(leading: Leading) -> None:
    leading.registry.lease_seconds, leading.registry.jobs = -2, []
    other = scan_record(routing_version=7, output="/nowhere/scan.h5")
    leading.take(f"{other.uid}/record", other.model_dump(mode="json"))
    assert leading.registry.states == [(other.uid, ScanState.FAILED)]
    assert leading.told == []


def test_a_scan_of_a_living_job_is_left_to_it(leading: Leading) -> None:
    other = scan_record(routing_version=7)
    leading.take(f"{other.uid}/record", other.model_dump(mode="json"))
    assert (leading.registry.states, leading.told) == ([], [])
