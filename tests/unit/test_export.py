import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from stempy.image import create_stem_images
from stempy.io import load_electron_counts

from mpistream.model.errors import StorageError
from mpistream.storage.export import export_stempy
from mpistream.storage.reader import open_dataset
from tests.mpi.launcher import run_mpi
from tests.mpi.program_write import COLUMNS, ROWS, scan_frames


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda most: f"up to {most} frames per position")
def frames_at_most(request):
    return request.param


@pytest.fixture(scope="module")
def path(tmp_path_factory, frames_at_most):
    """The scan that has most frames per position has centroids, too: there is no place for them in stempy's format."""
    path = tmp_path_factory.mktemp("export") / "scan.h5"
    variant = json.dumps({"counting": {"centroids": frames_at_most == 3}})
    run_mpi(1, "tests.mpi.program_write", path, "parallel", 2**20, frames_at_most, variant)
    return path


@pytest.fixture(scope="module", params=["file", "memory", "small chunks"])
def for_stempy(request, path, tmp_path_factory):
    """The scan as stempy has it, from the exported file or handed over in memory."""
    if request.param == "memory":
        with open_dataset(path) as dataset:
            return dataset.to_stempy()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small chunks":
            patch.setattr("mpistream.storage.export.CHUNK_SLOTS", 7)
        exported = export_stempy(path, tmp_path_factory.mktemp("exported") / "stempy.h5")
    return load_electron_counts(exported)


def test_stempy_has_every_frame_at_its_position(for_stempy, frames_at_most):
    assert for_stempy.scan_shape == (ROWS, COLUMNS)
    assert tuple(for_stempy.frame_shape) == (576, 576)
    assert for_stempy.num_frames_per_scan == frames_at_most
    for position in range(ROWS * COLUMNS):
        expected = [pixels for at, _, _, pixels in sorted(scan_frames(frames_at_most)) if at == position]
        padding = [[]] * (frames_at_most - len(expected))
        assert [frame.tolist() for frame in for_stempy.data[position]] == expected + padding


def test_stempy_adds_up_the_same(for_stempy, path):
    with open_dataset(path) as dataset:
        np.testing.assert_array_equal(for_stempy.sum(axis=(0, 1)), dataset.diffraction_sum())
        np.testing.assert_array_equal(for_stempy.sum(axis=(2, 3)), dataset.images["electron_count"])
        # stempy takes centers as (x, y), and a pixel of its masks is 65535
        dark_field = np.asarray(create_stem_images(for_stempy, (80,), (250,), center=(290, 280)))[0]
        np.testing.assert_array_equal(dark_field, 65535 * dataset.virtual_image(80, 250, (280, 290)))


def test_stempy_finds_the_counting_parameters(for_stempy):
    counting = for_stempy.metadata["electron_counting"]
    assert counting["background_threshold"] == 21.5
    assert counting["x_ray_threshold"] == 2000.25
    assert counting["threshold_calculated"]
    assert counting["std_dev"] == 2.25


def test_nothing_is_replaced_unasked(path, tmp_path):
    out = tmp_path / "stempy.h5"
    out.write_text("precious")
    with pytest.raises(StorageError, match="exists"):
        export_stempy(path, out)
    assert out.read_text() == "precious"
    export_stempy(path, out, overwrite=True)
    with h5py.File(out) as file:
        assert file.attrs["version"] == 3
    assert os.listdir(tmp_path) == ["stempy.h5"]


def test_a_dataset_is_not_exported_over_itself(path, tmp_path):
    copy = tmp_path / "scan.h5"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(StorageError, match="is read by this command"):
        export_stempy(copy, copy, overwrite=True)
    assert copy.read_bytes() == path.read_bytes()


def test_a_full_disk_is_an_error_and_leaves_nothing(path, tmp_path):
    limit = 4096
    program = (
        "import resource, sys; from mpistream.storage.export import *\n"
        "from mpistream.model.errors import StorageError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"try: export_stempy({str(path)!r}, {str(tmp_path / 'stempy.h5')!r})\n"
        "except StorageError as error: print(error.message)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "File too large" in output.stdout
    assert os.listdir(tmp_path) == []
