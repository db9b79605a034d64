"""Writes several datasets, by one process of the program that counts from files.

``python -m tests.unit.many_scans FOLDER NAME=SOURCE[;LABELS[;COUNTING]] ...``; labels and counting parameters are JSON.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from mpistream.launch.local import MPI_ENVIRONMENT
from mpistream.model.config import Config
from mpistream.model.scan import CountingParameters, Durability, ScanRecord

GIVEN = {"background": 44.0, "xray": 1500.0}


def write_scans(folder: Path, *scans: str) -> list[Path]:
    """The datasets, in the order given."""
    command = [sys.executable, "-m", "tests.unit.many_scans", str(folder), *scans]
    done = subprocess.run(command, env={**os.environ, **MPI_ENVIRONMENT}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return [folder / scan.partition("=")[0] for scan in scans]


def _count(path: Path, source: str, labels: str = "{}", counting: str = "{}") -> None:
    from mpistream.pipeline.counting_files import count_source
    from mpistream.pipeline.source_frames import record_of_source

    def prepare() -> tuple[Config, ScanRecord]:
        parameters = CountingParameters(**{**GIVEN, **json.loads(counting)})
        record, _ = record_of_source(source, 4, parameters, output=str(path))
        return Config(), record.model_copy(update={"labels": json.loads(labels), "durability": Durability.NONE})

    count_source(prepare, lambda _: nullcontext(lambda stage, progress: None))


if __name__ == "__main__":
    for scan in sys.argv[2:]:
        name, _, rest = scan.partition("=")
        _count(Path(sys.argv[1]) / name, *rest.split(";"))
