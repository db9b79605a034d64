"""Scans that a batch job announces itself: which of those that etcd knows it takes for its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.launch.cluster.scan_book import ScanBook
from mpistream.launch.cluster.scan_work import known_scan
from mpistream.launch.cluster.series_sources import sources_of_tilts, sources_of_times
from mpistream.model.errors import ConfigError
from tests.unit.registered import scan_record

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
