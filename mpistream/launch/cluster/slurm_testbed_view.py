"""What the Slurm of a testbed does at the moment."""

from dataclasses import dataclass
from pathlib import Path

from mpistream.launch.cluster.slurm_testbed import slurm_of
from mpistream.launch.cluster.slurm_testbed_files import SlurmFolder
from mpistream.launch.testbed_folder import TestbedFolder

_SEPARATOR = "|"


@dataclass(frozen=True)
class NodeView:
    """A node. ``state`` in Slurm's words, with * where it does not answer; ``reason`` why it is not used."""

    name: str
    address: str
    state: str
    reason: str


@dataclass(frozen=True)
class BatchJobView:
    """A batch job that has not ended; times and state in Slurm's words. ``reason``: why it waits."""

    number: str
    name: str
    state: str
    running_time: str
    time_limit: str
    nodes: str
    reason: str


@dataclass(frozen=True)
class SlurmView:
    nodes: tuple[NodeView, ...]
    jobs: tuple[BatchJobView, ...]


def look_at_slurm(folder: Path) -> SlurmView:
    """Raises MpistreamError where no Slurm answers."""
    addresses = SlurmFolder(TestbedFolder(folder)).description().nodes
    slurm = slurm_of(folder)
    nodes = slurm.run("sinfo", "--noheader", "--Node", f"--format=%N{_SEPARATOR}%T{_SEPARATOR}%E").splitlines()
    fields = _SEPARATOR.join(("%A", "%T", "%M", "%l", "%N", "%r", "%j"))
    jobs = slurm.run("squeue", "--noheader", f"--format={fields}").splitlines()
    return SlurmView(tuple(_node(line, addresses) for line in nodes), tuple(map(_job, jobs)))


def _node(line: str, addresses: dict[str, str]) -> NodeView:
    name, state, reason = line.split(_SEPARATOR, 2)
    return NodeView(name, addresses.get(name, ""), state, "" if reason == "none" else reason)


def _job(line: str) -> BatchJobView:
    number, state, running, limit, nodes, reason, name = line.split(_SEPARATOR, 6)
    return BatchJobView(number, name, state, running, limit, nodes, "" if reason == "None" else reason)
