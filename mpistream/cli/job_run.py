"""What runs inside a batch job: the MPI job, and the mode's program."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mpistream.cli.options import calibration_options, counting_parameters
from mpistream.launch.cluster.batch_job import Surroundings, run_batch_job
from mpistream.launch.cluster.batch_run import JobOrder, Program
from mpistream.launch.cluster.course import Rules
from mpistream.launch.cluster.programs import (
    Scans,
    filebased,
    live,
    parse_tilts,
    single,
    timeseries,
    tomography,
)
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError
from mpistream.model.session import Mode

#: The options of a mode that make it: those that it needs, and those that it takes besides. Counting options beside.
_OPTIONS: dict[Mode, tuple[set[str], set[str]]] = {
    Mode.LIVE: (set(), set()),
    Mode.SINGLE: (set(), {"source", "output", "overwrite"}),
    Mode.TIMESERIES: ({"source", "scans", "output"}, {"interval", "join", "overwrite"}),
    Mode.TOMOGRAPHY: ({"source", "tilts", "output"}, {"overwrite"}),
    Mode.REPLAY: ({"source", "output"}, {"rate", "overwrite"}),
    Mode.FILEBASED: (set(), set()),
}
_COUNTED = (Mode.SINGLE, Mode.TIMESERIES, Mode.TOMOGRAPHY, Mode.REPLAY)


@dataclass(frozen=True)
class _Asked:
    """The options that the modes' programs are made of."""

    mode: Mode
    options: dict[str, Any]
    counting: dict[str, Any]

    def check(self) -> None:
        """Raises ConfigError for what is missing, or has no effect."""
        needed, taken = _OPTIONS[self.mode]
        given = {name for name, value in self.options.items() if value not in (None, False)}
        if missing := sorted(needed - given):
            raise ConfigError(f"mode {self.mode} needs {_as_options(missing)}", "see mpistream job run --help")
        surplus = given - needed - taken
        if self.mode not in _COUNTED:
            surplus |= {name for name, value in self.counting.items() if value not in (None, False)}
        if surplus:
            raise ConfigError(f"{_as_options(sorted(surplus))} has no effect in mode {self.mode}", "leave it out")
        if self.mode is Mode.SINGLE and (self.options["source"] is None) != (self.options["output"] is None):
            raise ConfigError("--source and --output belong together", "give both, or neither: the session's next scan")

    @property
    def scans(self) -> Scans:
        thresholds = self.counting["thresholds"]
        counting = counting_parameters(**{name: v for name, v in self.counting.items() if name != "thresholds"})
        output, overwrite = self.options["output"], self.options["overwrite"]
        return Scans(self.options["source"], output.absolute(), counting, overwrite, thresholds)


def _as_options(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _program(asked: _Asked) -> Program:
    """Everything that can be wrong with the options is found here, before anything is started."""
    asked.check()
    options = asked.options
    if asked.mode in (Mode.LIVE, Mode.FILEBASED):
        return {Mode.LIVE: live, Mode.FILEBASED: filebased}[asked.mode]
    if asked.mode is Mode.SINGLE and options["source"] is None:
        return lambda run: single(run, None)
    scans = asked.scans
    if asked.mode is Mode.TIMESERIES:
        return lambda run: timeseries(run, scans, options["scans"], options["interval"] or 0.0)
    if asked.mode is Mode.TOMOGRAPHY:
        tilts = parse_tilts(options["tilts"])
        return lambda run: tomography(run, scans, tilts)
    return lambda run: single(run, scans)


def mode_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the modes are made of."""
    options = [
        click.option("--source", metavar="SPEC", help="The frames; {index} and {tilt} are filled in for each scan."),
        click.option("--output", type=click.Path(path_type=Path), metavar="FILE|FOLDER", help="Where datasets go."),
        click.option("--overwrite", is_flag=True, help="Replace outputs that exist."),
        click.option("--name", help="dark, calibrate: the name that later scans use (ref:NAME)."),
        click.option("--scans", type=click.IntRange(1), help="timeseries: how many scans."),
        click.option("--interval", type=click.FloatRange(0), help="timeseries: seconds from begin to begin."),
        click.option("--join/--each", default=None, help="timeseries: one dataset with a time axis, or one file each."),
        click.option("--tilts", metavar="START:STOP:STEP|LIST", help="tomography: tilt angles in degrees."),
        click.option("--rate", type=click.FloatRange(0, min_open=True), help="replay: frames per second."),
        click.option("--scan", metavar="ROWSxCOLS", help="benchmark: the simulated scan."),
        click.option("--repeat", type=click.IntRange(1), help="benchmark: how often.  [default: 3]"),
        click.option("--background", type=float, help="Pixels up to this value (ADU) are noise."),
        click.option("--xray", type=float, help="Pixels from this value (ADU) on are x-rays."),
        click.option("--thresholds", metavar="FILE", type=click.Path(path_type=Path), help="As in testbed scan."),
        click.option("--row-dark-level", type=float, help="As in testbed scan."),
        click.option("--centroids", is_flag=True, help="As in testbed scan."),
    ]
    command = calibration_options(command)
    for option in reversed(options):
        command = option(command)
    return command


_MODE_OPTIONS = (
    "source",
    "output",
    "overwrite",
    "name",
    "scans",
    "interval",
    "join",
    "tilts",
    "rate",
    "scan",
    "repeat",
)


@click.command()
@click.argument("mode", type=click.Choice([mode.value for mode in Mode]))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--session", default="", help="The session that the job serves.")
@click.option("--config", required=True, type=click.Path(path_type=Path), help="The deployment's configuration file.")
@mode_options
@click.option("--producers-here", is_flag=True, help="replay, benchmark: start producers and aggregator, too.")
@click.option(
    "--requeue/--no-requeue", default=True, show_default=True, help="With work left, go back into Slurm's queue."
)
@click.option("--least-nodes", default=1, show_default=True, type=click.IntRange(1), help="Fewer are of no use.")
@click.option(
    "--finish-seconds",
    default=Rules.finish_seconds,
    show_default=True,
    type=click.FloatRange(0),
    help="How long before the time limit a scan in hand may still take.",
)
def run(
    mode: str,
    command: tuple[str, ...],
    session: str,
    config: Path,
    producers_here: bool,
    requeue: bool,
    least_nodes: int,
    finish_seconds: float,
    **options: Any,
) -> None:
    """What a batch job's script runs at its end: mpistream job run MODE --config FILE ... -- srun mpistream consume ...

    Starts the MPI job (the command behind --) and again whenever it dies, without nodes that have failed; does what the
    mode is for; ends everything. SIGUSR1: the time limit is near; SIGUSR2: end after the scan in hand; SIGTERM: end.
    """
    asked = _Asked(
        Mode(mode),
        {name: options.pop(name) for name in _MODE_OPTIONS},
        options,
    )
    program = _program(asked)
    loaded = Config.load(config)
    rules = Rules(least_nodes, finish_seconds, asked.mode is Mode.FILEBASED, loaded.watchdog.assembly_seconds)
    order = JobOrder(asked.mode, session, command, rules, requeue)
    output = asked.options["output"]
    folder = output.absolute().parent if output else Path.cwd()
    sys.exit(run_batch_job(order, program, config, _surroundings(asked.mode, producers_here), folder))


def _surroundings(mode: Mode, producers_here: bool) -> Surroundings:
    if mode is Mode.FILEBASED:
        return Surroundings.NONE
    if mode is Mode.BENCHMARK:
        return Surroundings.ALL_HERE
    return Surroundings.CAMERA_HERE if producers_here else Surroundings.DEPLOYMENT
