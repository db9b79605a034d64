"""Measurements of speed and quality."""

import json
from pathlib import Path

import click


@click.group()
def bench() -> None:
    """Measure how fast electrons are counted, and how well, beside stempy in the same run."""


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


def _say(what: str) -> None:
    click.echo(what, err=True)
