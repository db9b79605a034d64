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


@pytest.mark.parametrize("taken", ["second", "third"])
def test_files_get_their_names_together(tmp_path: Path, taken: str) -> None:
    """Or none does: here one of the names is taken at the last moment."""
    paths = [tmp_path / name for name in ("first", "second", "third")]

    def somebody_comes_first(file: IO[bytes]) -> None:
        (tmp_path / taken).write_bytes(b"other")

    contents = {path: (lambda file: file.write(b"new")) for path in paths[:2]} | {paths[2]: somebody_comes_first}
    with pytest.raises(StorageError, match=f"{taken} exists"):
        save_files(contents, False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(taken, b"other")]


def test_what_is_replaced_stays_replaced(tmp_path: Path) -> None:
    """There is no way back to the old file: it is named, and so is what could not be replaced."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"old")
    with pytest.raises(StorageError, match="second cannot be written"):
        save_files({first: lambda file: file.write(b"new"), second: lambda file: second.mkdir()}, True)
    assert first.read_bytes() == b"new"
    assert not list(second.iterdir())


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    source, link, other = tmp_path / "scan.h5", tmp_path / "link.h5", tmp_path / "other"
    source.write_bytes(b"frames")
    link.symlink_to(source)
    for target in (source, link, tmp_path / "." / "scan.h5"):
        for overwrite in (True, False):
            with pytest.raises(StorageError, match="is read by this command") as caught:
                check_targets([other, target], overwrite, [tmp_path / "absent", source])
            assert caught.value.remedy
    check_targets([other], False, [source, tmp_path / "absent"])
    check_targets([tmp_path / "absent"], False, [source, tmp_path / "absent"])


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    same = tmp_path / "same.npy"
    for targets, message in (([same, same], "same name"), ([tmp_path], "folder"), ([tmp_path / "no" / "x"], "exist")):
        with pytest.raises(StorageError, match=message) as caught:
            check_targets(targets, True)
        assert caught.value.remedy
