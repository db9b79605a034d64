"""Small files made by commands: references, thresholds, pictures. They get their names when all are complete."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO
from uuid import uuid4

from mpistream.model.errors import StorageError
from mpistream.storage.placement import check_target, partial_path, publish, remove_partial


def check_targets(targets: list[Path], overwrite: bool) -> None:
    """Raises StorageError unless files can become ``targets``, which are absolute."""
    for target in targets:
        check_target(target, overwrite)
    if len(set(targets)) < len(targets):
        raise StorageError("two outputs have the same name", "give each output a name of its own")


def save_files(contents: Mapping[Path, Callable[[IO[bytes]], object]], overwrite: bool) -> None:
    """Lets each function write to a file, then gives all files their names, which are absolute. Raises StorageError."""
    check_targets(list(contents), overwrite)
    tag = uuid4().hex
    try:
        for target, write in contents.items():
            with partial_path(target, tag).open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for target in contents:
            publish(partial_path(target, tag), target, overwrite)
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error.strerror or error}", "check the folder and the space left"
        ) from error
    finally:
        for target in contents:
            remove_partial(target, tag)
