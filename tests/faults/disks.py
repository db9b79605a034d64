"""A disk that is too small, and can be made larger: a file system in memory. Needs root."""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOM_BYTES = 1 << 30


class SmallDisk:
    """Mounted at ``folder``; a context manager."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self._size_bytes = size_bytes

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            _run("mount", "-t", "tmpfs", "-o", f"size={self._size_bytes}", "faults", str(self.folder))
        except BaseException:
            self.folder.rmdir()
            raise
        return self

    def grow(self) -> None:
        """There is room for everything from now on."""
        _run("mount", "-o", f"remount,size={_ROOM_BYTES}", str(self.folder))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _run("umount", "--lazy", str(self.folder))
        self.folder.rmdir()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
