"""Making, reading and converting data."""

from pathlib import Path
from typing import Any

import click

from mpistream.model.errors import StorageError

#: In the words of `mpistream verify`.
_OUTCOMES = {"good": "good", "bad": "WRONG", "unknown": "unknown"}


@click.command()
@click.option("--scan", required=True, metavar="ROWSxCOLS", help="Probe positions, for instance 64x65.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the files.")
@click.option("--overwrite", is_flag=True, help="Replace sector files that are there.")
@click.option("--seed", type=int, help="The same seed gives the same data.  [default: 1]")
@click.option("--electrons", type=float, help="Mean number of electrons per frame.  [default: 2400]")
@click.option("--frames-per-position", type=int, help="Successive frames at one probe position.  [default: 1]")
@click.option("--flyback/--no-flyback", default=None, help="The last scan column is taken while the beam moves back.")
@click.option("--first-frame", type=int, help="Number of the first frame.  [default: 0]")
@click.option("--scan-number", type=int, help="The camera's number of the scan.  [default: 1]")
@click.option(
    "--version",
    type=click.Choice(["4", "5"]),
    help="Raw format: sectors of 576 x 144 (4) or 144 x 576 pixels (5).  [default: 5]",
)
@click.option("--loss", type=float, help="Fraction of sectors that are lost.  [default: 0]")
@click.option("--duplicates", type=float, help="Fraction of sectors that occur twice.  [default: 0]")
@click.option("--reorder", help="How far records may be out of order, in records, or `all`.  [default: 0]")
@click.option("--files-per-sector", type=int, help="Files over which a sector is spread.  [default: 1]")
@click.option("--xrays", type=float, help="Mean number of x-ray hits per frame.  [default: 0.05]")
@click.option("--dead-pixels", type=int, help="Pixels that always read 0.  [default: 20]")
@click.option("--hot-pixels", type=int, help="Pixels that always read high.  [default: 10]")
def simulate(scan: str, output: Path, overwrite: bool, **options: Any) -> None:
    """Simulate a scan: sector files as the 4D Camera writes them, and ground_truth.h5 with every true electron."""
    from mpistream.acquisition.simulated_files import simulate_to_files
    from mpistream.acquisition.simulation_options import SimulationOptions
    from mpistream.cli.report import SimulationProgress

    given = {name: str(value) for name, value in options.items() if value is not None}
    parsed = SimulationOptions.parse(scan, given)
    with SimulationProgress(parsed.frames) as progress:
        paths = simulate_to_files(parsed, output, progress.update, overwrite=overwrite)
    size = sum(path.stat().st_size for path in paths)
    click.echo(f"{parsed.frames} frames in {len(paths)} sector files, {size / 1e9:.3f} GB, in {output}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(file: Path) -> None:
    """Say what a dataset holds, how it was counted and where it comes from; or what is in a series, a tilt index or a
    raw recording.
    """
    from mpistream.cli.report import print_dataset, print_recording
    from mpistream.cli.series import print_series, print_tilts
    from mpistream.model.h5_layout import SERIES_FORMAT_NAME, TILTS_FORMAT_NAME
    from mpistream.model.recording_layout import FORMAT_NAME as RECORDING_FORMAT_NAME
    from mpistream.storage.hdf5_input import format_of
    from mpistream.storage.reader import whole_dataset
    from mpistream.storage.recording_reader import open_recording
    from mpistream.storage.series_reader import whole_series
    from mpistream.storage.tilt_index import open_tilt_index

    kind = format_of(file)
    if kind == SERIES_FORMAT_NAME:
        with whole_series(file) as series:
            print_series(series)
    elif kind == TILTS_FORMAT_NAME:
        with open_tilt_index(file) as tilts:
            print_tilts(tilts)
    elif kind == RECORDING_FORMAT_NAME:
        with open_recording(file) as recording:
            print_recording(recording)
    else:
        with whole_dataset(file) as dataset:
            print_dataset(dataset)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def verify(file: Path, as_json: bool) -> None:
    """Check a dataset or a raw recording: that it has every frame that was sent, once, and nothing in it is altered.

    Of a series, every scan. Exit status 1 where anything is wrong.
    """
    import json

    from mpistream.model.h5_layout import SERIES_FORMAT_NAME
    from mpistream.model.recording_layout import FORMAT_NAME as RECORDING_FORMAT_NAME
    from mpistream.storage.hdf5_input import format_of
    from mpistream.storage.recording_verify import verify_recording
    from mpistream.storage.verify import REMEDY, verify_dataset
    from mpistream.storage.verify_series import verify_series

    verify_file = {SERIES_FORMAT_NAME: verify_series, RECORDING_FORMAT_NAME: verify_recording}
    verification = verify_file.get(format_of(file), verify_dataset)(file)
    if as_json:
        click.echo(json.dumps(verification.to_json(), indent=2))
    else:
        for check in verification.checks:
            click.echo(f"{check.name:<12} {_OUTCOMES[check.outcome]:<8} {check.text}")
    if verification.findings:
        raise StorageError(f"{file} is not as it should be: {'; '.join(verification.findings)}", REMEDY)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.png", help="[default: beside the dataset]")
@click.option("--time-index", type=click.IntRange(0), help="Of a series, this scan.")
def show(file: Path, output: Path | None, time_index: int | None) -> None:
    """Draw the virtual bright field, annular dark field and summed diffraction pattern of a dataset."""
    from mpistream.storage.picture import save_overview

    picture = output or file.with_suffix(".png")
    save_overview(file, picture, time_index)
    click.echo(str(picture))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, type=click.Choice(["stempy"]), help="The format to write.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--time-index", type=click.IntRange(0), help="Of a series, this scan.")
def export(file: Path, target: str, out: Path, overwrite: bool, time_index: int | None) -> None:
    """Write a dataset in another program's format: mpistream export scan.h5 --to stempy scan_stempy.h5"""
    from mpistream.storage.export import export_stempy

    export_stempy(file, out, overwrite, time_index)
    click.echo(str(out))
