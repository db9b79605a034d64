"""mpistream: streams 4D Camera frames into an MPI job that counts electrons and writes a sparse 4D-STEM dataset."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpistream.reduction.electron_counting import count_electrons
    from mpistream.storage.reader import open_dataset
    from mpistream.storage.series_reader import open_series
    from mpistream.storage.tilt_index import open_tilt_index

__version__ = "0.1.0"
__all__ = ["count_electrons", "open_dataset", "open_series", "open_tilt_index"]

# Loaded on first use, so that `import mpistream` stays fast and never loads h5py or the extension unasked.
_LAZY = {
    "count_electrons": "mpistream.reduction.electron_counting",
    "open_dataset": "mpistream.storage.reader",
    "open_series": "mpistream.storage.series_reader",
    "open_tilt_index": "mpistream.storage.tilt_index",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mpistream' has no attribute {name!r}")
