import errno
import os

import h5py
import numpy as np
import pytest

from mpistream.model.errors import NoRoomError, StorageError
from mpistream.storage import placement
from mpistream.storage.disk_file import DiskFile, hdf5_on_disk
from mpistream.storage.placement import (
    check_target,
    partial_path,
    publish,
    readable_bytes,
    remove_partials,
    storage_error,
)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "scan.h5"


@pytest.fixture
def partial(target):
    partial = partial_path(target, "7")
    partial.write_text("new")
    return partial


def test_publish_gives_the_file_its_name(partial, target):
    assert partial.name == "scan.h5.partial.7"
    assert publish(partial, target, overwrite=False) == 3
    assert os.listdir(target.parent) == ["scan.h5"]
    assert target.read_text() == "new"


def test_publish_never_replaces_unasked(partial, target):
    """Also what came to exist while the dataset was being written."""
    target.write_text("old")
    with pytest.raises(StorageError, match="exists"):
        publish(partial, target, overwrite=False)
    assert target.read_text() == "old"
    publish(partial, target, overwrite=True)
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["scan.h5"]


def test_a_dangling_link_counts_as_existing(partial, target):
    target.symlink_to("nowhere")
    with pytest.raises(StorageError, match="exists"):
        check_target(target, False, 1)
    with pytest.raises(StorageError, match="exists"):
        publish(partial, target, overwrite=False)


def test_space_is_checked(target):
    check_target(target, False, 1)
    with pytest.raises(NoRoomError, match=r"needs 1000000.0 TB, .* is free in") as caught:
        check_target(target, False, 10**18)
    assert "free space" in caught.value.remedy
    with pytest.raises(StorageError, match="does not exist") as caught:
        check_target(target.parent / "no" / "scan.h5", False, 1)
    assert "mkdir -p" in caught.value.remedy
    with pytest.raises(StorageError, match="is a folder"):
        check_target(target.parent, True, 1)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1.5e9, "1.5 GB"), (7e15, "7000.0 TB")]
)
def test_readable_bytes(count, text):
    assert readable_bytes(count) == text


def test_hdf5_through_a_disk_file_is_an_ordinary_file(target):
    with hdf5_on_disk(target, "w") as (file, disk):
        file["first"] = np.arange(100_000)
        disk.check()
    with hdf5_on_disk(target, "r+") as (file, _):
        file["second"] = "text"
        file["first"][5] = 0
    with h5py.File(target) as file:
        assert file["first"][:7].tolist() == [0, 1, 2, 3, 4, 0, 6]
        assert file["second"][()] == b"text"


def test_after_a_failure_hdf5_goes_on_and_the_disks_error_is_raised():
    """/dev/full refuses every write, as a full disk does; what is written must still be read back."""
    with pytest.raises(OSError, match="No space left on device"), hdf5_on_disk("/dev/full", "r+"):
        pass  # not an HDF5 file: the first read fails, and no write has
    disk = DiskFile("/dev/full", "r+")
    assert disk.write(b"0123456789") == 10
    disk.seek(3)
    disk.write(b"ABC")
    disk.seek(1)
    assert disk.read(6) == b"12ABC6"
    assert disk.seek(0, os.SEEK_END) == 10
    with pytest.raises(OSError, match="No space left on device"):
        disk.check()
    disk.close()


def test_a_folder_that_cannot_be_written_to_is_named(target, monkeypatch):
    """root may write everywhere: what the system says is made up."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match=f"the folder {target.parent} is not writable") as caught:
        check_target(target, False)
    assert caught.value.remedy


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_dataset_that_has_its_name_is_not_called_lost(partial, target, monkeypatch, overwrite):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(placement, "flush_to_disk", lambda path: fail(path) if path.is_dir() else None)
    assert publish(partial, target, overwrite) == 3
    assert os.listdir(target.parent) == ["scan.h5"]


def test_a_file_that_has_its_name_already_is_published(partial, target):
    """A crash, or a network file system that repeats a request, leaves both names."""
    os.link(partial, target)
    assert publish(partial, target, overwrite=False) == 3
    assert os.listdir(target.parent) == ["scan.h5"]
    os.link(target, partial)
    assert publish(partial, target, overwrite=True) == 3
    assert os.listdir(target.parent) == ["scan.h5"]


def test_a_symbolic_link_to_the_partial_file_is_not_the_dataset(partial, target):
    target.symlink_to(partial)
    with pytest.raises(StorageError, match="exists"):
        publish(partial, target, overwrite=False)
    assert partial.read_text() == "new"


def test_without_hard_links_a_rename_gives_the_name(partial, target, monkeypatch):
    def refuse(source, link):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    target.write_text("old")
    with pytest.raises(StorageError, match="exists"):
        publish(partial, target, overwrite=False)
    target.unlink()
    assert publish(partial, target, overwrite=False) == 3
    assert os.listdir(target.parent) == ["scan.h5"]


def test_whatever_is_left_of_a_scan_goes(target):
    mine = [partial_path(target, tag) for tag in ("ab12", "ab12.1", "ab12.17")]
    others = [partial_path(target, "cd34.1"), target, target.with_name("other.h5.partial.ab12.1")]
    for path in (*mine, *others):
        path.touch()
    remove_partials(target, "ab12")
    assert set(target.parent.iterdir()) == set(others)
    remove_partials(target.parent / "missing" / "scan.h5", "ab12")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), NoRoomError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), NoRoomError),
        (OSError("Can't write data (errno = 28, error message = 'No space left on device')"), NoRoomError),
        (OSError("MPI_ERR_NO_SPACE: no space left"), NoRoomError),
        (OSError(errno.EIO, "Input/output error"), StorageError),
    ],
)
def test_a_full_disk_is_told_apart(error, kind):
    told = storage_error("it cannot be written", error, "free space")
    assert type(told) is kind
    assert told.message.startswith("it cannot be written: ")
    assert told.remedy == "free space"
