"""A Slurm on this machine."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from mpistream.cli.options import config_option, folder_option, load_config
from mpistream.launch.cluster.slurm_testbed import SlurmTestbed, kill_node, revive_node
from mpistream.launch.cluster.slurm_testbed_view import look_at_slurm
from mpistream.launch.supervisor import default_folder
from mpistream.launch.supervisor import down as end_testbed
from mpistream.launch.supervisor import supervise as supervise_testbed
from mpistream.launch.supervisor import up as start_testbed

nodes_option = click.option("--nodes", default=4, show_default=True, type=click.IntRange(1, 200), help="Slurm nodes.")


@click.group()
def slurm() -> None:
    """A real Slurm with several nodes on this machine, and beside it etcd, 4 producers and an aggregator. Needs root.

    The MPI job is what batch jobs start. `testbed scan`, `ps`, `status` and `scan` work as with `testbed up`.
    """


@slurm.command()
@nodes_option
@folder_option
@config_option
@click.option("--fresh", is_flag=True, help="Forget the scans that the last testbed there has left unfinished.")
def up(nodes: int, folder: Path | None, config: Path | None, fresh: bool) -> None:
    """Start everything, and return when all nodes are idle.

    A process or node that ends is started again. Scans that the last testbed in the folder has left unfinished go on
    with the next job.
    """
    load_config(config)
    place = (folder or default_folder()).absolute()
    layout = ["slurm", "supervise", "--nodes", str(nodes)]
    start_testbed(place, layout, config.absolute() if config else None, fresh)
    click.echo(f"Slurm is up with {nodes} idle nodes in {place}; sbatch, squeue and srun speak to it after")
    click.echo(f"  export SLURM_CONF={place}/slurm/slurm.conf")


@slurm.command()
@folder_option
def down(folder: Path | None) -> None:
    """End everything that `testbed slurm up` started, batch jobs included.

    A scan that is not finished is kept, and goes on with the next `testbed slurm up` in the same folder.
    """
    unfinished = end_testbed(folder or default_folder())
    click.echo("the testbed has ended")
    if unfinished:
        click.echo(f"mpistream: note: not finished: scan {', '.join(unfinished)}", err=True)


@slurm.command()
@folder_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(folder: Path | None, as_json: bool) -> None:
    """Show nodes and batch jobs."""
    view = look_at_slurm((folder or default_folder()).absolute())
    if as_json:
        click.echo(json.dumps(asdict(view)))
        return
    for node in view.nodes:
        click.echo(f"node {node.name:<7} {node.address:<16}{node.state}{f': {node.reason}' if node.reason else ''}")
    for job in view.jobs:
        where = f"on {job.nodes}" if job.nodes else job.reason
        click.echo(f"job {job.number:<8} {job.name}  {job.state}, {job.running_time} of {job.time_limit}, {where}")
    if not view.jobs:
        click.echo("job          none")


@slurm.command("kill-node")
@click.argument("name")
@folder_option
def kill(name: str, folder: Path | None) -> None:
    """Kill everything that runs on a node, as when its power fails. It stays dead until it is revived."""
    kill_node((folder or default_folder()).absolute(), name)
    click.echo(f"node {name} is dead; Slurm notices after a while")


@slurm.command("revive-node")
@click.argument("name")
@folder_option
def revive(name: str, folder: Path | None) -> None:
    """Start a killed node again, and return when Slurm uses it."""
    revive_node((folder or default_folder()).absolute(), name)
    click.echo(f"node {name} is back")


@slurm.command(hidden=True)
@nodes_option
@click.option("--folder", required=True, type=click.Path(path_type=Path))
@config_option
def supervise(nodes: int, folder: Path, config: Path | None) -> None:
    """What `testbed slurm up` runs in the background."""
    base = load_config(config) if config else None
    supervise_testbed(folder, lambda place: SlurmTestbed(place, nodes, base=base))
