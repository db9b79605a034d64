"""The processes themselves: one per terminal or host."""

from pathlib import Path

import click

from mpistream.cli.options import config_option, host_and_port, load_config
from mpistream.model.errors import ConfigError
from mpistream.model.geometry import SECTORS

host_option = click.option("--host", help="Address that the sockets bind, instead of [network] host.")
interface_option = click.option(
    "--interface", metavar="NAME", help="Network interface whose address that is, instead of [network] interface."
)
etcd_option = click.option(
    "--etcd", multiple=True, metavar="HOST:PORT", help="etcd's address, not the file's; repeatable."
)


@click.command()
@config_option
@etcd_option
@click.option(
    "--sector", required=True, type=click.IntRange(0, SECTORS - 1), help="The sector that this producer sends."
)
@click.option("--camera", metavar="tcp://HOST:PORT", help="Address at which the camera's processes push this sector.")
@click.option("--camera-layout", type=click.Choice(["4", "5"]), help="Raw format of what the camera pushes.")
@click.option("--frames-per-position", type=int, help="Successive frames of the camera at one scan position.")
def produce(
    config: Path | None,
    etcd: tuple[str, ...],
    sector: int,
    camera: str | None,
    camera_layout: str | None,
    frames_per_position: int | None,
) -> None:
    """A producer: reads one sector of each scan that is announced, and sends it. Run one for each of the 4 sectors.

    With --camera it also takes what the camera's own processes push, and announces it as scans of the open session.
    """
    from mpistream.launch.sessions import camera_counting
    from mpistream.pipeline.producing.camera_listening import CameraListening
    from mpistream.pipeline.producing.producer import run_producer

    for option, value in (("--camera-layout", camera_layout), ("--frames-per-position", frames_per_position)):
        if camera is None and value is not None:
            raise ConfigError(f"{option} has no effect without --camera", "give --camera, too; or leave it out")
    loaded = load_config(
        config,
        etcd__endpoints=list(etcd) or None,
        camera__layout=int(camera_layout) if camera_layout else None,
        camera__frames_per_position=frames_per_position,
    )
    listening = CameraListening(*host_and_port(camera), camera_counting) if camera is not None else None
    run_producer(loaded, sector, listening)


@click.command()
@config_option
@etcd_option
@host_option
@interface_option
@click.option("--name", help="Tells several aggregators apart.")
@click.option("--data-port", type=int, help="Port for blocks; 0 takes any free one.")
@click.option("--answer-port", type=int, help="Port for acknowledgements; 0 takes any free one.")
def aggregate(
    config: Path | None,
    etcd: tuple[str, ...],
    host: str | None,
    interface: str | None,
    name: str | None,
    data_port: int | None,
    answer_port: int | None,
) -> None:
    """The aggregator: takes the producers' blocks and passes each on to the rank it belongs to."""
    from mpistream.pipeline.aggregator import run_aggregator

    run_aggregator(
        load_config(
            config,
            etcd__endpoints=list(etcd) or None,
            network__host=host,
            network__interface=interface,
            aggregator__name=name,
            aggregator__data_port=data_port,
            aggregator__answer_port=answer_port,
        )
    )


@click.command()
@config_option
@etcd_option
@host_option
@interface_option
@click.option(
    "--external-name", metavar="NAME", help="Under which others reach this host; {host}: the node's own name."
)
@click.option("--ranks-per-group", type=int, help="Ranks in a group; 0: those of a node.")
def consume(
    config: Path | None,
    etcd: tuple[str, ...],
    host: str | None,
    interface: str | None,
    external_name: str | None,
    ranks_per_group: int | None,
) -> None:
    """A rank of the MPI job: receives frames, counts electrons and writes datasets together with the other ranks.

    Start all ranks at once: mpiexec -n 4 mpistream consume --config FILE, or with srun.
    """
    from mpistream.pipeline.ranks.rank import run_rank

    run_rank(
        lambda: load_config(
            config,
            etcd__endpoints=list(etcd) or None,
            network__host=host,
            network__interface=interface,
            network__external_name=external_name,
            ranks__ranks_per_group=ranks_per_group,
        )
    )
