"""``ground_truth.h5``: what a simulated scan really contains, to measure counting against.

electrons/, xrays/   offsets uint64[frames + 1], row, column float32[n] (pixel i reaches from i - 0.5 to i + 0.5);
                     x-rays also energy float32[n] in ADU; frame i owns offsets[i] to offsets[i + 1]
frames/              number uint64[frames], position uint32[frames], missing_sectors and duplicated_sectors
                     uint8[frames] (bit s for sector s). Electrons of missing sectors are listed as well.
detector/            dead, hot bool[576, 576]; pedestal, noise float32[576, 576] in ADU
Attributes of the root: every option of the simulation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mpistream.acquisition.detector_model import Hits
from mpistream.acquisition.simulator import Simulator
from mpistream.model.geometry import SECTORS

GROUND_TRUTH = "ground_truth.h5"
_COLUMNS = {"electrons": ("row", "column"), "xrays": ("row", "column", "energy")}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class TruthPart:
    """The hits of some successive frames: per kind uint64[frames] counts and the columns of the file."""

    counts: dict[str, npt.NDArray[np.uint64]]
    columns: dict[str, list[npt.NDArray[np.float32]]]

    @classmethod
    def of(cls, frames: Sequence[Hits]) -> "TruthPart":
        electrons = np.array([hits.electrons for hits in frames], np.uint64)
        xrays = np.array([len(hits.rows) - hits.electrons for hits in frames], np.uint64)
        properties = ("rows", "columns", "energies")
        return cls(
            {"electrons": electrons, "xrays": xrays},
            {
                "electrons": [
                    np.concatenate([getattr(hits, name)[: hits.electrons] for hits in frames])
                    for name in properties[:2]
                ],
                "xrays": [
                    np.concatenate([getattr(hits, name)[hits.electrons :] for hits in frames]) for name in properties
                ],
            },
        )


class TruthWriter:
    """Writes the file part by part, in the order of frames. Raises OSError."""

    def __init__(self, path: Path, simulator: Simulator) -> None:
        # Only who writes files needs it; a producer that simulates does not.
        import h5py

        self.frames = 0
        self._file = h5py.File(path, "w")
        self._offsets = {kind: np.uint64(0) for kind in _COLUMNS}
        for name, value in simulator.options.model_dump().items():
            self._file.attrs[name] = value
        frames = simulator.options.frames
        self._write_frames(simulator)
        for name in ("dead", "hot", "pedestal", "noise"):
            self._file[f"detector/{name}"] = getattr(simulator.detector, name)
        for kind, columns in _COLUMNS.items():
            self._file.create_dataset(f"{kind}/offsets", (frames + 1,), "<u8")
            for column in columns:
                self._file.create_dataset(f"{kind}/{column}", (0,), "<f4", maxshape=(None,), chunks=(_CHUNK,))

    def _write_frames(self, simulator: Simulator) -> None:
        index = np.arange(simulator.options.frames)
        bits = np.uint8(1) << np.arange(SECTORS, dtype=np.uint8)
        self._file["frames/number"] = (simulator.options.first_frame + index).astype("<u8")
        self._file["frames/position"] = (index // simulator.options.frames_per_position).astype("<u4")
        self._file["frames/missing_sectors"] = (simulator.missing * bits).sum(1, dtype=np.uint8)
        self._file["frames/duplicated_sectors"] = (simulator.duplicated * bits).sum(1, dtype=np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except RuntimeError as failure:
            # What HDF5 still has to write when a file is closed fails with this.
            raise OSError(str(failure)) from error

    def append(self, part: TruthPart) -> None:
        """Adds the next frames."""
        frames = len(part.counts["electrons"])
        for kind, columns in _COLUMNS.items():
            offsets = self._offsets[kind] + np.cumsum(part.counts[kind], dtype=np.uint64)
            self._file[f"{kind}/offsets"][self.frames + 1 : self.frames + 1 + frames] = offsets
            for name, values in zip(columns, part.columns[kind], strict=True):
                self._extend(self._file[f"{kind}/{name}"], int(self._offsets[kind]), values)
            self._offsets[kind] = offsets[-1]
        self.frames += frames

    @staticmethod
    def _extend(dataset: Any, start: int, values: npt.NDArray[np.float32]) -> None:
        dataset.resize((start + len(values),))
        dataset[start:] = values
