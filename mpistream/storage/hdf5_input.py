"""HDF5 files that are read: opened whatever the file system thinks of locks, checked before anything relies on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from mpistream.model import h5_layout as layout
from mpistream.model.errors import StorageError


def open_hdf5(path: Path) -> h5py.File:
    """For reading. Raises StorageError where there is no whole HDF5 file."""
    if not path.is_file():
        raise StorageError(f"{path} is {'a folder' if path.is_dir() else 'not there'}", "check the path")
    try:
        return _open_file(path)
    except PermissionError as error:
        raise StorageError(f"{path} may not be read by this user", "ask its owner for permission") from error
    except OSError as error:
        if "truncated" in str(error):
            raise StorageError(f"{path} is truncated: {error}", "copy it again or repeat the scan") from error
        raise StorageError(f"{path} is no HDF5 file: {error}", "give the path of an mpistream dataset") from error


@contextmanager
def kept_open(path: Path, remedy: str) -> Iterator[h5py.File]:
    """The file for whoever checks it and keeps it: open afterwards, but closed where that fails.

    What is not in it where it should be is a StorageError with this ``remedy``.
    """
    file = open_hdf5(path)
    try:
        yield file
    except KeyError as error:
        file.close()
        raise StorageError(f"{path} is damaged: {error}", remedy) from error
    except BaseException:
        file.close()
        raise


def format_of(path: Path) -> str:
    """What kind of file it says it is; empty where it does not. Raises StorageError where there is no HDF5 file."""
    with open_hdf5(path) as file:
        return str(file.attrs.get(layout.FORMAT_ATTRIBUTE, ""))


def _open_file(path: Path) -> h5py.File:
    """With HDF5's own locking, so that others may open the file too; without where the file system refuses locks."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        # safe: a dataset never changes under its final name
        return h5py.File(path, "r", locking=False)


def check_version(file: h5py.File, path: Path, known: int) -> None:
    """Raises StorageError where a later release has written the file."""
    version = int(file.attrs.get(layout.FORMAT_VERSION_ATTRIBUTE, 0))
    if version > known:
        raise StorageError(
            f"{path} has format version {version}; this release reads up to {known}", "open it with a newer mpistream"
        )


def check_event_arrays(file: h5py.File, path: Path) -> None:
    """Raises StorageError unless the sizes of the event arrays fit each other."""
    damaged = StorageError(f"{path} is damaged: its event arrays do not fit each other", "copy it again")
    arrays = {name: file.get(name) for name in layout.EVENT_DTYPES}
    if not all(isinstance(array, h5py.Dataset) and array.ndim == 1 for array in arrays.values()):
        raise damaged
    rows = {name: len(array) for name, array in arrays.items()}
    frames = rows[layout.FRAME_NUMBER]
    if not rows[layout.OFFSETS] - 1 == rows[layout.SCAN_POSITION] == rows[layout.MISSING_SECTORS] == frames:
        raise damaged
    if arrays[layout.OFFSETS][0] != 0 or arrays[layout.OFFSETS][-1] != rows[layout.INDICES]:
        raise damaged
    if layout.CENTROIDS in file and getattr(file[layout.CENTROIDS], "shape", None) != (rows[layout.INDICES], 2):
        raise damaged


@contextmanager
def read_to_its_end(path: str | Path) -> Iterator[None]:
    """While a file is read that may be damaged anywhere: that is a StorageError."""
    try:
        yield
    except BrokenPipeError:
        raise  # of the work's own output
    except (OSError, LookupError, TypeError, RuntimeError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}", "copy it again, or repeat the scan") from error
