"""Checks a series: every scan in it as a dataset of its own, and what puts them in order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpistream.model import h5_layout as layout
from mpistream.storage.reader import Dataset
from mpistream.storage.series_reader import Series, whole_series
from mpistream.storage.verify import Check, Verification, inspect_dataset

_CHUNK_FRAMES = 1 << 20


def verify_series(path: Path) -> Verification:
    """Its checks are "series", then one for each scan, by the checksums that its own dataset had. Raises StorageError
    for what is no series, or cannot be read to its end.
    """
    with whole_series(path) as series:
        checks = [_check_order(series)]
        if checks[0].outcome == "good":
            checks += [_check_scan(series, place) for place in range(len(series))]
        return Verification(path, "", series.n_frames, series.n_electrons, tuple(checks))


def _check_order(series: Series) -> Check:
    wrong = list(_contradictions(series))
    if wrong:
        return Check("series", "bad", "; ".join(wrong))
    times = series.time_indices
    return Check("series", "good", f"{len(series)} scans with the time indices {times[0]} to {times[-1]}, in order")


def _contradictions(series: Series) -> Iterator[str]:
    table = series.table
    if not len(table):
        yield "it has no scan"
        return
    if (np.diff(table["time_index"].astype(np.int64)) <= 0).any():
        yield "the time indices do not ascend"
    for kind, rows in (("frame", series.n_frames), ("event", series.n_electrons)):
        count, begins = table[f"n_{kind}s"], table[f"first_{kind}"]
        if begins.tolist() != (np.cumsum(count) - count).tolist() or int(count.sum()) != rows:
            yield f"the {kind}s of the scans are not those of the file"
            return
    for row in table:
        first, end = int(row["first_frame"]), int(row["first_frame"]) + int(row["n_frames"])
        if series.read(layout.OFFSETS, first, first + 1)[0] != row["first_event"]:
            yield f"the offsets of scan {row['time_index']} do not begin with its first event"
        for begin in range(first, end, _CHUNK_FRAMES):
            stop = min(begin + _CHUNK_FRAMES, end)
            if (series.read(layout.TIME_INDEX, begin, stop) != row["time_index"]).any():
                yield f"frames of scan {row['time_index']} have another time index"
                break


def _check_scan(series: Series, place: int) -> Check:
    """The worst that any check of a dataset finds."""
    time_index = series.time_indices[place]
    scan, name = series.scan(time_index), f"scan {time_index}"
    if series.table["scan_uid"][place].decode() != scan.scan_uid:
        return Check(name, "bad", "the table says that it is another scan")
    checks = [*inspect_dataset(scan), _check_stacks(series, place, scan)]
    for outcome in ("bad", "unknown"):
        found = [f"{check.name}: {check.text}" for check in checks if check.outcome == outcome]
        if found:
            return Check(name, outcome, "; ".join(found))
    return Check(
        name, "good", f"{scan.n_frames} frames, {scan.n_electrons} electrons, as in the dataset {scan.scan_uid}"
    )


def _check_stacks(series: Series, place: int, scan: Dataset) -> Check:
    wrong = [
        leaf
        for name in layout.STACKED_IMAGES
        if not np.array_equal(
            series.read(name, place, place + 1)[0], scan.images[leaf := name.rpartition("/")[2]], equal_nan=True
        )
    ]
    if wrong:
        return Check("stacks", "bad", f"{', '.join(wrong)}: not the images of the scan")
    return Check("stacks", "good", "the images of the scan")
