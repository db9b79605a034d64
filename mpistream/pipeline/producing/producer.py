"""A producer process: reads one sector of every scan that is announced, and sends it."""

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from uuid import UUID

from mpistream.acquisition.spill import remove_spill, spilled_scans
from mpistream.control.coordination import Change, Registration
from mpistream.control.registry import AggregatorEntry, ProducerEntry, Registry
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, EtcdUnreachable, MpistreamError, ScanFailed
from mpistream.model.fault_points import reach
from mpistream.model.protocol import Ack, Want
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import SectorEnd
from mpistream.pipeline.courier import Courier
from mpistream.pipeline.process import connect_etcd, new_incarnation, on_termination, open_registry
from mpistream.pipeline.producing.camera_intake import CameraIntake
from mpistream.pipeline.producing.camera_listening import CameraListening
from mpistream.pipeline.producing.camera_scans import is_of_camera
from mpistream.pipeline.producing.early_source import EarlySource
from mpistream.pipeline.producing.links import ProducerLinks
from mpistream.pipeline.producing.news import (
    Aggregators,
    CameraChange,
    CameraRefusal,
    CaughtUp,
    News,
    NewTable,
    ScanChange,
    Stop,
)
from mpistream.pipeline.producing.scan_book import ScanBook
from mpistream.pipeline.producing.sector_stream import SectorStream
from mpistream.pipeline.producing.stop_detector import StopDetector
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets

_log = logging.getLogger(__name__)

#: How often a waiting producer looks around.
_TURN_SECONDS = 0.25
_IDLE_TURN_SECONDS = 1.0
_STATUS_SECONDS = 1.0
#: Blocks that go on in a turn in which messages of the camera came in, one block at most: nothing queues up.
_CAMERA_BLOCKS = 4


def run_producer(config: Config, sector: int, camera: CameraListening | None = None) -> None:
    """Serves scan after scan until it is told to end. The producer's id is its sector."""
    news: Mailbox[News] = Mailbox()
    on_termination(lambda: news.put(Stop()))
    entry = ProducerEntry(sector, sector, socket.gethostname(), os.getpid(), new_incarnation())
    with ExitStack() as closing:
        etcd = closing.enter_context(connect_etcd(config))
        registry = open_registry(config, etcd)
        registration = registry.register_producer(entry)
        closing.callback(registration.close)
        courier = closing.enter_context(Courier())
        detector = StopDetector(registry.lease_seconds / 2)
        closing.callback(detector.close)
        sockets = Sockets()
        closing.callback(sockets.close)
        sockets.wait_for(news)

        def look_for_aggregators() -> None:
            courier.do(lambda: news.put(Aggregators(registry.aggregators())))

        for watch in (
            registry.watch_routing(lambda table: news.put(NewTable(table))),
            registry.watch_aggregators(look_for_aggregators),
            registry.watch_scans(lambda change: news.put(ScanChange(change))),
        ):
            closing.callback(watch.close)
        intake = None if camera is None else camera.start(config, sector, etcd, sockets, courier, news, closing)
        _log.info("producer of sector %d waits for scans", sector)
        Producer(config, entry, registry, registration, courier, detector, sockets, news, intake).serve()


@dataclass
class Producer:
    """The loop of a producer, in one thread: news of etcd in, answers in, blocks out."""

    config: Config
    entry: ProducerEntry
    registry: Registry
    registration: Registration
    courier: Courier
    detector: StopDetector
    sockets: Sockets
    news: Mailbox[News]
    camera: CameraIntake | None = None
    links: ProducerLinks = field(init=False)
    book: ScanBook = field(init=False)
    early: EarlySource = field(init=False)
    _streams: dict[UUID, SectorStream] = field(default_factory=dict)
    _given_up: set[UUID] = field(default_factory=set)
    _resumed: set[UUID] = field(default_factory=set)
    _stopping: bool = False
    _asked: int = 0
    _answered: int = 0
    _unread: list[Ack | Want] = field(default_factory=list)
    _status_due: float = 0.0

    def __post_init__(self) -> None:
        self.links = ProducerLinks(self.sockets, self.entry.producer_id)
        self.book = ScanBook(self.entry.sector)
        self.early = EarlySource(self.entry.sector)

    def serve(self) -> None:
        self._take_news()
        self._resumed = {facts.uid for facts in self.book.to_be_served()}
        self._remove_old_spills()
        try:
            while not self._stopping:
                if not self.turn():
                    self.sockets.wait(self._seconds_until_turn())
        finally:
            for uid in list(self._streams):
                self._close(uid)
            self.early.close()

    def turn(self) -> bool:
        """One step of everything; False where nothing could be sent, and nothing came from the camera."""
        self._take_news()
        has_received = self.camera is not None and self._take_from(self.camera)
        self._follow_scans()
        self._take_answers()
        blocks = _CAMERA_BLOCKS if has_received else 1
        for uid, stream in list(self._streams.items()):
            self._repeat(blocks, uid, stream.sender.capture)
        current = self._current()
        has_sent = current is not None and self._repeat(blocks, current, self._streams[current].send_next)
        self._say_status(current)
        return has_sent or has_received

    def _repeat(self, times: int, uid: UUID, step: Callable[[], bool]) -> bool:
        """As long as there is something to be done; False where there was nothing."""
        done = 0
        while done < times and self._guarded(uid, step):
            done += 1
        return done > 0

    def _take_from(self, camera: CameraIntake) -> bool:
        """Messages of the camera in; False where there was none."""
        camera.follow(self.book)
        has_received = camera.receive()
        for record in camera.to_prepare(self.book):
            self._guarded(record.uid, partial(camera.prepare, record))
        camera.look()
        camera.capture()
        return has_received

    # news from etcd

    def _take_news(self) -> None:
        for item in self.news.take():
            match item:
                case Stop():
                    self._stopping = True
                case ScanChange(change):
                    self._take_change(change)
                case NewTable(table):
                    self._adopt(table)
                case Aggregators(entries):
                    self._choose_aggregator(entries)
                case CameraChange(change):
                    if self.camera is not None:
                        self.camera.take_change(change)
                case CameraRefusal(opening, reason):
                    if self.camera is not None:
                        self.camera.refused(opening, reason)
                case CaughtUp():
                    self._catch_up(item)

    def _take_change(self, change: Change) -> None:
        uid = self.book.take(change)
        if uid is not None:
            self._reconcile(uid)

    def _reconcile(self, uid: UUID) -> None:
        stream, facts = self._streams.get(uid), self.book.get(uid)
        if stream is not None and facts is not None:
            stream.sender.reconcile(facts.shares)

    def _adopt(self, table: RoutingTable) -> None:
        """From now on the ranks that ``table`` leaves out are fenced; etcd is told so."""
        if not self.links.adopt(table):
            return
        for stream in self._streams.values():
            stream.sender.adopt(table)
        self.entry = replace(self.entry, table=table.version)
        entry = self.entry
        self.courier.do(lambda: self.registry.update_producer(self.registration, entry))

    def _choose_aggregator(self, entries: list[AggregatorEntry]) -> None:
        if self.links.choose_aggregator(entries):
            for stream in self._streams.values():
                if not stream.outlets.direct:
                    stream.sender.resend_all()

    # scans

    def _follow_scans(self) -> None:
        """Opens what is to be served, closes what is not, and lets the source of the next scan be opened."""
        served = self.book.to_be_served()
        for uid in self._streams.keys() - {facts.uid for facts in served}:
            self._close(uid)
        self._given_up -= self.book.over
        for facts in served:
            if facts.uid not in self._streams and facts.uid not in self._given_up and self._is_there(facts):
                self._guarded(facts.uid, partial(self._open, facts))
        self.early.prepare(self.book.next_to_stream())

    def _is_there(self, facts: ScanFacts) -> bool:
        """Whether the camera's part in the scan, if there is one, has told of it."""
        assert facts.record is not None
        return self.camera is None or not is_of_camera(facts.record) or self.camera.has(facts.uid)

    def _open(self, facts: ScanFacts) -> bool:
        uid = facts.uid
        if uid in self._resumed:
            _log.info("scan %s: goes on with sector %d", uid, self.entry.sector)

        def write_end(end: SectorEnd) -> None:
            self.courier.do(lambda: self._write_end(uid, end))

        self._streams[uid] = SectorStream.open(
            self.config,
            self.entry,
            facts,
            self.links,
            self.early,
            write_end,
            is_resumed=uid in self._resumed,
            camera=self.camera,
        )
        return True

    def _write_end(self, uid: UUID, end: SectorEnd) -> None:
        self.registry.write_end(uid, end)
        reach("producer.after-end")

    def _close(self, uid: UUID) -> None:
        self._streams.pop(uid).close(is_over=uid in self.book.over)
        self._resumed.discard(uid)

    def _remove_old_spills(self) -> None:
        """Those of scans that ended while no producer of this sector was there."""
        if self.config.stream.spill_directory:
            spilled = spilled_scans(Path(self.config.stream.spill_directory), self.entry.sector)
            for uid in spilled.keys() & self.book.over:
                remove_spill(spilled[uid])

    def _current(self) -> UUID | None:
        """The scan whose blocks go out: the first with which something is to be done. The others lose no patience."""
        current = None
        for facts in self.book.to_be_served():
            stream = self._streams.get(facts.uid)
            if stream is None or stream.is_idle:
                continue
            if current is None:
                current = facts.uid
            else:
                stream.sender.news_came()
        return current

    def _guarded(self, uid: UUID, step: Callable[[], bool]) -> bool:
        """Whatever goes wrong with one scan ends that scan, with its reason on the user's screen."""
        try:
            return step()
        except MpistreamError as error:
            _log.error("scan %s: %s", uid, error)
            self._give_up(uid, error)
            return False
        except Exception as error:
            self._give_up(uid, ScanFailed(f"the producer of sector {self.entry.sector} failed: {error!r}"))
            raise

    def _give_up(self, uid: UUID, error: MpistreamError) -> None:
        self._given_up.add(uid)
        who = f"producer-{self.entry.producer_id}"
        self.courier.do(lambda: self.registry.write_fault(uid, who, error))
        if uid in self._streams:
            self._close(uid)

    # answers of ranks

    def _take_answers(self) -> None:
        """Not before etcd has been asked anew where this process was stopped: the ranks that answered may have been
        given up meanwhile, and what they have acknowledged since is nowhere.
        """
        self._unread += self.links.answers()
        if self.detector.was_stopped():
            self._ask_anew()
        if self._answered < self._asked:
            return
        unread, self._unread = self._unread, []
        for answer in unread:
            stream = self._streams.get(UUID(bytes=answer.scan_uid))
            if stream is not None:
                stream.sender.take(answer)

    def _ask_anew(self) -> None:
        _log.warning("this process was stopped for a while; asking etcd who is still there")
        self._asked += 1
        question, uids = self._asked, list(self._streams)

        def ask() -> None:
            table, shares = None, {}
            try:
                shares = {uid: self.registry.shares(uid) for uid in uids}
                table = self.registry.latest_routing()
            except EtcdUnreachable:
                raise  # it is asked again
            except CoordinationError as error:
                _log.error("not all that etcd holds can be read: %s", error)
            self.news.put(CaughtUp(question, table, shares))

        self.courier.do(ask)

    def _catch_up(self, news: CaughtUp) -> None:
        self._answered = news.question
        for uid, shares in news.shares.items():
            self.book.learn(uid, shares)
            self._reconcile(uid)
        if news.table is not None:
            self._adopt(news.table)

    # for people

    def _seconds_until_turn(self) -> float:
        """How long nothing is to be done unless something comes."""
        captures = (stream.sender.supply.seconds_until_capture() for stream in self._streams.values())
        turn_seconds = _TURN_SECONDS if self._streams else _IDLE_TURN_SECONDS
        look_seconds = self.camera.seconds_until_look if self.camera is not None else _IDLE_TURN_SECONDS
        return min(turn_seconds, look_seconds, *captures)

    def _say_status(self, current: UUID | None) -> None:
        """Of the scan whose blocks go out, once a second."""
        now = time.monotonic()
        if now < self._status_due:
            return
        self._status_due = now + _STATUS_SECONDS
        status: dict[str, int | str] = {"scan": "", "sector": self.entry.sector, "table": self.entry.table}
        if current in self._streams:
            status |= self._streams[current].sender.status()
        if self.camera is not None:
            status |= self.camera.status()
        for stream in self._streams.values():
            stream.report_losses()
        name = str(self.entry.producer_id)
        self.courier.say(lambda: self.registry.write_status("producers", name, status))
