"""Reading of datasets for comparisons: plain h5py on the documented names."""

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from tests.system.sector_writer import MadeUpScan

EVENT_ARRAYS = ("indices", "offsets", "scan_position", "frame_number", "missing_sectors")


def event_arrays(path: Path) -> dict[str, npt.NDArray]:
    with h5py.File(path, "r") as file:
        return {name: file["electron_events"][name][:] for name in EVENT_ARRAYS}


def frames_of(path: Path) -> list[npt.NDArray[np.uint32]]:
    """The events of every frame."""
    arrays = event_arrays(path)
    bounds = arrays["offsets"].tolist()
    return [arrays["indices"][begin:end] for begin, end in pairwise(bounds)]


def assert_same_events(path: Path, expected: list[npt.NDArray[np.uint32]]) -> None:
    found = frames_of(path)
    assert len(found) == len(expected)
    for number, (events, wanted) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(events, wanted, err_msg=f"row {number} of {path.name}")


def assert_frames_of(path: Path, scan: MadeUpScan) -> None:
    """Every frame of the scan is there, in order, with its position and its missing sectors."""
    arrays, rows = event_arrays(path), scan.present
    np.testing.assert_array_equal(arrays["frame_number"], rows + scan.first_frame)
    np.testing.assert_array_equal(arrays["scan_position"], scan.position[rows])
    np.testing.assert_array_equal(arrays["missing_sectors"], scan.missing[rows])


def same_bytes(first: Path, second: Path) -> bool:
    """Whether the event arrays are identical, dtypes included."""
    one, other = event_arrays(first), event_arrays(second)
    return all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in EVENT_ARRAYS
    )
