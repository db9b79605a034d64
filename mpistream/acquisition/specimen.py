"""The simulated specimen: crystalline particles on an amorphous film with holes, and its diffraction patterns.

Every position gives a pattern of discs: the bright central disc, the Bragg discs of the grain that the probe stands on
(by its zone axis, orientation and tilt), and diffuse scattering of film and particle. So a bright-field image shows
bright holes and dark particles, an annular dark-field image the reverse, and the centre of mass the particles' edges.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpistream.model.geometry import FRAME_SHAPE

FloatArray = npt.NDArray[np.float32]

#: Radius of the discs, in pixels (the convergence angle of the probe), and the blur of their edge.
DISC_RADIUS = 80.0
DISC_BLUR = 1.0
#: How far diffuse scattering reaches beyond the disc (standard deviation in pixels).
FILM_SPREAD = 150.0
PARTICLE_SPREAD = 250.0

PARTICLES = 16
HOLES = 3
FLYBACK_SIGNAL = 0.1

_SPECIMEN_STREAM = 1


@dataclass(frozen=True)
class DiffractionPattern:
    """A sum of discs around points of the frame, whose edges are more or less blurred, in pixels.

    cumulative   float32[n]     running share of the electrons, ends with 1
    centres      float32[n, 2]  (row, column)
    spreads      float32[n]     standard deviation of the disc's radius, one-sided
    """

    cumulative: FloatArray
    centres: FloatArray
    spreads: FloatArray
    signal: float = 1.0

    def draw(self, generator: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
        """The float32 rows and columns of ``count`` electrons; some lie outside the frame."""
        disc = np.searchsorted(self.cumulative, generator.random(count, np.float32))
        # Rounding may leave the last running share a little below a number drawn.
        np.minimum(disc, len(self.cumulative) - 1, out=disc)
        edge = np.float32(DISC_RADIUS) + self.spreads[disc] * np.abs(generator.standard_normal(count, np.float32))
        radius = edge * np.sqrt(generator.random(count, np.float32))
        angle = np.float32(2 * np.pi) * generator.random(count, np.float32)
        centres = self.centres[disc]
        return centres[:, 0] + radius * np.sin(angle), centres[:, 1] + radius * np.cos(angle)


@dataclass(frozen=True)
class _Particle:
    """A round crystal; ``discs`` are its Bragg discs relative to the central one, ``shares`` sum to 1."""

    row: float
    column: float
    radius: float
    thickness: float
    discs: npt.NDArray[np.float64]
    shares: npt.NDArray[np.float64]


class Specimen:
    """What lies under the scan, all from ``seed``. Places are fractions (0 to 1) of the scan's rows and columns."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng((seed, _SPECIMEN_STREAM))
        self._particles = [_particle(generator) for _ in range(PARTICLES)]
        self._holes = [
            (*generator.uniform(0.1, 0.9, 2), generator.uniform(0.08, 0.16)) for _ in range(HOLES)
        ]  # (row, column, radius)

    def pattern(self, row: float, column: float) -> DiffractionPattern:
        """The diffraction pattern at one place."""
        film = 0.3 + 0.4 * column  # thickness: the film is a wedge
        for hole_row, hole_column, radius in self._holes:
            distance = np.hypot(row - hole_row, column - hole_column)
            film *= 1 / (1 + np.exp(min((radius - distance) / 0.008, 50.0)))
        particle, profile = self._thickest_particle(row, column)
        film_scattered = 1 - np.exp(-film)
        particle_scattered = (1 - film_scattered) * (1 - np.exp(-1.8 * profile * particle.thickness))
        shares = np.concatenate(
            (
                [1 - film_scattered - particle_scattered, film_scattered, 0.35 * particle_scattered],
                0.65 * particle_scattered * particle.shares,
            )
        )
        # The beam's tilt drifts a little over the scan, and a particle's edge deflects it outwards.
        centre = np.array(FRAME_SHAPE) / 2 + 4.0 * np.array([column - 0.5, row - 0.5])
        if profile > 0:
            centre += 5.0 * np.array([row - particle.row, column - particle.column]) / particle.radius
        discs = np.concatenate((np.zeros((3, 2)), particle.discs)) + centre
        spreads = np.full(len(shares), DISC_BLUR)
        spreads[1:3] = FILM_SPREAD, PARTICLE_SPREAD
        return _pattern(shares, discs, spreads)

    def flyback_pattern(self) -> DiffractionPattern:
        """What is seen while the beam moves back to the beginning of the next row."""
        centre = np.array([FRAME_SHAPE]) / 2
        return _pattern(np.ones(1), centre, np.array([FILM_SPREAD]), FLYBACK_SIGNAL)

    def _thickest_particle(self, row: float, column: float) -> tuple[_Particle, float]:
        """The particle that the beam crosses longest, and its height there (0 to 1, as of a sphere)."""
        heights = [
            max(0.0, 1 - ((row - each.row) ** 2 + (column - each.column) ** 2) / each.radius**2)
            for each in self._particles
        ]
        thickest = int(np.argmax(heights))
        return self._particles[thickest], float(np.sqrt(heights[thickest]))


def _pattern(
    shares: npt.NDArray, centres: npt.NDArray, spreads: npt.NDArray, signal: float = 1.0
) -> DiffractionPattern:
    cumulative = np.cumsum(shares / shares.sum()).astype(np.float32)
    return DiffractionPattern(cumulative, centres.astype(np.float32), spreads.astype(np.float32), signal)


def _particle(generator: np.random.Generator) -> _Particle:
    """A crystal in a zone axis of four- or sixfold symmetry, turned and tilted by chance."""
    spacing = generator.uniform(160, 185)
    turn = generator.uniform(0, np.pi)
    opening = np.pi / 2 if generator.random() < 0.5 else np.pi / 3
    first = spacing * np.array([np.sin(turn), np.cos(turn)])
    second = spacing * np.array([np.sin(turn + opening), np.cos(turn + opening)])
    steps = np.arange(-3, 4)
    order = np.array([(h, k) for h in steps for k in steps if (h, k) != (0, 0)])
    discs = order @ np.array([first, second])
    length = np.hypot(*discs.T)
    discs, length = discs[length < 400], length[length < 400]
    tilt_angle = generator.uniform(0, 2 * np.pi)
    tilt = generator.uniform(0, 110) * np.array([np.sin(tilt_angle), np.cos(tilt_angle)])
    # A reflection is strong near the Laue circle around -tilt through the central disc, weaker at high angles.
    excitation = (np.hypot(*(discs + tilt).T) - np.hypot(*tilt)) / 130
    shares = np.exp(-((length / 300) ** 2) - excitation**2)
    row, column = generator.uniform(0, 1, 2)
    radius, thickness = generator.uniform(0.07, 0.17), generator.uniform(0.5, 1.0)
    return _Particle(row, column, radius, thickness, discs, shares / shares.sum())
