import os

import h5py
import numpy as np
import pytest

from mpistream.model.errors import StorageError
from mpistream.storage import placement
from mpistream.storage.disk_file import DiskFile, hdf5_on_disk
from mpistream.storage.placement import check_target, partial_path, publish, readable_bytes


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
    with pytest.raises(StorageError, match=r"needs 1000000.0 TB, .* is free in") as caught:
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
