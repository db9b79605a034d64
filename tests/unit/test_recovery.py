"""What is found of a scan whose job died after its dataset got its name."""

import shutil
from dataclasses import replace
from uuid import UUID

import h5py
import pytest

from mpistream.model.errors import StorageError
from mpistream.model.scan import CALIBRATION_STATISTICS, CountingParameters
from mpistream.storage.recovery import dataset_of, read_summary
from tests.mpi.launcher import run_mpi
from tests.mpi.program_write import COLUMNS, ROWS, scan_frames
from tests.scans import describe


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("recovery") / "scan.h5"
    run_mpi(2, "tests.mpi.program_write", path, "parallel", 2**20, 2, '{"calibrated": true}')
    return path


def test_the_dataset_is_known_by_its_uid(path, tmp_path):
    assert dataset_of(path) == UUID(int=0x1234)
    assert dataset_of(tmp_path) is None
    assert dataset_of(tmp_path / "nothing.h5") is None
    for name, content in (("text.h5", b"no HDF5"), ("half.h5", path.read_bytes()[: path.stat().st_size // 2])):
        (tmp_path / name).write_bytes(content)
        assert dataset_of(tmp_path / name) is None
    for attribute in ("format", "scan_uid", "scan_shape"):
        copy = shutil.copy(path, tmp_path / "copy.h5")
        with h5py.File(copy, "r+") as file:
            del file.attrs[attribute]
        assert dataset_of(copy) is None


def test_the_summary_is_that_of_the_scan(path):
    description = describe(scan_frames(2), ROWS, COLUMNS, CountingParameters())
    summary = read_summary(path)
    assert summary.dataset == str(path)
    assert summary.complete
    assert summary.scan_shape == (ROWS, COLUMNS)
    assert summary.counters == description.counters
    statistics = dict.fromkeys(CALIBRATION_STATISTICS, 64) | {
        "background_threshold_n_sigma": 4.5,
        "x_ray_threshold_n_sigma": 175.0,
    }
    expected = replace(description, thresholds=description.thresholds.model_copy(update={"statistics": statistics}))
    assert summary.thresholds == expected.thresholds
    assert summary.file_bytes == path.stat().st_size
    assert summary.seconds.keys() == {"receiving", "writing_events"}
    assert summary.warnings == ()


def test_a_scan_that_was_cut_short(path, tmp_path):
    copy = shutil.copy(path, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        file["metadata/delivery"].attrs["complete"] = False
    assert not read_summary(copy).complete


def test_a_file_that_does_not_say(path, tmp_path):
    copy = shutil.copy(path, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        del file["metadata/counters"].attrs["electrons"]
    with pytest.raises(StorageError, match="does not say how its scan went") as caught:
        read_summary(copy)
    assert caught.value.remedy
