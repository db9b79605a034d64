"""Where a dataset is put: space for it, its name while it is written, and its name once it is complete."""

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path

from mpistream.model.errors import NoRoomError, StorageError
from mpistream.model.fault_points import reach

#: What os.link answers on file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}


#: What the system answers where a disk is full or a quota used up.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
#: The same in the words of HDF5 and of MPI, which do not always pass the number on.
_NO_ROOM_TEXTS = (os.strerror(errno.ENOSPC).lower(), os.strerror(errno.EDQUOT).lower(), "err_no_space", "err_quota")


def is_no_room(error: OSError) -> bool:
    return error.errno in _NO_ROOM or any(text in str(error).lower() for text in _NO_ROOM_TEXTS)


def storage_error(what: str, error: OSError, remedy: str) -> StorageError:
    """``"WHAT: the system's reason"``: a NoRoomError where there is no space left."""
    kind = NoRoomError if is_no_room(error) else StorageError
    return kind(f"{what}: {error.strerror or error}", remedy)


def partial_path(target: Path, tag: str) -> Path:
    """The name of the dataset while it is written, in the same folder."""
    return target.with_name(f"{target.name}.partial.{tag}")


def remove_partial(target: Path, tag: str) -> None:
    """Removes what was written of a dataset that will not be completed."""
    # where the folder is gone or refuses, the error that led here says so
    with contextlib.suppress(OSError):
        partial_path(target, tag).unlink(missing_ok=True)


def remove_partials(target: Path, uid_hex: str) -> None:
    """Removes whatever any writer of the scan has left of it."""
    begin = partial_path(target, uid_hex).name
    # where the folder is gone or refuses, there is nothing to be removed, or the next writer says so
    with contextlib.suppress(OSError):
        for path in list(target.parent.iterdir()):
            if path.name.startswith(begin):
                with contextlib.suppress(OSError):
                    path.unlink()


def check_target(target: Path, overwrite: bool, needed_bytes: int = 0) -> None:
    """Raises StorageError unless a file of ``needed_bytes`` can become ``target``: NoRoomError without the space."""
    folder = target.parent
    if not folder.is_dir():
        raise StorageError(f"the folder {folder} does not exist", f"make it: mkdir -p {folder}")
    if target.is_dir():
        raise StorageError(f"{target} is a folder", "give the name of a file")
    if not overwrite and os.path.lexists(target):
        raise _exists(target)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"the folder {folder} is not writable", "change its permissions, or choose another folder")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise NoRoomError(
            f"{target} needs {readable_bytes(needed_bytes)}, {readable_bytes(free_bytes)} is free in {folder}",
            "free space there, or choose another output",
        )


def reserve_space(path: Path) -> bool:
    """Lets the disk set aside what ``path`` will need: its present size. False where the file system cannot.

    Raises OSError when there is not that much. Python's posix_fallocate would write to every block where the file
    system does not help; the system call alone says so.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    descriptor = os.open(path, os.O_RDWR)
    try:
        if libc.fallocate(descriptor, 0, 0, os.fstat(descriptor).st_size) == 0:
            return True
        error = ctypes.get_errno()
        if error in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(descriptor)


def publish(partial: Path, target: Path, overwrite: bool) -> int:
    """Gives the complete file its name in one step, without ``overwrite`` never in place of another; its bytes.

    Where both are names of the same file already, as after a crash, nothing but the partial name has to go.
    Raises StorageError if ``target`` has come to exist, OSError if the folder refuses.
    """
    file_bytes = partial.stat().st_size
    if overwrite:
        os.replace(partial, target)
    else:
        try:
            # unlike a rename, a link fails where the name is taken
            os.link(partial, target)
        except FileExistsError:
            if not _is_same_file(partial, target):
                raise _exists(target) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise _exists(target) from None
            os.rename(partial, target)
        reach("rank.between-names")
    # From here on the dataset is there: what fails now is no reason to call it lost.
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        flush_to_disk(target.parent)
    return file_bytes


def _is_same_file(one: Path, other: Path) -> bool:
    """Two names of one file; a symbolic link is no name."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def flush_to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def readable_bytes(count: int) -> str:
    """``"1.5 GB"``: decimal units, as disks are sold."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _exists(target: Path) -> StorageError:
    return StorageError(f"{target} exists", "give another output, or --overwrite to replace it")
