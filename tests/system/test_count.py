"""Counting straight from files gives the dataset of streaming, to the byte, on any number of ranks."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpistream.launch.local import MPI_ENVIRONMENT, mpiexec
from mpistream.storage.verify import verify_dataset
from tests.system.command_line import THRESHOLDS, CommandLine, Finished, finish, wait_until
from tests.system.datasets import assert_frames_of, same_bytes
from tests.system.sector_writer import FRAME, MadeUpScan

SCAN = MadeUpScan(5, 6, 2, 1001, 3, seed=11, sectors_lost=0.04, frames_lost=(40,), sectors_twice=0.1)
CALIBRATED = ("--sample-frames", 24, "--centroids")


@pytest.fixture(scope="module")
def sectors(place: Path) -> Path:
    return SCAN.write(place / "sectors", files_per_sector=2, shuffled=True)


def launcher(ranks: int) -> tuple[str, ...]:
    """On its own, as a job of one, a process needs no launcher."""
    return ("env", *(f"{name}={value}" for name, value in MPI_ENVIRONMENT.items()), mpiexec(), "-n", str(ranks))


def count(cli: CommandLine, ranks: int, output: Path, *options: object) -> Finished:
    arguments = ("count", "--output", output, "--json", *options)
    return cli.run(*arguments, launcher=launcher(ranks) if ranks > 1 else ())


@pytest.fixture(scope="module")
def streamed(testbed: CommandLine, sectors: Path) -> tuple[Path, Any]:
    """What streaming makes of the scan: its dataset and its report."""
    path = testbed.folder / "streamed.h5"
    options = ("--source", f"files:{sectors}", "--output", path, *CALIBRATED, "--json")
    return path, testbed.run("testbed", "scan", *options).last_json


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks(cli: CommandLine, sectors: Path, streamed: Any, output: Path, ranks: int) -> None:
    report = count(cli, ranks, output, "--source", f"files:{sectors}", *CALIBRATED).last_json
    path, theirs = streamed
    assert_frames_of(output, SCAN)
    assert same_bytes(output, path)
    same = ("background", "xray", "thresholds_calibrated", "frames", "electrons", "frames_incomplete", "frames_lost")
    for name in (*same, "sectors_missing", "sectors_duplicate", "sectors_rejected", "raw_bytes", "state", "complete"):
        assert report[name] == theirs[name], name
    assert report["sectors_duplicate"] > 0
    assert report["sectors_missing"] > 0
    assert verify_dataset(output).findings == ()
    assert what_was_sent(output) == what_was_sent(path)
    with h5py.File(output, "r") as file:
        assert file["metadata/provenance"].attrs["ingest"] == "read"
        assert file["metadata/provenance"].attrs["mpi_ranks"] == ranks


def what_was_sent(path: Path) -> list[tuple[Any, ...]]:
    with h5py.File(path, "r") as file:
        ends = json.loads(file["metadata/delivery"].attrs["ends"])
    return [(end["sector"], end["records"], end["digest"], end["blocks"], end["cut"]) for end in ends]


@pytest.fixture(scope="module")
def references(place: Path) -> tuple[object, ...]:
    random = np.random.default_rng(5)
    arrays = {
        "dark": random.normal(20, 1, (FRAME, FRAME)).astype(np.float32),
        "gain": random.uniform(0.9, 1.1, (FRAME, FRAME)).astype(np.float32),
        "pixel-mask": random.random((FRAME, FRAME)) < 0.01,
    }
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return tuple(part for name in arrays for part in (f"--{name}", place / f"{name}.npy"))


@pytest.mark.parametrize("case", ["version 4, references", "row-dark, bad records", "given, one block"])
def test_whatever_is_asked_for(testbed: CommandLine, references: Any, output: Path, case: str) -> None:
    scan, version, query, options = MadeUpScan(4, 3, 1, 9, 2, seed=3, sectors_lost=0.05), 5, "", THRESHOLDS
    match case:
        case "version 4, references":
            version, query, options = 4, "?version=4", (*CALIBRATED, *references)
        case "row-dark, bad records":
            query, options = "?skip_bad_records=yes", ("--row-dark", "median", "--sample-frames", 5)
        case "given, one block":
            scan = MadeUpScan(2, 2, 1, 16, 2, seed=3)
    folder = scan.write(output.parent / "sectors", version=version)
    bad_records = int("bad records" in case)
    if bad_records:
        first = min(folder.iterdir())
        data = bytearray(first.read_bytes())
        data[0] ^= 1  # of another scan
        first.write_bytes(data)
    options = ("--source", f"files:{folder}{query}", *options)
    report = count(testbed, 2, output, *options).last_json
    path = output.with_name("streamed.h5")
    theirs = testbed.run("testbed", "scan", "--output", path, *options, "--json").last_json
    assert same_bytes(output, path)
    assert (report["background"], report["xray"]) == (theirs["background"], theirs["xray"])
    assert report["sectors_rejected"] == theirs["sectors_rejected"] == bad_records
    assert verify_dataset(output).findings == ()


def test_what_is_wrong_is_said_before_work_begins(cli: CommandLine, sectors: Path, output: Path) -> None:
    output.write_bytes(b"mine")
    whole = ("--source", f"files:{sectors}", *THRESHOLDS)
    count(cli, 2, output, *whole).failed_with("exists")
    assert output.read_bytes() == b"mine"
    count(cli, 1, output.parent / "absent" / "scan.h5", *whole).failed_with("does not exist")
    fresh = output.with_name("fresh.h5")
    count(cli, 1, fresh, "--source", "files:/nowhere").failed_with("/nowhere")
    count(cli, 1, fresh, "--source", "sim:4x4?live=100").failed_with("live")
    count(cli, 1, fresh, *whole, "--dark", "absent.npy").failed_with("absent.npy")
    assert not fresh.exists()
    assert count(cli, 1, output, *whole, "--overwrite").last_json["dataset"] == str(output)
    assert "read the source themselves" in cli.run("info", output).succeeded().stdout


def test_a_rank_that_is_killed_ends_its_job(cli: CommandLine, output: Path) -> None:
    command = cli.start("count", "--source", "sim:64x64", "--output", output, *THRESHOLDS, launcher=launcher(2))

    def ranks() -> list[int]:
        return [pid for pid, line in cli.processes("count").items() if "-n" not in line.split() and _threads(pid) > 1]

    wait_until(lambda: len(ranks()) == 2, 60, "two ranks")
    os.kill(ranks()[-1], signal.SIGKILL)
    assert finish(command, 60).status != 0
    assert not output.exists()


def test_an_interrupt_ends_it(cli: CommandLine, output: Path) -> None:
    command = cli.start("count", "--source", "sim:64x64", "--output", output, *THRESHOLDS)
    wait_until(lambda: cli.processes("count"), 60, "the command")
    wait_until(lambda: command.poll() is None and _threads(command.pid) > 1, 60, "its work")
    command.send_signal(signal.SIGINT)
    assert finish(command, 60).status == 130
    assert not output.exists()


def _threads(pid: int) -> int:
    """1 while it loads modules."""
    tasks = Path(f"/proc/{pid}/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 0
