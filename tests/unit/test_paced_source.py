"""A replay at a chosen rate: nothing is sent too early, and nothing is lost."""

import time
from contextlib import closing
from pathlib import Path

import pytest

from mpistream.acquisition.block_supply import ReadableBlocks, SendWindow
from mpistream.acquisition.paced import PacedSectorSource
from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import SimulatedSectorSource
from mpistream.acquisition.source import describe_source, open_source
from mpistream.model.errors import SourceError
from mpistream.model.geometry import RECORD_BYTES
from tests.unit.made_up_blocks import scan_record
from tests.unit.made_up_recording import make_recording, recording_record

OPTIONS = SimulationOptions(rows=4, columns=6, first_frame=9, loss=0.2, electrons=0)
RECORD = scan_record(first_frame=9, last_frame=32, rows=4, columns=6)
STARTED = 1.7e9


class Clock:
    now = STARTED

    def __call__(self) -> float:
        return self.now


def paced(clock: Clock, rate: float = 10.0) -> PacedSectorSource:
    return PacedSectorSource(SimulatedSectorSource(OPTIONS, 2), rate, range(9, 33), STARTED, clock)


def test_a_block_is_there_when_its_last_frame_is() -> None:
    clock = Clock()
    source = paced(clock)
    assert [source.seconds_until(block, 4) for block in (2, 3, 8)] == pytest.approx([0.2, 0.6, 2.3])
    clock.now = STARTED + 0.5
    assert [source.seconds_until(block, 4) for block in (2, 3)] == pytest.approx([0.0, 0.1])
    assert not source.is_live
    assert source.frames_lost == 0


def test_a_producer_waits_for_it_and_loses_nothing() -> None:
    clock = Clock()
    supply = ReadableBlocks(RECORD, paced(clock), SendWindow(2, 4 * RECORD_BYTES))
    assert supply.take(2, True) is None
    assert supply.seconds_until_capture() == pytest.approx(0.2)
    clock.now = STARTED + 1e6  # whatever is late is sent as fast as it is taken
    plain = SimulatedSectorSource(OPTIONS, 2)
    for block in RECORD.block_range:
        held = supply.take(block, False)
        assert held is not None
        buffer = memoryview(bytearray(4 * RECORD_BYTES))
        assert held.frames_present == plain.read_block(block, 4, buffer) == supply.frames_sent(block)
        assert held.payload == buffer[: len(held.payload)]
        assert supply.seconds_until_capture() == float("inf")
        supply.released(block, came_with_own=True)


def test_a_full_window_is_no_reason_to_look_again_at_once() -> None:
    clock = Clock()
    supply = ReadableBlocks(RECORD, paced(clock), SendWindow(1, 4 * RECORD_BYTES))
    clock.now = STARTED + 0.3
    assert supply.take(2, True) is not None
    assert supply.take(3, False) is None
    assert supply.seconds_until_capture() == pytest.approx(0.3)
    clock.now = STARTED + 0.7
    assert supply.take(3, False) is None  # there is no room
    assert supply.seconds_until_capture() == float("inf")


def test_who_has_nobody_to_send_to_is_not_told_again_and_again() -> None:
    """Without ranks no block is taken: then whoever waits for the next one does not turn in a circle."""
    clock = Clock()
    supply = ReadableBlocks(RECORD, paced(clock), SendWindow(2, 4 * RECORD_BYTES))
    assert supply.take(2, True) is None
    clock.now = STARTED + 0.3
    assert supply.seconds_until_capture() == 0
    assert supply.seconds_until_capture() == float("inf")
    assert supply.take(2, True) is not None


@pytest.mark.parametrize("kind", ["files", "raw"])
def test_files_and_recordings_have_a_rate(tmp_path: Path, kind: str) -> None:
    if kind == "files":
        simulate_to_files(OPTIONS, tmp_path, processes=1)
        place = f"files:{tmp_path}"
    else:
        place = f"raw:{make_recording(recording_record(tmp_path))}"
    describe_source(f"{place}?rate=0.5")
    with closing(open_source(f"{place}?rate=0.5", 0, time.time())) as source:
        assert source.seconds_until(5, 4) > 5
    with closing(open_source(f"{place}?rate=0.5", 0, None)) as source:  # for calibrations: as fast as it can be read
        assert source.seconds_until(5, 4) == 0
    for rate in ("0", "-1", "nan", "inf", "fast", "1e7"):
        with pytest.raises(SourceError, match=f"rate={rate} is not possible") as caught:
            describe_source(f"{place}?rate={rate}")
        assert "frames per second" in caught.value.remedy


def test_one_of_several_scans_in_a_folder_is_chosen(tmp_path: Path) -> None:
    for number, rows in ((7, 2), (8, 3)):
        options = SimulationOptions(rows=rows, columns=2, electrons=0, scan_number=number)
        simulate_to_files(options, tmp_path / str(number), processes=1)
        for path in (tmp_path / str(number)).glob("*.data"):
            path.rename(tmp_path / path.name)
    assert describe_source(f"files:{tmp_path}?scan=7").records == 16
    assert describe_source(f"files:{tmp_path}?scan=0000000008").scan_shape.rows == 3
    with pytest.raises(SourceError, match=r"files of different scans in .*: 7, 8") as caught:
        describe_source(f"files:{tmp_path}")
    assert caught.value.remedy == f"choose one of them: files:{tmp_path}?scan=8"
    with pytest.raises(SourceError, match="no sector files of scan 9 in") as caught:
        describe_source(f"files:{tmp_path}?scan=9")
    assert caught.value.remedy == "there are: 7, 8"
    with pytest.raises(SourceError, match="scan=x is not possible"):
        describe_source(f"files:{tmp_path}?scan=x")
