"""The scans that are streamed under faults, and what must come of them: the dataset of an undisturbed run."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import Simulator
from mpistream.acquisition.source import parse_specification
from mpistream.model.geometry import SECTORS

_THRESHOLDS = ("--background", "45", "--xray", "2500")
_ROOMY_BYTES = 4 * 2**30
_ENDS = "metadata/delivery@ends"
#: Facts of the run, not of the scan.
_OF_THE_RUN = ("@scan_uid", "metadata/provenance", "metadata/counters@blocks_repeated")


@dataclass(frozen=True)
class Variant:
    """A scan to announce. Those with the same ``dataset`` must give the same one, however they are streamed."""

    name: str
    source: str
    options: tuple[str, ...]
    dataset: str

    @property
    def is_calibrated(self) -> bool:
        return "--background" not in self.options

    @property
    def is_direct(self) -> bool:
        return "--direct" in self.options


def variants(folder: Path, side: int) -> dict[str, Variant]:
    """Simulated scans of ``side`` x ``side`` positions, and one of sector files, which are written to ``folder``."""
    plain = f"sim:{side}x{side}?electrons=300&seed=5"
    lossy = f"sim:{side}x{side}?electrons=300&seed=6&loss=0.01"
    files = f"files:{write_files(folder, side)}"
    found = [
        Variant("given", plain, _THRESHOLDS, "given"),
        Variant("calibrated", plain, (), "calibrated"),
        Variant("direct", plain, (*_THRESHOLDS, "--direct"), "given"),
        Variant("direct-calibrated", plain, ("--direct",), "calibrated"),
        Variant("lossy", lossy, _THRESHOLDS, "lossy"),
        Variant("files", files, (*_THRESHOLDS, "--centroids"), "files"),
    ]
    return {variant.name: variant for variant in found}


def write_files(folder: Path, side: int) -> Path:
    """Sector files in a random order, some records lost and some twice."""
    place = folder / "sectors"
    if not place.exists():
        options = ["--loss", "0.005", "--duplicates", "0.005", "--reorder", "all", "--seed", "7", "--electrons", "300"]
        command = [sys.executable, "-m", "mpistream", "simulate", "--scan", f"{side}x{side}", "--output", str(place)]
        subprocess.run([*command, *options], check=True, capture_output=True, timeout=300)
    return place


def roomy_folder(name: str, fallback: Path) -> Path:
    """A folder for sector files: in memory, where there is enough of it."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _ROOMY_BYTES
    folder = (memory if roomy else fallback) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its dataset, how long it took from the announcement to the commit and from the last end
    record to it, and how large its journals became.
    """

    path: Path
    seconds: float
    draining_seconds: float
    journal_bytes: int


def differences(path: Path, reference: Path) -> list[str]:
    """Names of arrays and attributes that are not the same in both datasets, bit by bit."""
    with h5py.File(path, "r") as one, h5py.File(reference, "r") as other:
        found, wanted = _contents(one), _contents(other)
    return sorted(
        f"{path.name}: {name} differs from the undisturbed run's"
        for name in found.keys() | wanted.keys()
        if found.get(name) != wanted.get(name)
    )


def _contents(file: h5py.File) -> dict[str, Any]:
    contents: dict[str, Any] = {}

    def take(name: str, item: Any) -> None:
        for key, value in item.attrs.items():
            contents[f"{name}@{key}"] = _bytes(value)
        if isinstance(item, h5py.Dataset):
            contents[name] = _bytes(item[()])

    take("", file)
    file.visititems(take)
    contents[_ENDS] = _without_seconds(file)
    return {name: value for name, value in contents.items() if not name.startswith(_OF_THE_RUN)}


def _without_seconds(file: h5py.File) -> list[dict[str, Any]]:
    """The end records, without how long it took to read and to send."""
    group, _, attribute = _ENDS.partition("@")
    ends = json.loads(file[group].attrs[attribute])
    return [{name: value for name, value in end.items() if not name.startswith("seconds_")} for end in ends]


def _bytes(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes() if array.dtype != object else repr(value).encode()


def false_losses(path: Path, source: str, lossless: Path) -> list[str]:
    """What is wrong with the dataset of a simulated scan that loses sectors.

    Its missing sectors must be those that the simulator left out, no more and no less, and every frame that lost none
    must have the events of the same scan without loss.
    """
    missing = simulator_of(source).missing
    truth = (missing << np.arange(SECTORS)).sum(axis=1).astype(np.uint8)
    with h5py.File(path, "r") as one, h5py.File(lossless, "r") as other:
        frames = one["electron_events/frame_number"][:]
        recorded = one["electron_events/missing_sectors"][:]
        found, wanted = _events_by_frame(one), _events_by_frame(other)
    wrong = []
    if not np.array_equal(np.sort(frames), np.flatnonzero(truth != 15)):
        wrong.append(f"{path.name}: frames that the source has are not there")
    elif not np.array_equal(recorded, truth[frames]):
        wrong.append(f"{path.name}: the missing sectors are not those that the source lost")
    whole = np.flatnonzero(truth == 0).tolist()
    changed = [frame for frame in whole if frame not in found or not np.array_equal(found[frame], wanted[frame])]
    if changed:
        wrong.append(f"{path.name}: {len(changed)} frames that lost nothing are not the same, from frame {changed[0]}")
    return wrong


def simulator_of(source: str) -> Simulator:
    _, shape, options = parse_specification(source)
    return Simulator(SimulationOptions.parse(shape, options))


def without_loss(source: str) -> str:
    return source.replace("&loss=0.01", "")


def _events_by_frame(file: h5py.File) -> dict[int, npt.NDArray[np.uint32]]:
    events = file["electron_events"]
    indices, offsets, frames = (events[name][:] for name in ("indices", "offsets", "frame_number"))
    bounds = offsets.tolist()
    return {int(frame): indices[bounds[row] : bounds[row + 1]] for row, frame in enumerate(frames)}


def folder_bytes(folder: Path) -> int:
    """Of the files in it; 0 where it is not there, or removed meanwhile."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0
