"""Small files made by commands: references, thresholds, pictures. They get their names when all are complete."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from mpistream.model.errors import StorageError
from mpistream.storage.placement import check_target, partial_path, publish, remove_partial, storage_error


def check_targets(targets: list[Path], overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raises StorageError unless files can become ``targets``, which are absolute, and none is one of ``inputs``."""
    there = [path for path in inputs if path.exists()]
    for target in targets:
        if target.exists() and any(target.samefile(path) for path in there):
            raise StorageError(f"{target} is read by this command", "give the output another name")
        check_target(target, overwrite)
    if len(set(targets)) < len(targets):
        raise StorageError("two outputs have the same name", "give each output a name of its own")


def save_files(contents: Mapping[Path, Callable[[IO[bytes]], object]], overwrite: bool) -> None:
    """Lets each function write to a file, then gives all files their names, which are absolute. Raises StorageError.

    Without ``overwrite`` all get their names or none does. With it they get them one after the other, and a folder that
    refuses one of them leaves those before it replaced.
    """
    check_targets(list(contents), overwrite)
    tag = uuid4().hex
    try:
        for target, write in contents.items():
            with _disk_errors(target), partial_path(target, tag).open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        _publish_all(list(contents), tag, overwrite)
    finally:
        for target in contents:
            remove_partial(target, tag)


def _publish_all(targets: list[Path], tag: str, overwrite: bool) -> None:
    published: list[Path] = []
    try:
        for target in targets:
            with _disk_errors(target):
                publish(partial_path(target, tag), target, overwrite)
            published.append(target)
    except BaseException:
        # without ``overwrite`` these names were free before
        for target in published if not overwrite else ():
            with suppress(OSError):
                target.unlink()
        raise


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(f"{target} cannot be written", error, "check the folder and the space left") from error
