"""What sends in the camera's place: every record of a source once, in the camera's format, over real sockets."""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.acquisition.camera_sender import CameraSending, send_scan
from mpistream.acquisition.source import open_source
from mpistream.cli import mpistream
from mpistream.cli.options import host_and_port
from mpistream.launch.local import free_port
from mpistream.model.errors import ConfigError, SourceError
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, SECTORS
from mpistream.transport.sockets import DataInlet, Sockets
from tests.system.sector_writer import MadeUpScan

HOST = "127.0.0.1"
SIMULATED = "sim:3x4?first_frame=5&loss=0.1&seed=2&electrons=20&scan_number=7"
Message = tuple[CameraHeader, bytes]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    sockets.close()


@pytest.fixture
def inlets(sockets: Sockets) -> list[DataInlet]:
    """Those of the four producers."""
    return [sockets.camera_inlet(HOST, free_port(), 10) for _ in range(SECTORS)]


def sent(sockets: Sockets, inlets: list[DataInlet], source: str, **options: object) -> list[list[Message]]:
    """What each inlet gets of a scan."""
    sending = CameraSending(source, tuple(inlet.endpoint for inlet in inlets), **options)  # type: ignore[arg-type]
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(send_scan(sending)))
    thread.start()
    found: list[list[Message]] = [[] for _ in inlets]
    deadline = time.monotonic() + 30
    while thread.is_alive() or sockets.wait(0):
        assert time.monotonic() < deadline
        sockets.wait(0.05)
        for inlet, messages in zip(inlets, found, strict=True):
            messages += [(CameraHeader.unpack(header), bytes(pixels)) for header, pixels in inlet.receive(5)]
    thread.join()
    assert counts == [sum(map(len, found))]
    return found


def check_records(source: str, sector: int, messages: list[Message]) -> None:
    """As the source itself has them."""
    opened, buffer = open_source(source, sector), memoryview(bytearray(64 * RECORD_BYTES))
    present = opened.read_block(0, 64, buffer)
    records = {bytes(buffer[place * RECORD_BYTES :][:RECORD_BYTES]) for place in range(present.bit_count())}
    assert {header.record_header() + pixels for header, pixels in messages} == records
    assert len(messages) == len(records)


@pytest.mark.parametrize("announced", [True, False], ids=["later", "earlier"])
def test_every_record_is_sent_once(sockets: Sockets, inlets: list[DataInlet], announced: bool) -> None:
    found = sent(sockets, inlets, SIMULATED, threads=3, announced=announced)
    for sector, messages in enumerate(found):
        check_records(SIMULATED, sector, messages)
        threads = Counter(header.thread_id for header, _ in messages)
        assert set(threads) == {0, 1, 2}
        for header, pixels in messages:
            header.check(sector, 1, len(pixels))
            assert header.frames_this_thread == (threads[header.thread_id] if announced else None)


def test_files_are_sent_under_another_number(sockets: Sockets, inlets: list[DataInlet], tmp_path: Path) -> None:
    folder = MadeUpScan(2, 3, 1, 9, 4, seed=3, sectors_lost=0.1).write(tmp_path / "sectors")
    found = sent(sockets, inlets, f"files:{folder}", scan_number=77)
    assert {header.scan_number for messages in found for header, _ in messages} == {77}
    for sector, messages in enumerate(found):
        original = [(header._replace(scan_number=4), pixels) for header, pixels in messages]
        check_records(f"files:{folder}", sector, original)
    assert all(len(header.record_header()) == HEADER_BYTES for messages in found for header, _ in messages)


def test_the_rate_is_kept(sockets: Sockets, inlets: list[DataInlet]) -> None:
    began = time.monotonic()
    sent(sockets, inlets, "sim:2x9?electrons=0", rate=32.0)
    assert time.monotonic() - began > 16 / 32


def test_a_producer_that_is_not_there_is_named(sockets: Sockets, inlets: list[DataInlet]) -> None:
    """Also where the scan is so small that all of it would fit into the queues."""
    endpoints = (*(inlet.endpoint for inlet in inlets[:3]), f"tcp://{HOST}:{free_port()}")
    with pytest.raises(SourceError, match=f"nobody takes what is sent to {endpoints[3]}") as caught:
        send_scan(CameraSending("sim:2x2?electrons=0", endpoints, timeout_seconds=0.2))
    assert "mpistream produce --sector 3 --camera" in caught.value.remedy


def test_a_producer_that_takes_nothing_is_named(inlets: list[DataInlet]) -> None:
    endpoints = tuple(inlet.endpoint for inlet in inlets)
    with pytest.raises(SourceError, match="nobody takes what is sent to"):
        send_scan(CameraSending("sim:60x10?electrons=0", endpoints, threads=1, timeout_seconds=0.5))


def test_a_live_source_cannot_be_sent(inlets: list[DataInlet]) -> None:
    endpoints = tuple(inlet.endpoint for inlet in inlets)
    with pytest.raises(SourceError, match="live"):
        send_scan(CameraSending("sim:2x2?live=100", endpoints))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("produce --sector 0 --camera-layout 4", "--camera-layout has no effect without --camera"),
        ("produce --sector 0 --frames-per-position 2", "--frames-per-position has no effect without --camera"),
        ("camera send --source sim:2x2 --to tcp://*:556{sector}", "is no address to send to"),
        ("camera send --source sim:2x2 --to tcp://127.0.0.1:5560", "has no {sector} in it"),
    ],
)
def test_options_that_make_no_sense(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        mpistream.main(command.split(), standalone_mode=False)


def test_addresses() -> None:
    assert host_and_port("tcp://*:5560") == ("*", 5560)
    for wrong in ("5560", "tcp://host", "tcp://host:0", "tcp://host:65536", "udp://host:1", "tcp://:5560"):
        with pytest.raises(ConfigError, match="is no address"):
            host_and_port(wrong)
