"""Files that join many scans: series with an axis of time, tilt series."""

from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpistream.model.errors import ConfigError

if TYPE_CHECKING:
    from mpistream.storage.series_reader import Series
    from mpistream.storage.tilt_index import TiltIndex

_files = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
_output = click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5", help="The file to write."
)
_overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


@click.group()
def series() -> None:
    """Join the datasets of many scans."""


@series.command()
@_files
@_output
@_overwrite
def join(files: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Join the datasets of many short scans into one with an axis of time.

    They are ordered by their label time_index; without it, as they are given. They must be alike in shape and in how
    they were counted.
    """
    from mpistream.storage.series import write_series
    from mpistream.storage.series_reader import open_series

    with open_series(write_series(files, output, overwrite)) as written:
        print_series(written)


@series.command()
@_files
@click.option(
    "--tilt", "tilts", multiple=True, type=float, metavar="DEGREES", help="Of each file, in order; else as labelled."
)
@_output
@_overwrite
def tilts(files: tuple[Path, ...], tilts: tuple[float, ...], output: Path, overwrite: bool) -> None:
    """Write the index of a tilt series: a small file that names, shows and opens the datasets FILES.

    They are given in the order in which they were acquired. One that is not there is recorded as missing.
    """
    from mpistream.storage.tilt_index import open_tilt_index, tilt_of, write_tilt_index

    if not tilts:
        labels = [tilt_of(file) for file in files]
        unknown = [file for file, label in zip(files, labels, strict=True) if label is None]
        if unknown:
            raise ConfigError(f"{unknown[0]} does not say at which tilt it was taken", "give --tilt for every file")
        tilts = tuple(label for label in labels if label is not None)
    with open_tilt_index(write_tilt_index(files, tilts, output, overwrite)) as written:
        print_tilts(written)


def print_series(series: "Series") -> None:
    """What a series says about itself."""
    rows, columns = series.scan_shape
    times = series.time_indices
    absent = times[-1] - times[0] + 1 - len(times)
    # indices may lie far apart: the gaps are looked at only until enough are found
    some = islice((absentee for one, other in pairwise(times) for absentee in range(one + 1, other)), 10)
    print(f"series       {series.path}")
    print(f"scans        {len(series)} of {rows} x {columns} positions, time indices {times[0]} to {times[-1]}", end="")
    print(f"; {absent} between them absent: {', '.join(map(str, some))}" if absent else "")
    print(f"frames       {series.n_frames} of {series.frame_shape[0]} x {series.frame_shape[1]} pixels")
    print(f"electrons    {series.n_electrons}, centroids: {'in 1/128 pixel' if series.has_centroids else 'none'}")
    for scan in series.table:
        counts = f"{scan['frames_incomplete']} frames incomplete, {scan['frames_lost']} lost"
        state = "" if scan["complete"] else ", cut short"
        print(f"{scan['time_index']:<13}{scan['dataset'].decode()}: {scan['frames']} frames, ", end="")
        print(f"{scan['electrons']} electrons, {counts}{state}")


def print_tilts(tilts: "TiltIndex") -> None:
    """What a tilt index says, by angle."""
    states = tilts.states
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"tilt index   {tilts.path}")
    print(f"tilts        {len(tilts)}: {counts}")
    for row in tilts.by_angle:
        tilt = tilts.table[row]
        reason = f" ({tilt['reason'].decode()})" if tilt["reason"] else ""
        print(
            f"{tilt['tilt_degrees']:+8.2f}     {states[row]}, {tilt['dataset'].decode()}: "
            f"{tilt['electrons']} electrons in {tilt['frames']} frames{reason}"
        )
