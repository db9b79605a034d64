"""Scripts to fill in, one per mode, for who knows sbatch and nothing else: jobs/MODE.sh."""

from pathlib import Path
from typing import Any

from mpistream.launch.cluster.job_script import JobRequest, plan_job, render_script
from mpistream.launch.cluster.mode_options import checked_options
from mpistream.launch.cluster.site import load_site
from mpistream.model.session import Mode

_SITE = "perlmutter"
_TO_FILL_IN = "mNNNN (the account that pays), USER (your name there), SESSION (its name)"
_FOLDER = "/pscratch/sd/u/USER"

_OPTIONS: dict[Mode, dict[str, Any]] = {
    Mode.LIVE: {},
    Mode.SINGLE: {"source": f"files:{_FOLDER}/sectors", "output": f"{_FOLDER}/SESSION/scan.h5"},
    Mode.DARK: {"source": f"files:{_FOLDER}/dark-sectors", "name": "SESSION-dark"},
    Mode.CALIBRATE: {"source": f"files:{_FOLDER}/sectors", "name": "SESSION-thresholds", "dark": "ref:SESSION-dark"},
    Mode.TIMESERIES: {
        "source": f"files:{_FOLDER}/series/{{index}}",
        "scans": 20,
        "interval": 10.0,
        "output": f"{_FOLDER}/SESSION/series.h5",
        "join": True,
    },
    Mode.TOMOGRAPHY: {
        "source": f"files:{_FOLDER}/tilts/{{tilt}}",
        "tilts": "-60:60:2",
        "output": f"{_FOLDER}/SESSION/tomography",
    },
    Mode.RAW: {"source": f"files:{_FOLDER}/sectors", "output": f"{_FOLDER}/SESSION/recording.h5"},
    Mode.REPLAY: {
        "source": f"raw:{_FOLDER}/SESSION/recording.h5",
        "rate": 1000.0,
        "output": f"{_FOLDER}/SESSION/replayed.h5",
    },
    Mode.FILEBASED: {"source": ("files:CAMERA-HOST:/data/sectors",), "output": f"{_FOLDER}/SESSION/scan.h5"},
    Mode.BENCHMARK: {"scan": "256x256", "repeat": 3},
}


def plain_script(mode: Mode) -> str:
    """The mode's script for Perlmutter, with values that obviously stand for others."""
    request = JobRequest(
        mode,
        session="SESSION",
        # nobody who has only this script has a deployment's configuration to spare where none is needed
        config=None if mode is Mode.FILEBASED else Path(_FOLDER, "mpistream.toml"),
        folder=Path(_FOLDER),
        options=checked_options(mode, _OPTIONS[mode]),
        account="mNNNN",
        mpistream="$HOME/mpistream/.venv/bin/mpistream",
        datasets=Path(_FOLDER, "SESSION"),
    )
    others = ", CAMERA-HOST" if mode is Mode.FILEBASED else ""
    return render_script(plan_job(request, load_site(_SITE)), _TO_FILL_IN + others)


def write_plain_scripts(folder: Path) -> list[Path]:
    """Writes MODE.sh of every mode into ``folder``."""
    paths = []
    for mode in Mode:
        path = folder / f"{mode}.sh"
        path.write_text(plain_script(mode))
        path.chmod(0o755)
        paths.append(path)
    return paths
