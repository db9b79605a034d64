"""A Slurm on this machine, and beside it the microscope: etcd, producers, an aggregator, but no MPI job.

this machine    munged, slurmctld; etcd, 4 producers, the aggregator, reached at ADDRESS.1
node c1, ...    a slurmd each, in namespaces of its own, with what the batch jobs start there
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from mpistream.launch.cluster.namespaces import INTERFACE, Network, lacking
from mpistream.launch.cluster.slurm import Slurm
from mpistream.launch.cluster.slurm_testbed_files import RANK_ENVIRONMENT, SlurmDescription, SlurmFolder
from mpistream.launch.local import free_port
from mpistream.launch.processes import last_words
from mpistream.launch.supervision import Program, SupervisedProgram
from mpistream.launch.testbed import Testbed, kept_config
from mpistream.launch.testbed_folder import ProcessEntry, TestbedFolder
from mpistream.model.config import Config, NetworkConfig
from mpistream.model.errors import MpistreamError, SchedulerError

__all__ = ["RANK_ENVIRONMENT", "SlurmTestbed", "environment_of", "kill_node", "node_states", "revive_node"]

_log = logging.getLogger(__name__)

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "etcd")
_NODES_SECONDS = 60.0
_SUPERVISOR_SECONDS = 20.0
_TURN_SECONDS = 0.1


class SlurmTestbed(Testbed):
    """A testbed whose ranks are started by batch jobs, on ``nodes`` nodes with names and addresses of their own.

    Entering returns when all nodes are idle. A node that dies is started again, unless ``kill_node`` has killed it.
    """

    def __init__(
        self, folder: TestbedFolder, nodes: int, base: Config | None = None, say: Callable[[str], None] = _log.warning
    ) -> None:
        if why := lacking("hostname", *_PROGRAMS):
            raise MpistreamError(f"there can be no Slurm testbed here: {why}", "run it as root, after `make setup`")
        kept = kept_config(folder)
        self._network = Network(
            *(f"c{number}" for number in range(1, nodes + 1)),
            whole=True,
            preferred=kept.etcd.endpoints[0].partition(":")[0] if kept else "",
        )
        super().__init__(folder, 0, 0, base=base, say=say, host=self._network.address)
        self.config = self.config.model_copy(update={"network": NetworkConfig(interface=INTERFACE)})
        self._slurm = SlurmFolder(folder)
        self._daemons: dict[str, SupervisedProgram] = {}

    def __enter__(self) -> Self:
        addresses = {name: self._network.address_of(name) for name in self._network.names}
        self._slurm.make(SlurmDescription(self._network.address, addresses, self._network.own_mounts), free_port())
        try:
            self._network.__enter__()
            super().__enter__()
            self._start_slurm()
            self._wait_for_nodes()
        except BaseException:
            self.stop()
            raise
        return self

    def _start_slurm(self) -> None:
        munge = {
            "--key-file": self._slurm.key,
            "--socket": self._slurm.socket,
            "--pid-file": self._slurm.path / "munged.pid",
            "--seed-file": self._slurm.path / "munged.seed",
            "--log-file": self.folder.logs / "munged.log",
        }
        options = [f"{option}={path}" for option, path in munge.items()]
        self._start("slurm", "munged", ["munged", "--foreground", "--force", *options])
        self._wait(self._slurm.socket.exists, "make munge's socket")
        self._start("slurm", "slurmctld", ["slurmctld", "-D", "-f", str(self._slurm.configuration)])
        for name in self._network.names:
            self._start_daemon(name)

    def _start_daemon(self, node: str) -> None:
        command = [*self._network.entering(node), "slurmd", "-D", "-f", str(self._slurm.configuration)]
        log = self.folder.logs / f"{node}.log"
        self._daemons[node] = SupervisedProgram(Program("node", node, tuple(command), log, self.folder.environment))

    def _wait_for_nodes(self) -> None:
        """Raises MpistreamError naming the nodes that are not idle in time, with their last words."""
        deadline = time.monotonic() + _NODES_SECONDS
        while late := {
            name: state for name, state in node_states(self.folder.path, patient=True).items() if state != "idle"
        }:
            if time.monotonic() > deadline:
                words = [
                    f"{name} is {state}: {last_words(self.folder.logs / f'{name}.log')}" for name, state in late.items()
                ]
                controller = last_words(self.folder.logs / "slurmctld.log")
                raise MpistreamError(
                    f"not idle within {_NODES_SECONDS:g} s: {'; '.join(words)}; slurmctld: {controller}",
                    f"logs: {self.folder.logs}",
                )
            self.supervise()
            time.sleep(_TURN_SECONDS)

    def supervise(self) -> bool:
        changed = super().supervise()
        for name in self._network.names:
            changed = self._tend(name) or changed
        return changed

    def _tend(self, node: str) -> bool:
        """Whether the node was ended or started."""
        if self._slurm.killed(node).exists():
            if not self._network.is_there(node):
                return False
            self._end_nodes(node)
            self._say(f"node {node} was killed")
            return True
        if not self._network.is_there(node):
            self._end_nodes(node)  # what a host without its first process still has
            self._network.add(node)
            self._start_daemon(node)
            self._say(f"node {node} was started again")
            return True
        if news := self._daemons[node].turn():
            self._say(news)
        return bool(news)

    def _end_nodes(self, *nodes: str) -> None:
        self._network.kill(*nodes)
        for node in nodes:
            if daemon := self._daemons.pop(node, None):
                daemon.child.end(0)

    @property
    def cannot_live(self) -> tuple[str, ...]:
        daemons = tuple(daemon.cannot_live for daemon in self._daemons.values() if daemon.cannot_live)
        return super().cannot_live + daemons

    def unregistered_processes(self) -> tuple[ProcessEntry, ...]:
        children = [*self._children("slurm"), *(daemon.child for daemon in self._daemons.values())]
        entries = [ProcessEntry(child.role, child.name, child.pid, "") for child in children]
        return super().unregistered_processes() + tuple(entries)

    def stop(self) -> None:
        """Batch jobs are not waited for: what they have journaled is safe. Nor is Slurm, whose state nobody reads."""
        for child in self._children("slurm"):
            child.end(0)
        self._end_nodes(*self._network.names)
        super().stop()
        self._network.remove()


def environment_of(folder: Path) -> dict[str, str]:
    """What Slurm's commands need in their environment, beside this process's own, to speak to a testbed's Slurm."""
    return SlurmFolder(TestbedFolder(folder)).environment


def node_states(folder: Path, patient: bool = False) -> dict[str, str]:
    """What Slurm says of each node, by name: idle, allocated, down, ...

    ``patient``: "unknown" where slurmctld does not answer. Otherwise that raises SchedulerError.
    """
    names = SlurmFolder(TestbedFolder(folder)).description().nodes
    try:
        lines = slurm_of(folder).run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
    except SchedulerError:
        if not patient:
            raise
        lines = []
    return dict.fromkeys(names, "unknown") | dict(line.split() for line in lines)


def slurm_of(folder: Path) -> Slurm:
    """A testbed's Slurm."""
    return Slurm(environment_of(folder))


def kill_node(folder: Path, name: str) -> None:
    """Every process of the node dies by SIGKILL, as when its power fails. Returns when they are gone."""
    killed = _node(folder, name)
    killed.touch()
    _wait_for_supervisor(folder, name, alive=False)


def revive_node(folder: Path, name: str) -> None:
    """Starts a killed node again. Returns when Slurm takes it for usable."""
    _node(folder, name).unlink(missing_ok=True)
    _wait_for_supervisor(folder, name, alive=True)
    deadline = time.monotonic() + _NODES_SECONDS
    while not (state := node_states(folder, patient=True)[name]).startswith(("idle", "mixed", "allocated")) or (
        state.endswith("*")
    ):
        if time.monotonic() > deadline:
            raise MpistreamError(
                f"node {name} is {state} after {_NODES_SECONDS:g} s", f"its log: {folder / 'logs' / (name + '.log')}"
            )
        time.sleep(_TURN_SECONDS)


def _node(folder: Path, name: str) -> Path:
    slurm = SlurmFolder(TestbedFolder(folder))
    names = slurm.description().nodes
    if name not in names:
        raise MpistreamError(f"there is no node {name!r}", f"there are {', '.join(names)}")
    return slurm.killed(name)


def _wait_for_supervisor(folder: Path, name: str, alive: bool) -> None:
    """Until the supervisor has the node's slurmd among its processes, or no longer."""
    place = TestbedFolder(folder)
    deadline = time.monotonic() + _SUPERVISOR_SECONDS
    while True:
        state = place.state()
        if state is None or not place.is_running():
            raise MpistreamError(f"no testbed is running in {folder}", "start one with `mpistream testbed slurm up`")
        if any(entry.role == "node" and entry.name == name for entry in state.processes) == alive:
            return
        if time.monotonic() > deadline:
            raise MpistreamError(f"the supervisor does not look after node {name}", f"its log: {place.log}")
        time.sleep(_TURN_SECONDS)
