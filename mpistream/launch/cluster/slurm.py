"""Slurm's commands: the only module that runs them."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpistream.model.errors import SchedulerAbsent, SchedulerError

_ANSWER_SECONDS = 30.0
_SUBMIT_SECONDS = 60.0

#: ``KEY=VALUE KEY=VALUE``: a value ends where the next key begins, and may hold spaces.
_FIELD = re.compile(r"(\S+?)=(.*?)(?=\s+[A-Za-z][A-Za-z0-9_:/]*=|\s*$)")

_QUEUE_FIELDS = ("%i", "%j", "%T", "%r", "%N")


@dataclass(frozen=True)
class QueuedJob:
    """A job that is not over yet, as squeue has it. ``state`` is Slurm's word; ``nodes`` is empty until it runs."""

    number: str
    name: str
    state: str
    reason: str
    nodes: str


class Slurm:
    """The Slurm that this environment reaches, or the one that ``environment`` adds (``SLURM_CONF``, a testbed's).

    Every call ends within a minute. Raises SchedulerAbsent where a command is not installed, SchedulerError with
    Slurm's own words where it refuses, fails or does not answer.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        # Variables such as SBATCH_ACCOUNT would go before what a script says of itself; Slurm's messages and numbers
        # are read in the C locale.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")}
        self.environment = {**kept, **(environment or {}), "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}

    def cluster(self) -> str:
        """The name that the cluster has in its own configuration, and jobs in ``SLURM_CLUSTER_NAME``."""
        for line in self.run("scontrol", "show", "config").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "ClusterName":
                return value.strip()
        raise SchedulerError("Slurm's configuration names no cluster", "see scontrol show config")

    def submit(self, script: Path) -> str:
        """The number of the job that runs ``script``."""
        answer = self.run("sbatch", "--parsable", str(script), seconds=_SUBMIT_SECONDS)
        # sbatch may say more before it; the cluster's name stands behind a semicolon
        number = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
        if not number.isdecimal():
            raise SchedulerError(
                f"sbatch did not answer with a job's number: {answer.strip()!r}",
                "look whether it was submitted: squeue --me",
            )
        return number

    def cancel(self, number: str) -> None:
        """Does nothing where the job is over."""
        self.run("scancel", number)

    def queue(self) -> list[QueuedJob]:
        """The jobs of this user that wait or run."""
        answer = self.run("squeue", "--me", "--noheader", f"--format={'|'.join(_QUEUE_FIELDS)}")
        lines = [line.split("|") for line in answer.splitlines() if line.count("|") == len(_QUEUE_FIELDS) - 1]
        return [QueuedJob(*(field.strip() for field in line)) for line in lines]

    def job(self, number: str) -> dict[str, str] | None:
        """What scontrol shows of a job, by its words (``JobState``, ``NodeList``, ``Restarts``, ``EndTime`` in seconds
        since 1970); None once Slurm has forgotten it, minutes after its end.
        """
        try:
            return fields_of(self.run("scontrol", "show", "job", number, "--oneliner"))
        except SchedulerError as error:
            if "Invalid job id" in error.message:
                return None
            raise

    def nodes(self, names: str = "") -> dict[str, dict[str, str]]:
        """Likewise of nodes, by their names: those in ``names`` (``nid[001-004]``), or all."""
        answer = self.run("scontrol", "show", "node", *([names] if names else []), "--oneliner")
        shown = [fields_of(line) for line in answer.splitlines() if line.startswith("NodeName=")]
        return {node["NodeName"]: node for node in shown}

    def require(self, command: str) -> str:
        """Where a command is."""
        program = shutil.which(command, path=self.environment.get("PATH"))
        if program is None:
            raise SchedulerAbsent(
                f"{command} is not installed here, or not in PATH",
                "submit where Slurm is: a login node; or write the script with mpistream job render --script FILE.sh, "
                "copy it there and call sbatch FILE.sh",
            )
        return program

    def node_sizes(self, partition: str = "") -> dict[str, int]:
        """The CPUs of every node of a partition, or of the default one, whatever its state: by its name."""
        # the default partition has a star behind its name
        answer = self.run("sinfo", "--noheader", "--Node", "--format=%N|%c|%P")
        lines = [line.split("|") for line in answer.splitlines() if line.count("|") == 2]
        return {
            name: int(cpus)
            for name, cpus, found in lines
            if (found.strip().rstrip("*") == partition if partition else found.strip().endswith("*"))
        }

    def run(self, command: str, *arguments: str, seconds: float = _ANSWER_SECONDS) -> str:
        """What a command of Slurm's prints."""
        program = self.require(command)
        try:
            done = subprocess.run(
                [program, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise SchedulerError(
                f"{command} has not answered within {seconds:g} s", "see whether Slurm is up: scontrol ping"
            ) from None
        if done.returncode != 0:
            words = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
            raise SchedulerError(
                f"{command} says: {words or f'nothing, exit status {done.returncode}'}", _remedy_for(words)
            )
        return done.stdout


def fields_of(line: str) -> dict[str, str]:
    """The fields of one line of ``scontrol --oneliner``."""
    return {key: value.strip() for key, value in _FIELD.findall(line)}


def _remedy_for(words: str) -> str:
    """What helps against the refusals that people meet most."""
    for part, remedy in (
        ("account", "give the account that pays with --account; sacctmgr show associations user=$USER lists yours"),
        ("qos", "take another --qos; sacctmgr show associations user=$USER format=account,qos lists yours"),
        ("reservation", "see scontrol show reservation for its name, its time and who may use it"),
        ("time limit", "give a shorter --time, or a --qos that allows so much"),
        ("node count", "ask for fewer --nodes; sinfo shows how many there are"),
        ("node configuration", "ask for fewer --nodes or --tasks-per-node; sinfo -N -l shows what nodes have"),
        ("dependency", "see squeue --me for the job that --dependency names"),
        ("feature", "the site profile's constraint names no kind of node there is; sinfo -o '%N %f' shows them"),
        ("partition", "the site profile's partition is not there; sinfo shows which are"),
        ("contact slurm controller", "see whether Slurm is up: scontrol ping; a testbed: mpistream testbed slurm up"),
    ):
        if part in words.lower():
            return remedy
    return "mend what it says, or render the script, and try it by hand: sbatch --test-only FILE.sh"
