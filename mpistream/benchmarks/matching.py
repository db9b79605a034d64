"""Events compared with the electrons that really hit the detector.

An event and an electron fit together where the electron lies within ``RADIUS`` of the centre of the event's pixel.
Pairs are made one to one, the nearest first: no event and no electron is in two. Of the events that remain, one is a
double count where the electron nearest to it lies within ``DOUBLE_RADIUS`` and has an event already.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from mpistream.model.geometry import FRAME_SHAPE

#: In pixels: on the event's pixel, or on its neighbours.
RADIUS = 1.5
#: In pixels. An electron's charge reaches the neighbours of the pixel that it hit, and no two neighbours are both
#: events: two events of one electron lie two pixels from each other.
DOUBLE_RADIUS = 2.5

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Event ``events[i]`` belongs to electron ``electrons[i]``; ``doubles`` is the number of double counts."""

    events: npt.NDArray[np.intp]
    electrons: npt.NDArray[np.intp]
    doubles: int


@dataclass(frozen=True)
class Quality:
    """Totals over frames, and what they say. Without events or electrons the shares are NaN."""

    events: int = 0
    electrons: int = 0
    pairs: int = 0
    doubles: int = 0

    def __add__(self, other: "Quality") -> "Quality":
        return Quality(
            self.events + other.events,
            self.electrons + other.electrons,
            self.pairs + other.pairs,
            self.doubles + other.doubles,
        )

    @property
    def precision(self) -> float:
        """The share of the events that are electrons."""
        return self.pairs / self.events if self.events else float("nan")

    @property
    def recall(self) -> float:
        """The share of the electrons that are found."""
        return self.pairs / self.electrons if self.electrons else float("nan")

    @property
    def double_counting(self) -> float:
        """Double counts per electron."""
        return self.doubles / self.electrons if self.electrons else float("nan")


def centres_of(indices: npt.NDArray[np.uint32]) -> Positions:
    """float64[n, 2]: (row, column) of the pixels with these flat indices."""
    return np.stack(np.divmod(indices, np.uint32(FRAME_SHAPE[1])), axis=1).astype(np.float64)


def match(events: Positions, electrons: Positions) -> Pairs:
    """Pairs of float64[n, 2] events and float64[m, 2] electrons, both (row, column) in pixels."""
    nothing = np.empty(0, np.intp)
    if not len(events) or not len(electrons):
        return Pairs(nothing, nothing, 0)
    tree_of_electrons = cKDTree(electrons)
    near = cKDTree(events).sparse_distance_matrix(tree_of_electrons, RADIUS, output_type="ndarray")
    near = near[np.argsort(near["v"], kind="stable")]
    event, electron = near["i"], near["j"]
    found = [(nothing, nothing)]
    while len(event):
        # A pair whose event and whose electron have no nearer partner is final, whatever becomes of the others.
        final = np.zeros(len(event), bool)
        final[np.intersect1d(np.unique(event, return_index=True)[1], np.unique(electron, return_index=True)[1])] = True
        found.append((event[final], electron[final]))
        rest = ~(np.isin(event, event[final]) | np.isin(electron, electron[final]))
        event, electron = event[rest], electron[rest]
    paired_events, paired_electrons = (np.concatenate(parts) for parts in zip(*found, strict=True))
    others = np.delete(events, paired_events, axis=0)
    distance, nearest = tree_of_electrons.query(others)
    doubles = (distance <= DOUBLE_RADIUS) & np.isin(nearest, paired_electrons)
    return Pairs(paired_events, paired_electrons, int(doubles.sum()))
