"""Measurements of speed and quality."""

import json
from pathlib import Path

import click


@click.group()
def bench() -> None:
    """Measure how fast and how well electrons are counted, beside stempy, and what it costs that nothing is lost."""


@bench.command()
@click.option("--frames", type=click.IntRange(8), help="Frames to count, in whole blocks of 8.  [default: 1024]")
@click.option("--quick", is_flag=True, help="Few frames: to see that it runs. The figures mean nothing.")
@click.option("--json", "as_json", is_flag=True, help="The last line of output is one JSON object.")
def counting(frames: int | None, quick: bool, as_json: bool) -> None:
    """Frames per second on one core: every path, stempy, and a pass that only reads the same memory.

    Needs stempy, about 2 GB of memory and a few minutes on a machine that does nothing else.
    """
    from mpistream.benchmarks.counting import Extent, measure
    from mpistream.benchmarks.counting_report import report

    result = measure(Extent.of(frames, quick), _say)
    click.echo(report(result))
    if as_json:
        click.echo(json.dumps(result))


@bench.command()
@click.option("--frames", default=24, show_default=True, type=click.IntRange(1), help="Frames of each density.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Also draw it: png, svg or pdf.")
@click.option("--json", "as_json", is_flag=True, help="The last line of output is one JSON object.")
def quality(frames: int, plot: Path | None, as_json: bool) -> None:
    """Precision, recall and double counting against the simulator's truth, over thresholds, beside stempy.

    Needs stempy.
    """
    from mpistream.benchmarks.quality import measure
    from mpistream.benchmarks.quality_report import check_plot_path, report, save_plot

    if plot:
        check_plot_path(plot)
    result = measure(frames, _say)
    click.echo(report(result))
    if plot:
        save_plot(result, plot)
        click.echo(f"\n{plot}")
    if as_json:
        click.echo(json.dumps(result))


@bench.command()
@click.option("--frames", type=click.IntRange(8), help="Frames of the scan, in whole blocks of 8.  [default: 4096]")
@click.option("--electrons", default=2400.0, show_default=True, type=click.FloatRange(0), help="Mean, in a frame.")
@click.option("--ranks", default=2, show_default=True, type=click.IntRange(1), help="Ranks of the MPI job.")
@click.option("--rounds", type=click.IntRange(1), help="How often everything is measured.  [default: 5]")
@click.option(
    "--folder",
    default=Path(),
    type=click.Path(path_type=Path),
    help="Where journals and datasets are written while it runs.  [default: the current folder]",
)
@click.option("--quick", is_flag=True, help="Few frames: to see that it runs. The figures mean nothing.")
@click.option("--json", "as_json", is_flag=True, help="The last line of output is one JSON object.")
def durability(
    frames: int | None, electrons: float, ranks: int, rounds: int | None, folder: Path, quick: bool, as_json: bool
) -> None:
    """CPU time of streaming without acknowledgements, and with each level of durability; the journal alone.

    Streams one simulated scan again and again, with real processes. Needs about four times the scan's bytes of memory
    (11 GB for 4096 frames), and a few minutes on a machine that does nothing else.
    """
    from mpistream.benchmarks.durability import Extent, measure, with_bars
    from mpistream.benchmarks.durability_report import report

    result = with_bars(measure(Extent.of(frames, rounds, ranks, electrons, quick), folder, _say))
    click.echo(report(result))
    if as_json:
        click.echo(json.dumps(result))


def _say(what: str) -> None:
    click.echo(what, err=True)
