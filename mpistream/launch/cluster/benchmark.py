"""What a batch job does in mode benchmark: simulated scans through the whole pipeline, and how fast it was."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from mpistream.launch.announcement import ScanRequest
from mpistream.launch.cluster.batch_run import BatchRun, ProgramEnd
from mpistream.launch.cluster.record import say
from mpistream.launch.cluster.scan_work import announce_scan, follow_scan, wait_until_served
from mpistream.launch.scan_follower import ScanEnd
from mpistream.model.scan import CountingParameters
from mpistream.storage.small_files import save_files

_FIGURES = ("gigabytes_per_second", "frames_per_second", "seconds_last_frame_to_dataset")


def benchmark(run: BatchRun, shape: str, repeat: int, output: Path) -> ProgramEnd:
    """The figures of each scan and their medians; they stand in ``output`` (JSON), too. Datasets are removed."""
    wait_until_served(run)
    ranks = sum(len(group.ranks) for group in run.registry.groups())
    scans = []
    for index in range(repeat):
        path = output.with_name(f"{output.stem}-{index}.h5")
        request = ScanRequest(
            f"sim:{shape}", path, CountingParameters(), overwrite=True, labels={"batch_job": run.allocation.number}
        )
        figures = _figures(follow_scan(run, announce_scan(run, request)))
        path.unlink(missing_ok=True)
        say(f"scan {index + 1} of {repeat}: {_in_words(figures)}")
        scans.append(figures)
    medians = {name: median(scan[name] for scan in scans) for name in _FIGURES}
    result = {
        "scan": shape,
        "nodes": list(run.allocation.nodes),
        "ranks": ranks,
        "repeats": scans,
        "median": medians,
    }
    save_files({output: lambda file: file.write((json.dumps(result, indent=2) + "\n").encode())}, overwrite=True)
    print(json.dumps(result), flush=True)
    return ProgramEnd(f"median of {repeat}: {_in_words(medians)}; {output}")


def _figures(end: ScanEnd) -> dict[str, Any]:
    """A scan that was finished by another MPI job than the one that began it has no times, and counts as 0."""
    counters, seconds = end.summary.counters, end.summary.seconds
    streaming = seconds.get("streaming", 0.0)
    return {
        "frames": counters.frames,
        "raw_bytes": counters.raw_bytes,
        "electrons": counters.electrons,
        "seconds_streaming": streaming,
        "gigabytes_per_second": counters.raw_bytes / streaming / 1e9 if streaming else 0.0,
        "frames_per_second": counters.frames / streaming if streaming else 0.0,
        "seconds_last_frame_to_dataset": seconds.get("last_frame_to_dataset", 0.0),
    }


def _in_words(figures: dict[str, Any]) -> str:
    return (
        f"{figures['gigabytes_per_second']:.2f} GB/s, {figures['frames_per_second']:.0f} frames/s, "
        f"{figures['seconds_last_frame_to_dataset']:.2f} s from the last frame to the dataset"
    )
