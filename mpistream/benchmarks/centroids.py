"""How far from the true position an electron is placed: by its pixel, by its centroid as counted, and by other weights.

A weight says how much of the charge in a pixel counts. "In line" takes the row from the pixel, the one above and the
one below, and the column from those beside it; "3 x 3" takes both from all nine.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpistream.benchmarks.known_frames import KnownFrames
from mpistream.benchmarks.matching import Positions, centres_of, match
from mpistream.benchmarks.recorded_frames import XRAY
from mpistream.reduction.electron_counting import CountedFrames

#: Of the int8 offsets that counting gives.
_STEPS_PER_PIXEL = 128
_STEPS = (-1, 0, 1)
#: Rows and columns of the 3 x 3, flattened.
_DOWN, _RIGHT = (axis.ravel() for axis in np.meshgrid(_STEPS, _STEPS, indexing="ij"))
_ABOVE, _LEFT_OF, _CENTRE, _RIGHT_OF, _BELOW = 1, 3, 4, 5, 7

AS_COUNTED = "as counted: in line, above the lowest of the 3 x 3"


def centroid_errors(
    known: KnownFrames, counted: Sequence[CountedFrames], pedestal: float, background: float
) -> dict[str, float]:
    """Root mean square distance in pixels of events from their electrons, by where the event is placed.

    ``counted`` is each frame counted without references and with centroids; ``pedestal`` and ``background`` in ADU.
    """
    squares: dict[str, list[npt.NDArray[np.float64]]] = {}
    for frame, truth, found in zip(known.frames, known.electrons, counted, strict=True):
        assert found.centroids is not None
        centres = centres_of(found.indices)
        pairs = match(centres, truth)
        wanted = truth[pairs.electrons] - centres[pairs.events]
        charge = _neighbourhoods(frame, centres[pairs.events].astype(np.intp))
        placed = {
            "centre of the pixel": np.zeros_like(wanted),
            AS_COUNTED: found.centroids[pairs.events] / _STEPS_PER_PIXEL,
            "in line, above the pedestal": _in_line(np.maximum(charge - pedestal, 0)),
            "3 x 3, above the pedestal": _of_all(np.maximum(charge - pedestal, 0)),
            "3 x 3, above the background threshold": _of_all(np.maximum(charge - background, 0)),
        }
        for name, offset in placed.items():
            squares.setdefault(name, []).append(((offset - wanted) ** 2).sum(axis=1))
    return {name: float(np.sqrt(np.concatenate(parts).mean())) for name, parts in squares.items()}


def _neighbourhoods(frame: npt.NDArray[np.uint16], centres: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """float64[n, 9]: the values of the 3 x 3 around each of n pixels; 0 outside the frame and for x-rays."""
    padded = np.pad(frame.astype(np.float64), 1)
    padded[padded >= XRAY] = 0
    return padded[centres[:, :1] + 1 + _DOWN, centres[:, 1:] + 1 + _RIGHT]


def _of_all(weights: npt.NDArray[np.float64]) -> Positions:
    total = weights.sum(axis=1)
    return np.stack([weights @ _DOWN / total, weights @ _RIGHT / total], axis=1)


def _in_line(weights: npt.NDArray[np.float64]) -> Positions:
    above, left, centre, right, below = (weights[:, i] for i in (_ABOVE, _LEFT_OF, _CENTRE, _RIGHT_OF, _BELOW))
    return np.stack([(below - above) / (above + centre + below), (right - left) / (left + centre + right)], axis=1)
