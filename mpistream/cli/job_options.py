"""Options of `mpistream job render` and `job submit`: those of every batch job, and those of each mode."""

from pathlib import Path
from typing import Any

import click

from mpistream.cli.options import counting_options
from mpistream.launch.cluster.site import parse_duration
from mpistream.model.errors import ConfigError
from mpistream.model.session import Mode


class _Duration(click.ParamType):
    name = "HH:MM:SS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Modes(click.Group):
    """One subcommand per mode."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise ConfigError(f"there is no mode {args[0]!r}", f"take one of {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


def path_option(flag: str, metavar: str, text: str) -> click.Option:
    return click.Option([flag], type=click.Path(path_type=Path), metavar=metavar, help=text)


def _text_option(flag: str, metavar: str, text: str) -> click.Option:
    return click.Option([flag], default="", metavar=metavar, help=text)


#: By their names the fields of a JobRequest, but for ``site`` and ``chdir``.
COMMON = [
    click.Option(["--site"], required=True, metavar="NAME|FILE.toml", help="Site profile: see mpistream job sites."),
    click.Option(["--session"], required=True, metavar="NAME", help="The session that the job serves."),
    path_option("--config", "FILE", "Configuration of the deployment, where the job's nodes see it."),
    _text_option("--account", "NAME", "Who pays for the job."),
    _text_option("--qos", "NAME", "Quality of service: realtime, regular, debug."),
    click.Option(["--nodes"], type=click.IntRange(1), help="How many nodes: each is a rank group."),
    click.Option(["--tasks-per-node"], type=click.IntRange(1), help="Ranks on each node."),
    click.Option(
        ["--least-nodes"], type=click.IntRange(1), help="With fewer left the job does not go on.  [default: 1]"
    ),
    click.Option(["--time", "time_seconds"], type=_Duration(), help="Time limit; D-HH:MM:SS for days."),
    _text_option("--reservation", "NAME", "Nodes that are reserved."),
    _text_option("--dependency", "afterok:NUMBER", "Which jobs must be over first, as sbatch has it."),
    _text_option("--email", "ADDRESS", "Who is told when the job begins and ends."),
    click.Option(["--requeue/--no-requeue"], default=None, help="Whether it waits once more when its time is over."),
    path_option("--chdir", "DIR", "Folder of the job, and of its log."),
]


def _source(metavar: str = "files:DIR|raw:FILE.h5|sim:ROWSxCOLS|camera", **more: Any) -> click.Option:
    return click.Option(["--source"], metavar=metavar, help="The frames.", **more)


def _output(metavar: str, **more: Any) -> click.Option:
    return click.Option(["--output"], metavar=metavar, help="What to write.", **more)


_OVERWRITE = click.Option(["--overwrite"], is_flag=True, help="Replace what is there, once all of it is written.")
_NAME = click.Option(["--name"], required=True, metavar="NAME", help="The name under which later scans use it.")


@click.command()
@counting_options
def _counting(**_: Any) -> None:
    """Of no use but for its options: those of every command that counts."""


_COUNTING = _counting.params
#: Thresholds that are to be found are not given.
_CALIBRATING = [
    option for option in _COUNTING if option.name not in ("thresholds", "background", "xray", "row_dark_level")
]

OF_MODE: dict[Mode, list[click.Parameter]] = {
    Mode.LIVE: [],
    Mode.SINGLE: [
        _source(),
        _output("FILE.h5"),
        _OVERWRITE,
        *_COUNTING,
    ],
    Mode.DARK: [_source(required=True), _NAME],
    Mode.CALIBRATE: [_source(required=True), _NAME, *_CALIBRATING],
    Mode.TIMESERIES: [
        _source("SOURCE|camera", required=True),
        click.Option(["--scans"], type=click.IntRange(1), required=True, help="How many."),
        click.Option(["--interval"], type=click.FloatRange(0), help="Seconds from one's beginning to the next's."),
        _output("FILE.h5|DIR", required=True),
        _OVERWRITE,
        click.Option(["--join/--each"], default=True, show_default=True, help="One dataset for all, or one for each."),
        *_COUNTING,
    ],
    Mode.TOMOGRAPHY: [
        _source("SOURCE|camera", required=True),
        click.Option(["--tilts"], required=True, metavar="START:STOP:STEP|LIST", help="Angles in degrees."),
        _output("DIR", required=True),
        _OVERWRITE,
        *_COUNTING,
    ],
    Mode.RAW: [_source("files:DIR|sim:ROWSxCOLS|camera", required=True), _output("FILE.h5", required=True), _OVERWRITE],
    Mode.REPLAY: [
        _source("files:DIR|raw:FILE.h5", required=True),
        click.Option(["--rate"], type=click.FloatRange(0, min_open=True), help="Frames per second."),
        _output("FILE.h5", required=True),
        _OVERWRITE,
        *_COUNTING,
    ],
    Mode.FILEBASED: [
        _source("files:[HOST:]DIR", required=True, multiple=True),
        _output("FILE.h5", required=True),
        _OVERWRITE,
        *_COUNTING,
    ],
    Mode.BENCHMARK: [
        click.Option(["--scan"], required=True, metavar="ROWSxCOLS", help="Shape of each scan."),
        click.Option(["--repeat"], type=click.IntRange(1), help="How many scans."),
    ],
}
