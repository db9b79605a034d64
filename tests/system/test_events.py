"""A scan with everything that goes wrong in practice: the events of each frame equal the slow reference."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.system.command_line import CommandLine
from tests.system.datasets import assert_frames_of, assert_same_events, same_bytes
from tests.system.sector_writer import BACKGROUND, FRAME, RECORD_BYTES, SECTORS, XRAY, MadeUpScan, file_name

#: An odd shape, two frames per position, frame numbers from anywhere, and a gap that is longer than a block.
SCAN = MadeUpScan(
    rows=5,
    columns=7,
    frames_per_position=2,
    first_frame=123_459,
    scan_number=77,
    seed=5,
    sectors_lost=0.06,
    frames_lost=(3, *range(30, 49)),
    sectors_twice=0.08,
)
THRESHOLDS = ("--background", BACKGROUND, "--xray", XRAY)


@pytest.fixture(scope="module")
def sectors(place: Path) -> Path:
    return SCAN.write(place / "version5", files_per_sector=3, shuffled=True)


@pytest.fixture(scope="module")
def sectors_version4(place: Path) -> Path:
    return SCAN.write(place / "version4", version=4, files_per_sector=2, shuffled=True)


def save(path: Path, image: npt.NDArray) -> Path:
    np.save(path, image)
    return path


@pytest.fixture(scope="module")
def references(place: Path) -> dict[str, npt.NDArray]:
    random = np.random.default_rng(9)
    shape = (FRAME, FRAME)
    return {
        "float-dark": random.normal(20, 1, shape).astype(np.float32),
        "integer-dark": random.integers(15, 26, shape).astype(np.uint16),
        "gain": random.uniform(0.8, 1.25, shape).astype(np.float32),
        "mask": random.random(shape) < 0.01,
    }


def test_the_scan_made_up_here_has_all_it_should_have() -> None:
    present = SCAN.missing[SCAN.present]
    assert 0 < np.count_nonzero(present) < len(present)
    assert len(present) == SCAN.n_frames - 20
    assert SCAN.twice.any()
    assert (np.diff(SCAN.present) < 0).any()


def test_events_without_references_and_every_counter(testbed: CommandLine, sectors: Path, output: Path) -> None:
    report = testbed.run(
        "testbed", "scan", "--source", f"files:{sectors}", "--output", output, *THRESHOLDS, "--json"
    ).last_json
    expected = SCAN.expected_events()
    assert_same_events(output, expected)
    assert_frames_of(output, SCAN)
    missing = SCAN.missing[SCAN.present]
    sectors_missing = sum(number.bit_count() for number in missing.tolist())
    counted = {
        "dataset": str(output),
        "scan_shape": [5, 7],
        "frames": len(expected),
        "electrons": sum(map(len, expected)),
        "frames_incomplete": np.count_nonzero(missing),
        "sectors_missing": sectors_missing,
        "sectors_duplicate": np.count_nonzero(SCAN.twice),
        "sectors_rejected": 0,
        "frames_lost": 20,
        "raw_bytes": (SECTORS * len(expected) - sectors_missing) * RECORD_BYTES,
        "background": BACKGROUND,
        "xray": XRAY,
        "thresholds_calibrated": False,
    }
    assert {name: report[name] for name in counted} == counted
    assert report["seconds_streaming"] > 0
    assert report["seconds_last_frame_to_dataset"] > 0


@pytest.mark.parametrize("used", [("integer-dark",), ("float-dark",), ("float-dark", "gain"), ("gain",)], ids="+".join)
def test_events_with_references(
    testbed: CommandLine, sectors: Path, output: Path, references: dict[str, npt.NDArray], used: tuple[str, ...]
) -> None:
    arrays = {name.rpartition("-")[2]: references[name] for name in used}
    options = [
        word
        for name, image in arrays.items()
        for word in (f"--{name}", save(testbed.folder / f"{'-'.join(used)}-{name}.npy", image))
    ]
    # A fractional threshold: corrected values must be compared unrounded.
    background = 25.25 if "dark" in arrays else BACKGROUND + 0.5
    testbed.run(
        *("testbed", "scan", "--source", f"files:{sectors}", "--output", output, *options),
        *("--background", background, "--xray", XRAY),
    ).succeeded()
    assert_same_events(output, SCAN.expected_events(background, **arrays))
    assert_frames_of(output, SCAN)


@pytest.mark.parametrize("version", [5, 4])
@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_events_with_row_dark_and_a_pixel_mask(
    testbed: CommandLine,
    sectors: Path,
    sectors_version4: Path,
    output: Path,
    references: dict[str, npt.NDArray],
    version: int,
    statistic: str,
) -> None:
    """Of a half-row, of which a sector may be missing, only what is there decides."""
    source = f"files:{sectors}" if version == 5 else f"files:{sectors_version4}?version=4"
    mask, gain = (save(testbed.folder / f"row-dark-{name}.npy", references[name]) for name in ("mask", "gain"))
    testbed.run(
        *("testbed", "scan", "--source", source, "--output", output, "--pixel-mask", mask, "--gain", gain),
        *("--row-dark", statistic, "--row-dark-level", 25, "--background", BACKGROUND + 0.5, "--xray", XRAY),
    ).succeeded()
    corrections = {"row_dark": statistic, "row_dark_level": 25.0, "pixel_mask": references["mask"]}
    expected = SCAN.expected_events(BACKGROUND + 0.5, version=version, gain=references["gain"], **corrections)
    assert_same_events(output, expected)
    assert_frames_of(output, SCAN)


def test_events_of_version_4_files(testbed: CommandLine, sectors_version4: Path, output: Path) -> None:
    testbed.run(
        "testbed", "scan", "--source", f"files:{sectors_version4}?version=4", "--output", output, *THRESHOLDS
    ).succeeded()
    assert_same_events(output, SCAN.expected_events(version=4))
    assert_frames_of(output, SCAN)


def test_calibrated_thresholds_are_repeatable(testbed: CommandLine, sectors: Path, output: Path) -> None:
    paths = [output.with_name(f"{number}.h5") for number in range(2)]
    first, second = (
        testbed.run(
            *("testbed", "scan", "--source", f"files:{sectors}", "--output", path),
            *("--sample-frames", 20, "--xray-sigmas", 60, "--json"),
        ).last_json
        for path in paths
    )
    assert first["thresholds_calibrated"]
    assert first["background"] == second["background"]
    assert first["xray"] == second["xray"]
    assert 30 < first["background"] < 50
    assert same_bytes(*paths)
    assert_same_events(paths[0], SCAN.expected_events(first["background"], first["xray"]))


def test_bad_records_are_left_out_on_request_and_counted(testbed: CommandLine, output: Path) -> None:
    scan = MadeUpScan(2, 3, 1, 10, 4, seed=2)
    folder = scan.write(testbed.folder / "bad-records")
    damaged, truncated = folder / file_name(4, 1), folder / file_name(4, 2)
    content = bytearray(damaged.read_bytes())
    content[2 * RECORD_BYTES + 12] = 200  # the column of the record of frame 2
    damaged.write_bytes(content)
    truncated.write_bytes(truncated.read_bytes()[:-1])
    report = testbed.run(
        *("testbed", "scan", "--source", f"files:{folder}?skip_bad_records=yes", "--output", output),
        *(*THRESHOLDS, "--json"),
    ).last_json
    scan.missing[2], scan.missing[5] = 0b0010, 0b0100
    assert_same_events(output, scan.expected_events())
    assert_frames_of(output, scan)
    counted = {"frames": 6, "frames_incomplete": 2, "sectors_missing": 2, "sectors_rejected": 2, "sectors_duplicate": 0}
    assert {name: report[name] for name in counted} == counted
