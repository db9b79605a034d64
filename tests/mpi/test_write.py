import json

import h5py
import numpy as np
import pytest

from mpistream.cli.report import print_dataset
from mpistream.model import h5_layout as layout
from mpistream.model.virtual_images import annulus_mask, center_of_mass, diffraction_sum, virtual_image
from mpistream.storage.reader import open_dataset
from tests.mpi.launcher import run_mpi as launch
from tests.mpi.program_write import COLUMNS, ROWS, scan_frames
from tests.scans import BAD_PIXEL, to_events

PROGRAM = "tests.mpi.program_write"
EXPECTED = {
    layout.INDICES: "indices",
    layout.OFFSETS: "offsets",
    layout.SCAN_POSITION: "scan_position",
    layout.FRAME_NUMBER: "frame_number",
    layout.MISSING_SECTORS: "missing_sectors",
    layout.CENTROIDS: "centroids",
}


def variant(**values):
    return json.dumps(values)


WITH_CENTROIDS = variant(counting={"centroids": True})


@pytest.mark.parametrize("mode", ["parallel", "serial", "collective", "independent"])
@pytest.mark.parametrize("round_bytes", [64, 2**20])
def test_every_number_of_ranks_writes_the_same_arrays(ranks, mode, round_bytes, tmp_path, run_mpi):
    """With centroids in the many rounds, without them in one."""
    path, centroids = tmp_path / "scan.h5", round_bytes == 64
    run_mpi(ranks, PROGRAM, path, mode, round_bytes, 2, variant(counting={"centroids": centroids}))
    expected = to_events(sorted(scan_frames(2)), centroids)
    dtypes = {**layout.EVENT_DTYPES, **({layout.CENTROIDS: layout.CENTROIDS_DTYPE} if centroids else {})}
    with h5py.File(path) as file:
        assert {f"{layout.EVENTS}/{name}" for name in file[layout.EVENTS]} == dtypes.keys()
        for name, dtype in dtypes.items():
            assert file[name].dtype == np.dtype(dtype)
            assert file[name].chunks is None
            assert file[name].shape == getattr(expected, EXPECTED[name]).shape
            assert file[name][:].tobytes() == getattr(expected, EXPECTED[name]).tobytes(), name
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["parallel", "serial"])
def test_a_scan_without_electrons_can_have_centroids(mode, tmp_path, run_mpi):
    run_mpi(3, PROGRAM, tmp_path / "scan.h5", mode, 2**20, 0, WITH_CENTROIDS)
    with open_dataset(tmp_path / "scan.h5") as dataset:
        assert dataset.has_centroids
        assert dataset.events.centroids.shape == (0, 2)
        assert np.isnan(dataset.images["center_of_mass"]).all()


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


def test_the_center_of_mass_is_that_of_the_events(dataset):
    moments, count = np.zeros((ROWS * COLUMNS, 2)), np.zeros(ROWS * COLUMNS)
    for position, _, _, pixels in scan_frames(3):
        moments[position] += np.sum(np.divmod(pixels, 576), axis=1) if pixels else 0
        count[position] += len(pixels)
    assert 0 < np.count_nonzero(count) < len(count)
    with np.errstate(invalid="ignore"):
        expected = (moments / count[:, np.newaxis]).reshape(ROWS, COLUMNS, 2)
    np.testing.assert_array_equal(dataset.images["center_of_mass"], expected)
    assert dataset.images["center_of_mass"].dtype == np.float64


def test_detectors_counted_from_the_events_and_by_the_kernel_are_equal(ranks, tmp_path, run_mpi):
    """Without a center in the configuration it is known, and the events are counted, at the end only."""
    paths = [tmp_path / "pattern.h5", tmp_path / "given.h5"]
    run_mpi(ranks, PROGRAM, paths[0], "parallel", 2**20, 3, variant(center=None))
    with open_dataset(paths[0]) as pattern:
        run_mpi(ranks, PROGRAM, paths[1], "parallel", 2**20, 3, variant(center=pattern.center))
        assert pattern.center == center_of_mass(pattern.diffraction_sum())
        with open_dataset(paths[1]) as given:
            assert given.center == pattern.center
            assert given.images.keys() == pattern.images.keys()
            for name, image in pattern.images.items():
                np.testing.assert_array_equal(given.images[name], image, name)
            assert given.images["bright_field"].any()
            assert given.images["annular_dark_field"].any()


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
    assert np.argwhere(dataset.pixel_mask).tolist() == [list(BAD_PIXEL)]
    histogram = dataset.sample_histogram
    assert (histogram.first_bin, histogram.pixels.tolist()) == (-2, [3, 0, 2**40])
    assert histogram.pixels.dtype == np.uint64
    assert histogram.values.tolist() == [-2, -1, 0]
    provenance = dataset.provenance
    assert provenance["scan_record"]["source"] == "made up"
    assert provenance["job"] == '{"nodes": 2}'
    assert provenance["seconds"]["receiving"] == 1.25
    assert provenance["seconds"]["writing_events"] > 0
    assert provenance["versions"]["h5py"] == h5py.version.version
    assert "Open MPI" in provenance["versions"]["mpi"]


def test_what_was_not_used_is_not_there(tmp_path, run_mpi):
    run_mpi(1, PROGRAM, tmp_path / "scan.h5", "parallel", 2**20, 1, variant(bare=True))
    with open_dataset(tmp_path / "scan.h5") as dataset:
        assert dataset.dark is None
        assert dataset.pixel_mask is None
        assert dataset.sample_histogram is None
        assert not dataset.has_centroids
    with h5py.File(tmp_path / "scan.h5") as file:
        assert layout.REFERENCES not in file
        assert layout.LABELS not in file
        assert not file[layout.COUNTING].keys()


def test_row_dark_and_where_thresholds_came_from_are_told(tmp_path, run_mpi):
    counting = {"background": 40, "xray": 900, "thresholds_from": "/scans/earlier.h5"}
    counting |= {"row_dark": "median", "row_dark_level": 29.5}
    run_mpi(1, PROGRAM, tmp_path / "scan.h5", "parallel", 2**20, 1, variant(counting=counting))
    with open_dataset(tmp_path / "scan.h5") as dataset:
        told = {name: dataset.thresholds[name] for name in ("row_dark", "row_dark_level", "thresholds_from")}
    assert told == {name: counting[name] for name in told}


def test_session_labels_and_names_are_told(tmp_path, run_mpi, capsys):
    labels = {"tilt_degrees": -60.5, "time_index": 3, "place": "edge"}
    changes = {"session": "monday", "labels": labels, "references": {"dark": "night"}}
    run_mpi(1, PROGRAM, tmp_path / "scan.h5", "parallel", 2**20, 1, variant(**changes))
    with open_dataset(tmp_path / "scan.h5") as dataset:
        assert (dataset.session, dataset.labels) == ("monday", labels)
        assert [type(dataset.labels[name]) for name in labels] == [float, int, str]
        assert dataset.provenance["scan_record"]["labels"] == labels
        print_dataset(dataset)
    text = capsys.readouterr().out
    assert "labels       place edge, tilt_degrees -60.5, time_index 3" in text
    assert "session      monday" in text
    assert "references   dark (night), pixel mask" in text
