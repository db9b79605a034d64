"""The main job, shown in one command."""

import shutil
import tempfile
from pathlib import Path

import click

from mpistream.cli.options import load_config
from mpistream.cli.report import SimulationProgress
from mpistream.cli.testbed import report, run_once
from mpistream.launch.announcement import ScanRequest
from mpistream.model.errors import StorageError
from mpistream.model.scan import CountingParameters


@click.command()
@click.option("--scan", default="64x65", show_default=True, metavar="ROWSxCOLS", help="Probe positions.")
@click.option(
    "--folder",
    default=Path("demo-output"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the dataset and the picture are left.",
)
@click.option("--keep", is_flag=True, help="Keep the sector files.")
def demo(scan: str, folder: Path, keep: bool) -> None:
    """Simulate a scan as sector files, stream and count it with real processes, open the dataset and draw it."""
    from mpistream.acquisition.simulated_files import simulate_to_files
    from mpistream.acquisition.simulation_options import SimulationOptions
    from mpistream.storage.picture import save_overview

    dataset, picture = folder / "demo.h5", folder / "demo.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sectors = Path(tempfile.mkdtemp(prefix="demo-sectors-", dir=folder))
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}", "choose another --folder") from error
    options = SimulationOptions.parse(scan, {"flyback": "yes"})
    try:
        with SimulationProgress(options.frames) as progress:
            simulate_to_files(options, sectors, progress.update)
        end = run_once(
            ScanRequest(f"files:{sectors}", dataset, CountingParameters(), overwrite=True), 2, 2, load_config(None)
        )
    finally:
        if not keep:
            shutil.rmtree(sectors, ignore_errors=True)
    report(end, as_json=False)
    save_overview(dataset, picture)
    print(f"picture      {picture.absolute()}")
    if keep:
        print(f"sectors      {sectors.absolute()}")
