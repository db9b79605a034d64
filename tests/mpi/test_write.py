import h5py
import numpy as np
import pytest

from mpistream.model import h5_layout as layout
from mpistream.model.virtual_images import annulus_mask, diffraction_sum, virtual_image
from mpistream.storage.reader import open_dataset
from tests.mpi.launcher import run_mpi as launch
from tests.mpi.program_write import COLUMNS, ROWS, scan_frames
from tests.scans import to_events

PROGRAM = "tests.mpi.program_write"
EXPECTED = {
    layout.INDICES: "indices",
    layout.OFFSETS: "offsets",
    layout.SCAN_POSITION: "scan_position",
    layout.FRAME_NUMBER: "frame_number",
    layout.MISSING_SECTORS: "missing_sectors",
}


@pytest.mark.parametrize("mode", ["parallel", "serial", "collective", "independent"])
@pytest.mark.parametrize("round_bytes", [64, 2**20])
def test_every_number_of_ranks_writes_the_same_arrays(ranks, mode, round_bytes, tmp_path, run_mpi):
    path = tmp_path / "scan.h5"
    run_mpi(ranks, PROGRAM, path, mode, round_bytes, 2)
    expected = to_events(sorted(scan_frames(2)))
    with h5py.File(path) as file:
        for name, dtype in layout.EVENT_DTYPES.items():
            assert file[name].dtype == np.dtype(dtype)
            assert file[name].chunks is None
            assert file[name][:].tobytes() == getattr(expected, EXPECTED[name]).tobytes(), name
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_write_with_parallel_hdf5(ranks, tmp_path, run_mpi):
    assert h5py.get_config().mpi
    run_mpi(ranks, PROGRAM, tmp_path / "scan.h5", "parallel", 2**20, 2)
    with open_dataset(tmp_path / "scan.h5") as dataset:
        table = dataset.provenance["ranks"]
        assert dataset.provenance["writing_ranks"] == ranks
        assert dataset.provenance["h5py_parallel"] is True
        assert table["driver"].tolist() == [b"mpio"] * ranks
        assert table["n_events"].min() > 0
        assert table["first_event"].tolist() == [0, *np.cumsum(table["n_events"])[:-1].tolist()]
        assert table["n_events"].sum() == dataset.n_electrons


def test_rank_zero_writes_for_all_on_request(tmp_path, run_mpi):
    run_mpi(3, PROGRAM, tmp_path / "scan.h5", "serial", 2**20, 2)
    with open_dataset(tmp_path / "scan.h5") as dataset:
        assert dataset.provenance["writing_ranks"] == 1
        assert dataset.provenance["ranks"]["driver"].tolist() == [b"posix", b"", b""]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("write") / "scan.h5"
    launch(3, PROGRAM, path, "parallel", 2**20, 3)
    with open_dataset(path) as dataset:
        yield dataset


def test_images_are_those_of_the_whole_scan(dataset):
    events = to_events(sorted(scan_frames(3)))
    for name, radii in (("bright_field", (0, 100)), ("annular_dark_field", (100, 250))):
        expected = virtual_image(events, annulus_mask((576, 576), *radii, (280.5, 290.25)), (ROWS, COLUMNS))
        np.testing.assert_array_equal(dataset.images[name], expected)
        assert dataset.image_radii(name) == radii
    assert dataset.images["electron_count"].sum() == len(events.indices)
    assert dataset.center == (280.5, 290.25)
    np.testing.assert_array_equal(dataset.images["diffraction_sum"], diffraction_sum(events.indices, (576, 576)))


def test_the_file_says_where_it_comes_from(dataset):
    assert (dataset.scan_uid, dataset.scan_number) == ("00000000-0000-0000-0000-000000001234", 17)
    assert dataset.counters["electrons"] == dataset.n_electrons
    assert dataset.counters["sectors_rejected"] == 2
    assert dataset.thresholds == {
        "background_threshold": 21.5,
        "x_ray_threshold": 2000.25,
        "threshold_calculated": True,
        "number_of_samples": 64,
        "background_threshold_n_sigma": 4.5,
        "x_ray_threshold_n_sigma": 175.0,
        "mean": 7.5,
        "std_dev": 2.25,
    }
    assert (dataset.dark == 1.5).all()
    assert dataset.gain is None
    provenance = dataset.provenance
    assert provenance["scan_record"]["source"] == "made up"
    assert provenance["job"] == '{"nodes": 2}'
    assert provenance["seconds"]["receiving"] == 1.25
    assert provenance["seconds"]["writing_events"] > 0
    assert provenance["versions"]["h5py"] == h5py.version.version
    assert "Open MPI" in provenance["versions"]["mpi"]
