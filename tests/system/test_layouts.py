"""The same scan gives the same bytes, however many ranks count it and whatever way the frames take."""

from pathlib import Path

import h5py
import pytest

from tests.system.command_line import CommandLine
from tests.system.datasets import EVENT_ARRAYS, assert_frames_of, assert_same_events, event_arrays, same_bytes
from tests.system.sector_writer import MadeUpScan

SCAN = MadeUpScan(7, 5, 2, 1001, 3, seed=8, sectors_lost=0.04, frames_lost=(40,), sectors_twice=0.1)
CASES = [
    (groups, ranks_per_group, way)
    for groups, ranks_per_group in [(1, 1), (1, 2), (2, 2), (3, 1), (4, 1)]
    for way in ("aggregator", "direct")
]


@pytest.fixture(scope="module")
def sectors(place: Path) -> Path:
    return SCAN.write(place / "sectors", files_per_sector=2, shuffled=True)


def run(cli: CommandLine, sectors: Path, output: Path, groups: int, ranks_per_group: int, *options: str) -> dict:
    return cli.run(
        *("testbed", "run", "--source", f"files:{sectors}", "--output", output, "--sample-frames", 24),
        *("--centroids", "--json", "--groups", groups, "--ranks-per-group", ranks_per_group, *options),
    ).last_json


@pytest.fixture(scope="module")
def first(cli: CommandLine, sectors: Path) -> tuple[Path, dict]:
    """What one rank makes of the scan: its dataset and its report."""
    path = cli.folder / "one-rank.h5"
    return path, run(cli, sectors, path, 1, 1)


def test_one_rank_counts_right(first: tuple[Path, dict]) -> None:
    path, report = first
    assert report["thresholds_calibrated"]
    assert_same_events(path, SCAN.expected_events(report["background"], report["xray"]))
    assert_frames_of(path, SCAN)
    assert {name: array.dtype.str for name, array in event_arrays(path).items()} == dict(
        zip((*EVENT_ARRAYS, "centroids"), ("<u4", "<u8", "<u4", "<u8", "|u1", "|i1"), strict=True)
    )


# the first case is what the others are compared with
@pytest.mark.parametrize(("groups", "ranks_per_group", "way"), CASES[1:])
def test_every_layout_gives_the_same_bytes(
    cli: CommandLine,
    sectors: Path,
    output: Path,
    first: tuple[Path, dict],
    groups: int,
    ranks_per_group: int,
    way: str,
) -> None:
    path, expected = first
    report = run(cli, sectors, output, groups, ranks_per_group, *(["--direct"] if way == "direct" else []))
    assert same_bytes(path, output)
    counted = [name for name, value in expected.items() if isinstance(value, int)] + ["background", "xray"]
    counted.remove("dataset_bytes")  # says also how many ranks there were
    counted.remove("blocks_repeated")  # a rank that had to wait for a busy machine asks once more
    assert {name: report[name] for name in counted} == {name: expected[name] for name in counted}
    with h5py.File(output) as file:
        ranks = file["metadata/provenance/ranks"][:]
    assert ranks["driver"].tolist() == [b"mpio"] * (groups * ranks_per_group)
    assert (ranks["n_events"] > 0).all()
