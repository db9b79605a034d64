"""The scans of a deployment as a batch job sees them."""

from collections.abc import Callable, Iterator

import pytest

from mpistream.control.coordination import Change, Coordination, Watch
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.launch.cluster.scan_book import ScanBook
from mpistream.model.errors import EtcdUnreachable
from tests.system.command_line import wait_until
from tests.unit.registered import scan_record


class LateNews(Registry):
    """A watch that reports nothing until it is told to; etcd can be away from who reads."""

    is_away = False
    late: list[Change]

    def watch_scans(self, on_change: Callable[[Change], None]) -> Watch:
        self.late = []
        self._report = on_change
        return super().watch_scans(self.late.append)

    def report(self) -> None:
        for change in self.late:
            self._report(change)

    def scan_keys(self) -> dict[str, object]:
        if self.is_away:
            raise EtcdUnreachable("etcd does not answer")
        return super().scan_keys()


@pytest.fixture
def registry(etcd: Coordination) -> LateNews:
    return LateNews(etcd, lease_seconds=2)


@pytest.fixture
def book(registry: LateNews) -> Iterator[ScanBook]:
    kept = ScanBook(registry)
    yield kept
    kept.close()


def test_a_scan_has_begun_before_the_watch_tells(registry: LateNews, book: ScanBook) -> None:
    begun, waiting = scan_record(), scan_record()
    for record in (begun, waiting):
        registry.announce(record)
    registry.set_state(begun.uid, ScanState.STREAMING)
    assert not book.news()
    assert book.begun() == set()
    assert book.begun_now() == {begun.uid}
    assert book.begun() == {begun.uid}


def test_what_was_asked_for_early_is_told_all_the_same(registry: LateNews, book: ScanBook) -> None:
    record = scan_record()
    registry.announce(record)
    registry.set_state(record.uid, ScanState.STREAMING)
    book.begun_now()
    wait_until(lambda: any(key == f"{record.uid}/state" for key, _ in registry.late), 10, "the watch")
    registry.report()
    assert any(str(record.uid) in sentence and "streaming" in sentence for sentence in book.news())


def test_without_etcd_the_book_stays_as_it_was(registry: LateNews, book: ScanBook) -> None:
    record = scan_record()
    registry.announce(record)
    registry.set_state(record.uid, ScanState.STREAMING)
    book.begun_now()
    registry.is_away = True
    assert book.begun_now() == {record.uid}
