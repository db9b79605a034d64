"""One scan of a producer: its source, its sender and their connections, from its first block to its end."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpistream.acquisition.block_supply import BlockSupply, LiveBlocks, ReadableBlocks, SendWindow
from mpistream.acquisition.producer import SectorSender
from mpistream.acquisition.sector_source import SectorSource
from mpistream.acquisition.source import open_source
from mpistream.acquisition.spill import Spill, spill_path
from mpistream.control.registry import ProducerEntry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, SourceError
from mpistream.model.fault_points import reach
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.scan import ScanRecord, SectorEnd
from mpistream.pipeline.producing.camera_intake import CameraIntake
from mpistream.pipeline.producing.camera_scans import is_of_camera
from mpistream.pipeline.producing.early_source import EarlySource
from mpistream.pipeline.producing.links import ProducerLinks, ScanOutlets

_log = logging.getLogger(__name__)


@dataclass
class SectorStream:
    """A scan that is being served. ``write_end`` brings its end record to etcd, when it can."""

    sender: SectorSender
    links: ProducerLinks
    outlets: ScanOutlets
    write_end: Callable[[SectorEnd], None]
    has_ended: bool = False
    _reported: tuple[int, int] = (0, 0)

    @classmethod
    def open(
        cls,
        config: Config,
        entry: ProducerEntry,
        facts: ScanFacts,
        links: ProducerLinks,
        early: EarlySource,
        write_end: Callable[[SectorEnd], None],
        is_resumed: bool,
        camera: CameraIntake | None = None,
    ) -> "SectorStream":
        """``camera`` has what the camera sends to this producer. Raises SourceError, ConfigError."""
        record = facts.record
        assert record is not None
        assert facts.status is not None
        check_window(config, record)
        source, supply = _opened(config, entry.sector, record, facts.status, early, camera)
        outlets = links.open(record.direct)
        sender = SectorSender(
            record,
            source,
            supply,
            entry.producer_id,
            entry.incarnation,
            outlets.outlet_of,
            config.stream.patience_seconds,
            is_resumed,
        )
        if links.table is not None:
            sender.adopt(links.table)
        sender.reconcile(facts.shares)
        return cls(sender, links, outlets, write_end, has_ended=entry.sector in facts.ends)

    def send_next(self) -> bool:
        """Sends a block; False where nothing can be sent for now. Raises SourceError."""
        has_sent = self.sender.send_next()
        if self.sender.has_sent_all:
            self._end_once()
        if not has_sent:
            self._note_silence()
        return has_sent

    def _end_once(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            reach("producer.before-end")
            self.write_end(self.sender.end())

    def _note_silence(self) -> None:
        if silence := self.sender.silence():
            _log.warning("scan %s: %s; waiting", self.sender.record.uid, silence)

    @property
    def is_idle(self) -> bool:
        """Nothing is to be done for it, unless a job turns out to have lost something."""
        return self.sender.is_complete and self.has_ended

    def report_losses(self) -> None:
        """Says in the log what a live source has lost since the last time."""
        dropped, lost = self.sender.supply.blocks_dropped, self.sender.source.frames_lost
        if (dropped, lost) != self._reported:
            self._reported = dropped, lost
            _log.warning(
                "scan %s, sector %d: %d blocks dropped for want of room, %d frames not there when they were read",
                self.sender.record.uid,
                self.sender.source.sector,
                dropped,
                lost,
            )

    def close(self, is_over: bool) -> None:
        """``is_over``: the scan has ended; otherwise only this process."""
        self.links.close(self.outlets)
        self.sender.supply.close(is_over)


def _opened(
    config: Config,
    sector: int,
    record: ScanRecord,
    status: ScanStatus,
    early: EarlySource,
    camera: CameraIntake | None,
) -> tuple[SectorSource, BlockSupply]:
    if is_of_camera(record):
        if camera is None:
            raise SourceError(
                f"the producer of sector {sector} does not listen to the camera",
                "start all four with --camera: mpistream produce --sector N --camera tcp://HOST:PORT",
            )
        return camera.stream(record)
    source = early.take(record.uid)
    if source is None:
        source = open_source(record.source, sector, _streaming_since(record, status))
    try:
        return source, _supply(config, record, source)
    except BaseException:
        source.close()
        raise


def _supply(config: Config, record: ScanRecord, source: SectorSource) -> BlockSupply:
    blocks = config.stream.producer_blocks(record.block_frames)
    window = SendWindow(blocks, record.block_frames * RECORD_BYTES)
    if not source.is_live:
        return ReadableBlocks(record, source, window)
    spill = None
    if config.stream.spill_directory:
        path = spill_path(Path(config.stream.spill_directory), record.uid, source.sector)
        spill = Spill(path, source.sector, config.stream.spill_bytes)
    return LiveBlocks(record, source, window, spill)


def _streaming_since(record: ScanRecord, status: ScanStatus) -> float:
    """When the scan's first frame came, in Unix seconds. Of a scan that is draining the last one came before that."""
    return status.since_unix_seconds if status.state is ScanState.STREAMING else float("-inf")


def check_window(config: Config, record: ScanRecord) -> None:
    """Raises ConfigError where the calibration sample cannot be under way at once: the scan would wait for ever."""
    window_blocks = config.stream.producer_blocks(record.block_frames)
    if record.counting.background is None and len(record.sample_blocks) > window_blocks:
        raise ConfigError(
            f"calibration looks at {len(record.sample_blocks)} blocks, but only {window_blocks} "
            "may be under way per sector",
            "raise [stream] window_bytes, lower --sample-frames, or give --background and --xray",
        )
