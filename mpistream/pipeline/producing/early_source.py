"""The source of the next scan, opened while the one before it still streams."""

import logging
import threading
from concurrent.futures import Future
from uuid import UUID

from mpistream.acquisition.source import SectorSource, can_be_opened_early, open_source
from mpistream.model.errors import MpistreamError
from mpistream.model.scan import ScanRecord

_log = logging.getLogger(__name__)


class EarlySource:
    """At most one source at a time, opened by a thread of its own: to index the files of a large scan takes seconds, in
    which nothing would be sent. Only sources that lose nothing by it.
    """

    def __init__(self, sector: int) -> None:
        self._sector = sector
        self._uid: UUID | None = None
        self._source: Future[SectorSource] | None = None

    def prepare(self, record: ScanRecord | None) -> None:
        """From now on that scan's source is the one that is open, or none."""
        uid = record.uid if record is not None else None
        if uid == self._uid:
            return
        self.close()
        self._uid = uid
        if record is not None and can_be_opened_early(record.source):
            source: Future[SectorSource] = Future()
            self._source = source
            threading.Thread(
                target=_open, args=(record.source, self._sector, source), name="early source", daemon=True
            ).start()

    def take(self, uid: UUID) -> SectorSource | None:
        """The source of a scan whose turn has come, as soon as it is open; None where it was not prepared, or could not
        be opened: then it is to be tried again, now that it is needed.
        """
        if uid != self._uid or self._source is None:
            return None
        source, self._source = self._source, None
        try:
            return source.result()
        except MpistreamError as error:
            _log.warning("scan %s: opened early, its source failed: %s", uid, error.message)
            return None

    def close(self) -> None:
        """What is open, or will be in a moment, and was not taken."""
        if self._source is not None:
            self._source.add_done_callback(_close)
        self._uid = self._source = None


def _open(specification: str, sector: int, source: "Future[SectorSource]") -> None:
    try:
        source.set_result(open_source(specification, sector))
    except BaseException as error:
        source.set_exception(error)


def _close(source: "Future[SectorSource]") -> None:
    if source.exception() is None:
        source.result().close()
