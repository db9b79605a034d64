"""Simulated frames of which it is known where every electron hit."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import Simulator
from mpistream.benchmarks.matching import Positions
from mpistream.benchmarks.recorded_frames import LAYOUT
from mpistream.model.geometry import FRAME_SHAPE, HEADER_BYTES, PIXEL_DTYPE, RECORD_BYTES, SECTORS
from mpistream.reduction.calibration import fit_thresholds, sample_block

#: The background threshold is the pedestal's fitted mean and so many of its sigmas.
DEFAULT_SIGMAS = 4.5

_XRAY_SIGMAS = 175.0


@dataclass(frozen=True)
class KnownFrames:
    """frames uint16[n, 576, 576]; for each, float64[m, 2] (row, column) of the electrons that hit it, in pixels."""

    frames: npt.NDArray[np.uint16]
    electrons: list[Positions]

    @classmethod
    def simulate(cls, options: SimulationOptions, first: int = 0) -> "KnownFrames":
        """The frames of a scan of version 5, from that with the index ``first`` on."""
        simulator = Simulator(options)
        frames = np.empty((options.frames - first, *FRAME_SHAPE), np.uint16)
        electrons = []
        record = bytearray(RECORD_BYTES)
        pixels = np.frombuffer(record, PIXEL_DTYPE, offset=HEADER_BYTES).reshape(LAYOUT.sector_shape)
        for index, frame in enumerate(frames, start=first):
            hits = simulator.hits(index)
            for sector in range(SECTORS):
                simulator.write_record(index, hits, sector, memoryview(record))
                frame[LAYOUT.sector_slices(sector)] = pixels
            electrons.append(np.stack([hits.rows, hits.columns], axis=1)[: hits.electrons].astype(np.float64))
        return cls(frames, electrons)

    @property
    def sector_addresses(self) -> npt.NDArray[np.uint64]:
        """uint64[n, 4]: where the sectors of each frame begin."""
        sectors = self.frames.reshape(len(self.frames), SECTORS, -1)
        return np.array([[sector.ctypes.data for sector in frame] for frame in sectors], np.uint64)

    def pedestal(self, dark: npt.NDArray[np.float32] | None = None) -> tuple[float, float]:
        """Mean and sigma, in ADU, of the Gaussian that calibration fits to all pixels."""
        sample = sample_block(self.sector_addresses, LAYOUT, dark)
        statistics = fit_thresholds(sample, DEFAULT_SIGMAS, _XRAY_SIGMAS).statistics
        return statistics["optimized_mean"], statistics["optimized_std_dev"]
