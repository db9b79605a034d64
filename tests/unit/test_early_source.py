"""The source of the next scan is opened before its turn, by a thread."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.source import can_be_opened_early, open_source
from mpistream.model.scan import ScanRecord
from mpistream.pipeline.producing import early_source
from mpistream.pipeline.producing.early_source import EarlySource
from tests.unit.made_up_blocks import scan_record

FIRST, SECOND = UUID(int=1), UUID(int=2)


class Opened:
    """Sources as they are opened and closed; opening waits while ``held``."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.closed = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()

    def open_source(self, specification: str, sector: int) -> Any:
        self.may_open.wait(20)
        self.threads.append(threading.current_thread().name)
        source = open_source(specification, sector)
        close = source.close

        def closing() -> None:
            close()
            self.closed.set()

        source.close = closing  # type: ignore[method-assign]
        return source


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    made = Opened()
    monkeypatch.setattr(early_source, "open_source", made.open_source)
    return made


@pytest.fixture
def early() -> Iterator[EarlySource]:
    made = EarlySource(2)
    yield made
    made.close()


def record_of(uid: UUID = FIRST, source: str = "sim:4x5") -> ScanRecord:
    return scan_record(uid=uid, source=source)


@pytest.mark.parametrize("files", [False, True])
def test_it_is_the_source(early: EarlySource, opened: Opened, tmp_path: Path, files: bool) -> None:
    specification = "sim:4x5?electrons=50"
    if files:
        simulate_to_files(SimulationOptions.parse("4x5", {"electrons": "50"}), tmp_path)
        specification = f"files:{tmp_path}"
    early.prepare(record_of(source=specification))
    early.prepare(record_of(source=specification))
    found = early.take(FIRST)
    assert found is not None
    buffers = [bytearray(8 * 165_904) for _ in range(2)]
    there = [
        source.read_block(0, 8, memoryview(buffer))
        for source, buffer in zip((found, open_source(specification, 2)), buffers, strict=True)
    ]
    assert there == [255, 255]
    assert buffers[0] == buffers[1]
    assert early.take(FIRST) is None
    assert opened.threads == ["early source"]


def test_only_the_next_one_is_open(early: EarlySource, opened: Opened) -> None:
    opened.may_open.clear()
    early.prepare(record_of())
    early.prepare(record_of(SECOND))
    assert early.take(FIRST) is None
    opened.may_open.set()
    assert opened.closed.wait(20)
    second = early.take(SECOND)
    assert second is not None
    second.close()


def test_one_that_is_not_taken_is_closed(early: EarlySource, opened: Opened) -> None:
    early.prepare(record_of())
    early.prepare(None)
    assert opened.closed.wait(20)
    assert early.take(FIRST) is None


def test_one_that_cannot_be_opened_is_left_to_its_turn(early: EarlySource, tmp_path: Path) -> None:
    early.prepare(record_of(source=f"files:{tmp_path}"))
    assert early.take(FIRST) is None


@pytest.mark.parametrize("source", ["sim:4x5?live=100", "files:/data?rate=100", "made up", "sim:no", "files:"])
def test_sources_that_do_not_wait(early: EarlySource, opened: Opened, source: str) -> None:
    """Nor what is none."""
    assert not can_be_opened_early(source)
    early.prepare(record_of(source=source))
    assert early.take(FIRST) is None
    assert opened.threads == []
