"""The pixels of a recording while it is streamed: each is put at its place in the file as it comes."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from mpistream.model.errors import NoRoomError
from mpistream.model.recorded_block import PixelRun, RecordedBlock
from mpistream.model.recording_layout import PixelPlaces
from mpistream.model.scan import Durability, ScanRecord
from mpistream.storage.journal import write_all
from mpistream.storage.placement import flush_to_disk, readable_bytes, reserve_space, storage_error

_REMEDY = "free space in its folder, or make it writable; it is tried again"


def pixels_path(journals: Path) -> Path:
    """The file of a recording, among the journals of its scan."""
    return journals / "recording.h5"


def places_of(record: ScanRecord) -> PixelPlaces:
    return PixelPlaces.of(record.first_frame, record.last_frame, record.encoding)


class RecordingPixels:
    """One rank's hand on the file that all ranks of all jobs fill; whoever has the first block makes it.

    A block that several ranks write is the same bytes at the same place: so it does not matter who is the last.
    """

    def __init__(self, record: ScanRecord) -> None:
        """Makes the folder. Raises StorageError."""
        self._path = pixels_path(Path(record.journals))
        self._places = places_of(record)
        self._first_frame = record.first_frame
        self._flushes = record.durability is Durability.FSYNC
        self._descriptor = -1
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(f"the folder {self._path.parent} cannot be made", error, _REMEDY) from error

    def write(self, blocks: Sequence[RecordedBlock], seconds: float) -> int:
        """Puts blocks into the file until ``seconds`` are over: of how many, from the first on, all pixels are there,
        and on the disk with Durability.FSYNC. These are not kept in memory any more.

        Raises StorageError, NoRoomError where a disk is full: the same blocks can be written again.
        """
        until, done = time.monotonic() + seconds, 0
        try:
            self._open()
            for block in blocks:
                for run in block.pixels:
                    self._write_run(run)
                done += 1
                if time.monotonic() >= until:
                    break
            if self._flushes:
                os.fdatasync(self._descriptor)
        except OSError as error:
            raise storage_error(f"the recording {self._path} cannot be written", error, _REMEDY) from error
        for block in blocks[:done]:
            block.pixels.clear()
        return done

    def _write_run(self, run: PixelRun) -> None:
        write_all(self._descriptor, run.pixels, self._places.begin(run.sector, run.first_frame - self._first_frame))

    def _open(self) -> None:
        """Lets the disk set aside all that the recording needs, where the file system can."""
        if self._descriptor >= 0:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            found = os.fstat(descriptor)
            wanting = self._places.end - found.st_blocks * 512
            if wanting > 0:
                self._check_room(wanting)
                if found.st_size < self._places.end:
                    os.ftruncate(descriptor, self._places.end)
                reserve_space(self._path)
            if self._flushes:
                flush_to_disk(self._path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _check_room(self, wanting: int) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if free < wanting:
            raise NoRoomError(
                f"the recording needs {readable_bytes(wanting)}, {readable_bytes(free)} is free in {self._path.parent}",
                "free space there; it is tried again",
            )

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_room(record: ScanRecord) -> None:
    """Before the scan is announced. Raises NoRoomError where the output's disk is too small for the recording."""
    folder, needed = Path(record.output).parent, places_of(record).end
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < needed:
        raise NoRoomError(
            f"{record.output} needs {readable_bytes(needed)}, {readable_bytes(free)} is free in {folder}",
            "free space there, or choose another output",
        )
