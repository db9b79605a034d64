"""The images of a dataset once more, from its events, to be compared with those that are stored."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout as layout
from mpistream.model.virtual_images import Mask, annulus_mask, diffraction_sum
from mpistream.storage.reader import Dataset

_DETECTORS = (layout.BRIGHT_FIELD, layout.ANNULAR_DARK_FIELD)


class RecountedImages:
    """Takes the events run by run; holds the images only."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        positions = dataset.scan_shape[0] * dataset.scan_shape[1]
        self._masks: dict[str, Mask] = {
            name: annulus_mask(dataset.frame_shape, *dataset.image_radii(_leaf(name)), dataset.center).ravel()
            for name in _DETECTORS
        }
        self._sums = {name: np.zeros(positions, np.uint64) for name in (layout.ELECTRON_COUNT, *_DETECTORS)}
        self._moments = np.zeros((2, positions), np.uint64)
        self._pattern = np.zeros(dataset.frame_shape, np.uint64)

    def add(
        self,
        scan_position: npt.NDArray[np.uint32],
        offsets: npt.NDArray[np.uint64],
        indices: npt.NDArray[np.uint32],
    ) -> None:
        """Some frames: where they were taken, where in ``indices`` their events begin and the last one's end."""
        bounds = offsets.astype(np.intp)

        def enter(sums: npt.NDArray[np.uint64], values: npt.NDArray[Any]) -> None:
            before = np.zeros(len(indices) + 1, np.uint64)
            np.cumsum(values, out=before[1:])
            np.add.at(sums, scan_position, np.diff(before[bounds]))

        np.add.at(self._sums[layout.ELECTRON_COUNT], scan_position, np.diff(offsets))
        for name, mask in self._masks.items():
            enter(self._sums[name], mask[indices])
        for sums, values in zip(self._moments, np.divmod(indices, self._dataset.frame_shape[1]), strict=True):
            enter(sums, values)
        self._pattern += diffraction_sum(indices, self._dataset.frame_shape)

    def differing(self) -> list[str]:
        """The names of the stored images that are not those of the events."""
        stored, shape = self._dataset.images, self._dataset.scan_shape
        count = self._sums[layout.ELECTRON_COUNT]
        mass = np.full((len(count), 2), np.nan)
        for axis, moments in enumerate(self._moments):
            np.divide(moments, count, out=mass[:, axis], where=count > 0)
        recounted: dict[str, npt.NDArray[Any]] = {name: sums.reshape(shape) for name, sums in self._sums.items()}
        recounted |= {layout.DIFFRACTION_SUM: self._pattern, layout.CENTER_OF_MASS: mass.reshape((*shape, 2))}
        return [
            _leaf(name)
            for name, image in recounted.items()
            if not np.array_equal(stored[_leaf(name)], image, equal_nan=True)
        ]


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]
