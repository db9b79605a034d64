"""Options that several commands share, defined once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from mpistream.model.config import Config
from mpistream.model.errors import ConfigError
from mpistream.model.scan import CountingParameters

Command = TypeVar("Command", bound=Callable[..., Any])

config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="Configuration file (TOML) that all processes share."
)


def scan_options(command: Command) -> Command:
    """What to stream, where to, and how to count."""
    options = [
        click.option(
            "--source",
            required=True,
            metavar="files:DIR|sim:ROWSxCOLS",
            help="The frames: a folder of sector files (files:DIR, older ones as files:DIR?version=4), or a simulated "
            "scan (sim:64x65, with options as in sim:64x65?seed=3&electrons=500).",
        ),
        click.option(
            "--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5", help="The dataset to write."
        ),
        click.option("--overwrite", is_flag=True, help="Replace the output if it exists."),
        click.option(
            "--background",
            type=float,
            help="Pixels up to this value (ADU) are noise. Give it together with --xray; without them both thresholds "
            "are calibrated from the first frames.",
        ),
        click.option("--xray", type=float, help="Pixels from this value (ADU) on are x-rays, not electrons."),
        click.option(
            "--sample-frames", type=click.IntRange(1), help="Complete frames to calibrate from.  [default: 64]"
        ),
        click.option(
            "--background-sigmas", type=float, help="Calibration: sigmas above the fitted mean.  [default: 4.5]"
        ),
        click.option(
            "--xray-sigmas", type=float, help="Calibration: standard deviations above the mean.  [default: 175]"
        ),
        click.option("--dark", type=click.Path(path_type=Path), metavar="FILE.npy", help="Dark reference to subtract."),
        click.option("--gain", type=click.Path(path_type=Path), metavar="FILE.npy", help="Gain reference, divides."),
        click.option("--direct", is_flag=True, help="Producers send straight to the ranks, without an aggregator."),
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


def counting_parameters(
    background: float | None, xray: float | None, dark: Path | None, gain: Path | None, **calibration: Any
) -> CountingParameters:
    """Raises ConfigError for thresholds that make no sense."""
    try:
        return CountingParameters(
            background=background,
            xray=xray,
            dark=str(dark.absolute()) if dark else None,
            gain=str(gain.absolute()) if gain else None,
            **{name: value for name, value in calibration.items() if value is not None},
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(f"--{part}".replace("_", "-") for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{where}: {message}" if where else message,
            "for instance --background 44 --xray 1500; or neither, then they are calibrated",
        ) from None


def load_config(path: Path | None, **overrides: Any) -> Config:
    """The configuration file with this command line's values; ``stream__block_frames=4`` sets [stream] block_frames."""
    return Config.load(path, {name.replace("__", "."): value for name, value in overrides.items()})
