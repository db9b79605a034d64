"""Batch jobs to write scripts of: one of each mode, with every option that it has."""

import os
import subprocess
from pathlib import Path
from typing import Any

from mpistream.launch.cluster.job_script import JobRequest, plan_job, render_script
from mpistream.launch.cluster.mode_options import checked_options
from mpistream.launch.cluster.site import Site, load_site
from mpistream.model.session import Mode

OPTIONS: dict[Mode, dict[str, Any]] = {
    Mode.LIVE: {},
    Mode.SINGLE: {
        "source": "files:/data/a scan",
        "output": "/data/it's/scan.h5",
        "dark": "ref:tuesday",
        "pixel_mask": "/data/mask.npy",
        "background": 44.1234567,
        "xray": 1500.0,
        "centroids": True,
    },
    Mode.DARK: {"source": "sim:8x8?electrons=0", "name": "tuesday"},
    Mode.CALIBRATE: {"source": "sim:8x8", "name": "tuesday", "dark": "ref:tuesday"},
    Mode.TIMESERIES: {
        "source": "sim:8x8?seed={index}",
        "scans": 5,
        "interval": 2.5,
        "output": "/data/series.h5",
        "join": True,
    },
    Mode.TOMOGRAPHY: {"source": "files:/data/{tilt}", "tilts": "-60:60:2", "output": "/data/tomography"},
    Mode.RAW: {"source": "files:/data/sectors", "output": "/data/recording.h5"},
    Mode.REPLAY: {"source": "raw:/data/recording.h5", "rate": 1000.0, "output": "/data/scan.h5"},
    Mode.FILEBASED: {
        "source": ("files:camera-0:/data", "files:/data/sectors"),
        "output": "/data/scan.h5",
        "overwrite": True,
        "dark": "/data/dark.npy",
        "background": 44.5,
        "xray": 1500.0,
    },
    Mode.BENCHMARK: {"scan": "64x64", "repeat": 3},
}


def request(mode: Mode = Mode.LIVE, options: dict[str, Any] | None = None, **values: Any) -> JobRequest:
    """A job that every site takes, unless ``values`` say otherwise."""
    given = checked_options(mode, OPTIONS[mode] if options is None else options)
    usual: dict[str, Any] = {"config": Path("/data/mpistream.toml"), "folder": Path("/data/jobs"), "account": "m1234"}
    return JobRequest(mode, "tuesday", options=given, **{**usual, **values})


def script(asked: JobRequest, site: Site | str = "perlmutter") -> str:
    return render_script(plan_job(asked, load_site(site) if isinstance(site, str) else site))


def run_script(text: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a script of the testbed's site as Slurm would: in its folder, a copy, with its variables."""
    path = folder / "slurm_script"
    path.write_text(text)
    environment = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "mpistream"}
    return subprocess.run(["bash", str(path)], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def program(folder: Path, name: str, body: str) -> Path:
    """A program of a few lines of shell, to stand for another one."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def shellcheck(path: Path) -> None:
    done = subprocess.run(["shellcheck", "--shell=bash", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
