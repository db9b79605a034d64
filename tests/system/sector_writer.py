"""Sector files and made-up scans, written from the description of the format alone: nothing of mpistream is used.

A record is a 16-byte little-endian header (u32 scan number, u32 frame number, u16 scan columns, u16 scan rows,
u16 column, u16 row) and the sector's uint16 pixels: 144 x 576 in version 5, 576 x 144 in version 4.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.unit.slow_reference import count_frame

SECTORS = 4
FRAME = 576
SECTOR = FRAME // SECTORS
RECORD_BYTES = 16 + FRAME * SECTOR * 2
GROUND, NOISE = 20.0, 4.0
BACKGROUND, XRAY = 45.0, 2500.0

_HEADER = struct.Struct("<IIHHHH")


def sector_pixels(frame: npt.NDArray[np.uint16], sector: int, version: int) -> npt.NDArray[np.uint16]:
    part = slice(sector * SECTOR, (sector + 1) * SECTOR)
    return frame[part] if version == 5 else frame[:, part]


def pack_record(
    scan_number: int, frame_number: int, rows: int, columns: int, position: int, pixels: npt.NDArray[np.uint16]
) -> bytes:
    row, column = divmod(position, columns)
    return _HEADER.pack(scan_number, frame_number, columns, rows, column, row) + pixels.astype("<u2").tobytes()


def file_name(scan_number: int, sector: int, part: int = 0) -> str:
    return f"data_scan{scan_number:010d}_module{sector}_{part}.data"


def write_plain_scan(
    folder: Path, rows: int, columns: int, scan_number: int = 1, seed: int = 1, first_frame: int = 0
) -> Path:
    """A scan of one frame per position with nothing special about it: one file per sector, in order."""
    return MadeUpScan(rows, columns, 1, first_frame, scan_number, seed).write(folder)


@dataclass(frozen=True)
class MadeUpScan:
    """Frames of ground noise with electrons in them, on a grid of positions, in a random order of positions.

    Frame i has the number ``first_frame + i``. ``sectors_lost`` of all sectors are missing; so are the frames
    ``frames_lost`` altogether.
    """

    rows: int
    columns: int
    frames_per_position: int
    first_frame: int
    scan_number: int
    seed: int
    sectors_lost: float = 0.0
    frames_lost: tuple[int, ...] = ()
    sectors_twice: float = 0.0

    @property
    def n_frames(self) -> int:
        return self.rows * self.columns * self.frames_per_position

    def _random(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose])

    @cached_property
    def position(self) -> npt.NDArray[np.int64]:
        """Of each frame."""
        positions = np.repeat(np.arange(self.rows * self.columns), self.frames_per_position)
        return self._random(0).permutation(positions)

    @cached_property
    def missing(self) -> npt.NDArray[np.uint8]:
        """Of each frame: bit s is set where sector s is missing."""
        lost = self._random(1).random((self.n_frames, SECTORS)) < self.sectors_lost
        lost[list(self.frames_lost)] = True
        return (lost << np.arange(SECTORS)).sum(axis=1).astype(np.uint8)

    @cached_property
    def twice(self) -> npt.NDArray[np.bool_]:
        """Of each frame and sector: whether its record occurs a second time."""
        present = (self.missing[:, None] >> np.arange(SECTORS) & 1) == 0
        return present & (self._random(2).random((self.n_frames, SECTORS)) < self.sectors_twice)

    @property
    def present(self) -> npt.NDArray[np.int64]:
        """The frames of which at least one sector is there, in the order of a dataset."""
        frames = np.flatnonzero(self.missing != 15)
        return frames[np.lexsort((frames, self.position[frames]))]

    def frame(self, number: int) -> npt.NDArray[np.uint16]:
        """All pixels of a frame, before any of its sectors is lost."""
        random = self._random(1000 + number)
        image = random.normal(GROUND, NOISE, (FRAME, FRAME))
        rows, columns = random.integers(0, FRAME, (2, 400))
        # Many electrons next to the borders of sectors and frame, where neighbours are in another sector or not there.
        borders = [0, 143, 144, 287, 288, 431, 432, 575]
        rows[:120], columns[120:240] = random.choice(borders, 120), random.choice(borders, 120)
        for row, column, energy in zip(rows, columns, random.gamma(2.0, 120.0, 400), strict=True):
            image[row, column] += energy
            image[min(row + 1, FRAME - 1), column] += energy * random.random() * 0.6
        for row, column in random.integers(0, FRAME - 1, (20, 2)):
            image[row, column : column + 2] = 300.0  # two pixels alike: no electron
        for row, column in random.integers(0, FRAME, (3, 2)):
            image[row, column] = random.uniform(XRAY - 100, 65535)
        return np.clip(np.rint(image), 0, 65535).astype(np.uint16)

    def write(self, folder: Path, version: int = 5, files_per_sector: int = 1, shuffled: bool = False) -> Path:
        """The sector files. Second occurrences come last in the order of files, and have other pixels."""
        folder.mkdir(parents=True)
        images = [self.frame(number) for number in range(self.n_frames)]
        for sector in range(SECTORS):
            numbers = [number for number in range(self.n_frames) if not self.missing[number] >> sector & 1]
            if shuffled:
                numbers = self._random(10 + sector).permutation(numbers).tolist()
            records = [self._record(number, sector_pixels(images[number], sector, version)) for number in numbers]
            for number in np.flatnonzero(self.twice[:, sector]).tolist():
                other = (number + 1) % self.n_frames
                records.append(self._record(number, sector_pixels(images[other], sector, version)))
            for part, places in enumerate(np.array_split(np.arange(len(records)), files_per_sector)):
                path = folder / file_name(self.scan_number, sector, part)
                path.write_bytes(b"".join(records[place] for place in places))
        return folder

    def _record(self, number: int, pixels: npt.NDArray[np.uint16]) -> bytes:
        frame_number, position = self.first_frame + number, int(self.position[number])
        return pack_record(self.scan_number, frame_number, self.rows, self.columns, position, pixels)

    def expected_events(
        self,
        background: float = BACKGROUND,
        xray: float = XRAY,
        version: int = 5,
        **corrections: Any,
    ) -> list[npt.NDArray[np.uint32]]:
        """The electrons of the frames ``present``, by the slow and obvious reference with its ``corrections``."""
        sector_of_row, sector_of_column = np.arange(FRAME) // SECTOR, np.zeros(FRAME, int)
        if version == 4:
            sector_of_row, sector_of_column = sector_of_column, sector_of_row
        sector_of_pixel = sector_of_row[:, None] + sector_of_column
        return [
            count_frame(
                self.frame(number),
                background,
                xray,
                missing=(self.missing[number] >> sector_of_pixel & 1) == 1,
                **corrections,
            )
            for number in self.present.tolist()
        ]


#: The pixels of a sector without electrons.
EMPTY = np.zeros(FRAME * FRAME // SECTORS, np.uint16)


def write_frames(folder: Path, pixels: np.ndarray, sectors: int = SECTORS) -> Path:
    """Two frames of four equal sectors each."""
    folder.mkdir()
    for sector in range(sectors):
        records = [pack_record(1, number, 1, 2, number, pixels) for number in range(2)]
        (folder / file_name(1, sector)).write_bytes(b"".join(records))
    return folder
