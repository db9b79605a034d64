"""A producer process: reads one sector of every scan that is announced, and sends it."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from mpistream.acquisition.producer import SectorSender, SendWindow
from mpistream.acquisition.source import open_source
from mpistream.control.coordination import Change
from mpistream.control.registry import ProducerEntry, Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, CoordinationError, MpistreamError, ScanFailed
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.protocol import Hello
from mpistream.model.scan import ScanRecord
from mpistream.pipeline.process import connect_etcd, new_incarnation, on_termination, open_registry, persist
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import AnswerOutlet, DataOutlet, Sockets

_log = logging.getLogger(__name__)

_STOP: Change = ("stop", None)
_SENDING = (ScanState.STREAMING, ScanState.DRAINING)


def run_producer(config: Config, sector: int) -> None:
    """Serves scan after scan until it is told to end. The producer's id is its sector."""
    news: Mailbox[Change] = Mailbox()
    on_termination(lambda: news.put(_STOP))
    entry = ProducerEntry(sector, sector, socket.gethostname(), os.getpid(), new_incarnation())
    with connect_etcd(config) as etcd:
        registry = open_registry(config, etcd)
        watch = registry.watch_scans(news.put)
        registration = registry.register_producer(entry)
        sockets = Sockets()
        sockets.wait_for(news)
        _log.info("producer of sector %d waits for scans", sector)
        try:
            _Producer(config, entry, registry, sockets, news).serve()
        finally:
            sockets.close()
            registration.close()
            watch.close()


@dataclass
class _Producer:
    config: Config
    entry: ProducerEntry
    registry: Registry
    sockets: Sockets
    news: Mailbox[Change]
    stopping: bool = False
    _states: dict[UUID, ScanState] = field(default_factory=dict)
    _served: set[UUID] = field(default_factory=set)

    def serve(self) -> None:
        self._give_up_interrupted()
        while not self.stopping:
            self.news.wait_into(self._take, timeout_seconds=1.0)
            while (uid := self._next_scan()) is not None and not self.stopping:
                self._served.add(uid)
                self._serve_scan(uid)

    def _next_scan(self) -> UUID | None:
        waiting = (uid for uid, state in self._states.items() if state in _SENDING and uid not in self._served)
        return next(waiting, None)

    def _give_up_interrupted(self) -> None:
        """Scans that were streaming before this process started: what an earlier one had under way is gone."""
        for change in self.news.take():
            self._take(change)
        while (uid := self._next_scan()) is not None:
            self._served.add(uid)
            error = ScanFailed(
                f"the producer of sector {self.entry.sector} was restarted during the scan", "run the scan again"
            )
            self._report(uid, error)

    def _take(self, change: Change) -> None:
        key, value = change
        if change is _STOP:
            self.stopping = True
        elif key.endswith("/state") and value is not None:
            try:
                uid, state = UUID(key.removesuffix("/state")), ScanStatus.from_json(value).state
            except (ValueError, KeyError, TypeError) as error:
                _log.error("ignored scans/%s in etcd: %r", key, error)
                return
            # Entered anew: scans are served in the order in which they began to stream, alike by all producers.
            self._states.pop(uid, None)
            if state.is_final:
                self._served.discard(uid)
            else:
                self._states[uid] = state

    def _serve_scan(self, uid: UUID) -> None:
        """Whatever goes wrong with one scan ends that scan, with its reason on the user's screen."""
        try:
            self._send_scan(uid)
        except MpistreamError as error:
            _log.error("scan %s: %s", uid, error)
            self._report(uid, error)
        except Exception as error:
            self._report(uid, ScanFailed(f"the producer of sector {self.entry.sector} failed: {error!r}"))
            raise

    def _report(self, uid: UUID, error: MpistreamError) -> None:
        try:
            self._persist(lambda: self.registry.write_fault(uid, f"producer-{self.entry.producer_id}", error))
        except CoordinationError as unreachable:
            _log.error("scan %s: the failure could not be reported: %s", uid, unreachable)

    def _persist(self, action: Callable[[], None]) -> None:
        persist(action, self.config.stream.patience_seconds)

    def _send_scan(self, uid: UUID) -> None:
        record = self.registry.record(uid)
        if record is None:
            raise CoordinationError(f"scan {uid} has a state but no record")
        check_window(self.config, record)
        source = open_source(record.source, self.entry.sector)
        try:
            with self._links(record) as (outlet_of, answers):
                sender = SectorSender(
                    record,
                    source,
                    self.entry.producer_id,
                    self.entry.incarnation,
                    SendWindow(
                        self.config.stream.producer_blocks(record.block_frames), record.block_frames * RECORD_BYTES
                    ),
                    self.sockets,
                    outlet_of,
                    answers,
                    lambda: self._still_wanted(uid),
                    self.config.stream.patience_seconds,
                )
                end = sender.send_all()
                if end is not None:
                    self._persist(lambda: self.registry.write_end(uid, end))
                    sender.wait_until_acknowledged()
        finally:
            source.close()

    def _still_wanted(self, uid: UUID) -> bool:
        for change in self.news.take():
            self._take(change)
        return not self.stopping and self._states.get(uid) is not None

    @contextmanager
    def _links(self, record: ScanRecord) -> Iterator[tuple[Callable[[int], DataOutlet], list[AnswerOutlet]]]:
        """Connections for one scan: to an aggregator, or to every rank. They end with it: nothing of a scan that was
        aborted stays behind in a queue.
        """
        hello = Hello(self.entry.producer_id)
        if record.direct:
            table = self.registry.routing(record.routing_version)
            outlets = [self.sockets.data_outlet(rank.data_endpoint) for rank in table.ranks]
            answers = [self.sockets.answer_outlet(rank.answer_endpoint, hello) for rank in table.ranks]
            uid = record.uid.bytes

            def outlet_of(block: int) -> DataOutlet:
                return outlets[table.rank_of(uid, block)]
        else:
            aggregators = self.registry.aggregators()
            if not aggregators:
                raise ScanFailed("no aggregator is registered", "start one, or stream with --direct")
            aggregator = aggregators[self.entry.sector % len(aggregators)]
            outlets = [self.sockets.data_outlet(aggregator.data_endpoint)]
            answers = [self.sockets.answer_outlet(aggregator.answer_endpoint, hello)]

            def outlet_of(block: int) -> DataOutlet:
                return outlets[0]

        try:
            yield outlet_of, answers
        finally:
            for outlet in outlets:
                self.sockets.forget(outlet)
            for answer in answers:
                self.sockets.forget(answer)


def check_window(config: Config, record: ScanRecord) -> None:
    """Raises ConfigError where the calibration sample cannot be under way at once: the scan would wait for ever."""
    window_blocks = config.stream.producer_blocks(record.block_frames)
    if record.counting.background is None and len(record.sample_blocks) > window_blocks:
        raise ConfigError(
            f"calibration looks at {len(record.sample_blocks)} blocks, but only {window_blocks} "
            "may be under way per sector",
            "raise [stream] window_bytes, lower --sample-frames, or give --background and --xray",
        )
