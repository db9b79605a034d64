"""Which frames of a block there are is known without reading pixels: so a restarted producer ends as any other."""

from pathlib import Path

import numpy as np
import pytest

from mpistream.acquisition.sector_files import FileSectorSource, SectorIndex
from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.source import open_source
from mpistream.model.geometry import RECORD_BYTES

OPTIONS = "loss=0.3&duplicates=0.2&first_frame=5&electrons=0"


@pytest.mark.parametrize("kind", ["files", "sim"])
@pytest.mark.parametrize("block_frames", [1, 4, 64])
def test_it_is_what_reading_finds(tmp_path: Path, kind: str, block_frames: int) -> None:
    specification = f"sim:3x7?{OPTIONS}"
    if kind == "files":
        options = SimulationOptions(
            rows=3, columns=7, loss=0.3, duplicates=0.2, first_frame=5, electrons=0, reorder="all", files_per_sector=2
        )
        simulate_to_files(options, tmp_path, processes=1)
        specification = f"files:{tmp_path}"
    source = open_source(specification, 1)
    buffer = memoryview(bytearray(block_frames * RECORD_BYTES))
    for block in range(30):
        assert source.frames_present(block, block_frames) == source.read_block(block, block_frames, buffer)
        assert source.seconds_until(block, block_frames) == 0
    assert not source.is_live
    assert source.frames_lost == 0
    source.close()


def test_it_is_quick_for_a_whole_scan() -> None:
    frames = np.arange(1024 * 1024, dtype=np.int64)
    source = FileSectorSource(0, SectorIndex((), frames, frames, frames, frames, 0, 0))
    assert all(source.frames_present(block, 8) == 255 for block in range(0, len(frames) // 8, 64))
