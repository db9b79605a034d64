"""Who is missing, and when that is said."""

from types import SimpleNamespace

import pytest

from mpistream.control.coordination import Coordination
from mpistream.launch import absence
from mpistream.launch.absence import Absence, AbsenceNotes, absent_groups, absent_senders, check_present
from mpistream.model.errors import ScanFailed
from tests.unit.registered import EVERYTHING, deployment

ONE = Absence("a producer of sector 1", "no producer is registered for sector 1", "start it", 1)
OTHER = Absence("an aggregator", "no aggregator is registered", "start it, too")
PATIENCE_SECONDS = 7.0


class Notes:
    """Notes whose clock goes on only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(absence, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        self.notes = AbsenceNotes(PATIENCE_SECONDS)

    def after(self, seconds: float, *absences: Absence) -> list[str]:
        self.seconds += seconds
        return self.notes.look(list(absences))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    return Notes(monkeypatch)


def test_what_stays_away_is_said_once(notes: Notes) -> None:
    assert notes.after(0, ONE) == []
    assert notes.after(6.9, ONE) == []
    assert notes.after(0.2, ONE, OTHER) == ["waiting: no producer is registered for sector 1; start it"]
    assert notes.after(6.9, ONE, OTHER) == []
    assert notes.after(0.2, ONE, OTHER) == ["waiting: no aggregator is registered; start it, too"]
    assert notes.after(100, ONE, OTHER) == []
    assert notes.after(1, OTHER) == ["a producer of sector 1 is registered again"]
    assert notes.after(1, ONE, OTHER) == []
    assert notes.after(7.1, ONE, OTHER) == ["waiting: no producer is registered for sector 1; start it"]


def test_who_comes_back_in_time_is_not_mentioned(notes: Notes) -> None:
    for _ in range(3):
        assert notes.after(0, ONE) == []
        assert notes.after(6.9, ONE) == []
        assert notes.after(0.2) == []


def test_while_etcd_is_away_nobody_is_missed(notes: Notes) -> None:
    assert notes.after(0, ONE) == []
    notes.notes.nothing_is_known()
    assert notes.after(100, ONE) == []
    assert notes.after(6.9, ONE) == []
    assert notes.after(0.2, ONE) != []


def test_who_is_absent(etcd: Coordination) -> None:
    with deployment(etcd) as running:
        registry = running.registry
        assert absent_groups(registry) == absent_senders(registry, direct=False) == []
        check_present(registry, direct=False)
        running.end("groups/0", "producers/2", "aggregators/first")
        assert [missing.what for missing in absent_groups(registry)] == ["a rank group"]
        sector, aggregator = absent_senders(registry, direct=False)
        assert (sector.sector, aggregator.sector) == (2, None)
        assert sector.message == "no producer is registered for sector 2"
        assert "mpistream produce --sector 2" in sector.remedy
        assert absent_senders(registry, direct=True) == [sector]


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (["groups/0", "producers/1"], "no rank group is registered"),
        (["producers/1", "producers/2", "aggregators/first"], "no producer is registered for sector 1, 2"),
        (["aggregators/first"], "no aggregator is registered"),
    ],
)
def test_a_scan_needs_everybody_at_first(etcd: Coordination, absent: list[str], message: str) -> None:
    with deployment(etcd, [name for name in EVERYTHING if name not in absent]) as running:
        with pytest.raises(ScanFailed, match=message) as caught:
            check_present(running.registry, direct=False)
        assert caught.value.remedy
