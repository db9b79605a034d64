"""Files of commands are complete or not there, and never replaced unasked."""

from pathlib import Path
from typing import IO

import numpy as np
import pytest

from mpistream.model.errors import StorageError
from mpistream.storage.small_files import check_targets, save_files


def no_space(file: IO[bytes]) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def test_all_files_are_written(tmp_path: Path) -> None:
    image = np.arange(6.0).reshape(2, 3)
    paths = tmp_path / "image.npy", tmp_path / "text.json"
    save_files({paths[0]: lambda file: np.save(file, image), paths[1]: lambda file: file.write(b"{}")}, False)
    np.testing.assert_array_equal(np.load(paths[0]), image)
    assert paths[1].read_bytes() == b"{}"
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    contents = {new: lambda file: file.write(b"new"), old: lambda file: file.write(b"new")}
    with pytest.raises(StorageError, match="old exists") as caught:
        save_files(contents, False)
    assert "--overwrite" in caught.value.remedy
    assert (list(tmp_path.iterdir()), old.read_bytes()) == ([old], b"old")
    save_files(contents, True)
    assert (old.read_bytes(), new.read_bytes()) == (b"new", b"new")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_fails_leaves_nothing_new(tmp_path: Path, overwrite: bool) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    if overwrite:
        first.write_bytes(b"old")
    with pytest.raises(StorageError, match=r"second cannot be written: No space left") as caught:
        save_files({first: lambda file: file.write(b"new"), second: no_space}, overwrite)
    assert caught.value.remedy
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == ([("first", b"old")] if overwrite else [])


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    same = tmp_path / "same.npy"
    for targets, message in (([same, same], "same name"), ([tmp_path], "folder"), ([tmp_path / "no" / "x"], "exist")):
        with pytest.raises(StorageError, match=message) as caught:
            check_targets(targets, True)
        assert caught.value.remedy
