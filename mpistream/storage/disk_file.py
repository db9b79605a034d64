"""HDF5 files on disks that may fail.

When HDF5 1.10 cannot write a file's last metadata, closing the file fails, and the process crashes some time later in a
file that no longer exists for it. So HDF5 writes through an object that never refuses and remembers the first error.
"""

import io
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

import h5py

from mpistream.storage.placement import flush_to_disk, partial_path, publish, remove_partial, storage_error


class DiskFile(io.RawIOBase):
    """Writes go to the disk until the first one fails; from then on they are kept in memory, where reads find them."""

    def __init__(self, path: Path, mode: Literal["w", "r+"]) -> None:
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if mode == "w" else 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._path = path
        self._size = os.fstat(self._descriptor).st_size
        self._position = 0
        self._kept: list[tuple[int, bytes]] = []
        self.failure: OSError | None = None

    def check(self) -> None:
        """Raises the first error there was."""
        if self.failure is not None:
            raise OSError(self.failure.errno, self.failure.strerror, str(self._path))

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Fills all of ``buffer``: what was never written reads as zeros."""
        view = memoryview(buffer).cast("B")
        begin, end = self._position, self._position + len(view)
        done = 0
        while done < len(view) and (count := os.preadv(self._descriptor, [view[done:]], begin + done)):
            done += count
        view[done:] = bytes(len(view) - done)
        for offset, data in self._kept:
            first, last = max(begin, offset), min(end, offset + len(data))
            if first < last:
                view[first - begin : last - begin] = data[first - offset : last - offset]
        self._position = end
        return len(view)

    def write(self, data: "memoryview") -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        if self.failure is None:
            try:
                write_fully(self._descriptor, view, self._position)
            except OSError as error:
                self.failure = error
        if self.failure is not None:
            self._kept.append((self._position, bytes(view)))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        if self.failure is None:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError as error:
                self.failure = error
        return self._size


def write_fully(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of ``data`` at ``offset``. Raises OSError."""
    while data:
        # a write that meets a limit stops short, and the next one says why
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


@contextmanager
def hdf5_on_disk(path: Path, mode: Literal["w", "r+"]) -> Iterator[tuple[h5py.File, DiskFile]]:
    """An HDF5 file for writing by one process. Raises OSError on leaving if anything did not reach the disk.

    Who writes much calls ``DiskFile.check`` now and then, since what cannot be written is kept in memory.
    """
    with closing(DiskFile(path, mode)) as disk:
        try:
            with h5py.File(disk, mode) as file:
                yield file, disk
        finally:
            # the disk's own error explains more than what HDF5 made of it
            disk.check()


@contextmanager
def whole_hdf5_file(target: Path, overwrite: bool) -> Iterator[tuple[h5py.File, DiskFile]]:
    """As ``hdf5_on_disk``, for a file that gets its name, which is absolute, when it is complete and on the disk.

    Raises StorageError, and then leaves nothing behind.
    """
    tag = uuid4().hex
    partial = partial_path(target, tag)
    try:
        with hdf5_on_disk(partial, "w") as opened:
            yield opened
        flush_to_disk(partial)
        publish(partial, target, overwrite)
    except OSError as error:
        raise storage_error(f"{target} cannot be written", error, "free space, or choose another folder") from error
    finally:
        remove_partial(target, tag)
