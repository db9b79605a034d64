"""In the camera's place: `mpistream camera send`."""

import click

from mpistream.cli.options import host_and_port
from mpistream.model.errors import ConfigError
from mpistream.model.geometry import SECTORS


@click.group()
def camera() -> None:
    """The camera's own wire format, to try a deployment whose producers listen to it (mpistream produce --camera)."""


@camera.command()
@click.option("--source", required=True, metavar="files:DIR|sim:ROWSxCOLS", help="The frames, as for a scan.")
@click.option(
    "--to",
    required=True,
    metavar="tcp://HOST:PORT",
    help="Where the producers listen; {sector} in it becomes 0 to 3, as in tcp://127.0.0.1:556{sector}.",
)
@click.option("--scan-number", type=click.IntRange(0, 0xFFFFFFFF), help="Instead of the source's own.")
@click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="For each sector.")
@click.option(
    "--version",
    type=click.Choice(["earlier", "later"]),
    default="later",
    show_default=True,
    help="Of the format: in the later one threads say how many frames they will send.",
)
@click.option("--rate", type=click.FloatRange(0), default=0.0, help="Frames per second.  [default: as fast as it goes]")
def send(source: str, to: str, scan_number: int | None, threads: int, version: str, rate: float) -> None:
    """Push a simulated or recorded scan to producers as the 4D Camera's receivers do."""
    from mpistream.acquisition.camera_sender import CameraSending, send_scan

    if "{sector}" not in to:
        raise ConfigError(f"{to!r} has no {{sector}} in it", "for instance --to tcp://127.0.0.1:556{sector}")
    endpoints = tuple(to.replace("{sector}", str(sector)) for sector in range(SECTORS))
    for endpoint in endpoints:
        if host_and_port(endpoint)[0] == "*":
            raise ConfigError(f"{endpoint} is no address to send to", "name the host: --to tcp://127.0.0.1:556{sector}")
    sent = send_scan(CameraSending(source, endpoints, scan_number, threads, version == "later", rate))
    click.echo(f"{sent} messages sent")
