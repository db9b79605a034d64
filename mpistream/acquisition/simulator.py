"""A simulated 4D Camera: detector model and specimen make the records of any sector of any frame."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mpistream.acquisition.detector_model import DetectorModel, Hits, electron_energies, xray_energies
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.specimen import DiffractionPattern, Specimen
from mpistream.model.geometry import FRAME_SHAPE, PIXEL_DTYPE, RECORD_BYTES, RECORD_HEADER, SECTORS

_FRAME_STREAM = 2
_LOSS_STREAM = 3
_DUPLICATE_STREAM = 4


class Simulator:
    """The frames of one simulated scan, by their index (frame number - first frame).

    Electrons are drawn for a whole frame and read noise for each sector of it, so that a sector can be made without
    the others and yet fits them at its borders.
    """

    def __init__(self, options: SimulationOptions) -> None:
        self.options = options
        self.detector = DetectorModel(options.seed, options.dead_pixels, options.hot_pixels, options.layout)
        self._specimen = Specimen(options.seed)
        self._latest: tuple[int, DiffractionPattern] | None = None
        self._record = np.dtype([("header", RECORD_HEADER), ("pixels", PIXEL_DTYPE, options.layout.sector_shape)])

    @cached_property
    def missing(self) -> npt.NDArray[np.bool_]:
        """bool[frames, 4]: which sectors of frames are lost."""
        return self._chosen(_LOSS_STREAM, self.options.loss)

    @cached_property
    def duplicated(self) -> npt.NDArray[np.bool_]:
        """bool[frames, 4]: which sectors of frames occur twice."""
        return self._chosen(_DUPLICATE_STREAM, self.options.duplicates) & ~self.missing

    def position(self, index: int) -> int:
        """The scan position (row * columns + column) of a frame."""
        return index // self.options.frames_per_position

    def hits(self, index: int) -> Hits:
        """What hits one frame."""
        options = self.options
        generator = np.random.Generator(np.random.SFC64((options.seed, _FRAME_STREAM, index)))
        noise_streams = generator.integers(0, 1 << 64, SECTORS, np.uint64)
        pattern = self._pattern(self.position(index))
        electrons = generator.poisson(options.electrons * pattern.signal)
        rows, columns = pattern.draw(generator, electrons)
        energies = electron_energies(generator, electrons)
        inside = _inside(rows, FRAME_SHAPE[0]) & _inside(columns, FRAME_SHAPE[1])
        xrays = generator.poisson(options.xrays)
        xray_rows, xray_columns = (generator.uniform(0, size - 1, xrays).astype(np.float32) for size in FRAME_SHAPE)
        return Hits(
            np.concatenate((rows[inside], xray_rows)),
            np.concatenate((columns[inside], xray_columns)),
            np.concatenate((energies[inside], xray_energies(generator, xrays))),
            int(inside.sum()),
            noise_streams,
        )

    def write_record(self, index: int, hits: Hits, sector: int, buffer: memoryview) -> None:
        """Writes the record of one sector of the frame that has ``hits`` to the beginning of ``buffer``."""
        options = self.options
        record = np.ndarray(1, self._record, buffer)[0]
        row, column = divmod(self.position(index), options.columns)
        frame_number = options.first_frame + index
        record["header"] = (options.scan_number, frame_number, options.columns, options.rows, column, row)
        self.detector.expose(hits, sector, record["pixels"])

    def _pattern(self, position: int) -> DiffractionPattern:
        """Sectors of a frame are asked for one after the other."""
        if self._latest is None or self._latest[0] != position:
            self._latest = position, self._pattern_at(position)
        return self._latest[1]

    def _pattern_at(self, position: int) -> DiffractionPattern:
        row, column = divmod(position, self.options.columns)
        if self.options.flyback and column == self.options.columns - 1:
            return self._specimen.flyback_pattern()
        useful_columns = self.options.columns - self.options.flyback
        return self._specimen.pattern((row + 0.5) / self.options.rows, (column + 0.5) / useful_columns)

    def _chosen(self, stream: int, fraction: float) -> npt.NDArray[np.bool_]:
        shape = (self.options.frames, SECTORS)
        if fraction == 0:
            return np.zeros(shape, bool)
        return np.random.default_rng((self.options.seed, stream)).random(shape) < fraction


class SimulatedSectorSource:
    """One sector of a simulated scan as a producer reads it; see ``mpistream.acquisition.source.SectorSource``."""

    sectors_rejected = 0
    is_live = False
    frames_lost = 0

    def __init__(self, options: SimulationOptions, sector: int) -> None:
        self.sector = sector
        self._simulator = Simulator(options)
        self._present = ~self._simulator.missing[:, sector]
        self.sectors_duplicate = int(self._simulator.duplicated[:, sector].sum())

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        """Writes the records of the block's frames to ``buffer``; returns the bit map of those present."""
        frames_present = 0
        written = 0
        for bit, index in self._indices(block, block_frames):
            if not self._is_there(index):
                continue
            record = buffer[written : written + RECORD_BYTES]
            self._simulator.write_record(index, self._simulator.hits(index), self.sector, record)
            frames_present |= 1 << bit
            written += RECORD_BYTES
        return frames_present

    def frames_present(self, block: int, block_frames: int) -> int | None:
        """The bit map that ``read_block`` returns."""
        return sum(1 << bit for bit, _ in self._indices(block, block_frames))

    def seconds_until(self, block: int, block_frames: int) -> float:
        return 0.0

    def _indices(self, block: int, block_frames: int) -> Iterator[tuple[int, int]]:
        """The places in the bit map and the indices of those frames of a block that the camera did not lose."""
        first = block * block_frames - self._simulator.options.first_frame
        for index in range(max(first, 0), min(first + block_frames, len(self._present))):
            if self._present[index]:
                yield index - first, index

    def _is_there(self, index: int) -> bool:
        """Whether a frame can be read now."""
        return True

    def close(self) -> None:
        """Nothing is held open."""


def _inside(positions: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.bool_]:
    """Which positions lie on a pixel. Rounded in float32 as the detector does, so that both agree at the border."""
    pixel = np.floor(positions + np.float32(0.5))
    return (pixel >= 0) & (pixel < size)
