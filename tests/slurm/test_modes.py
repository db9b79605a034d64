"""Every mode's template, submitted with the real sbatch: each job ends with what it should leave."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mpistream import open_dataset, open_series, open_tilt_index
from mpistream.model.session import Mode
from tests.slurm.cluster import Cluster
from tests.system.command_line import endpoint_in, etcdctl, wait_until

pytestmark = pytest.mark.cluster
SOURCE = "sim:8x8?electrons=50"
THRESHOLDS = ("--background", 60, "--xray", 2000)
END_SECONDS = 180

Job = Callable[..., str]


@pytest.fixture
def job(cluster: Cluster, tmp_path: Path) -> Job:
    """Submits a job of two nodes in a session whose folder is the test's, waits for its end, and returns its log."""
    name = tmp_path.name.replace("_", "-")
    cluster.cli.run(
        *("session", "start", name, "--folder", cluster.folder, "--datasets", tmp_path),
        *THRESHOLDS,
    ).succeeded()

    def run(mode: Mode, *options: object) -> str:
        common = ("--site", "testbed", "--folder", cluster.folder, "--session", name, "--nodes", 2, "--json")
        submitted = cluster.cli.run("job", "submit", mode, *common, *options).last_json

        def end() -> dict[str, Any] | None:
            key = f"/testbed/batch/testbed/{submitted['job']}"
            found = json.loads(etcdctl(endpoint_in(cluster.config), "get", "--print-value-only", key) or "{}")
            return found if found.get("state") in ("ended", "failed") else None

        last = wait_until(end, END_SECONDS, f"the end of the {mode} job, whose log is {submitted['log']},")
        log = Path(submitted["log"]).read_text()
        assert last["state"] == "ended", log
        return log

    return run


def frames_of(path: Path) -> int:
    with open_dataset(path) as dataset:
        return len(dataset)


def events_of(path: Path) -> npt.NDArray[np.uint32]:
    """The electrons of all frames, each frame's number before its own."""
    with open_dataset(path) as dataset:
        return np.concatenate(
            [np.append(dataset.frame_number[index], dataset.frame(index)) for index in range(len(dataset))]
        ).astype(np.uint32)


def test_references_are_left_for_later_scans(job: Job, tmp_path: Path) -> None:
    job(Mode.DARK, "--source", "sim:8x8?electrons=0", "--name", tmp_path.name)
    reference = f"ref:{tmp_path.name}"
    job(Mode.CALIBRATE, "--source", SOURCE, "--name", tmp_path.name, "--dark", reference)
    output = tmp_path / "out" / "scan.h5"
    references = ("--dark", reference, "--pixel-mask", reference, "--thresholds", reference)
    job(Mode.SINGLE, "--source", SOURCE, "--output", output, *references)
    with open_dataset(output) as dataset:
        assert len(dataset) == 64
        used = dataset.provenance["scan_record"]["references"]
    assert used == dict.fromkeys(("dark", "pixel_mask", "thresholds"), tmp_path.name)


def test_series_of_scans(job: Job, tmp_path: Path) -> None:
    source = "sim:4x4?electrons=50&seed={index}"
    job(Mode.TIMESERIES, "--source", source, "--scans", 3, "--output", tmp_path / "each", "--each")
    assert [frames_of(tmp_path / "each" / f"scan-{index}.h5") for index in range(3)] == [16] * 3
    job(Mode.TIMESERIES, "--source", source, "--scans", 2, "--output", tmp_path / "series.h5")
    with open_series(tmp_path / "series.h5") as series:
        assert series.time_indices == [0, 1]
        assert [len(scan) for scan in series] == [16, 16]
    job(Mode.TOMOGRAPHY, "--source", source, "--tilts=-10:10:10", "--output", tmp_path / "tilts")
    found = {path.name for path in (tmp_path / "tilts").glob("*.h5")}
    assert found == {"tilt-0.h5", "tilt-1.h5", "tilt-2.h5", "tilts.h5"}
    with open_tilt_index(tmp_path / "tilts" / "tilts.h5") as tilts:
        assert tilts.tilts_degrees.tolist() == [-10, 0, 10]
        assert [tilts.open(row).labels["tilt_degrees"] for row in range(3)] == [-10, 0, 10]


def test_recorded_counted_from_files_and_replayed_it_is_the_same_scan(
    cluster: Cluster, job: Job, tmp_path: Path
) -> None:
    sectors = tmp_path / "sectors"
    cluster.cli.run("simulate", "--scan", "8x8", "--electrons", 50, "--output", sectors).succeeded()
    job(Mode.RAW, "--source", f"files:{sectors}", "--output", tmp_path / "recording.h5")
    job(Mode.REPLAY, "--source", f"raw:{tmp_path}/recording.h5", "--output", tmp_path / "replayed.h5")
    job(Mode.FILEBASED, "--source", f"files:{sectors}", "--output", tmp_path / "counted.h5", *THRESHOLDS)
    assert len(list((tmp_path / "counted-sectors").iterdir())) == 4
    job(Mode.SINGLE, "--source", f"files:{sectors}", "--output", tmp_path / "streamed.h5")
    replayed, counted, streamed = (events_of(tmp_path / f"{name}.h5") for name in ("replayed", "counted", "streamed"))
    assert len(streamed) > 64
    assert np.array_equal(replayed, streamed)
    assert np.array_equal(counted, streamed)


def test_a_benchmark_leaves_its_figures(job: Job, tmp_path: Path) -> None:
    job(Mode.BENCHMARK, "--scan", "8x8", "--repeat", 1)
    assert len(list((tmp_path / "jobs").glob("benchmark-*.json"))) == 1
