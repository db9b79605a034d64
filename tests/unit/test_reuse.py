"""Thresholds of earlier scans: out of files, and into new scans where they make sense."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpistream.launch.reuse import with_saved_thresholds
from mpistream.model import h5_layout as layout
from mpistream.model.errors import ConfigError, StorageError
from mpistream.model.scan import CALIBRATION_STATISTICS, CountingParameters, Thresholds
from mpistream.storage.thresholds_file import SavedThresholds, read_thresholds
from tests.unit.made_up_blocks import scan_record

STATISTICS = {"number_of_samples": 64, "optimized_mean": 30.5, "optimized_std_dev": 3.0, "mean": 31.25}


def saved_with(level: float | None = None, **counting: Any) -> SavedThresholds:
    thresholds = Thresholds(
        background=44.125,
        xray=1500.1,
        row_dark_level=level,
        calibrated=True,
        sample_frames=64,
        statistics=STATISTICS,
    )
    return SavedThresholds(source="sim:8x8", thresholds=thresholds, counting=CountingParameters(**counting))


def file_of(folder: Path, saved: SavedThresholds) -> Path:
    path = folder / "thresholds.json"
    path.write_text(saved.to_json())
    return path


def test_a_file_holds_the_same_numbers(tmp_path: Path) -> None:
    saved = saved_with(dark="/d.npy", pixel_mask="/m.npy")
    assert read_thresholds(file_of(tmp_path, saved)) == saved


def test_a_scan_takes_the_thresholds_over(tmp_path: Path) -> None:
    path = file_of(tmp_path, saved_with())
    counting, notes = with_saved_thresholds(CountingParameters(pixel_mask="/m.npy", centroids=True), path)
    assert notes == ()
    assert counting == CountingParameters(
        background=44.125, xray=1500.1, pixel_mask="/m.npy", centroids=True, thresholds_from=str(path)
    )


@pytest.mark.parametrize("references", [{"dark": "/d.npy"}, {"gain": "/g.npy"}, {"dark": "/d.npy", "gain": "/g.npy"}])
def test_thresholds_belong_to_their_kinds_of_references(tmp_path: Path, references: dict[str, str]) -> None:
    """Another dark reference will do; none will not, and none has no use for thresholds after one."""
    path = file_of(tmp_path, saved_with(**references))
    others = dict.fromkeys(references, "/other.npy")
    assert with_saved_thresholds(CountingParameters(**others), path)[0].background == 44.125
    kind = next(iter(references))
    with pytest.raises(ConfigError, match=f"with a {kind} reference, this scan has none") as caught:
        with_saved_thresholds(CountingParameters(), path)
    assert f"--{kind}, for instance {references[kind]}" in caught.value.remedy
    path = file_of(tmp_path, saved_with())
    with pytest.raises(ConfigError, match=f"without a {kind} reference, this scan has one") as caught:
        with_saved_thresholds(CountingParameters(**others), path)
    assert f"mpistream calibrate --{kind} /other.npy" in caught.value.remedy


def test_row_dark_takes_its_level_over(tmp_path: Path) -> None:
    path = file_of(tmp_path, saved_with(31.75, row_dark="mean"))
    counting, notes = with_saved_thresholds(CountingParameters(row_dark="mean"), path)
    assert (counting.row_dark_level, notes) == (31.75, ())
    counting, notes = with_saved_thresholds(CountingParameters(row_dark="median"), path)
    assert counting.row_dark_level == 31.75
    assert "row-dark by mean, this scan has row-dark by median" in notes[0]
    counting, notes = with_saved_thresholds(CountingParameters(), path)
    assert counting.row_dark_level is None
    assert "this scan has no row-dark" in notes[0]


def test_without_a_level_the_fitted_pedestal_is_it(tmp_path: Path) -> None:
    counting, notes = with_saved_thresholds(CountingParameters(row_dark="mean"), file_of(tmp_path, saved_with()))
    assert counting.row_dark_level == 30.5
    assert "found for no row-dark" in notes[0]
    saved = saved_with()
    given = saved.model_copy(update={"thresholds": Thresholds(background=40, xray=900, calibrated=False)})
    with pytest.raises(ConfigError, match="to which level") as caught:
        with_saved_thresholds(CountingParameters(row_dark="mean"), file_of(tmp_path, given))
    assert "--row-dark-level" in caught.value.remedy


@pytest.mark.parametrize("kind", ["dark", "gain"])
def test_a_pedestal_after_a_reference_is_no_level(tmp_path: Path, kind: str) -> None:
    """Row-dark brings raw pixels to its level."""
    saved = saved_with(**{kind: "/reference.npy"})
    assert saved.pedestal is None
    assert saved_with(31.75, gain="/reference.npy", row_dark="mean").pedestal == 31.75
    if kind == "gain":
        with pytest.raises(ConfigError, match="to which level"):
            with_saved_thresholds(CountingParameters(row_dark="mean", gain="/g.npy"), file_of(tmp_path, saved))


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"background": 2000.0}, "must be below xray"),
        ({"row_dark_level": -1.0}, "above 0"),
        ({"xray": float("inf")}, "finite"),
    ],
)
def test_a_file_whose_thresholds_make_no_sense(tmp_path: Path, values: dict[str, float], where: str) -> None:
    content = json.loads(saved_with(30.0, row_dark="mean").to_json())
    content["thresholds"] |= values
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    with pytest.raises(StorageError, match=f"edited.*{where}") as caught:
        with_saved_thresholds(CountingParameters(row_dark="mean"), path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("counting", "message"),
    [
        ({"background": 40, "xray": 900}, "--thresholds, and --background and --xray"),
        ({"sample_frames": 64}, "--sample-frames is for calibration"),
        ({"xray_sigmas": 100}, "--xray-sigmas is for calibration"),
    ],
)
def test_thresholds_come_from_one_place(tmp_path: Path, counting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        with_saved_thresholds(CountingParameters(**counting), file_of(tmp_path, saved_with()))
    assert caught.value.remedy


def test_files_without_thresholds(tmp_path: Path) -> None:
    other_version = json.loads(saved_with().to_json()) | {"format_version": 2}
    contents = {
        "empty.json": b"",
        "list.json": b"[1, 2]",
        "other.json": b'{"background": 44, "xray": 1500}',
        "version.json": json.dumps(other_version).encode(),
        "bytes.json": bytes(range(128, 256)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with h5py.File(tmp_path / "foreign.h5", "w"):
        pass
    for name in (*contents, "foreign.h5", "absent.json", "."):
        with pytest.raises(StorageError, match=name) as caught:
            read_thresholds(tmp_path / name)
        assert caught.value.remedy


CALIBRATED = {
    **{name: float(number) for number, name in enumerate(CALIBRATION_STATISTICS)},
    "number_of_samples": 64,
    "threshold_calculated": True,
    "background_threshold": 44.125,
    "x_ray_threshold": 1500.1,
    "row_dark": "mean",
    "row_dark_level": 31.75,
}


def dataset_of(path: Path, counting: dict[str, Any], **provenance: str) -> Path:
    """A dataset without a frame."""
    with h5py.File(path, "w") as file:
        file.attrs[layout.FORMAT_ATTRIBUTE] = layout.FORMAT_NAME
        file.attrs[layout.FORMAT_VERSION_ATTRIBUTE] = layout.FORMAT_VERSION
        file.attrs[layout.SCAN_SHAPE_ATTRIBUTE] = file.attrs[layout.FRAME_SHAPE_ATTRIBUTE] = (2, 4)
        file.attrs[layout.SCAN_UID_ATTRIBUTE], file.attrs[layout.SCAN_NUMBER_ATTRIBUTE] = "uid", 1
        for name, dtype in layout.EVENT_DTYPES.items():
            file.create_dataset(name, data=np.zeros(int(name == layout.OFFSETS), dtype))
        for group, values in ((layout.COUNTING, counting), (layout.PROVENANCE, provenance)):
            if values:
                file.create_group(group).attrs.update(values)
    return path


def test_a_dataset_says_what_it_was_counted_with(tmp_path: Path) -> None:
    """Of all that it says about counting, the calibration's statistics are those that a calibration leaves."""
    record = scan_record(counting=CountingParameters(row_dark="mean", pixel_mask="/m.npy"))
    stored = {**CALIBRATED, "thresholds_from": "/other.h5", "of_another_release": 5}
    saved = read_thresholds(dataset_of(tmp_path / "scan.h5", stored, scan_record=record.model_dump_json()))
    assert saved.thresholds == Thresholds(
        background=44.125,
        xray=1500.1,
        row_dark_level=31.75,
        calibrated=True,
        sample_frames=64,
        statistics={name: CALIBRATED[name] for name in CALIBRATION_STATISTICS},
    )
    assert (saved.source, saved.counting) == (record.source, record.counting)
    given = {**stored, "threshold_calculated": False, "number_of_samples": 0}
    saved = read_thresholds(dataset_of(tmp_path / "given.h5", given, scan_record=record.model_dump_json()))
    assert saved.thresholds.statistics == {}


RECORD_OF_ANOTHER_KIND = {
    "nothing": {},
    "no record": {"job": "job"},
    "no JSON": {"scan_record": "{"},
    "null": {"scan_record": "null"},
    "no counting": {"scan_record": '{"source": "sim:2x2"}'},
    "counting is no object": {"scan_record": '{"source": "sim:2x2", "counting": 5}'},
    "one threshold": {"scan_record": '{"source": "sim:2x2", "counting": {"background": 44, "xray": null}}'},
}


@pytest.mark.parametrize("provenance", RECORD_OF_ANOTHER_KIND.values(), ids=RECORD_OF_ANOTHER_KIND)
def test_a_dataset_that_does_not_say_how_it_was_counted(tmp_path: Path, provenance: dict[str, str]) -> None:
    path = dataset_of(tmp_path / "scan.h5", CALIBRATED, **provenance)
    with pytest.raises(StorageError, match="does not say how it was counted") as caught:
        read_thresholds(path)
    assert caught.value.remedy


@pytest.mark.parametrize("absent", [None, "optimized_mean", "background_threshold"])
def test_a_dataset_without_its_thresholds(tmp_path: Path, absent: str | None) -> None:
    counting = {name: value for name, value in CALIBRATED.items() if absent and name != absent}
    path = dataset_of(tmp_path / "scan.h5", counting, scan_record=scan_record().model_dump_json())
    with pytest.raises(StorageError, match="does not say how it was counted"):
        read_thresholds(path)
