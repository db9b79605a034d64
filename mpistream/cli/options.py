"""Options that several commands share, defined once."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from mpistream.model.config import Config
from mpistream.model.errors import ConfigError
from mpistream.model.scan import CountingParameters
from mpistream.model.session import referred_name

Command = TypeVar("Command", bound=Callable[..., Any])

config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="Configuration file (TOML) that all processes share."
)

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the running testbed keeps its files; testbeds in different folders are independent.",
)

wait_seconds_option = click.option(
    "--wait-seconds",
    type=click.FloatRange(0),
    help="How long a process that the scan needs may take to register.  [default: until it would be back, had it just "
    "died]",
)


def _file(path: str, metavar: str, help_text: str) -> Callable[[Command], Command]:
    return click.option(path, type=click.Path(path_type=Path), metavar=metavar, help=help_text)


_REFERENCES = [
    _file("--dark", "FILE.npy|ref:NAME", "Dark reference to subtract: see mpistream dark."),
    _file("--gain", "FILE.npy", "Gain reference, divides."),
    _file("--pixel-mask", "FILE.npy|ref:NAME", "Bad pixels, not 0: never electrons, nor in the way of any."),
    click.option(
        "--row-dark",
        type=click.Choice(["mean", "median"]),
        help="Instead of a dark reference: bring the mean or median of every half row to the same level.",
    ),
]

_CALIBRATION = [
    click.option("--sample-frames", type=click.IntRange(1), help="Complete frames to calibrate from.  [default: 64]"),
    click.option("--background-sigmas", type=float, help="Calibration: sigmas above the fitted mean.  [default: 4.5]"),
    click.option("--xray-sigmas", type=float, help="Calibration: standard deviations above the mean.  [default: 175]"),
]


_THRESHOLDS = [
    click.option(
        "--background",
        type=float,
        help="Pixels up to this value (ADU) are noise. Give it together with --xray; without them both thresholds "
        "are calibrated from the first frames.",
    ),
    click.option("--xray", type=float, help="Pixels from this value (ADU) on are x-rays, not electrons."),
    _file("--thresholds", "FILE|ref:NAME", "Take the thresholds of an earlier dataset, or of mpistream calibrate."),
]


def counting_options(command: Command) -> Command:
    """How a scan is counted, ``thresholds`` included. Those that are not given are None."""
    options = [
        *_THRESHOLDS,
        *_CALIBRATION,
        *_REFERENCES,
        click.option(
            "--row-dark-level", type=float, help="With --row-dark and given thresholds: the pedestal's mean (ADU)."
        ),
        click.option(
            "--centroids/--no-centroids", default=None, help="Also store where in its pixel each electron hit."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def calibration_options(command: Command) -> Command:
    """What pixel values are to be, and how thresholds are found."""
    for option in reversed(_REFERENCES + _CALIBRATION):
        command = option(command)
    return command


source_option = click.option(
    "--source",
    required=True,
    metavar="files:DIR|raw:FILE|sim:ROWSxCOLS",
    help="The frames: a folder of sector files (files:DIR, older ones as files:DIR?version=4), what a scan with --raw "
    "has left (raw:FILE), or a simulated scan (sim:64x65, with options as in sim:64x65?seed=3&electrons=500).",
)

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")

direct_option = click.option(
    "--direct", is_flag=True, help="Producers send straight to the ranks, without an aggregator."
)


def scan_options(command: Command) -> Command:
    """What to stream, where to, and how to count."""
    raw = click.option("--raw", is_flag=True, help="Do not count: keep the sectors as they are, to be replayed later.")
    return source_options(raw(direct_option(command)))


def source_options(command: Command) -> Command:
    """What to read, where to write, and how to count."""
    options = [
        source_option,
        click.option(
            "--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5", help="The dataset to write."
        ),
        overwrite_option,
        counting_options,
        click.option("--json", "as_json", is_flag=True, help="The last line of output is one JSON object."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def layout_options(command: Command) -> Command:
    """How many ranks a testbed's MPI job has."""
    for option in (
        click.option("--ranks-per-group", default=2, show_default=True, type=click.IntRange(1), help="Ranks in each."),
        click.option("--groups", default=2, show_default=True, type=click.IntRange(1), help="Rank groups."),
    ):
        command = option(command)
    return command


def counting_parameters(**options: Any) -> CountingParameters:
    """From the options of these names; None leaves the default. Raises ConfigError for what makes no sense."""
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: _place(value) for name, value in given.items() if isinstance(value, Path)}
    try:
        return CountingParameters(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(_as_option(str(part)) for part in first["loc"])
        message = re.sub("row_dark(_level)?", lambda name: _as_option(name[0]), first["msg"])
        message = message.removeprefix("Value error, ")
        remedy = "for instance --background 44 --xray 1500; or neither, then they are calibrated, or from --thresholds"
        if "takes the place" in message:
            remedy = "leave --dark or --row-dark out"
        elif "belongs to" in message:
            remedy = "leave --row-dark-level out: calibration finds it, --thresholds brings it along"
        elif "--row-dark-level" in where + message:
            remedy = "for instance --row-dark-level 30, where the pedestal lies at 30 ADU"
        if first["type"] == "finite_number":
            remedy = "give a number; --xray 65536 is as good as no limit, unless a gain or row-dark raises values"
        raise ConfigError(f"{where}: {message}" if where else message, remedy) from None


def _place(path: Path) -> str:
    """Absolute, for processes with other working directories; the name of a reference as it is."""
    return str(path) if referred_name(str(path)) is not None else str(path.absolute())


def _as_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def host_and_port(address: str) -> tuple[str, int]:
    """Of ``tcp://HOST:PORT``. Raises ConfigError."""
    match = re.fullmatch(r"tcp://([^:/\s]+):(\d{1,5})", address)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ConfigError(f"{address!r} is no address of a socket", "write tcp://HOST:PORT, for instance tcp://*:5560")
    return match[1], int(match[2])


def load_config(path: Path | None, **overrides: Any) -> Config:
    """The configuration file with this command line's values; ``stream__block_frames=4`` sets [stream] block_frames."""
    return Config.load(path, {name.replace("__", "."): value for name, value in overrides.items()})


def running_config(folder: Path | None, config: Path | None) -> Config:
    """That of the deployment which a configuration file describes, or of the testbed which runs in a folder."""
    from mpistream.launch.supervisor import config_of, default_folder

    return load_config(config) if config else config_of(folder or default_folder())
