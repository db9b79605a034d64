"""Scans joined with an axis of time: each is what its own dataset is, and the whole can be checked."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mpistream.cli.data import export, info, verify
from mpistream.cli.series import join
from mpistream.model.errors import StorageError
from mpistream.storage.reader import open_dataset
from mpistream.storage.series import write_series
from mpistream.storage.series_reader import open_series
from mpistream.storage.verify_series import verify_series
from tests.system.datasets import event_arrays
from tests.unit.many_scans import write_scans

SOURCE = "sim:4x5?electrons=150&loss=0.05&seed="
CENTROIDS = '{"centroids": true}'


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Four scans whose time indices are 7, 2, 3 and 0, and which have centroids; in some frames sectors are missing."""
    folder = tmp_path_factory.mktemp("series")
    times = {"a.h5": 7, "b.h5": 2, "c.h5": 3, "d.h5": 0}
    return write_scans(
        folder,
        *(
            f'{name}={SOURCE}{time}&first_frame={50 * time};{{"time_index": {time}}};{CENTROIDS}'
            for name, time in times.items()
        ),
    )


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Scans that do not fit each other, or have no time index."""
    folder = tmp_path_factory.mktemp("others")
    np.save(folder / "dark.npy", np.full((576, 576), 1.5, np.float32))
    np.save(folder / "other.npy", np.full((576, 576), 1.25, np.float32))
    np.save(folder / "same.npy", np.full((576, 576), 1.5, np.float32))
    dark, other, same = (json.dumps({"dark": str(folder / f"{name}.npy")}) for name in ("dark", "other", "same"))
    paths = write_scans(
        folder,
        f"plain.h5={SOURCE}1",
        f"second.h5={SOURCE}2",
        "shape.h5=sim:4x6",
        f'higher.h5={SOURCE}3;{{}};{{"background": 50.0}}',
        f"dark.h5={SOURCE}4;{{}};{dark}",
        f"other.h5={SOURCE}5;{{}};{other}",
        f"same.h5={SOURCE}6;{{}};{same}",
        f'timed.h5={SOURCE}7;{{"time_index": 7}}',
        f'twin.h5={SOURCE}8;{{"time_index": 7}}',
        f'odd.h5={SOURCE}9;{{"time_index": -1}}',
        f'late.h5={SOURCE}10;{{"time_index": 5000000}}',
    )
    return {path.stem: path for path in paths}


@pytest.fixture(scope="module")
def path(scans):
    return write_series(scans, scans[0].with_name("series.h5"), overwrite=False)


@pytest.fixture
def series(path):
    with open_series(path) as series:
        yield series


def test_every_scan_is_what_its_dataset_is(scans, series):
    assert series.time_indices == [0, 2, 3, 7]
    assert [scan.scan_uid for scan in series] == [row["scan_uid"].decode() for row in series.table]
    for path, time_index in zip(scans, (7, 2, 3, 0), strict=True):
        with open_dataset(path) as dataset:
            scan = series.scan(time_index)
            assert (len(scan), scan.n_electrons, scan.scan_uid) == (len(dataset), dataset.n_electrons, dataset.scan_uid)
            for name in ("scan_position", "frame_number", "missing_sectors", "offsets"):
                one, other = getattr(scan, name), getattr(dataset, name)
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
            np.testing.assert_array_equal(scan.events.indices, dataset.events.indices)
            np.testing.assert_array_equal(scan.events.centroids, dataset.events.centroids)
            np.testing.assert_array_equal(scan.virtual_image(10, 200), dataset.virtual_image(10, 200))
            np.testing.assert_array_equal(scan.diffraction_sum(), dataset.diffraction_sum())
            for index in (0, 7, -1):
                np.testing.assert_array_equal(scan.frame(index), dataset.frame(index))
                np.testing.assert_array_equal(scan.frame_coordinates(index), dataset.frame_coordinates(index))
            for one, other in zip(scan.frames_at(2, 3), dataset.frames_at(2, 3), strict=True):
                np.testing.assert_array_equal(one, other)
            assert scan.images.keys() == dataset.images.keys()
            for name, image in dataset.images.items():
                np.testing.assert_array_equal(scan.images[name], image)
            assert scan.image_radii("bright_field") == dataset.image_radii("bright_field")
            assert (scan.center, scan.counters, scan.thresholds) == (
                dataset.center,
                dataset.counters,
                dataset.thresholds,
            )
            assert scan.provenance["scan_record"] == dataset.provenance["scan_record"]
            assert scan.delivery.ends == dataset.delivery.ends


def test_a_closed_scan_leaves_the_series_open(series):
    with series.scan(2) as scan:
        assert len(scan)
    assert len(series.scan(3).frame(0)) >= 0
    with pytest.raises(StorageError, match="no scan with the time index 1"):
        series.scan(1)


def test_with_plain_h5py(scans, path):
    """Frames are ordered by time, position and number; the table says where each scan is."""
    with h5py.File(path) as file:
        events = {name: array[:] for name, array in file["electron_events"].items()}
        table = file["series"][:]
        stacks = {name: file["images"][name][:] for name in ("bright_field", "annular_dark_field", "electron_count")}
        assert file["electron_events/indices"].chunks is None
        pattern = file["images/diffraction_sum"][:]
    order = np.lexsort((events["frame_number"], events["scan_position"], events["time_index"]))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    counts = np.diff(events["offsets"])
    for place, (time_index, number) in enumerate(zip((0, 2, 3, 7), (3, 1, 2, 0), strict=True)):
        mine = events["time_index"] == time_index
        image = np.bincount(events["scan_position"][mine], counts[mine], 20).reshape(4, 5)
        np.testing.assert_array_equal(image, stacks["electron_count"][place])
        row, alone = table[place], event_arrays(scans[number])
        assert row["dataset"].decode() == scans[number].name
        assert (row["n_frames"], row["n_events"]) == (np.count_nonzero(mine), len(alone["indices"]))
        first = int(row["first_event"])
        np.testing.assert_array_equal(events["indices"][first : first + len(alone["indices"])], alone["indices"])
        assert row["electrons"] == counts[mine].sum()
    assert stacks["bright_field"].shape == (4, 4, 5)
    assert pattern.sum() == len(events["indices"]) == counts.sum()


def test_a_small_run_at_a_time(scans, path, tmp_path, monkeypatch):
    monkeypatch.setattr("mpistream.model.virtual_images.frame_runs.__defaults__", (300,))
    again = write_series(scans[::-1], tmp_path / "again.h5", overwrite=False)
    one, other = event_arrays(path), event_arrays(again)
    assert all(np.array_equal(array, other[name]) for name, array in one.items())
    assert verify_series(again).findings == ()


def test_without_labels_the_order_is_as_given(others, tmp_path):
    given = [others["second"], others["plain"]]
    with open_series(write_series(given, tmp_path / "series.h5", overwrite=False)) as series:
        assert series.time_indices == [0, 1]
        assert [row["dataset"].decode() for row in series.table] == ["second.h5", "plain.h5"]
        assert not series.has_centroids


def test_references_are_stored_once(others, tmp_path):
    path = write_series([others["dark"], others["same"]], tmp_path / "series.h5", overwrite=False)
    with open_series(path) as series, open_dataset(others["dark"]) as dataset:
        for scan in series:
            np.testing.assert_array_equal(scan.dark, dataset.dark)
            assert scan.gain is None
    with h5py.File(path) as file:
        assert file["scans/000000/references"] == file["references"] == file["scans/000001/references"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["plain", "shape"], r"scan shape \(4, 6\) instead of \(4, 5\)"),
        (["plain", "higher"], "background 50.0 instead of 44.0"),
        (["plain", "dark"], "another dark"),
        (["dark", "other"], "another dark"),
        (["plain", "second", "plain"], "the same scan"),
        (["plain", "timed"], "has a time index"),
        (["timed", "twin"], "both have the time index 7"),
        (["odd"], "time index -1"),
        ([], "no dataset"),
    ],
)
def test_what_cannot_be_joined(others, tmp_path, names, words):
    with pytest.raises(StorageError, match=words) as raised:
        write_series([others[name] for name in names], tmp_path / "series.h5", overwrite=False)
    assert raised.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_none(others, path, tmp_path):
    output = tmp_path / "series.h5"
    for wrong, words in (
        (tmp_path / "absent.h5", "not there"),
        (path, "a series"),
        (others["plain"].parent / "dark.npy", "HDF5"),
    ):
        with pytest.raises(StorageError, match=words):
            write_series([others["plain"], wrong], output, overwrite=False)
    for opener, wrong, words in ((open_series, others["plain"], "no series"), (open_dataset, path, "a series")):
        with pytest.raises(StorageError, match=words):
            opener(wrong)
    output.write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists"):
        write_series([others["plain"]], output, overwrite=False)
    assert output.read_bytes() == b"mine"
    with pytest.raises(StorageError, match="read by this command"):
        write_series([others["plain"]], others["plain"], overwrite=True)
    write_series([others["plain"]], output, overwrite=True)
    assert verify_series(output).findings == ()


def test_a_full_disk_leaves_nothing(scans, tmp_path):
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from mpistream.storage.series import write_series, StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"try: write_series([Path(p) for p in sys.argv[1:]], Path({str(tmp_path / 'series.h5')!r}), False)\n"
        "except StorageError as error: print(error.message)"
    )
    command = [sys.executable, "-c", program, *map(str, scans)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert os.listdir(tmp_path) == []


def checks_of(path):
    return {check.name: check.outcome for check in verify_series(path).checks}


def test_verify_looks_at_every_scan(path):
    assert checks_of(path) == dict.fromkeys(("series", "scan 0", "scan 2", "scan 3", "scan 7"), "good")


def damage_event(file):
    row = file["series"][2]
    file["electron_events/centroids"][int(row["first_event"]) + 1] += 1


def damage_time(file):
    file["electron_events/time_index"][3] = 7


def damage_table(file):
    table = file["series"][:]
    table["n_frames"][1] += 1
    file["series"][:] = table


def damage_stack(file):
    file["images/center_of_mass"][3, 2, 2, 0] += 1e-9


def damage_uid(file):
    table = file["series"][:]
    table["scan_uid"][3] = b"another"
    file["series"][:] = table


def damage_offset(file):
    file["electron_events/offsets"][int(file["series"][1]["first_frame"]) + 2] += 1


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (damage_event, "scan 3"),
        (damage_time, "series"),
        (damage_table, "series"),
        (damage_offset, "scan 2"),
        (damage_stack, "scan 7"),
        (damage_uid, "scan 7"),
    ],
)
def test_verify_finds_damage(path, tmp_path, damage, name):
    copy = shutil.copy(path, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        damage(file)
    assert [name for name, outcome in checks_of(copy).items() if outcome == "bad"] == [name]


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_on_the_command_line(scans, tmp_path):
    output = tmp_path / "series.h5"
    joined = run(join, *scans, "--output", output)
    assert joined.exit_code == 0
    assert run(info, output).stdout == joined.stdout
    assert "4 of 4 x 5 positions, time indices 0 to 7; 4 between them absent: 1, 4, 5, 6" in joined.stdout
    assert "d.h5: " in joined.stdout
    report = json.loads(run(verify, output, "--json").stdout)
    assert (report["good"], len(report["checks"])) == (True, 5)


def test_time_indices_may_lie_far_apart(others, tmp_path):
    tracemalloc.start()
    joined = run(join, others["timed"], others["late"], "--output", tmp_path / "series.h5")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    absent = "4999992 between them absent: 8, 9, 10, 11, 12, 13, 14, 15, 16, 17\n"
    assert f"time indices 7 to 5000000; {absent}" in joined.stdout
    assert peak_bytes < 5e7


def test_stempy_gets_one_scan(scans, path, tmp_path):
    with pytest.raises(StorageError, match="is a series"):
        run(export, path, "--to", "stempy", tmp_path / "all.h5")
    assert run(export, path, "--to", "stempy", tmp_path / "two.h5", "--time-index", 2).exit_code == 0
    assert run(export, scans[1], "--to", "stempy", tmp_path / "alone.h5").exit_code == 0
    with pytest.raises(StorageError, match="no series"):
        run(export, scans[1], "--to", "stempy", tmp_path / "none.h5", "--time-index", 2)
    with h5py.File(tmp_path / "two.h5") as one, h5py.File(tmp_path / "alone.h5") as other:
        frames, expected = (file["electron_events/frames"][:] for file in (one, other))
    assert all(np.array_equal(row, wanted) for row, wanted in zip(frames, expected, strict=True))
