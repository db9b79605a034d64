"""Producers to which the camera's own processes push: scans that nobody announces, over real sockets."""

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.local import MPI_ENVIRONMENT, etcd_command, free_port, is_free
from mpistream.model.scan import CountingParameters
from mpistream.model.session import Session
from tests.system.camera_push import CameraSession, Message, Pusher, RasterScan
from tests.system.command_line import CommandLine, endpoint_in, etcd_values, etcdctl, finish, wait_until
from tests.system.conftest import TIDYING_SECONDS, unfinished_files
from tests.system.datasets import assert_frames_of, assert_same_events
from tests.system.sector_writer import BACKGROUND, SECTORS, XRAY, MadeUpScan
from tests.system.test_processes import AGGREGATOR, PRODUCERS, START_SECONDS, Deployment

SILENCE_SECONDS = 4.0
#: A scan with everything that happens to one: sectors and whole frames lost, others twice, numbers that begin anywhere.
ODD = {"sectors_lost": 0.04, "frames_lost": (0, 1, 50, 51), "sectors_twice": 0.1}


def four_ports() -> tuple[int, ...]:
    """Free ones that differ in their last digit."""
    while True:
        first = free_port() // 10 * 10
        ports = tuple(range(first, first + SECTORS))
        if all(map(is_free, ports)):
            return ports


@dataclass
class CameraDeployment(Deployment):
    """``ports``: at which the producers listen to the camera; ``options`` are theirs."""

    ports: tuple[int, ...] = field(default_factory=four_ports)
    options: tuple[object, ...] = ()

    def start(self, name: str) -> None:
        kind, _, which = name.partition("/")
        if kind != "producers":
            super().start(name)
            return
        camera = f"tcp://127.0.0.1:{self.ports[int(which)]}"
        self.commands[name] = self.cli.start(
            *("produce", "--config", self.config, "--sector", which, "--camera", camera, *self.options)
        )

    @property
    def camera_address(self) -> str:
        return f"tcp://127.0.0.1:{self.ports[0] // 10}{{sector}}"

    def restart_producers(self, *options: object) -> None:
        self.options = options
        for name in PRODUCERS:
            self.commands[name].send_signal(signal.SIGTERM)
            finish(self.commands[name], 20)
        for name in PRODUCERS:
            self.start(name)
        self.wait_until_registered()

    def stored(self, what: str = "") -> dict[str, Any]:
        prefix = f"/by-hand/{what}"
        return {key.removeprefix(prefix): value for key, value in etcd_values(self.config, prefix).items()}

    def scans(self, scan_number: int) -> list[str]:
        """The uids of the scans that had this number, in order."""
        found = self.stored(f"camera/{scan_number}/")
        return [found[key]["uid"] for key in sorted(found) if key.endswith("/scan")]

    def count(self, name: str) -> int:
        """Of all producers, as they say themselves."""
        return sum(int(status[f"camera_{name}"]) for status in self.stored("status/producers/").values())

    def finished(self, scan_number: int, generation: int = 1, state: str = "committed") -> "Finished":
        """The scan, once it is."""

        def look() -> dict[str, Any] | None:
            uids = self.scans(scan_number)
            stored = self.stored(f"scans/{uids[generation - 1]}/") if len(uids) >= generation else {}
            if "state" in stored and stored["state"]["state"] in ("failed", "aborted"):
                raise AssertionError(stored["state"])
            return stored if stored.get("state", {}).get("state") == state else None

        stored = wait_until(look, 60, f"scan {scan_number}, the {generation}. of its number")
        return Finished(stored, self.stored(f"camera/{scan_number}/{generation}/"))


@dataclass
class Finished:
    """What stands in etcd of a scan that has ended."""

    stored: dict[str, Any]
    camera: dict[str, Any]

    @property
    def dataset(self) -> Path:
        return Path(self.stored["summary"]["dataset"])

    @property
    def counters(self) -> dict[str, int]:
        return self.stored["summary"]["counters"]

    @property
    def ended(self) -> dict[int, str]:
        """How each sector has ended."""
        return {sector: self.camera[f"ended/{sector}"]["how"] for sector in range(SECTORS)}

    @property
    def ended_unix_seconds(self) -> float:
        return max(self.camera[f"ended/{sector}"]["unix_seconds"] for sector in range(SECTORS))

    def check(self, scan: MadeUpScan, version: int = 5, rejected: int = 0) -> None:
        """The dataset is right to the event, and the counters are."""
        assert_same_events(self.dataset, scan.expected_events(version=version))
        assert_frames_of(self.dataset, scan)
        counters = self.counters
        lost = [int(missing).bit_count() for missing in scan.missing if missing not in (0, 15)]
        assert counters["frames"] == len(scan.present)
        assert counters["frames_lost"] == scan.n_frames - len(scan.present)
        assert (counters["frames_incomplete"], counters["sectors_missing"]) == (len(lost), sum(lost))
        assert counters["sectors_duplicate"] == scan.twice.sum()
        assert counters["sectors_rejected"] == rejected
        record = self.stored["record"]
        assert record["first_frame"] == scan.first_frame
        assert self.dataset.name == f"scan_{scan.scan_number}_{record['uid'][:8]}.h5"


@pytest.fixture(scope="module")
def config(place: Path) -> Iterator[Path]:
    client, peer = free_port(), free_port()
    config = place / "mpistream.toml"
    config.write_text(
        f'deployment = "by-hand"\n[etcd]\nendpoints = ["127.0.0.1:{client}"]\n[ranks]\nranks_per_group = 2\n'
        f"[camera]\nsilence_seconds = {SILENCE_SECONDS}\nreorder_frames = 64\n"
    )
    with (place / "etcd.log").open("wb") as log:
        etcd = subprocess.Popen(
            etcd_command(place / "etcd", client, peer), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        wait_until(lambda: etcdctl(endpoint_in(config), "endpoint", "status"), START_SECONDS, "etcd")
        yield config
    finally:
        etcd.terminate()
        etcd.wait(20)


@pytest.fixture(scope="module")
def deployment(cli: CommandLine, config: Path) -> Iterator[CameraDeployment]:
    cli.environment.update(MPI_ENVIRONMENT)
    deployment = CameraDeployment(cli, config, {})
    try:
        for name in (*PRODUCERS, AGGREGATOR, "groups"):
            deployment.start(name)
        deployment.wait_until_registered()
        yield deployment
    finally:
        for command in deployment.commands.values():
            command.terminate()
        for command in deployment.commands.values():
            finish(command, 60)


@pytest.fixture
def pusher(deployment: CameraDeployment) -> Iterator[Pusher]:
    pusher = Pusher([f"tcp://127.0.0.1:{port}" for port in deployment.ports])
    yield pusher
    pusher.close()


@pytest.fixture(scope="module")
def folder(place: Path, config: Path) -> Iterator[Path]:
    """Of the session that is open."""
    folder = place / "datasets"
    folder.mkdir()
    session = Session(
        name="evening",
        folder=str(folder),
        counting=CountingParameters(background=BACKGROUND, xray=XRAY),
        started_unix_seconds=time.time(),
    )
    with Coordination([endpoint_in(config)], "/by-hand/", 5.0) as etcd:
        assert SessionRegistry(etcd).start_session(session)
    yield folder
    wait_until(lambda: not unfinished_files(folder), TIDYING_SECONDS, "tidiness")


def test_without_a_session_messages_are_dropped_and_counted(deployment: CameraDeployment, pusher: Pusher) -> None:
    scan = RasterScan(2, 2, 1, 0, 90, seed=90)
    pusher.push(CameraSession(scan).messages())
    wait_until(lambda: deployment.count("unclaimed") == 16, 30, "the count of what nobody wanted")
    assert deployment.scans(90) == []
    said = deployment.cli.run("status", "--config", deployment.config).succeeded().stdout
    assert "scan 90 of the camera is dropped: no session is open" in said


@pytest.mark.parametrize("later", [True, False], ids=["later", "earlier"])
def test_a_scan_with_gaps_and_duplicates(
    deployment: CameraDeployment, pusher: Pusher, folder: Path, later: bool
) -> None:
    """The later version says how many frames come: what is lost before is waited for a little while only."""
    scan = RasterScan(8, 7, 1, 1000, 10 + later, seed=1 + later, **ODD)
    camera = CameraSession(scan, later)
    pusher.push(camera.messages())
    sent = time.time()
    finished = deployment.finished(scan.scan_number)
    finished.check(scan)
    assert finished.dataset.parent == folder
    assert finished.stored["record"]["session"] == "evening"
    took = finished.ended_unix_seconds - sent
    if later:
        assert took < SILENCE_SECONDS / 2
        assert all(how.startswith("every thread has sent what it announced") for how in finished.ended.values())
    else:
        assert took > SILENCE_SECONDS / 2
        assert all(how.startswith("nothing has come for") for how in finished.ended.values())


@pytest.mark.parametrize("later", [True, False], ids=["later", "earlier"])
def test_a_whole_scan_ends_with_its_last_frame(
    deployment: CameraDeployment, pusher: Pusher, folder: Path, later: bool
) -> None:
    scan = RasterScan(5, 6, 1, 0, 20 + later, seed=3)
    pusher.push(CameraSession(scan, later).messages())
    finished = deployment.finished(scan.scan_number)
    finished.check(scan)
    assert set(finished.ended.values()) == {"every frame has come"}


def test_the_next_scan_ends_the_one_before(deployment: CameraDeployment, pusher: Pusher, folder: Path) -> None:
    """In the earlier version, with gaps, nothing else tells."""
    scans = [RasterScan(5, 5, 1, 7, number, seed=number, sectors_lost=0.2) for number in (30, 31)]
    pusher.push([message for scan in scans for message in CameraSession(scan, later=False).messages()])
    first, second = (deployment.finished(scan.scan_number) for scan in scans)
    first.check(scans[0])
    second.check(scans[1])
    assert all("has gone on to another scan" in how for how in first.ended.values()), first.ended


def test_a_number_that_is_used_again_gives_another_dataset(
    deployment: CameraDeployment, pusher: Pusher, folder: Path
) -> None:
    scans = [RasterScan(4, 5, 1, 0, 40, seed=seed, sectors_lost=lost) for seed, lost in ((5, 0.0), (6, 0.1))]
    for generation, scan in enumerate(scans, 1):
        pusher.push(CameraSession(scan).messages())
        deployment.finished(40, generation).check(scan)
        time.sleep(SILENCE_SECONDS / 5)
    assert len(set(deployment.scans(40))) == 2
    assert "generation=2" in deployment.finished(40, 2).stored["record"]["source"]


def test_what_is_late_or_bad_is_counted(deployment: CameraDeployment, pusher: Pusher, folder: Path) -> None:
    """A sector of the scan before comes within the next one; so does what is damaged or impossible."""
    scan, following = (RasterScan(5, 5, 1, 100, number, seed=number, frames_lost=(3,)) for number in (50, 51))
    camera, next_camera = CameraSession(scan), CameraSession(following)
    pusher.push(camera.messages())
    deployment.finished(50).check(scan)
    late, bad = deployment.count("late"), deployment.count("bad")
    messages = next_camera.messages()
    pusher.push(messages[:50])
    pusher.push(camera.message(sector, 3) for sector in range(SECTORS))
    pusher.push(
        [
            next_camera.message(0, 3, module=1),
            next_camera.message(1, 3, x=5),
            next_camera.message(1, 3, y=5),
            next_camera.message(2, 3, columns=6),
            Message(3, 0, next_camera.header(3, 3), bytes(165_886)),
            Message(3, 0, b"\xc1 no msgpack", bytes(165_888)),
        ]
    )
    pusher.push_parts(0, 0, [b"one part"])
    pusher.push(next_camera.message(2, 3, frame_number=frame) for frame in (99, 125))
    pusher.push(messages[50:])
    finished = deployment.finished(51)
    finished.check(following, rejected=2)
    wait_until(lambda: deployment.count("late") == late + 4, 30, "the count of late messages")
    wait_until(lambda: deployment.count("bad") == bad + 7, 30, "the count of bad messages")
    assert len(deployment.scans(50)) == 1


def test_a_sector_of_which_nothing_comes(deployment: CameraDeployment, pusher: Pusher, folder: Path) -> None:
    scan = RasterScan(4, 4, 1, 0, 60, seed=60)
    pusher.push(CameraSession(scan).messages(sectors=(0, 1, 3)))
    finished = deployment.finished(60)
    assert finished.ended[2] == "no message has come"
    assert (finished.counters["frames"], finished.counters["sectors_missing"]) == (16, 16)
    with h5py.File(finished.dataset) as file:
        assert set(file["electron_events/missing_sectors"][:]) == {0b0100}


def test_scans_that_come_before_there_is_anybody_to_count_them(
    deployment: CameraDeployment, pusher: Pusher, folder: Path, place: Path
) -> None:
    """They are kept as long as there is room. The tool sends files in the camera's place."""
    deployment.commands["groups"].send_signal(signal.SIGTERM)
    deployment.wait_until_withdrawn("groups")
    finish(deployment.commands["groups"], 30)
    scans = [RasterScan(4, 6, 1, 12, number, seed=number, sectors_lost=0.05) for number in (70, 71)]
    source = f"files:{scans[0].write(place / 'sectors')}"
    deployment.cli.run("camera", "send", "--source", source, "--to", deployment.camera_address).succeeded()
    pusher.push(CameraSession(scans[1]).messages())
    deployment.start("groups")
    deployment.wait_until_registered()
    for scan in scans:
        deployment.finished(scan.scan_number).check(scan)


def test_a_producer_that_is_killed_in_the_middle(deployment: CameraDeployment, pusher: Pusher, folder: Path) -> None:
    """Its next start goes on with the same scan; what only it had in memory is missing."""
    scan = RasterScan(8, 8, 1, 0, 80, seed=80)
    messages = CameraSession(scan).messages()
    half = len(messages) // 2
    pusher.push(messages[:half])
    wait_until(lambda: deployment.scans(80), 30, "the announcement")
    killed = deployment.commands[PRODUCERS[2]]
    killed.kill()
    finish(killed)
    deployment.start(PRODUCERS[2])
    deployment.wait_until_registered()
    pusher.push(messages[half:])
    finished = deployment.finished(80)
    assert len(deployment.scans(80)) == 1
    with h5py.File(finished.dataset) as file:
        missing = file["electron_events/missing_sectors"][:]
    assert set(missing) <= {0, 0b0100}
    assert (missing[-16:] == 0).all()


def test_several_frames_at_a_position_in_the_other_layout(
    deployment: CameraDeployment, pusher: Pusher, folder: Path
) -> None:
    deployment.restart_producers("--camera-layout", 4, "--frames-per-position", 3)
    scan = RasterScan(4, 5, 3, 1001, 91, seed=91, **ODD)
    pusher.push(CameraSession(scan, version=4).messages())
    deployment.finished(91).check(scan, version=4)
