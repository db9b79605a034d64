"""What runs inside a batch job: the MPI job, and the mode's program."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mpistream.cli.options import counting_options, counting_parameters
from mpistream.launch.cluster.batch_job import Surroundings, run_batch_job
from mpistream.launch.cluster.batch_run import JobOrder, Program
from mpistream.launch.cluster.benchmark import benchmark
from mpistream.launch.cluster.course import Rules
from mpistream.launch.cluster.mode_options import check_camera, tilts_degrees
from mpistream.launch.cluster.programs import Scans, filebased, live, single
from mpistream.launch.cluster.references_made import calibrate, dark
from mpistream.launch.cluster.series import timeseries, tomography
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError
from mpistream.model.session import Mode

#: The options of each mode: those that it needs, and those that it takes besides. How to count stands in _COUNTED.
_OPTIONS: dict[Mode, tuple[set[str], set[str]]] = {
    Mode.LIVE: (set(), set()),
    Mode.SINGLE: (set(), {"source", "output", "overwrite"}),
    Mode.DARK: ({"source", "name"}, set()),
    Mode.CALIBRATE: ({"source", "name"}, set()),
    Mode.TIMESERIES: ({"source", "scans", "output"}, {"interval", "join", "overwrite"}),
    Mode.TOMOGRAPHY: ({"source", "tilts", "output"}, {"overwrite"}),
    Mode.RAW: ({"source", "output"}, {"overwrite"}),
    Mode.REPLAY: ({"source", "output"}, {"rate", "overwrite"}),
    Mode.FILEBASED: (set(), set()),  # what it counts stands in the command
    Mode.BENCHMARK: ({"scan"}, {"repeat", "output"}),
}
_COUNTED = frozenset({Mode.SINGLE, Mode.CALIBRATE, Mode.TIMESERIES, Mode.TOMOGRAPHY, Mode.REPLAY})
_REPEAT = 3


@dataclass(frozen=True)
class _Asked:
    """The options that the modes' programs are made of; those that were not given are left out."""

    mode: Mode
    options: dict[str, Any]
    counting: dict[str, Any]
    producers_here: bool = False

    def check(self) -> None:
        """Raises ConfigError for what is missing, or has no effect."""
        needed, taken = _OPTIONS[self.mode]
        if missing := sorted(needed - self.options.keys()):
            raise ConfigError(f"mode {self.mode} needs {_as_options(missing)}", "see mpistream job run --help")
        surplus = self.options.keys() - needed - taken
        if self.mode not in _COUNTED:
            surplus |= self.counting.keys()
        if surplus:
            raise ConfigError(f"{_as_options(sorted(surplus))} has no effect in mode {self.mode}", "leave it out")
        check_camera(self.mode, self.options, self.producers_here)
        if self.mode is Mode.SINGLE and ("source" in self.options) != ("output" in self.options):
            raise ConfigError("--source and --output belong together", "give both, or neither: the session's next scan")

    @property
    def output(self) -> Path:
        return Path(self.options.get("output", ".")).absolute()

    @property
    def scans(self) -> Scans:
        counting = counting_parameters(**{name: value for name, value in self.counting.items() if name != "thresholds"})
        return Scans(
            self.options["source"],
            self.output,
            counting,
            self.options.get("overwrite", False),
            self.counting.get("thresholds"),
            recording=self.mode is Mode.RAW,
        )


def _as_options(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _program(asked: _Asked) -> Program:
    """Of checked options. What can be wrong beside them is found here, before anything is started."""
    options = asked.options
    match asked.mode:
        case Mode.LIVE:
            return live
        case Mode.FILEBASED:
            return filebased
        case Mode.BENCHMARK:
            repeat = options.get("repeat", _REPEAT)
            return lambda run: benchmark(run, options["scan"], repeat, _figures_file(run, asked))
        case Mode.SINGLE if "source" not in options:
            return lambda run: single(run, None)
        case Mode.DARK:
            return lambda run: dark(run, options["source"], options["name"])
    scans = asked.scans
    match asked.mode:
        case Mode.CALIBRATE:
            return lambda run: calibrate(run, scans, options["name"])
        case Mode.TIMESERIES:
            is_joined = options.get("join", asked.output.suffix == ".h5")
            return lambda run: timeseries(run, scans, options["scans"], options.get("interval", 0.0), is_joined)
        case Mode.TOMOGRAPHY:
            tilts = tilts_degrees(options["tilts"])
            return lambda run: tomography(run, scans, tilts)
    return lambda run: single(run, scans)


def _figures_file(run: Any, asked: _Asked) -> Path:
    return asked.output if "output" in asked.options else Path.cwd() / f"benchmark-{run.allocation.number}.json"


_MODE_OPTIONS = [
    click.option(
        "--source",
        metavar="SPEC",
        help="The frames; {index} and {tilt} are filled in for each scan; camera: what it pushes next.",
    ),
    click.option("--output", type=click.Path(path_type=Path), metavar="FILE|FOLDER", help="What to write."),
    click.option("--overwrite", is_flag=True, default=None, help="Replace outputs that exist."),
    click.option("--name", help="dark, calibrate: the name that later scans use (ref:NAME)."),
    click.option("--scans", type=click.IntRange(1), help="timeseries: how many scans."),
    click.option("--interval", type=click.FloatRange(0), help="timeseries: seconds from begin to begin."),
    click.option("--join/--each", default=None, help="timeseries: one dataset with a time axis, or one file each."),
    click.option("--tilts", metavar="START:STOP:STEP|LIST", help="tomography: tilt angles in degrees."),
    click.option("--rate", type=click.FloatRange(0, min_open=True), help="replay: frames per second."),
    click.option("--scan", metavar="ROWSxCOLS", help="benchmark: the simulated scan."),
    click.option("--repeat", type=click.IntRange(1), help=f"benchmark: how many scans.  [default: {_REPEAT}]"),
]
_NAMES = {"source", "output", "overwrite", "name", "scans", "interval", "join", "tilts", "rate", "scan", "repeat"}


def _mode_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_MODE_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("mode", type=click.Choice([mode.value for mode in Mode]))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--session", default="", help="The session that the job serves.")
@click.option("--config", type=click.Path(path_type=Path), help="The deployment's configuration file.")
@_mode_options
@counting_options
@click.option("--producers-here", is_flag=True, help="replay: start producers and an aggregator, too.")
@click.option(
    "--interface", metavar="NAME", help="Network interface whose address an aggregator and an etcd of the job bind."
)
@click.option(
    "--requeue/--no-requeue", default=True, show_default=True, help="With work left, go back into Slurm's queue."
)
@click.option("--least-nodes", default=1, show_default=True, type=click.IntRange(1), help="Fewer are of no use.")
@click.option(
    "--finish-seconds",
    default=Rules.finish_seconds,
    show_default=True,
    type=click.FloatRange(0),
    help="How long a scan in hand may still take once the time limit is near.",
)
def run(
    mode: str,
    command: tuple[str, ...],
    session: str,
    config: Path | None,
    producers_here: bool,
    interface: str | None,
    requeue: bool,
    least_nodes: int,
    finish_seconds: float,
    **options: Any,
) -> None:
    """What a batch job's script runs at its end: mpistream job run MODE --config FILE ... -- srun mpistream consume ...

    Starts the MPI job (the command behind --), again whenever it dies, without nodes that have failed; does what the
    mode is for; ends everything. SIGUSR1: the time limit is near; SIGUSR2: end after the scan in hand; SIGTERM: end.
    """
    given = {name: value for name, value in options.items() if value is not None}
    counting = {name: value for name, value in given.items() if name not in _NAMES}
    asked = _Asked(Mode(mode), {name: given[name] for name in given.keys() & _NAMES}, counting, producers_here)
    asked.check()
    if asked.mode is Mode.REPLAY and "rate" in asked.options:
        source = asked.options["source"]
        asked.options["source"] = f"{source}{'&' if '?' in source else '?'}rate={asked.options['rate']:g}"
    program = _program(asked)
    if config is None and asked.mode is not Mode.FILEBASED:
        raise ConfigError(f"mode {mode} needs the deployment's configuration", "give --config FILE")
    surroundings = _surroundings(asked.mode, producers_here)
    if interface is not None and surroundings not in (Surroundings.CAMERA_HERE, Surroundings.ALL_HERE):
        raise ConfigError(
            f"--interface has no effect in mode {mode} without --producers-here",
            "leave it out before --; ranks take it behind consume",
        )
    rules = Rules(
        least_nodes,
        finish_seconds,
        runs_once=asked.mode is Mode.FILEBASED,
        writes_seconds=Config.load(config).watchdog.assembly_seconds,
    )
    order = JobOrder(asked.mode, session, command, rules, requeue)
    folder = asked.output.parent if "output" in asked.options else Path.cwd()
    sys.exit(run_batch_job(order, program, config, surroundings, folder, interface))


def _surroundings(mode: Mode, producers_here: bool) -> Surroundings:
    if mode is Mode.FILEBASED:
        return Surroundings.NONE
    if mode is Mode.BENCHMARK:
        return Surroundings.ALL_HERE
    return Surroundings.CAMERA_HERE if producers_here else Surroundings.DEPLOYMENT
