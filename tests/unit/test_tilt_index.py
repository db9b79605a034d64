"""The index of a tilt series: what is there, what is not and why, and one file that opens all."""

import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mpistream.cli.data import info
from mpistream.cli.series import tilts as command
from mpistream.model.errors import ConfigError, StorageError
from mpistream.storage import tilt_index
from mpistream.storage.reader import open_dataset
from mpistream.storage.tilt_index import COMPLETE, INCOMPLETE, MISSING, open_tilt_index, tilt_of, write_tilt_index
from tests.unit.many_scans import write_scans

#: In the order of acquisition; the fourth scan left no dataset.
DEGREES = [0.0, 3.0, -3.0, 6.0, -6.5]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tilts")
    names = [f"tilt{number}.h5" for number in range(5)]
    source = "sim:5x7?electrons=80&loss=0.02&seed="
    present = (0, 1, 2, 4)
    write_scans(
        folder, *(f'{names[n]}={source}{n};{{"tilt_degrees": {DEGREES[n]}}}' for n in present), "wide.h5=sim:5x8"
    )
    with h5py.File(folder / names[2], "r+") as file:
        delivery = file["metadata/delivery"]
        delivery.attrs["complete"] = False
        delivery.attrs["ends"] = delivery.attrs["ends"].replace('"cut": ""', '"cut": "sector 1 had no producer"', 1)
    return [folder / name for name in names]


@pytest.fixture
def paths(made, tmp_path):
    for path in made[0].parent.iterdir():
        shutil.copy(path, tmp_path)
    return [tmp_path / path.name for path in made]


@pytest.fixture
def index(paths, tmp_path):
    return write_tilt_index(paths, DEGREES, tmp_path / "tilts.h5", overwrite=False)


def test_what_is_there_and_what_is_not(paths, index):
    with open_tilt_index(index) as tilts:
        assert len(tilts) == 5
        assert tilts.tilts_degrees.tolist() == DEGREES
        assert [DEGREES[row] for row in tilts.by_angle] == sorted(DEGREES)
        assert tilts.states == [COMPLETE, COMPLETE, INCOMPLETE, MISSING, COMPLETE]
        reasons = [reason.decode() for reason in tilts.table["reason"]]
        assert [reason != "" for reason in reasons] == [False, False, True, True, False]
        assert reasons[2] == "sector 1 had no producer"
        assert "tilt3.h5" in reasons[3]
        for row, path in enumerate(paths):
            assert tilts.table["dataset"][row].decode() == path.name
            if row == 3:
                continue
            with open_dataset(path) as dataset, tilts.open(row) as opened:
                assert opened.scan_uid == dataset.scan_uid == tilts.table["scan_uid"][row].decode()
                assert tilts.table["electrons"][row] == dataset.n_electrons
                assert tilts.table["frames"][row] == len(dataset)
                np.testing.assert_array_equal(tilts.images["bright_field"][row], dataset.images["bright_field"])
                np.testing.assert_array_equal(
                    tilts.images["annular_dark_field"][row], dataset.images["annular_dark_field"]
                )
        assert not tilts.images["bright_field"][3].any()
        with pytest.raises(StorageError, match="not there"):
            tilts.open(3)


def test_one_file_opens_all_with_plain_h5py_wherever_the_folder_is(paths, index, tmp_path):
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    with h5py.File(moved / index.name) as file:
        for row in (0, 1, 2, 4):
            scan = file[f"scans/{row:04d}"]
            with h5py.File(moved / paths[row].name) as alone:
                np.testing.assert_array_equal(scan["electron_events/indices"], alone["electron_events/indices"])
                assert scan.attrs["scan_uid"] == alone.attrs["scan_uid"]
        assert "scans/0003" not in file
    with open_tilt_index(moved / index.name) as tilts, tilts.open(0) as dataset:
        assert dataset.path == moved / paths[0].name
    moved.rename(tmp_path)


def test_datasets_elsewhere_are_named_in_full(paths, tmp_path):
    (tmp_path / "index").mkdir()
    index = write_tilt_index(paths[:2], DEGREES[:2], tmp_path / "index" / "tilts.h5", overwrite=False)
    with open_tilt_index(index) as tilts, h5py.File(index) as file:
        assert tilts.table["dataset"][0].decode() == str(paths[0])
        assert file["scans/0001"].attrs["format"] == "mpistream-electron-events"


def test_it_grows_with_the_series(paths, tmp_path):
    """The index is written anew after every tilt; whoever has it open meanwhile keeps the one before."""
    index = tmp_path / "tilts.h5"
    for count in range(1, 6):
        write_tilt_index(paths[:count], DEGREES[:count], index, overwrite=True)
        with open_tilt_index(index) as tilts:
            assert len(tilts) == count
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_series_of_which_nothing_came(tmp_path):
    index = write_tilt_index([tmp_path / "one.h5"], [10.0], tmp_path / "tilts.h5", overwrite=False)
    with open_tilt_index(index) as tilts:
        assert tilts.states == [MISSING]
        assert tilts.images["bright_field"].shape == (1, 0, 0)


def test_previews_are_small(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(tilt_index, "_PREVIEW_PIXELS", 3)
    with open_dataset(paths[0]) as dataset:
        whole = dataset.images["bright_field"].astype(int)
    with h5py.File(write_tilt_index(paths[:1], [0.0], tmp_path / "tilts.h5", overwrite=False)) as file:
        small = file["images/bright_field"]
        assert small.attrs["binning"] == 3
        padded = np.pad(whole, ((0, 1), (0, 2))).reshape(2, 3, 3, 3)
        np.testing.assert_array_equal(small[0], padded.sum(axis=(1, 3)))


def test_what_is_wrong_is_said(paths, tmp_path):
    output = tmp_path / "tilts.h5"
    for datasets, degrees, words in (
        (paths[:2], [0.0], "2 datasets and 1 angles"),
        ([], [], "0 datasets"),
        (paths[:1], [float("nan")], "no number"),
        (paths[:2], [0.0, 5.0], "was taken at 3 degrees, not at 5"),
        ([paths[0], paths[0].with_name("wide.h5")], [0.0, 1.0], "5 x 8"),
    ):
        with pytest.raises(StorageError, match=words):
            write_tilt_index(datasets, degrees, output, overwrite=False)
        assert not output.exists()
    write_tilt_index(paths, DEGREES, output, overwrite=False)
    with pytest.raises(StorageError, match="exists"):
        write_tilt_index(paths, DEGREES, output, overwrite=False)
    with pytest.raises(StorageError, match="index of a tilt series"):
        open_dataset(output)
    with pytest.raises(StorageError, match="no tilt index"):
        open_tilt_index(paths[0])


def test_on_the_command_line(paths, tmp_path):
    output = str(tmp_path / "tilts.h5")
    labelled = [str(path) for path in paths if path.exists()]
    written = CliRunner().invoke(command, [*labelled, "--output", output], catch_exceptions=False)
    assert written.exit_code == 0
    assert CliRunner().invoke(info, [output]).stdout == written.stdout
    assert "4: 3 complete, 1 incomplete" in written.stdout
    places = [written.stdout.index(f"{degrees:+.2f} ") for degrees in (-6.5, -3.0, 0.0, 3.0)]
    assert places == sorted(places)
    with pytest.raises(ConfigError, match="at which tilt"):
        CliRunner().invoke(command, [str(tmp_path / "wide.h5"), "--output", output], catch_exceptions=False)
    options = [part for degrees in DEGREES for part in ("--tilt", str(degrees))]
    arguments = [*map(str, paths), *options, "--output", output, "--overwrite"]
    assert "1 missing" in CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert tilt_of(paths[2]) == -3.0
