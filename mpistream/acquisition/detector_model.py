"""The simulated detector: what its pixels show when electrons and x-rays hit them.

A monolithic active pixel sensor as in the 4D Camera: every pixel has a pedestal and read noise of its own; an electron
leaves an energy with a long tail towards high values (the Moyal approximation of Landau's distribution), whose charge
spreads over neighbouring pixels; an x-ray leaves far more. Some pixels are dead (0), some hot (constantly high).
The figures are of the size that counting has to cope with, in ADU; no particular sensor is claimed.
"""

from dataclasses import dataclass
from functools import cache
from math import erf, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from mpistream._ext.detector_response import deposit_charge, digitise
from mpistream.model.geometry import FRAME_PIXELS, FRAME_SHAPE, SECTORS, SectorLayout

FloatArray = npt.NDArray[np.float32]

PEDESTAL = 30.0
PEDESTAL_COLUMN_SPREAD = 0.5
PEDESTAL_PIXEL_SPREAD = 0.7
NOISE = 3.0
NOISE_SPREAD = 0.08

#: The most probable energy of an electron and the scale of its Moyal distribution (mean = mode + 1.27 * scale).
ELECTRON_MODE = 90.0
ELECTRON_SCALE = 15.0
XRAY_RANGE = (7000.0, 16000.0)
HOT_RANGE = (300.0, 1000.0)

#: Standard deviation of the charge cloud, in pixels.
CHARGE_SPREAD = 0.35
SHARING_BINS = 64

_MAPS_STREAM = 0


@dataclass(frozen=True)
class Hits:
    """What hit one frame. Positions are in pixels; pixel i reaches from i - 0.5 to i + 0.5.

    rows, columns  float32[n]  all inside the frame, electrons first, then x-rays
    energies       float32[n]  ADU
    electrons      how many of them are electrons
    noise_streams  uint64[4]   the random numbers of each sector's read noise
    """

    rows: FloatArray
    columns: FloatArray
    energies: FloatArray
    electrons: int
    noise_streams: npt.NDArray[np.uint64]


def electron_energies(generator: np.random.Generator, count: int) -> FloatArray:
    """float32[count] energies in ADU: -log(z**2) of a normal z has the Moyal distribution."""
    normal = generator.standard_normal(count, np.float32)
    return np.float32(ELECTRON_MODE) - np.float32(ELECTRON_SCALE) * np.log(np.maximum(normal * normal, 1e-12))


def xray_energies(generator: np.random.Generator, count: int) -> FloatArray:
    """float32[count] energies in ADU."""
    return generator.uniform(*XRAY_RANGE, count).astype(np.float32)


class DetectorModel:
    """The fixed properties of a detector, all from ``seed``, and the exposure of its sectors.

    pedestal, noise  float32[576, 576]  ADU; hot pixels have a high pedestal
    dead, hot        bool[576, 576]
    """

    def __init__(self, seed: int, dead_pixels: int, hot_pixels: int, layout: SectorLayout) -> None:
        generator = np.random.default_rng((seed, _MAPS_STREAM))
        self.layout = layout
        pedestal = PEDESTAL + PEDESTAL_PIXEL_SPREAD * generator.standard_normal(FRAME_SHAPE)
        pedestal += PEDESTAL_COLUMN_SPREAD * generator.standard_normal(FRAME_SHAPE[1])
        noise = NOISE * (1 + NOISE_SPREAD * generator.standard_normal(FRAME_SHAPE)).clip(0.5, 1.5)
        flawed = generator.choice(FRAME_PIXELS, dead_pixels + hot_pixels, replace=False)
        self.dead = np.zeros(FRAME_SHAPE, bool)
        self.dead.flat[flawed[:dead_pixels]] = True
        self.hot = np.zeros(FRAME_SHAPE, bool)
        self.hot.flat[flawed[dead_pixels:]] = True
        pedestal[self.hot] += generator.uniform(*HOT_RANGE, hot_pixels)
        self.pedestal = pedestal.astype(np.float32)
        self.noise = noise.astype(np.float32)
        self._pedestals = [self._sector_of(self.pedestal, sector) for sector in range(SECTORS)]
        self._noises = [self._sector_of(self.noise, sector) for sector in range(SECTORS)]
        self._dead = [np.nonzero(self._sector_of(self.dead, sector)) for sector in range(SECTORS)]
        self._charge = np.zeros(layout.sector_shape, np.float32)

    def _sector_of(self, image: npt.NDArray, sector: int) -> npt.NDArray:
        return np.ascontiguousarray(image[self.layout.sector_slices(sector)])

    def expose(self, hits: Hits, sector: int, pixels: npt.NDArray[np.uint16]) -> None:
        """Writes the uint16 ``pixels`` (of the layout's sector shape, contiguous) that ``sector`` shows.

        Charge from electrons just across the border of the sector is included. Not for several threads at once.
        """
        if pixels.shape != self.layout.sector_shape:
            raise ValueError(f"a sector has the shape {self.layout.sector_shape}, not {pixels.shape}")
        first_row, first_column = (part.start for part in self.layout.sector_slices(sector))
        deposit_charge(self._charge, hits.rows, hits.columns, hits.energies, _sharing_table(), first_row, first_column)
        digitise(
            self._charge,
            self._pedestals[sector],
            self._noises[sector],
            hits.noise_streams[sector],
            *_normal_quantiles(),
            pixels,
        )
        pixels[self._dead[sector]] = 0


@cache
def _sharing_table() -> FloatArray:
    """float32[SHARING_BINS, 3]: fractions of the charge on the pixel before, the pixel hit and the one behind."""
    inside = (np.arange(SHARING_BINS) + 0.5) / SHARING_BINS - 0.5
    edges = (np.array([-1.5, -0.5, 0.5, 1.5]) - inside[:, np.newaxis]) / (CHARGE_SPREAD * sqrt(2))
    cumulative = np.vectorize(erf)(edges) / 2
    return np.diff(cumulative, axis=1).astype(np.float32)


@cache
def _normal_quantiles() -> tuple[FloatArray, FloatArray]:
    """float32[4097] quantiles at multiples of 2**-12, and float32[4097] in the lower tail at multiples of 2**-24.

    Both begin at 2**-33 in the place of 0: noise beyond 6.2 sigma does not occur.
    """
    quantile = NormalDist().inv_cdf
    lowest, highest = quantile(2.0**-33), quantile(1 - 2.0**-33)
    centre = [lowest, *(quantile(step / 4096) for step in range(1, 4096)), highest]
    tail = [lowest, *(quantile(step * 2.0**-24) for step in range(1, 4097))]
    return np.array(centre, np.float32), np.array(tail, np.float32)
