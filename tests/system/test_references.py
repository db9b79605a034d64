"""Dark references, pixel masks and thresholds: made by their commands, used by scans."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from tests.system.command_line import CommandLine
from tests.system.datasets import event_arrays, frames_of, same_bytes
from tests.system.sector_writer import FRAME, SECTORS, file_name, pack_record

SEED = 7
SOURCE = f"sim:6x6?seed={SEED}&electrons=1500&loss=0.01"
SAMPLE = ("--sample-frames", 20)


@pytest.fixture(scope="module")
def references(cli: CommandLine) -> dict[str, Path]:
    """Of the simulated detector: made from 100 dark frames, a gain near 1."""
    paths = {name: cli.folder / f"{name}.npy" for name in ("dark", "noise", "mask", "gain")}
    outputs = ("--output", paths["dark"], "--noise", paths["noise"], "--mask", paths["mask"])
    cli.run("dark", f"sim:10x10?electrons=0&seed={SEED}", *outputs).succeeded()
    np.save(paths["gain"], np.random.default_rng(1).uniform(0.9, 1.1, (FRAME, FRAME)).astype(np.float32))
    return paths


def scan(testbed: CommandLine, output: Path, *options: object, source: str = SOURCE) -> Any:
    return testbed.run("testbed", "scan", "--source", source, "--output", output, *options, "--json").last_json


def near(places: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Those places and their neighbours."""
    wider = np.pad(places, 1)
    return np.any([wider[i : i + FRAME, j : j + FRAME] for i in range(3) for j in range(3)], axis=0)


def mistakes(path: Path, truth: Path) -> tuple[int, int, int]:
    """Electrons found where none hit, electrons not found, and electrons found in bad pixels."""
    wrong = missed = bad = 0
    with h5py.File(truth, "r") as file:
        flawed = file["detector/dead"][:] | file["detector/hot"][:]
        offsets = file["electrons/offsets"][:].tolist()
        rows, columns = (np.floor(file[f"electrons/{name}"][:] + 0.5).astype(int) for name in ("row", "column"))
    for number, events in enumerate(frames_of(path)):
        hit, found = np.zeros((2, FRAME, FRAME), bool)
        begin, end = offsets[number : number + 2]
        hit[rows[begin:end], columns[begin:end]] = True
        found.flat[events] = True
        wrong += np.count_nonzero(found & ~near(hit))
        missed += np.count_nonzero(hit & ~near(found))
        bad += np.count_nonzero(found & flawed)
    return wrong, missed, bad


def test_a_dark_reference_and_a_mask_count_better(
    testbed: CommandLine, references: dict[str, Path], output: Path
) -> None:
    folder = testbed.folder / "simulated"
    testbed.run("simulate", "--scan", "4x4", "--seed", SEED, "--electrons", 1500, "--output", folder).succeeded()
    source, truth, with_references = f"files:{folder}", folder / "ground_truth.h5", output.with_name("with.h5")
    scan(testbed, output, source=source)
    scan(testbed, with_references, "--dark", references["dark"], "--pixel-mask", references["mask"], source=source)
    wrong, missed, bad = mistakes(output, truth)
    assert bad == 10 * 16  # every hot pixel in every frame
    wrong_with, missed_with, bad_with = mistakes(with_references, truth)
    assert bad_with == 0
    assert wrong_with < wrong / 3
    assert missed_with < 0.7 * missed
    with h5py.File(with_references, "r") as file:
        np.testing.assert_array_equal(file["references/dark"], np.load(references["dark"]))
        np.testing.assert_array_equal(file["references/pixel_mask"], np.load(references["mask"]))


USED: list[tuple[str, ...]] = [(), ("dark", "mask"), ("mask", "row-dark"), ("dark", "gain"), ("gain", "row-dark")]


@pytest.mark.parametrize("used", USED, ids="+".join)
def test_calibrate_finds_what_the_scan_is_counted_with(
    testbed: CommandLine, references: dict[str, Path], output: Path, used: tuple[str, ...]
) -> None:
    """To the last bit; and whoever takes the thresholds over counts the same electrons."""
    options: list[object] = []
    for name in used:
        options += {
            "dark": ["--dark", references["dark"]],
            "gain": ["--gain", references["gain"]],
            "mask": ["--pixel-mask", references["mask"]],
            "row-dark": ["--row-dark", "median"],
        }[name]
    saved, plot = output.with_name("saved.json"), output.with_name("plot.png")
    found = testbed.run(
        *("calibrate", SOURCE, *options, *SAMPLE, "--output", saved, "--plot", plot, "--json")
    ).last_json
    report = scan(testbed, output, *options, *SAMPLE)
    thresholds = found["thresholds"]
    assert (report["background"], report["xray"]) == (thresholds["background"], thresholds["xray"])
    assert report["thresholds_calibrated"]
    stored = testbed.run("calibrate", output, "--json").last_json
    assert stored["thresholds"] == thresholds
    assert 20 <= thresholds["sample_frames"] < 28
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(saved.read_text()) == {name: value for name, value in found.items() if name != "files"}
    file, again = saved if "dark" in used else output, output.with_name("again.h5")
    taken = scan(testbed, again, *options, "--thresholds", file)
    assert (taken["background"], taken["xray"]) == (report["background"], report["xray"])
    assert not taken["thresholds_calibrated"]
    one, other = event_arrays(output), event_arrays(again)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert f"from {file}" in testbed.run("calibrate", again).succeeded().stdout


def test_row_dark_and_centroids_have_an_effect(testbed: CommandLine, references: dict[str, Path], output: Path) -> None:
    given = ("--background", 44, "--xray", 1500)
    mean, median = (output.with_name(f"{kind}.h5") for kind in ("mean", "median"))
    scan(testbed, output, *given, "--centroids")
    for kind, path in (("mean", mean), ("median", median)):
        scan(testbed, path, *given, "--row-dark", kind, "--row-dark-level", 30)
    assert event_arrays(output)["centroids"].shape == (len(event_arrays(output)["indices"]), 2)
    assert "centroids" not in event_arrays(mean)
    assert not same_bytes(mean, median)
    assert event_arrays(mean)["indices"].tobytes() != event_arrays(output)["indices"].tobytes()
    scan(testbed, output, *given, "--row-dark", "mean", "--row-dark-level", 90, "--overwrite")
    assert len(event_arrays(output)["indices"]) > 5 * len(event_arrays(mean)["indices"])


def test_calibrate_says_what_it_found(cli: CommandLine, output: Path) -> None:
    shown = cli.run("calibrate", "sim:3x3?electrons=500").succeeded()
    assert "from 9 complete frames instead of 64: there were no more among the first 2 blocks" in shown.stderr
    words = ("9 complete frames", "fitted mean + 4.5 sigma", "mean + 175 standard deviations", "ADU", "none")
    assert all(word in shown.stdout for word in words)
    config = output.with_name("blocks.toml")
    config.write_text("[stream]\nblock_frames = 3\n")
    options = ("--sample-frames", 3, "--json")
    fewer = cli.run("calibrate", "sim:3x3?electrons=500", *options, "--config", config).last_json
    assert fewer["thresholds"]["sample_frames"] == 3
    assert cli.run("calibrate", "sim:3x3?electrons=500", *options).last_json["thresholds"]["sample_frames"] == 8


def test_dark_says_what_it_found(cli: CommandLine, output: Path) -> None:
    npy = output.with_name("dark.npy")
    shown = cli.run("dark", "sim:5x4?electrons=0", "--output", npy).succeeded()
    assert "the mean of 20 frames is uncertain" in shown.stderr
    assert "20 dead, 10 hot, 0 noisy" in shown.stdout
    first = np.load(npy)
    assert (first.dtype, first.shape) == (np.float32, (FRAME, FRAME))
    again = ("dark", "sim:5x4?electrons=0", "--output", npy, "--overwrite", "--json")
    report = cli.run(*again, "--frames", 17).last_json
    assert (report["frames"], report["dead"], report["hot"], report["noisy"]) == (17, 20, 10, 0)
    assert report["files"] == [str(npy)]
    assert report["pedestal"] == pytest.approx(30, abs=0.2)
    assert report["noise"] == pytest.approx(3, abs=0.2)
    assert 0 < report["rejected_fraction"] < 1e-4
    assert not np.array_equal(np.load(npy), first)
    assert cli.run(*again, "--outlier-sigmas", 4).last_json["rejected_fraction"] > report["rejected_fraction"]
    np.testing.assert_allclose(np.load(npy), first, atol=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dark", "sim:5x5?electrons=0", "--output", "there.npy"), ("there.npy exists",)),
        (("dark", "sim:5x5?electrons=0", "--output", "a.npy", "--noise", "no/n.npy"), ("does not exist",)),
        (("dark", "sim:5x5?electrons=0", "--output", "a.npy", "--frames", 9), ("9 complete frames",)),
        (("dark", "sim:5x5?electrons=900", "--output", "a.npy"), ("does not look dark",)),
        (("dark", "scan.h5", "--output", "a.npy"), ("is no source",)),
        (("calibrate", "sim:2x2", "--plot", "there.npy"), ("there.npy exists",)),
        (("calibrate", "sim:2x2", "--pixel-mask", "there.npy"), ("there.npy",)),
        (("calibrate", "absent.h5"), ("absent.h5 is not there",)),
        (("calibrate", "absent.h5", "--gain", "gain.npy"), ("--gain has no effect",)),
        (("calibrate", "absent.h5", "--config", "mpistream.toml"), ("--config has no effect",)),
        (("calibrate", "there.npy", "--output", "there.npy", "--overwrite"), ("there.npy is read",)),
        (
            ("calibrate", "sim:2x2", "--gain", "there.npy", "--output", "a.json", "--plot", "there.npy", "--overwrite"),
            ("there.npy is read",),
        ),
    ],
)
def test_what_commands_refuse(
    cli: CommandLine, output: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    """And nothing is written."""
    folder = output.parent
    (folder / "there.npy").touch()
    placed = [folder / word if str(word).endswith((".npy", ".h5")) else word for word in arguments]
    cli.run(*placed).failed_with(*words)
    assert [path.name for path in folder.iterdir()] == ["there.npy"]


def write_high_pedestal(folder: Path) -> str:
    """Nine frames whose noise lies around the highest value of a pixel: its upper half is not there."""
    folder.mkdir()
    random = np.random.default_rng(1)
    for sector in range(SECTORS):
        records = []
        for number in range(9):
            values = random.normal(65535.7, 2, FRAME * FRAME).round()
            pixels = values[values <= 65535][: FRAME * FRAME // SECTORS].astype(np.uint16)
            records.append(pack_record(1, number, 3, 3, number, pixels))
        (folder / file_name(1, sector)).write_bytes(b"".join(records))
    return f"files:{folder}"


def test_a_level_that_row_dark_cannot_use_ends_the_scan_only(testbed: CommandLine, output: Path) -> None:
    ranks = testbed.ranks()
    source = write_high_pedestal(output.parent / "high")
    options = ("--background-sigmas", 1, "--row-dark", "mean")
    testbed.run("testbed", "scan", "--source", source, "--output", output, *options).failed_with("row-dark needs")
    assert scan(testbed, output)["electrons"] > 0
    assert testbed.ranks() == ranks
    sector_file = output.parent / "high" / file_name(1, 0)
    for command in ("calibrate", "dark"):
        testbed.run(command, source, "--output", sector_file, "--overwrite").failed_with("is read by this command")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pixel-mask", "dark.npy"), ("dark.npy", "float32")),
        (("--dark", "dark.npy", "--row-dark", "mean"), ("--row-dark takes the place",)),
        (("--thresholds", "dark.npy"), ("holds no thresholds",)),
        (("--thresholds", "saved.json", "--sample-frames", 8), ("--sample-frames is for calibration",)),
        (("--thresholds", "saved.json"), ("with a dark reference, this scan has none",)),
        (("--background", 44, "--xray", "inf"), ("--xray: Input should be a finite number",)),
        (("--background", 44, "--xray", 1500, "--row-dark", "mean", "--row-dark-level", 1e5), ("no more than 65535",)),
    ],
)
def test_what_scans_refuse(
    cli: CommandLine, references: dict[str, Path], output: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    """Before a process is started."""
    saved = cli.folder / "saved.json"
    if not saved.exists():
        cli.run("calibrate", SOURCE, "--dark", references["dark"], "--output", saved).succeeded()
    placed = [cli.folder / word if str(word).endswith((".npy", ".json")) else word for word in options]
    cli.run("testbed", "run", "--source", SOURCE, "--output", output, *placed, seconds=20).failed_with(*words)
    assert not list(output.parent.iterdir())
