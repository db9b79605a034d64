"""A Slurm testbed as tests use it: `mpistream testbed slurm up`, and commands that speak to its Slurm."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from mpistream.launch.cluster.slurm_testbed import environment_of, kill_node, node_states, revive_node
from tests.system.command_line import CommandLine, Finished, finish, wait_until

NODES = ("c1", "c2", "c3", "c4")
NOTICED_SECONDS = 90  # what Slurm needs to see that a node is gone or back is far less, even on a slow machine


@dataclass(frozen=True)
class Cluster:
    """A running testbed: its folder, and the command line with which it was started."""

    folder: Path
    cli: CommandLine

    @property
    def config(self) -> Path:
        """The configuration file of the deployment, for ranks and for commands."""
        return self.folder / "mpistream.toml"

    @property
    def environment(self) -> dict[str, str]:
        """For Slurm's commands, and for mpistream's that call them."""
        return {**self.cli.environment, **environment_of(self.folder)}

    def start(self, *command: object) -> "subprocess.Popen[str]":
        """sbatch, srun, squeue, ... on this machine, in a session of its own."""
        return subprocess.Popen(
            list(map(str, command)),
            env=self.environment,
            cwd=self.cli.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: object, seconds: float = 120) -> Finished:
        return finish(self.start(*command), seconds)

    def states(self) -> dict[str, str]:
        """What Slurm says of each node, by name."""
        return node_states(self.folder)

    def jobs(self) -> list[str]:
        """The numbers of the jobs that have not ended."""
        return self.run("squeue", "--noheader", "--format=%A").succeeded().stdout.split()

    def kill_node(self, name: str) -> None:
        """At once, as when its power fails. It stays dead."""
        kill_node(self.folder, name)

    def revive_node(self, name: str) -> None:
        """Returns when Slurm takes it for usable."""
        revive_node(self.folder, name)

    def wait_for_state(self, node: str, *states: str) -> None:
        wait_until(lambda: self.states()[node].rstrip("*") in states, NOTICED_SECONDS, f"{node} {' or '.join(states)}")

    def ranks(self, node: str) -> list[int]:
        """The pids of the ranks on ``node``, as this machine numbers processes, not as the node does."""
        here = [psutil.Process(pid) for pid in self.cli.ranks()]
        return [process.pid for process in here if _is_rank(process) and process.environ()["SLURMD_NODENAME"] == node]

    def tidy_up(self) -> None:
        """No job, and every node idle."""
        self.run("scancel", f"--user={os.geteuid()}").succeeded()
        for name, state in self.states().items():
            if state.startswith(("down", "unknown")) or state.endswith("*"):
                self.revive_node(name)
            elif state.startswith("drain"):
                self.run("scontrol", "update", f"nodename={name}", "state=resume").succeeded()
        wait_until(lambda: set(self.states().values()) == {"idle"}, NOTICED_SECONDS, "idle nodes")


def _is_rank(process: psutil.Process) -> bool:
    """Neither srun nor the job's runner, in whose command lines the ranks' own stands, too."""
    words = process.cmdline()
    command = next((place for place, word in enumerate(words) if word.endswith("mpistream")), -1)
    return "srun" not in words[0] and words[command + 1] == "consume"
