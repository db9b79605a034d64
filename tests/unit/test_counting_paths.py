"""Every instruction set that this CPU has, against the definition: electrons, centroids and sums, event by event.

All are compared with the same slow reference, so with each other too.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
import pytest

from mpistream.model.geometry import FRAME_SHAPE, SECTORS, SectorLayout
from mpistream.reduction.electron_counting import CountedFrames, ElectronCounter, FrameCounter, simd_levels
from tests.unit import slow_reference
from tests.unit.counting_cases import (
    CORRECTIONS,
    CountingCase,
    Division,
    Random,
    lay_out,
    random_case,
    random_division,
)

#: Of small frames, with every rest of the widths at which vectors are cut.
WIDTHS = [*range(1, 71), 576]
FRAMES_PER_WIDTH = 20


def counter_for(case: CountingCase, simd: str) -> FrameCounter:
    division = case.division
    return FrameCounter(
        division.shape,
        division.sectors,
        division.side_by_side,
        case.background,
        case.xray,
        **case.corrections,
        centroids=True,
        annuli=case.annuli,
        simd=simd,
    )


@dataclass(frozen=True)
class Expected:
    """What the definition gives for a case: bool[n_frames, rows, columns] electrons, their centroids and sums."""

    electrons: np.ndarray
    centroids: np.ndarray
    sums: slow_reference.Sums

    @classmethod
    def of(cls, case: CountingCase) -> Self:
        electrons, centroids = case.expected()
        return cls(electrons, centroids, slow_reference.sums(electrons, case.annuli))

    def assert_equals(self, counted: CountedFrames, diffraction_sum: np.ndarray, name: str) -> None:
        found_frames = np.repeat(np.arange(len(counted.counts)), counted.counts)
        frames, indices = np.nonzero(self.electrons.reshape(len(self.electrons), -1))
        found, expected = np.stack([found_frames, counted.indices]), np.stack([frames, indices])
        np.testing.assert_array_equal(found, expected, f"frame and pixel, {name}")
        np.testing.assert_array_equal(counted.centroids, self.centroids, f"centroids, {name}")
        np.testing.assert_array_equal(counted.counts, self.sums.counts, name)
        np.testing.assert_array_equal(counted.moments, self.sums.moments, name)
        np.testing.assert_array_equal(counted.annuli, self.sums.annuli, name)
        np.testing.assert_array_equal(diffraction_sum, self.sums.diffraction_sum, name)


def check(case: CountingCase, random: Random, name: str = "") -> int:
    """Counts ``case`` in every way; returns the number of electrons."""
    _memory, addresses = lay_out(random, case)
    expected = Expected.of(case)
    np.testing.assert_array_less(np.abs(expected.centroids.astype(int)), 65)
    for simd in simd_levels():
        counter = counter_for(case, simd)
        counted = counter.count_block(addresses)
        expected.assert_equals(counted, counter.diffraction_sum, f"{simd} {name} {case.division}")
    return int(expected.electrons.sum())


def test_there_is_a_way_to_count_without_vectors() -> None:
    assert simd_levels()[-1] in ("portable", "neon")


@pytest.mark.parametrize("incomplete", [False, True], ids=["complete", "incomplete"])
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("side_by_side", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_a_thousand_small_frames(kind: str, side_by_side: bool, masked: bool, incomplete: bool) -> None:
    seed = [list(CORRECTIONS).index(kind), side_by_side, masked, incomplete]
    frames = electrons = 0
    for width in WIDTHS:
        random = np.random.default_rng([*seed, width])
        height = int(random.integers(1, 41 if width <= 70 else 9))
        division = random_division(random, height, width, side_by_side)
        case = random_case(random, division, FRAMES_PER_WIDTH, kind, masked=masked, incomplete=incomplete)
        electrons += check(case, random, f"seed {[*seed, width]}")
        frames += len(case.frames)
    assert frames >= 1000
    assert electrons > frames


@pytest.mark.parametrize("layout", SectorLayout)
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_full_frames(kind: str, layout: SectorLayout) -> None:
    division = Division(*FRAME_SHAPE, SECTORS, layout is SectorLayout.COLUMNS)
    for masked, incomplete in product((False, True), repeat=2):
        random = np.random.default_rng([list(CORRECTIONS).index(kind), layout, masked, incomplete])
        case = random_case(random, division, 3, kind, masked=masked, incomplete=incomplete)
        _memory, addresses = lay_out(random, case)
        expected = Expected.of(case)
        options = {"centroids": True, "annuli": case.annuli, **case.corrections}
        for simd in simd_levels():
            counter = ElectronCounter(layout, case.background, case.xray, **options, simd=simd)
            expected.assert_equals(counter.count_block(addresses), counter.diffraction_sum, simd)


def plain_case(
    division: Division, frames: np.ndarray, background: float, xray: float, **corrections: Any
) -> CountingCase:
    missing = np.zeros((len(frames), division.sectors), bool)
    return CountingCase(division, frames, missing, background, xray, corrections)


@pytest.mark.parametrize("side_by_side", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("brightest", [0, -1, -2, -30, -61], ids=lambda less: f"neighbour{less}")
def test_a_bright_pixel_everywhere_with_each_neighbour(side_by_side: bool, brightest: int) -> None:
    """So on every edge and corner and across every border between sectors: with a neighbour in each direction that is
    as bright, hardly darker, or below the background."""
    rows, columns, value = 8, 68, 90
    division = Division(rows, columns, 4, side_by_side)
    for row_step, column_step in slow_reference.NEIGHBOURS:
        frames = np.zeros((rows * columns, rows, columns), np.uint16)
        for frame, (row, column) in zip(frames, np.ndindex(rows, columns), strict=True):
            frame[row, column] = value
            if 0 <= row + row_step < rows and 0 <= column + column_step < columns:
                frame[row + row_step, column + column_step] = value + brightest
        electrons = check(plain_case(division, frames, 40, 1000), np.random.default_rng(1))
        pairs = np.count_nonzero(frames.sum(axis=(1, 2)) > value)
        assert electrons == rows * columns - (0 if brightest else pairs)


@pytest.mark.parametrize("dark", [None, 10, 10.25, -70000])
@pytest.mark.parametrize(("background", "xray"), [(40, 45), (0, 1), (40.5, 44.5), (-3, 4), (65530, 65534)])
def test_every_pair_of_values_around_the_thresholds(background: float, xray: float, dark: float | None) -> None:
    shift = dark or 0
    near = {np.rint(threshold) + shift + step for threshold in (background, xray) for step in (-2, -1, 0, 1, 2)}
    values = sorted({int(min(max(value, 0), 65535)) for value in near} | {0, 65535})
    frames = np.zeros((len(values) ** 2, 3, 5), np.uint16)
    for position in ((0, 0), (1, 2), (2, 4)):
        for frame, (here, around) in zip(frames, product(values, repeat=2), strict=True):
            frame[:] = around
            frame[position] = here
        references = {} if dark is None else {"dark": np.full((3, 5), dark)}
        check(plain_case(Division(3, 5, 1, False), frames, background, xray, **references), np.random.default_rng(2))


@pytest.mark.skipif(len(simd_levels()) < 2, reason="this CPU counts in one way only")
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_all_ways_agree_on_many_full_frames(kind: str) -> None:
    division = Division(*FRAME_SHAPE, SECTORS, False)
    random = np.random.default_rng(list(CORRECTIONS).index(kind))
    case = random_case(random, division, 24, kind, masked=True, incomplete=True)
    case = CountingCase(division, case.frames, case.missing, 45.5, 2000, case.corrections)
    _memory, addresses = lay_out(random, case)
    first, *others = [counter_for(case, simd).count_block(addresses) for simd in simd_levels()]
    for other in others:
        for name in ("indices", "counts", "centroids", "moments"):
            np.testing.assert_array_equal(getattr(other, name), getattr(first, name))
