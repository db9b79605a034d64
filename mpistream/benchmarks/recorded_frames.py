"""The frames that are counted: simulated, as sector files in memory and as blocks where a rank would find them."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import Simulator
from mpistream.acquisition.source import open_source
from mpistream.model.geometry import FRAME_SHAPE, HEADER_BYTES, RECORD_BYTES, SECTORS, SectorLayout

BLOCK_FRAMES = 8
#: The simulated detector's pedestal, in ADU, and thresholds: 4.5 of its sigmas above that, and below its x-rays.
PEDESTAL, BACKGROUND, XRAY = 30.0, 44.0, 1500.0
#: What the dark reference leaves of the pedestal. Without a gain stempy subtracts in uint16, where pixels below their
#: dark wrap around, and its multi-pass path never ends when half of them do so in its calibration.
LEFT_OF_PEDESTAL = 20.0
BACKGROUND_AFTER_DARK = BACKGROUND - PEDESTAL + LEFT_OF_PEDESTAL
LAYOUT = SectorLayout.ROWS

_MEMORY_DISK = Path("/dev/shm")


@dataclass(frozen=True)
class RecordedFrames:
    """Blocks of frames in memory, each sector's records (header and pixels) in a buffer of its own, as they arrive.

    blocks   uint64[8, 4] each: where the pixels of a frame's sectors begin
    buffers  keep the addresses valid
    """

    blocks: list[npt.NDArray[np.uint64]]
    buffers: list[npt.NDArray[np.uint8]]

    @property
    def frames(self) -> int:
        return len(self.blocks) * BLOCK_FRAMES

    @property
    def raw_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def first(self, frames: int) -> "RecordedFrames":
        """The first ``frames``, a multiple of 8."""
        return RecordedFrames(self.blocks[: frames // BLOCK_FRAMES], self.buffers[: frames // BLOCK_FRAMES * SECTORS])


@dataclass(frozen=True)
class References:
    """What a detector's frames are corrected with.

    dark, gain  float32[576, 576]
    bad_pixels  bool[576, 576]
    """

    dark: npt.NDArray[np.float32]
    gain: npt.NDArray[np.float32]
    bad_pixels: npt.NDArray[np.bool_]


def scan_of(frames: int, electrons: float) -> SimulationOptions:
    """A scan of ``frames``, a multiple of 8, that the specimen varies over."""
    return SimulationOptions(rows=BLOCK_FRAMES, columns=frames // BLOCK_FRAMES, electrons=electrons)


@contextmanager
def folder_in_memory(raw_bytes: int) -> Iterator[Path]:
    """A folder on a file system in memory, if there is one with room; otherwise on disk, in the page cache."""
    in_memory = _MEMORY_DISK.is_dir() and shutil.disk_usage(_MEMORY_DISK).free > 1.1 * raw_bytes
    with tempfile.TemporaryDirectory(prefix="mpistream-bench-", dir=_MEMORY_DISK if in_memory else None) as name:
        yield Path(name)


def simulate(options: SimulationOptions) -> RecordedFrames:
    """The frames of a scan, in memory only."""
    with folder_in_memory(options.frames * SECTORS * RECORD_BYTES) as folder:
        simulate_to_files(options, folder)
        return load(folder, options.frames)


def load(folder: Path, frames: int) -> RecordedFrames:
    """Reads the sector files of ``frames`` frames, a multiple of 8, as the producers do."""
    sources = [open_source(f"files:{folder}", sector) for sector in range(SECTORS)]
    blocks, buffers = [], []
    places = np.arange(BLOCK_FRAMES, dtype=np.uint64) * np.uint64(RECORD_BYTES) + np.uint64(HEADER_BYTES)
    for block in range(frames // BLOCK_FRAMES):
        addresses = np.empty((BLOCK_FRAMES, SECTORS), np.uint64)
        for sector, source in enumerate(sources):
            buffer = np.empty(BLOCK_FRAMES * RECORD_BYTES, np.uint8)
            source.read_block(block, BLOCK_FRAMES, buffer.data)
            addresses[:, sector] = np.uint64(buffer.ctypes.data) + places
            buffers.append(buffer)
        blocks.append(addresses)
    for source in sources:
        source.close()
    return RecordedFrames(blocks, buffers)


def references_of(options: SimulationOptions) -> References:
    """Of the simulated detector's own pedestal and flaws; the gain varies by 5 %."""
    detector = Simulator(options).detector
    bad_pixels = detector.dead | detector.hot
    dark = np.where(bad_pixels, np.float32(0), detector.pedestal - np.float32(LEFT_OF_PEDESTAL))
    gain = np.random.default_rng(options.seed).normal(1, 0.05, FRAME_SHAPE).astype(np.float32)
    return References(dark, gain, bad_pixels)
