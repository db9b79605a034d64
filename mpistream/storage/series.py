"""Joins the datasets of many scans, alike in shape and in how they were counted, into one file with an axis of time.

The datasets are read a part at a time, each twice: for what it says about itself, and for its events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout as layout
from mpistream.model.errors import StorageError
from mpistream.model.virtual_images import frame_runs
from mpistream.storage.disk_file import DiskFile, whole_hdf5_file
from mpistream.storage.placement import check_target
from mpistream.storage.reader import Dataset, whole_dataset
from mpistream.storage.series_reader import scan_group
from mpistream.storage.small_files import check_targets

#: The label by which scans are ordered; those of one series have it all, or none of them.
TIME_LABEL = "time_index"

SERIES_DTYPE = np.dtype([*layout.SERIES_FIELDS, ("dataset", h5py.string_dtype())])

_REFERENCES = {"dark": layout.DARK, "gain": layout.GAIN, "pixel_mask": layout.PIXEL_MASK}
_MOST_TIME_INDEX = 2**32 - 1


@dataclass(frozen=True)
class _Member:
    """A scan that is to be joined. ``facts`` are those of its row in the table that do not depend on the others."""

    path: Path
    label: int | None
    facts: dict[str, Any]


def write_series(datasets: Sequence[Path], output: Path, overwrite: bool) -> Path:
    """Writes ``output``, which ``open_series`` opens; its absolute path.

    Scans are ordered by their label ``time_index``; where none has one, as they are given. Raises StorageError where
    scans differ, and where a file cannot be read or written; then nothing is left behind.
    """
    target = output.absolute()
    if not datasets:
        raise StorageError("there is no dataset to join", "give the datasets of the scans")
    check_targets([target], overwrite, datasets)
    members = _in_order(_look_at(datasets))
    check_target(target, overwrite, sum(member.path.stat().st_size for _, member in members))
    with whole_hdf5_file(target, overwrite) as (file, disk):
        with whole_dataset(members[0][1].path) as first:
            _begin(file, first, [member for _, member in members])
        table = []
        first_frame = first_event = 0
        for row, (time_index, member) in enumerate(members):
            with whole_dataset(member.path) as dataset:
                _add(file, disk, dataset, row, time_index, first_frame, first_event)
            disk.check()
            facts = {**member.facts, "time_index": time_index, "first_frame": first_frame, "first_event": first_event}
            table.append(tuple(facts[name] for name in SERIES_DTYPE.names or ()))
            first_frame += facts["n_frames"]
            first_event += facts["n_events"]
        file.create_dataset(layout.SERIES, data=np.array(table, SERIES_DTYPE))
    return target


def scan_facts(dataset: Dataset) -> dict[str, Any]:
    """What layout.SCAN_FIELDS name, of one scan."""
    record, counters, thresholds = dataset.provenance["scan_record"], dataset.counters, dataset.thresholds
    return {
        **{name: counters.get(name, 0) for name in np.dtype(layout.SCAN_FIELDS).names or ()},
        "scan_uid": dataset.scan_uid.encode(),
        "scan_number": dataset.scan_number,
        "announced_unix_seconds": float(record["announced_unix_seconds"]),
        "background_threshold": thresholds["background_threshold"],
        "x_ray_threshold": thresholds["x_ray_threshold"],
        "center": dataset.center,
    }


def _look_at(paths: Sequence[Path]) -> list[_Member]:
    """Every dataset, once. Raises StorageError where one does not fit the first."""
    members: list[_Member] = []
    uids: dict[str, Path] = {}
    wanted: Mapping[str, Any] = {}
    references: dict[str, npt.NDArray[Any] | None] = {}
    for path in paths:
        with whole_dataset(path) as dataset:
            if dataset.scan_uid in uids:
                raise StorageError(f"{path} and {uids[dataset.scan_uid]} are the same scan", "give each scan once")
            uids[dataset.scan_uid] = path
            if not members:
                wanted = _parameters(dataset)
                references = {name: getattr(dataset, name) for name in _REFERENCES}
            _refuse_differences(dataset, paths[0], wanted, references)
            members.append(_member(path, dataset))
    return members


def _member(path: Path, dataset: Dataset) -> _Member:
    label = dataset.provenance["scan_record"].get("labels", {}).get(TIME_LABEL)
    if label is not None and not (type(label) is int and 0 <= label <= _MOST_TIME_INDEX):
        raise StorageError(f"{path} has the time index {label!r}", "time indices are whole numbers, 0 and more")
    facts = {
        **scan_facts(dataset),
        "n_frames": dataset.n_frames,
        "n_events": dataset.n_electrons,
        "complete": dataset.delivery is None or dataset.delivery.complete,
        "dataset": path.name,
    }
    return _Member(path, label, facts)


def _parameters(dataset: Dataset) -> dict[str, Any]:
    """What must be the same in all scans of a series; not where references lie, but what they are."""
    record = dataset.provenance["scan_record"]
    places = (*_REFERENCES, "thresholds_from")
    counting = {name: value for name, value in record["counting"].items() if name not in places}
    return {
        "scan shape": dataset.scan_shape,
        "frame shape": dataset.frame_shape,
        **counting,
        "bright field": dataset.image_radii("bright_field"),
        "annular dark field": dataset.image_radii("annular_dark_field"),
        "center of detectors": record.get("detectors", {}).get("center"),
        "centroids": dataset.has_centroids,
    }


def _refuse_differences(
    dataset: Dataset, first: Path, wanted: Mapping[str, Any], references: Mapping[str, npt.NDArray[Any] | None]
) -> None:
    remedy = "count it with the same parameters and references, or leave it out"
    found = _parameters(dataset)
    for name in dict.fromkeys((*wanted, *found)):
        ours, theirs = found.get(name), wanted.get(name)
        if ours != theirs:
            raise StorageError(
                f"{dataset.path} cannot be joined with {first}: {name.replace('_', ' ')} {ours} instead of {theirs}",
                remedy,
            )
    for name, theirs in references.items():
        ours = getattr(dataset, name)
        if not (ours is theirs if ours is None or theirs is None else np.array_equal(ours, theirs)):
            raise StorageError(
                f"{dataset.path} cannot be joined with {first}: another {name.replace('_', ' ')}", remedy
            )


def _in_order(members: list[_Member]) -> list[tuple[int, _Member]]:
    """With their time indices. Raises StorageError where some are wanting, or are there twice."""
    unlabelled = [member for member in members if member.label is None]
    if len(unlabelled) == len(members):
        return list(enumerate(members))
    if unlabelled:
        labelled = next(member for member in members if member.label is not None)
        raise StorageError(
            f"{labelled.path} has a time index, {unlabelled[0].path} has none", "join those that have one"
        )
    by_time: dict[int, _Member] = {}
    for member in members:
        assert member.label is not None
        if (other := by_time.setdefault(member.label, member)) is not member:
            raise StorageError(
                f"{member.path} and {other.path} both have the time index {member.label}", "leave one of them out"
            )
    return sorted(by_time.items())


def _begin(file: h5py.File, first: Dataset, members: list[_Member]) -> None:
    """Everything whose size is known before the first event is copied."""
    frames = sum(member.facts["n_frames"] for member in members)
    events = sum(member.facts["n_events"] for member in members)
    file.attrs[layout.FORMAT_ATTRIBUTE] = layout.SERIES_FORMAT_NAME
    file.attrs[layout.FORMAT_VERSION_ATTRIBUTE] = layout.SERIES_FORMAT_VERSION
    file.attrs[layout.SCAN_SHAPE_ATTRIBUTE] = np.array(first.scan_shape, "<u4")
    file.attrs[layout.FRAME_SHAPE_ATTRIBUTE] = np.array(first.frame_shape, "<u4")
    file.attrs["written_utc"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["mpistream"] = version("mpistream")
    rows = {layout.INDICES: events, layout.OFFSETS: frames + 1}
    for name, dtype in (*layout.EVENT_DTYPES.items(), (layout.TIME_INDEX, layout.TIME_INDEX_DTYPE)):
        file.create_dataset(name, (rows.get(name, frames),), dtype)
    if first.has_centroids:
        file.create_dataset(layout.CENTROIDS, (events, 2), layout.CENTROIDS_DTYPE)
    for name in layout.STACKED_IMAGES:
        leaf = name.rpartition("/")[2]
        image = first.images[leaf]
        stack = file.create_dataset(name, (len(members), *image.shape), image.dtype)
        if name != layout.CENTER_OF_MASS:
            stack.attrs[layout.INNER_RADIUS_ATTRIBUTE], stack.attrs[layout.OUTER_RADIUS_ATTRIBUTE] = first.image_radii(
                leaf
            )
    file.create_dataset(layout.DIFFRACTION_SUM, first.frame_shape, layout.IMAGE_DTYPE)
    for name, path in _REFERENCES.items():
        if (reference := getattr(first, name)) is not None:
            file.create_dataset(path, data=reference.astype(np.uint8) if name == "pixel_mask" else reference)


def _add(
    file: h5py.File, disk: DiskFile, dataset: Dataset, row: int, time_index: int, first_frame: int, first_event: int
) -> None:
    """One scan. Ends early where the disk has failed."""
    file[layout.OFFSETS][first_frame : first_frame + dataset.n_frames + 1] = dataset.offsets + np.uint64(first_event)
    for frames in frame_runs(dataset.offsets):
        run = dataset.run(frames.start, frames.stop)
        rows = slice(first_frame + frames.start, first_frame + frames.stop)
        begin = first_event + int(dataset.offsets[frames.start])
        events = slice(begin, begin + len(run.indices))
        file[layout.SCAN_POSITION][rows] = run.scan_position
        file[layout.FRAME_NUMBER][rows] = run.frame_number
        file[layout.MISSING_SECTORS][rows] = run.missing_sectors
        file[layout.TIME_INDEX][rows] = time_index
        file[layout.INDICES][events] = run.indices
        if run.centroids is not None:
            file[layout.CENTROIDS][events] = run.centroids
        if disk.failure is not None:
            return
    for name in layout.STACKED_IMAGES:
        file[name][row] = dataset.images[name.rpartition("/")[2]]
    file[layout.DIFFRACTION_SUM][:] += dataset.images["diffraction_sum"]
    group = file.require_group(scan_group(time_index))
    dataset.copy_description(group)
    if layout.REFERENCES in file:
        group[layout.REFERENCES] = file[layout.REFERENCES]
