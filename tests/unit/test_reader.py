import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from mpistream.cli.report import print_dataset
from mpistream.model.errors import StorageError
from mpistream.model.virtual_images import annulus_mask, diffraction_sum, virtual_image
from mpistream.storage.export import export_stempy
from mpistream.storage.picture import save_overview
from mpistream.storage.reader import open_dataset
from tests.mpi.launcher import run_mpi
from tests.mpi.program_write import COLUMNS, ROWS, scan_frames
from tests.scans import centroids_of, to_events

FRAMES = sorted(scan_frames(2))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A scan of 9 x 5 positions with 0, 1 or 2 frames each."""
    path = tmp_path_factory.mktemp("reader") / "scan.h5"
    run_mpi(2, "tests.mpi.program_write", path, "parallel", 2**20, 2)
    return path


@pytest.fixture
def dataset(path):
    with open_dataset(path) as dataset:
        yield dataset


@pytest.fixture
def copy(path, tmp_path):
    return shutil.copy(path, tmp_path / "copy.h5")


def test_sizes(dataset):
    assert dataset.scan_shape == (ROWS, COLUMNS)
    assert dataset.frame_shape == (576, 576)
    assert len(dataset) == dataset.n_frames == len(FRAMES)
    assert dataset.n_electrons == sum(len(frame[3]) for frame in FRAMES)
    assert repr(dataset) == (
        f"<mpistream dataset scan.h5: 9 x 5 scan, {len(FRAMES)} frames of 576 x 576 pixels, "
        f"{dataset.n_electrons} electrons>"
    )


def test_every_frame(dataset):
    for index, (position, number, missing, pixels) in enumerate(FRAMES):
        assert dataset.frame(index).tolist() == pixels
        assert dataset.frame(index).dtype == np.uint32
        assert (dataset.scan_position[index], dataset.frame_number[index]) == (position, number)
        assert dataset.missing_sectors[index] == missing
        dense = dataset.dense_frame(index)
        assert np.flatnonzero(dense).tolist() == pixels
        assert dense.sum() == len(pixels)
    assert dataset.frame(-1).tolist() == FRAMES[-1][3]
    assert dataset.frame(np.int64(0)).tolist() == FRAMES[0][3]
    for index in (len(FRAMES), -len(FRAMES) - 1):
        with pytest.raises(IndexError, match="frame"):
            dataset.frame(index)


def test_frames_at_every_position(dataset):
    numbers = set()
    for row in range(ROWS):
        for column in range(COLUMNS):
            expected = [frame[3] for frame in FRAMES if frame[0] == row * COLUMNS + column]
            assert [frame.tolist() for frame in dataset.frames_at(row, column)] == expected
            numbers.add(len(expected))
    assert numbers == {0, 1, 2}
    for row, column in ((ROWS, 0), (0, COLUMNS), (-1, 0)):
        with pytest.raises(IndexError, match="scan position"):
            dataset.frames_at(row, column)


@pytest.mark.parametrize("chunk_events", [100, 2**22])
def test_images_from_the_events(dataset, chunk_events, monkeypatch):
    # frame_runs' default was bound when it was defined
    monkeypatch.setattr("mpistream.model.virtual_images.frame_runs.__defaults__", (chunk_events,))
    events = to_events(FRAMES)
    for center in ((100.0, 300.5), None):
        mask = annulus_mask((576, 576), 50, 200, center or dataset.center)
        np.testing.assert_array_equal(dataset.virtual_image(50, 200, center), virtual_image(events, mask, (9, 5)))
    np.testing.assert_array_equal(dataset.diffraction_sum(), diffraction_sum(events.indices, (576, 576)))
    np.testing.assert_array_equal(dataset.diffraction_sum(), dataset.images["diffraction_sum"])
    for name in ("bright_field", "annular_dark_field"):
        np.testing.assert_array_equal(dataset.virtual_image(*dataset.image_radii(name)), dataset.images[name])


def test_all_events(dataset):
    expected = to_events(FRAMES)
    for name in ("scan_position", "frame_number", "missing_sectors", "offsets", "indices"):
        np.testing.assert_array_equal(getattr(dataset.events, name), getattr(expected, name), name)


@pytest.fixture(scope="module")
def path_with_centroids(tmp_path_factory):
    path = tmp_path_factory.mktemp("centroids") / "scan.h5"
    run_mpi(2, "tests.mpi.program_write", path, "parallel", 2**20, 2, '{"counting": {"centroids": true}}')
    return path


def test_centroids_of_every_frame(path_with_centroids):
    with open_dataset(path_with_centroids) as dataset:
        assert dataset.has_centroids
        for index, frame in enumerate(FRAMES):
            centroids, coordinates = dataset.frame_centroids(index), dataset.frame_coordinates(index)
            assert (centroids.dtype, coordinates.dtype) == (np.int8, np.float64)
            assert centroids.tolist() == centroids_of(frame).tolist()
            pixels = np.stack(np.divmod(np.array(frame[3], int), 576), axis=1)
            assert coordinates.tolist() == (pixels + centroids_of(frame).astype(float) / 128).tolist()
        assert dataset.frame_coordinates(-1).tolist() == coordinates.tolist()
        events = to_events(FRAMES, centroids=True)
        np.testing.assert_array_equal(dataset.events.centroids, events.centroids)
        np.testing.assert_array_equal(dataset.run(5, 20).centroids, events[5:20].centroids)
        assert dataset.run(5, 20, centroids=False).centroids is None
        for read in (dataset.frame_centroids, dataset.frame_coordinates):
            with pytest.raises(IndexError, match="frame"):
                read(len(FRAMES))


def test_coordinates_without_centroids_are_those_of_pixels(dataset):
    assert not dataset.has_centroids
    for index, (_, _, _, pixels) in enumerate(FRAMES):
        assert dataset.frame_centroids(index) is None
        assert dataset.frame_coordinates(index).tolist() == [list(divmod(pixel, 576)) for pixel in pixels]
    assert dataset.events.centroids is None


@pytest.mark.parametrize("damage", ["short", "flat", "group"])
def test_centroids_that_do_not_fit(path_with_centroids, tmp_path, damage):
    copy = shutil.copy(path_with_centroids, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        centroids = file["electron_events/centroids"][:]
        del file["electron_events/centroids"]
        if damage == "group":
            file.create_group("electron_events/centroids")
        else:
            file["electron_events/centroids"] = centroids[:-1] if damage == "short" else centroids[:, 0]
    with pytest.raises(StorageError, match="damaged"):
        open_dataset(copy)


def test_info_tells_of_centroids_and_references(path, path_with_centroids, capsys):
    for one, told in ((path, "centroids: none"), (path_with_centroids, "centroids: in 1/128 pixel")):
        with open_dataset(one) as dataset:
            print_dataset(dataset)
        text = capsys.readouterr().out
        assert told in text
        assert "references   dark, pixel mask" in text


def test_a_scan_without_frames(tmp_path):
    run_mpi(2, "tests.mpi.program_write", tmp_path / "empty.h5", "parallel", 2**20, 0)
    with open_dataset(tmp_path / "empty.h5") as dataset:
        assert (dataset.n_frames, dataset.n_electrons) == (0, 0)
        assert dataset.frames_at(2, 2) == []
        assert not dataset.virtual_image(0, 100).any()
        assert not dataset.images["electron_count"].any()
        assert dataset.to_stempy().sum(axis=(0, 1)).sum() == 0
    assert save_overview(tmp_path / "empty.h5", tmp_path / "empty.png").stat().st_size > 10_000


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_truncated(copy, keep):
    whole = copy.read_bytes()
    copy.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(StorageError, match="truncated"):
        open_dataset(copy)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(StorageError, match="not there"):
        open_dataset(tmp_path / "nothing.h5")
    with pytest.raises(StorageError, match="is a folder"):
        open_dataset(tmp_path)
    (tmp_path / "text.h5").write_text("no HDF5 here")
    with pytest.raises(StorageError, match="no HDF5 file"):
        open_dataset(tmp_path / "text.h5")
    (tmp_path / "nil.h5").write_bytes(b"")
    with pytest.raises(StorageError, match="no HDF5 file"):
        open_dataset(tmp_path / "nil.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1, 2, 3]
    with pytest.raises(StorageError, match="no mpistream dataset"):
        open_dataset(tmp_path / "other.h5")
    with h5py.File(tmp_path / "counted.h5", "w") as file:
        file["electron_events/frames"] = [1, 2, 3]
    with pytest.raises(StorageError, match="stempy") as caught:
        open_dataset(tmp_path / "counted.h5")
    assert "load_electron_counts" in caught.value.remedy


def test_newer_format(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(StorageError, match="format version 2") as caught:
        open_dataset(copy)
    assert "newer mpistream" in caught.value.remedy


def test_arrays_that_do_not_fit(copy):
    with h5py.File(copy, "r+") as file:
        file["electron_events/offsets"][-1] += 1
    with pytest.raises(StorageError, match="damaged"):
        open_dataset(copy)
    with h5py.File(copy, "r+") as file:
        del file["electron_events/missing_sectors"]
    with pytest.raises(StorageError, match="damaged"):
        open_dataset(copy)


def test_what_is_damaged_inside_is_found_by_those_who_read_it(copy):
    with h5py.File(copy, "r+") as file:
        del file["images/bright_field"]
        del file["electron_events/scan_position"]
        file["electron_events/scan_position"] = np.full(file["electron_events/frame_number"].shape, b"?")
    with pytest.raises(StorageError, match="damaged"):
        export_stempy(copy, copy.with_name("stempy.h5"))
    with pytest.raises(StorageError, match="damaged"):
        save_overview(copy, copy.with_name("overview.png"))
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_picture_replaces_pictures_only(copy):
    whole = copy.read_bytes()
    with pytest.raises(StorageError, match="PNG"):
        save_overview(copy, copy)
    picture = copy.with_name("scan.png")
    picture.write_bytes(whole)
    with pytest.raises(StorageError, match="is read by this command"):
        save_overview(picture, picture)
    assert picture.read_bytes() == copy.read_bytes() == whole


def test_missing_attributes(copy):
    with h5py.File(copy, "r+") as file:
        del file.attrs["scan_shape"]
    with pytest.raises(StorageError, match="damaged"):
        open_dataset(copy)


def test_reading_needs_no_mpi(path):
    program = (
        "import sys; from mpistream.storage import reader, export, picture, verify, recovery, journal\n"
        f"with reader.open_dataset({str(path)!r}) as dataset: dataset.virtual_image(0, 100)\n"
        "print([name for name in sys.modules if name in ('mpi4py', 'matplotlib', 'stempy')])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_without_stempy(path):
    program = (
        "import sys; sys.modules['stempy'] = None\n"
        "from mpistream.storage.reader import open_dataset\n"
        "from mpistream.model.errors import StorageError\n"
        f"dataset = open_dataset({str(path)!r})\n"
        "try: dataset.to_stempy()\n"
        "except StorageError as error: print(error.remedy)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "install it: pip install stempy"
