"""Four producers sort the camera's messages by scans, and agree through etcd; sockets, etcd and clock are made up."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.control.camera_registry import CameraRegistry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.control.session_registry import SessionRegistry
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError
from mpistream.model.geometry import SECTOR_BYTES, SECTORS
from mpistream.model.scan import CountingParameters
from mpistream.model.session import Reference, ReferenceKind, Session, SessionStop
from mpistream.pipeline.producing.camera_intake import CameraIntake
from mpistream.pipeline.producing.camera_scans import CameraAnnouncer, CameraScans, counting_of_session
from mpistream.pipeline.producing.camera_sector import CameraSector
from mpistream.pipeline.producing.scan_book import ScanBook
from tests.unit.made_up_etcd import Client, MadeUpEtcd
from tests.unit.made_up_processes import MadeUpCourier

PIXELS = memoryview(bytes(SECTOR_BYTES))
ROWS, COLUMNS = 3, 4
FRAMES = ROWS * COLUMNS
SILENCE = 2.0
GIVEN = CountingParameters(background=10.0, xray=100.0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Inlet:
    """What the camera pushed waits here."""

    endpoint = ""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, memoryview]] = []

    def receive(self, most: int) -> Iterator[tuple[bytes, memoryview]]:
        for _ in range(min(most, len(self.waiting))):
            yield self.waiting.pop(0)


class Sector:
    """One producer, as far as the camera concerns it."""

    def __init__(self, world: "World", sector: int, config: Config) -> None:
        self.sector, self.inlet, self.courier, self.book = sector, Inlet(), MadeUpCourier(), ScanBook(sector)
        self.etcd = Client(world.etcd, lambda: None, lambda: None)
        registry = CameraRegistry(self.etcd)  # type: ignore[arg-type]
        scans = CameraScans(config, SessionRegistry(self.etcd), registry, counting_of_session)  # type: ignore[arg-type]
        announcer = CameraAnnouncer(scans, sector, self.courier, self._refused)  # type: ignore[arg-type]
        self.intake = CameraIntake(config, sector, self.inlet, announcer, world.clock)  # type: ignore[arg-type]
        self.problems: list[ConfigError] = []
        self.etcd.watch("scans/", self.book.take)
        registry.watch(self.intake.take_change)

    def _refused(self, *refusal: Any) -> None:
        self.intake.refused(*refusal)

    def turn(self) -> None:
        self.intake.follow(self.book)
        self.intake.receive()
        for record in self.intake.to_prepare(self.book):
            try:
                self.intake.prepare(record)
            except ConfigError as error:
                self.problems.append(error)
        self.intake.look()
        self.intake.capture()

    def push(self, *headers: CameraHeader) -> None:
        self.inlet.waiting += [(header.pack(), PIXELS) for header in headers]

    def settle(self) -> None:
        """Everything that can be done without time passing."""
        for _ in range(6 + len(self.inlet.waiting) // 2):
            self.turn()
            self.courier.run()
            self.etcd.deliver()

    @property
    def scans(self) -> list[CameraSector]:
        return self.intake._scans


@dataclass
class World:
    config: Config = field(default_factory=lambda: config_of())
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.etcd = MadeUpEtcd(self.clock, 5)
        self.sectors = [Sector(self, sector, self.config) for sector in range(SECTORS)]
        self.sessions = SessionRegistry(Client(self.etcd, lambda: None, lambda: None))  # type: ignore[arg-type]

    def open_session(self, name: str = "evening", **changes: Any) -> None:
        values = {"name": name, "folder": "/data", "counting": GIVEN, "started_unix_seconds": self.clock.now}
        assert self.sessions.start_session(Session(**values | changes))

    def settle(self) -> None:
        for _ in range(3):
            for sector in self.sectors:
                sector.settle()

    def passes(self, seconds: float) -> None:
        """Time, in steps in which everybody looks."""
        for _ in range(int(seconds / 0.1) + 1):
            self.clock.now += 0.1
            self.settle()

    def records(self) -> list[dict[str, Any]]:
        found = self.etcd.below("scans/")
        records = [value for key, value in found.items() if key.endswith("/record")]
        return sorted(records, key=lambda record: (record["scan_number"], record["source"]))

    def end(self, uid: str) -> None:
        self.etcd.write(f"scans/{uid}/state", ScanStatus(ScanState.ASSEMBLING, 0.0).to_json())


def config_of(**camera: Any) -> Config:
    section = {"silence_seconds": SILENCE, "reorder_frames": 100, **camera}
    return Config.model_validate({"camera": section, "stream": {"block_frames": 4}})


@pytest.fixture
def world() -> World:
    world = World()
    world.open_session()
    return world


def header_of(number: int, index: int, sector: int = 0, first: int = 100, **changes: Any) -> CameraHeader:
    """Frame ``index`` of a scan; threads 0 and 1 take turns."""
    header = CameraHeader(number, first + index, COLUMNS, ROWS, index % COLUMNS, index // COLUMNS, index % 2, sector)
    return header._replace(**changes)


def scan_headers(number: int, sector: int, announced: int | None = None, first: int = 100) -> list[CameraHeader]:
    return [header_of(number, index, sector, first, frames_this_thread=announced) for index in range(FRAMES)]


def test_one_scan_is_announced_although_four_see_its_first_message(world: World) -> None:
    for sector in world.sectors:
        sector.push(*scan_headers(5, sector.sector))
        sector.turn()
    assert all(len(sector.courier.actions) == 1 for sector in world.sectors)  # all four ask
    world.settle()
    (record,) = world.records()
    assert (record["scan_number"], record["rows"], record["columns"]) == (5, ROWS, COLUMNS)
    assert (record["first_frame"], record["last_frame"]) == (100, 100 + FRAMES - 1)
    assert record["session"] == "evening"
    assert record["output"] == f"/data/scan_5_{record['uid'][:8]}.h5"
    assert record["counting"]["background"] == 10.0
    assert record["source"] == "camera:5?generation=1&version=5&frames_per_position=1"
    for sector in world.sectors:
        (scan,) = sector.scans
        assert (str(scan.uid), scan.is_complete, scan.has_ended) == (record["uid"], True, True)
    ended = world.etcd.below("camera/5/1/ended/")
    assert {value["how"] for value in ended.values()} == {"every frame has come"}
    assert len(ended) == SECTORS


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_first_all_agree_on_the_scans(world: World, seed: int) -> None:
    """Messages, answers of etcd and its news in random order; scans one after the other, the last number again."""
    dice = random.Random(seed)
    for number in (5, 6, 7, 5):
        waiting = {sector.sector: scan_headers(number, sector.sector) for sector in world.sectors}
        lost = {(sector, dice.randrange(FRAMES)) for sector in range(SECTORS) if dice.random() < 0.5}
        while any(waiting.values()):
            sector = dice.choice(world.sectors)
            act = dice.randrange(5)
            if act <= 1 and waiting[sector.sector]:
                header = waiting[sector.sector].pop(dice.randrange(min(4, len(waiting[sector.sector]))))
                if (sector.sector, header.frame_number - 100) not in lost:
                    sector.push(header)
            elif act == 2:
                sector.courier.run()
            elif act == 3:
                sector.etcd.deliver(most=1)
            else:
                sector.turn()
        world.settle()
        world.passes(SILENCE + 0.5)
        latest = [sector.scans[-1] for sector in world.sectors]
        assert len({scan.uid for scan in latest}) == 1
        for scan in latest:
            assert scan.source is not None
            gaps = sum(sector == scan.source.sector for sector, _ in lost)
            assert (scan.has_ended, scan.source.frames_came) == (True, FRAMES - gaps)
    assert [record["scan_number"] for record in world.records()] == [5, 5, 6, 7]
    assert all(sector.intake.counts.late == sector.intake.counts.bad == 0 for sector in world.sectors)


def test_a_number_comes_again_after_a_silence(world: World) -> None:
    first, *others = world.sectors
    first.push(*scan_headers(5, 0)[1:])
    world.passes(SILENCE - 1)
    assert len(world.records()) == 1
    world.passes(2)
    for sector in world.sectors:
        sector.push(*scan_headers(5, sector.sector, first=700))
    world.settle()
    records = world.records()
    assert [record["source"].split("&")[0] for record in records] == ["camera:5?generation=1", "camera:5?generation=2"]
    assert [record["first_frame"] for record in records] == [100, 700]
    assert all(str(sector.scans[-1].uid) == records[1]["uid"] for sector in world.sectors)
    # the others had never heard of the first one, and have ended it
    assert [scan.has_ended for scan in others[0].scans] == [True, True]


def test_late_messages_begin_nothing(world: World) -> None:
    sector = world.sectors[0]
    sector.push(*scan_headers(5, 0)[1:])
    world.passes(SILENCE + 0.5)
    world.end(world.records()[0]["uid"])
    world.passes(SILENCE)
    sector.push(*scan_headers(6, 0)[:3])
    world.settle()
    world.passes(SILENCE - 0.5)
    sector.push(header_of(5, 0))
    sector.push(*scan_headers(6, 0)[3:])
    world.settle()
    assert sector.intake.counts.late == 1
    assert [record["scan_number"] for record in world.records()] == [5, 6]
    assert sector.scans[-1].is_complete


def test_numbers_of_yesterday_do_not_make_todays_messages_late(world: World) -> None:
    for number in (5, 6):
        for sector in world.sectors:
            sector.push(*scan_headers(number, sector.sector))
        world.settle()
    for uid in [record["uid"] for record in world.records()]:
        world.end(uid)
    again = World(world.config, world.clock)
    again.etcd.values = {
        key: text.replace(f'"unix_seconds": {int(time.time()) // 10}', '"unix_seconds": 1')
        for key, text in world.etcd.values.items()
    }
    for sector in again.sectors:
        sector.etcd.list_anew()
        sector.turn()
        sector.push(*scan_headers(5, sector.sector)[1:], *scan_headers(6, sector.sector))
    again.settle()
    assert [record["scan_number"] for record in again.records()] == [5, 5, 6, 6]
    assert all(sector.intake.counts.late == 0 for sector in again.sectors)


def test_a_restarted_producer_goes_on_with_the_scan_and_remembers_what_had_ended(world: World) -> None:
    for sector in world.sectors:
        sector.push(*scan_headers(5, sector.sector)[:6])
    world.settle()
    again = world.sectors[2] = Sector(world, 2, world.config)
    again.push(*scan_headers(5, 2)[6:])
    again.settle()
    assert len(world.records()) == 1
    (scan,) = again.scans
    assert scan.source is not None
    assert scan.source.frames_came == 6
    world.passes(SILENCE + 0.5)
    third = Sector(world, 2, world.config)
    third.settle()
    assert [scan.has_ended for scan in third.scans] == [True]
    third.push(header_of(5, 3, sector=2))
    third.settle()
    assert third.intake.counts.late == 1
    assert len(world.records()) == 1


def test_after_a_restart_the_latest_of_many_generations_counts(world: World) -> None:
    for _ in range(11):
        for sector in world.sectors:
            sector.push(*scan_headers(5, sector.sector))
        world.settle()
        world.passes(SILENCE)
    half = scan_headers(5, 0)[:6]
    world.sectors[0].push(*half)
    world.settle()
    again = Sector(world, 0, world.config)
    again.settle()
    assert [scan.generation for scan in again.scans] == list(range(1, 13))
    assert [scan.has_ended for scan in again.scans] == [True] * 11 + [False]
    again.push(*scan_headers(5, 0)[6:])
    again.settle()
    assert again.scans[-1].source is not None
    assert again.scans[-1].source.frames_came == 6


def test_news_of_an_earlier_generation_changes_nothing(world: World) -> None:
    """The watches of etcd may tell of it later than of the one that follows."""
    sector = world.sectors[0]
    sector.push(*scan_headers(5, 0))
    world.settle()
    world.passes(SILENCE)
    sector.push(*scan_headers(5, 0)[:6])
    world.settle()
    again = Sector(world, 0, world.config)
    pairs = sorted(world.etcd.below("camera/").items(), reverse=True)
    again.intake = CameraIntake(world.config, 0, again.inlet, again.intake._announcer, world.clock)  # type: ignore[arg-type]
    for key, value in pairs:
        again.intake.take_change((key, value))
        again.turn()
    assert [(scan.generation, scan.has_ended) for scan in again.scans] == [(1, True), (2, False)]


def test_without_an_open_session_everything_is_dropped_and_said() -> None:
    world = World()
    world.open_session("morning")
    world.sessions.stop_session("morning", SessionStop(since_unix_seconds=1.0, reason=""))
    sector = world.sectors[1]
    sector.push(*scan_headers(5, 1)[1:])
    world.settle()
    assert world.records() == []
    status = sector.intake.status()
    assert (status["camera_messages"], status["camera_unclaimed"]) == (FRAMES - 1, FRAMES - 1)
    assert status["camera_problem"] == (
        "scan 5 of the camera is dropped: no session is open: start one with mpistream session start"
    )
    world.passes(SILENCE + 0.5)
    world.open_session()
    sector.push(*scan_headers(5, 1))
    world.settle()
    assert len(world.records()) == 1
    assert sector.intake.status()["camera_problem"] == ""


def test_while_etcd_is_away_messages_wait_as_long_as_there_is_room(world: World) -> None:
    world = World(config_of(reorder_frames=20))
    world.open_session()
    world.etcd.is_away = True
    sector = world.sectors[0]
    for number in (5, 6):
        sector.push(*scan_headers(number, 0))
    world.passes(2 * SILENCE)
    assert sector.intake.counts.dropped == 2 * FRAMES - 20
    world.etcd.come_back()
    world.settle()
    world.passes(0.5)
    assert [record["scan_number"] for record in world.records()] == [5, 6]
    assert [scan.source.frames_came for scan in sector.scans if scan.source] == [FRAMES, 20 - FRAMES]
    assert all(scan.has_ended for scan in sector.scans)


def test_scans_that_wait_share_one_window(world: World) -> None:
    """Three scans of which nobody takes a block: what finds no room is dropped, and that is known."""
    stream = {"block_frames": 1, "window_bytes": 4 * 20 * 165_904}
    world = World(Config.model_validate({"camera": {"silence_seconds": SILENCE}, "stream": stream}))
    world.open_session()
    sector = world.sectors[0]
    for number in (5, 6, 7):
        sector.push(*scan_headers(number, 0))
        for _ in range(FRAMES):
            sector.settle()
    supplies = [scan.supply for scan in sector.scans]
    assert [len(supply.window) for supply in supplies if supply] == [12, 8, 0]
    assert [supply.blocks_dropped for supply in supplies if supply] == [0, 4, 12]
    uid = sector.scans[1].uid
    assert uid is not None
    facts = sector.book.get(uid)
    assert facts is not None
    assert facts.record is not None
    _, supply = sector.intake.stream(facts.record)
    assert supply.window.has_room


def test_a_scan_that_is_ended_by_request_takes_nothing_more(world: World) -> None:
    sector = world.sectors[0]
    sector.push(*scan_headers(5, 0)[:6])
    world.settle()
    world.end(world.records()[0]["uid"])
    world.settle()
    sector.push(*scan_headers(5, 0)[6:])
    world.settle()
    assert sector.intake.counts.unclaimed == 6
    assert sector.scans[0].supply is None
    world.passes(SILENCE + 0.5)
    assert sector.scans[0].has_ended
    for number in (6, 7, 8):
        sector.push(*scan_headers(number, 0))
    world.settle()
    assert [scan.scan_number for scan in sector.scans] == [6, 7, 8]


def test_an_announcement_that_fails_unexpectedly_holds_nothing(world: World) -> None:
    def counting_of(sessions: SessionRegistry, session: Session) -> CountingParameters:
        raise ValueError("a defect")

    sector = world.sectors[0]
    announcer = sector.intake._announcer
    sector.intake._announcer = replace(announcer, scans=replace(announcer.scans, counting_of=counting_of))
    sector.push(*scan_headers(5, 0))
    sector.turn()
    with pytest.raises(ValueError, match="a defect"):  # for the courier's log
        sector.courier.run()
    assert sector.intake.counts.unclaimed == sector.intake.counts.messages > 0
    assert "a defect" in str(sector.intake.status()["camera_problem"])


def test_a_scan_that_was_over_before_its_news_came_holds_nothing(world: World) -> None:
    """Of a producer that was cut off from etcd: its messages wait for an announcement that others made long ago."""
    late, other = world.sectors[:2]
    other.push(*scan_headers(5, 1))
    other.settle()
    world.end(world.records()[0]["uid"])
    late.push(*scan_headers(5, 0))
    for _ in range(6):
        late.turn()
        late.courier.run()
    assert [scan.messages_waiting for scan in late.scans] == [FRAMES]
    world.settle()
    assert (late.intake.counts.unclaimed, late.scans[0].messages_waiting) == (FRAMES, 0)
    world.passes(2 * SILENCE)
    late.push(*scan_headers(5, 0))
    world.settle()
    assert "generation=2" in world.records()[1]["source"]


def test_producers_that_disagree_about_the_camera_refuse_the_scan(world: World) -> None:
    other = Sector(world, 3, config_of(layout=4))
    world.sectors[0].push(*scan_headers(5, 0))
    world.settle()
    other.settle()
    (problem,) = other.problems
    assert "version=4" in problem.message
    assert "version=5" in problem.message
    other.push(*scan_headers(5, 3))
    other.settle()
    assert other.intake.counts.unclaimed == FRAMES


def test_a_pause_of_the_process_is_no_silence(world: World) -> None:
    sector = world.sectors[0]
    sector.push(*scan_headers(5, 0)[:6])
    world.settle()
    world.clock.now += 60
    sector.turn()
    assert not sector.scans[0].has_ended
    sector.push(*scan_headers(5, 0)[6:])
    world.settle()
    assert sector.scans[0].is_complete


def test_frames_at_one_position_tell_the_first_frame_together() -> None:
    world = World(config_of(frames_per_position=3))
    world.open_session()
    headers = [header_of(5, index // 3, frame_number=1000 + index, thread_id=0) for index in range(3 * FRAMES)]
    world.sectors[0].push(*headers[4:7])
    world.sectors[0].settle()
    (record,) = world.records()
    assert (record["first_frame"], record["last_frame"]) == (1000, 1000 + 3 * FRAMES - 1)


def test_references_by_name_are_those_that_the_session_means(world: World) -> None:
    reference = Reference(
        kind=ReferenceKind.DARK, name="today", path="/refs/dark.npy", sha256="0" * 64, made_unix_seconds=1.0
    )
    world.sessions.write_reference(reference)
    counting = GIVEN.model_copy(update={"dark": "ref:today", "pixel_mask": "/refs/mask.npy"})
    world.open_session("named", counting=counting, started_unix_seconds=2000.0)
    world.sectors[0].push(*scan_headers(5, 0))
    world.settle()
    found = world.records()[0]["counting"]
    assert (found["dark"], found["pixel_mask"]) == ("/refs/dark.npy", "/refs/mask.npy")
    assert world.records()[0]["references"] == {"dark": "today"}
    world.open_session("wrong", counting=counting.model_copy(update={"dark": "ref:other"}), started_unix_seconds=3000.0)
    world.sectors[0].push(*scan_headers(6, 0))
    world.settle()
    assert len(world.records()) == 1
    assert "'other'" in str(world.sectors[0].intake.status()["camera_problem"])


def test_damaged_messages_are_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    sector = world.sectors[0]
    sector.inlet.waiting += [(b"", memoryview(b""))] * 30
    world.settle()
    assert sector.intake.counts.bad == sector.intake.counts.messages == 30
    assert len(caplog.records) == 20
    assert "further ones are only counted" in caplog.records[-1].message


def test_a_spill_stays_for_the_next_start_and_goes_with_its_scan(tmp_path: Path) -> None:
    stream = {"block_frames": 4, "spill_directory": str(tmp_path)}
    world = World(Config.model_validate({"camera": {"silence_seconds": SILENCE}, "stream": stream}))
    world.open_session()
    sector = world.sectors[0]
    sector.push(*scan_headers(5, 0))
    world.settle()
    files = sorted(tmp_path.iterdir())
    assert len(files) == SECTORS
    sector.intake.close()
    assert sorted(tmp_path.iterdir()) == files
    again = Sector(world, 0, world.config)
    again.settle()
    world.end(world.records()[0]["uid"])
    for each in (again, *world.sectors[1:]):
        each.settle()
    assert not list(tmp_path.iterdir())
