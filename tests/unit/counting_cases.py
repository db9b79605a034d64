"""Frames of every kind that the counting kernel must get right, lying in memory as sectors do; ways to count them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream.reduction.electron_counting import count_electrons, simd_levels
from tests.unit import slow_reference

Random = np.random.Generator
Frames = npt.NDArray[np.uint16]

#: Name of a kind of correction: what takes part in it.
CORRECTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "integer dark": ("integer dark",),
    "float dark": ("float dark",),
    "gain": ("gain",),
    "dark and gain": ("float dark", "gain"),
    "row-dark by mean": ("mean",),
    "row-dark by median": ("median",),
    "row-dark and gain": ("median", "gain"),
}


@dataclass(frozen=True)
class Division:
    """Frames of a shape, in sectors above each other or side by side."""

    rows: int
    columns: int
    sectors: int
    side_by_side: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def sector_slices(self, sector: int) -> tuple[slice, slice]:
        length = (self.columns if self.side_by_side else self.rows) // self.sectors
        part = slice(sector * length, (sector + 1) * length)
        return (slice(None), part) if self.side_by_side else (part, slice(None))

    def missing_pixels(self, missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Of bool[n_frames, sectors] missing sectors, the pixels: bool[n_frames, rows, columns]."""
        pixels = np.zeros((len(missing), *self.shape), bool)
        for sector in range(self.sectors):
            pixels[:, *self.sector_slices(sector)] = missing[:, sector, np.newaxis, np.newaxis]
        return pixels


@dataclass(frozen=True)
class CountingCase:
    """Frames and how they are to be counted."""

    division: Division
    frames: Frames
    missing: npt.NDArray[np.bool_]  # [n_frames, sectors]
    background: float
    xray: float
    corrections: dict[str, Any]  # dark, gain, pixel_mask, row_dark, row_dark_level: those that are given
    annuli: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def expected(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int8]]:
        """bool[n_frames, rows, columns] electrons by the definition, and their centroids."""
        missing, mask = self.division.missing_pixels(self.missing), self.corrections.get("pixel_mask")
        values = slow_reference.corrected_values(self.frames, missing=missing, **self.corrections)
        electrons = slow_reference.is_electron(values, self.background, self.xray, mask)
        offsets = slow_reference.centroids(values, electrons, self.background, self.xray, missing, mask)
        return electrons, offsets


def lay_out(random: Random, case: CountingCase) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
    """Each sector at an odd address, among random bytes: (memory, addresses uint64[n_frames, sectors])."""
    addresses = np.zeros(case.missing.shape, np.uint64)
    n_sectors = case.missing.size
    sector_bytes = case.division.rows * case.division.columns // case.division.sectors * 2
    memory = random.integers(0, 256, n_sectors * (sector_bytes + 32) + 32, np.uint8)
    start = 17 - memory.ctypes.data % 2
    for i, frame in enumerate(case.frames):
        for sector in np.flatnonzero(~case.missing[i]):
            raw = np.ascontiguousarray(frame[case.division.sector_slices(int(sector))]).view(np.uint8).ravel()
            memory[start : start + sector_bytes] = raw
            addresses[i, sector] = memory.ctypes.data + start
            start += sector_bytes + 2 * int(random.integers(0, 16))
    return memory, addresses


# --- every way to count


def electrons_of(frame: np.ndarray, background: float, xray: float, **options: Any) -> list[int]:
    """The electrons of one frame, the same in every way that this CPU has."""
    of_levels = []
    for simd in simd_levels():
        indices, offsets = count_electrons(frame[np.newaxis], background=background, xray=xray, simd=simd, **options)
        assert offsets.tolist() == [0, len(indices)]
        of_levels.append(indices.tolist())
    assert all(found == of_levels[0] for found in of_levels)
    return of_levels[0]


# --- frames


def noise(random: Random, shape: tuple[int, int], division: Division) -> Frames:
    """Around 30 with bright pixels and a few x-rays."""
    frame = random.normal(30, 5, shape).round()
    frame += (random.random(shape) < random.choice([0.001, 0.02, 0.2])) * random.integers(20, 300, shape)
    frame[random.random(shape) < 0.002] = 5000
    return frame.clip(0, 65535).astype(np.uint16)


def few_values(random: Random, shape: tuple[int, int], division: Division) -> Frames:
    """Values near each other, so that many are equal."""
    lowest = random.choice([0, 29, 255, 0x7FFE, 0xFFFC])
    return random.integers(lowest, lowest + 4, shape).astype(np.uint16)


def any_values(random: Random, shape: tuple[int, int], division: Division) -> Frames:
    return random.integers(0, 65536, shape).astype(np.uint16)


def constant(random: Random, shape: tuple[int, int], division: Division) -> Frames:
    return np.full(shape, random.choice([0, 65535, 1, 40, 0x8000]), np.uint16)


def plateaus(random: Random, shape: tuple[int, int], division: Division) -> Frames:
    """Rectangles of equal pixels, some with a step."""
    frame = np.full(shape, random.choice([0, 30]), np.uint16)
    for _ in range(6):
        top, left = random.integers(0, shape[0]), random.integers(0, shape[1])
        value = random.integers(40, 300)
        frame[top : top + random.integers(1, 4), left : left + random.integers(1, 4)] = value
        if random.random() < 0.5:
            frame[top, left] = value + 1
    return frame


def lattice(random: Random, shape: tuple[int, int], division: Division) -> Frames:
    """As many electrons as a frame can hold."""
    frame = np.full(shape, random.choice([0, 30]), np.uint16)
    frame[random.integers(0, 2) :: 2, random.integers(0, 2) :: 2] = random.integers(60, 200)
    return frame


def borders(random: Random, shape: tuple[int, int], division: Division) -> Frames:
    """Bright pixels on every edge, in the corners and on both sides of the borders between sectors and half-rows."""
    rows, columns = shape
    frame = random.integers(0, 31, shape).astype(np.uint16)
    of_rows, of_columns = {0, rows - 1}, {0, columns - 1, columns // 2 - 1, columns // 2}
    for sector in range(division.sectors):
        part = division.sector_slices(sector)[division.side_by_side]
        (of_columns if division.side_by_side else of_rows).update({part.start, part.stop - 1})
    for row in of_rows:
        frame[row][random.random(columns) < 0.3] = random.integers(60, 200)
    for column in of_columns:
        frame[:, column][random.random(rows) < 0.3] = random.integers(60, 200)
    frame[np.ix_([0, -1], [0, -1])] = random.integers(60, 300, (2, 2))
    return frame


STYLES: list[Callable[[Random, tuple[int, int], Division], Frames]] = [
    noise,
    noise,
    few_values,
    any_values,
    constant,
    plateaus,
    lattice,
    borders,
]


# --- what they are counted with


def random_dark(random: Random, shape: tuple[int, int], kind: str) -> npt.NDArray:
    choice = random.integers(0, 5)
    if kind == "integer dark":
        lowest, highest = [(20, 40), (0, 3), (-1000, 0), (0, 65536), (-16_711_679, 16_711_680)][choice]
        return random.integers(lowest, highest, shape)
    mean, width = [(30, 3), (29.5, 0), (-300, 20), (0, 1e4), (0, 1e30)][choice]
    return random.normal(mean, width, shape).astype(np.float32)


def random_gain(random: Random, shape: tuple[int, int]) -> npt.NDArray:
    choice = random.integers(0, 6)
    if choice == 1:
        return 2.0 ** random.integers(-3, 4, shape)
    if choice == 2:
        return random.choice([-1.0, 1.0], shape) * random.normal(1, 0.1, shape)
    if choice == 3:
        return np.full(shape, random.choice([1.0, -1.0, 3.0]), np.float32)
    if choice == 4:
        return 10.0 ** random.uniform(-36, 36, shape)
    return random.normal(1, 0.1, shape).astype(np.float32)


def random_corrections(random: Random, shape: tuple[int, int], kind: str, masked: bool) -> dict[str, Any]:
    corrections: dict[str, Any] = {}
    for part in CORRECTIONS[kind]:
        if part == "gain":
            corrections["gain"] = random_gain(random, shape)
        elif part in ("mean", "median"):
            corrections |= {"row_dark": part, "row_dark_level": random.choice([30.0, 29.8, 1.0, 0.1, 4000.0, 65535.0])}
        else:
            corrections["dark"] = random_dark(random, shape, part)
    if masked:
        mask = random.random(shape) < random.choice([0.01, 0.1, 0.5, 0.9])
        mask.flat[random.integers(0, mask.size)] = False  # one good pixel at least
        corrections["pixel_mask"] = mask
    return corrections


def random_thresholds(random: Random, values: npt.NDArray) -> tuple[float, float]:
    """Often at values that occur among ``values``, or just beside one; sometimes far from all."""

    def near_a_value() -> float:
        value = float(random.choice(values.ravel()))
        return value + float(random.choice([0.0, 0.0, 0.5, -0.5])) + float(random.choice([0.0, 0.0, 1e-5])) * value

    def background() -> float:
        choices = [45.5, 0.0, -3.0, -1e-3, -np.inf, 65534.0, 65535.0, 70000.0, near_a_value(), near_a_value()]
        return float(random.choice(choices))

    for _ in range(1000):
        lower, upper = background(), float(random.choice([2000.0, np.inf, 65535.0, 65536.0, 1e300, near_a_value()]))
        if random.random() < 0.05:
            upper = float(np.nextafter(lower, np.inf))
        if lower < upper:
            return lower, upper
    return 45.5, 2000.0


def random_division(random: Random, rows: int, columns: int, side_by_side: bool) -> Division:
    length = columns if side_by_side else rows
    divisors = [n for n in range(1, min(length, 8) + 1) if length % n == 0]
    return Division(rows, columns, int(random.choice(divisors)), side_by_side)


def random_case(
    random: Random, division: Division, n_frames: int, kind: str, *, masked: bool, incomplete: bool
) -> CountingCase:
    """``n_frames`` frames of all styles; with ``incomplete`` each sector is missing from a third of them."""
    shape = division.shape
    styles = random.integers(0, len(STYLES), n_frames)
    frames = np.stack([STYLES[style](random, shape, division) for style in styles])
    missing = np.zeros((n_frames, division.sectors), bool)
    if incomplete:
        missing = random.random(missing.shape) < 1 / 3
    corrections = random_corrections(random, shape, kind, masked)
    values = slow_reference.corrected_values(frames[:3], missing=division.missing_pixels(missing[:3]), **corrections)
    background, xray = random_thresholds(random, np.nan_to_num(values.astype(np.float64)))
    annuli = [random.random(shape) < 0.4 for _ in range(random.integers(0, 9))]
    return CountingCase(division, frames, missing, background, xray, corrections, annuli)
