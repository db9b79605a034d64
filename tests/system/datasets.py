"""Reading of datasets for comparisons: plain h5py on the documented names."""

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from tests.system.sector_writer import MadeUpScan

EVENT_ARRAYS = ("indices", "offsets", "scan_position", "frame_number", "missing_sectors")


def event_arrays(path: Path) -> dict[str, npt.NDArray]:
    """With centroids, where there are any."""
    with h5py.File(path, "r") as file:
        names = [*EVENT_ARRAYS, *({"centroids"} & file["electron_events"].keys())]
        return {name: file["electron_events"][name][:] for name in names}


def summed_arrays(path: Path) -> dict[str, npt.NDArray]:
    """The images, and the histogram of the calibration's sample, where there is one."""
    with h5py.File(path, "r") as file:
        groups = (file["images"], file["metadata/electron_counting"])
        return {name: array[:] for group in groups for name, array in group.items()}


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
    """Whether events, images and histogram are identical, dtypes included."""
    one, other = ({**event_arrays(path), **summed_arrays(path)} for path in (first, second))
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype and array.tobytes() == other[name].tobytes() for name, array in one.items()
    )
