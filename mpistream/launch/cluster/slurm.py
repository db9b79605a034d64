"""Slurm's commands: the only module that runs them."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mpistream.model.errors import SchedulerAbsent, SchedulerError

_ANSWER_SECONDS = 30.0
_SUBMIT_SECONDS = 60.0
_LOOK_SECONDS = 10.0

#: ``KEY=VALUE KEY=VALUE``: a value ends where the next key begins, and may hold spaces.
_FIELD = re.compile(r"(\S+?)=(.*?)(?=\s+[A-Za-z][A-Za-z0-9_:/]*=|\s*$)")

_QUEUE_FIELDS = ("%i", "%j", "%T", "%r", "%N")

#: What Slurm's commands say when they have asked its controller, and not heard its answer.
_UNHEARD = re.compile(r"timed out|zero bytes|connection reset|broken pipe|receive failure|transport endpoint", re.I)


class SchedulerUnclear(SchedulerError):
    """A command of Slurm's was given up, or lost its controller: what it was to do may have been done all the same."""


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

    Every call ends within a minute. Raises SchedulerAbsent where a command is not installed, SchedulerUnclear where it
    does not answer, and SchedulerError with Slurm's own words where it refuses or fails.
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

    def submit(self, script: Path, comment: str) -> str:
        """The number of the job that runs ``script``. Raises SchedulerUnclear where there may be such a job, with that
        ``comment``, and its number is not known.
        """
        answer = self.run("sbatch", "--parsable", f"--comment={comment}", str(script), seconds=_SUBMIT_SECONDS)
        # sbatch may say more before it; the cluster's name stands behind a semicolon
        number = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
        if not number.isdecimal():
            raise SchedulerUnclear(
                f"sbatch did not answer with a job's number: {answer.strip()!r}",
                "try it by hand: sbatch --test-only FILE.sh",
            )
        return number

    def submitted_with(self, mark: str) -> str | None:
        """The number of this user's job that has ``mark`` in its comment, were it over already; None where there is
        none. Raises SchedulerError where the queue does not answer, and Slurm's accounting does not know it either.
        """
        try:
            lines = self.run("squeue", "--me", "--noheader", "--states=all", "--format=%i|%k", seconds=_LOOK_SECONDS)
        except SchedulerError:
            if number := self._accounted_with(mark):
                return number
            raise
        return _number_with(mark, lines) or self._accounted_with(mark)

    def _accounted_with(self, mark: str) -> str | None:
        """Likewise from the accounting, which has jobs that the controller has forgotten; few sites keep comments."""
        asked = ("--noheader", "--parsable2", "--allocations", "--starttime=now-1hours")
        with suppress(SchedulerError):
            return _number_with(mark, self.run("sacct", *asked, "--format=JobIDRaw,SubmitLine", seconds=_LOOK_SECONDS))
        return None

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
            raise SchedulerAbsent(f"{command} is not installed here, or not in PATH", _where_slurm_is(command))
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
            raise SchedulerUnclear(f"{command} has not answered within {seconds:g} s", _CONTROLLER) from None
        if done.returncode != 0:
            words = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
            is_unclear = done.returncode < 0 or _UNHEARD.search(words)
            raise (SchedulerUnclear if is_unclear else SchedulerError)(
                f"{command} says: {words or f'nothing, exit status {done.returncode}'}",
                remedy_for(" ".join((command, *arguments)), words),
            )
        return done.stdout


def fields_of(line: str) -> dict[str, str]:
    """The fields of one line of ``scontrol --oneliner``."""
    return {key: value.strip() for key, value in _FIELD.findall(line)}


def _number_with(mark: str, lines: str) -> str | None:
    """Of lines ``NUMBER|...``."""
    found = (line.strip().partition("|") for line in lines.splitlines() if mark in line)
    return next((number for number, _, _ in found if number.isdecimal()), None)


def _where_slurm_is(command: str) -> str:
    if command == "sbatch":
        return (
            "submit where Slurm is: a login node; or write the script with mpistream job render --script FILE.sh, "
            "copy it there and call sbatch FILE.sh"
        )
    return f"call it again where Slurm is: a login node of the cluster; or add the folder of {command} to PATH"


_CONTROLLER = "see whether Slurm is up: scontrol ping; a testbed: mpistream testbed slurm up"
_LIMITS = (
    "its limits: sacctmgr show qos format=Name,MaxTRESPU,MaxJobsPU,MaxSubmitPU,MaxWall; "
    "sacctmgr show associations user=$USER"
)

#: The refusals that people meet most, and what helps; the first one that fits. Limits have names that Slurm gives them
#: (QOSMaxNodePerUserLimit, AssocMaxSubmitJobLimit).
_REMEDIES = (
    (
        r"(qos|assoc)\w*minutes",
        f"so much time is not left: fewer --nodes, a shorter --time, another --account; {_LIMITS}",
    ),
    (r"(qos|assoc)\w*(submit|jobs)", f"wait until one of your jobs is over (squeue --me), or another --qos; {_LIMITS}"),
    (r"(qos|assoc)\w*wall", f"give a shorter --time, or another --qos; {_LIMITS}"),
    (r"(qos|assoc)min\w+", f"ask for more --nodes: this qos is for larger jobs; or another --qos; {_LIMITS}"),
    (
        r"(qos|assoc)(max|grp)\w+",
        f"ask for fewer --nodes, wait until your other jobs are over (squeue --me), or take another --qos; {_LIMITS}",
    ),
    (
        "violates accounting/qos policy",
        "a limit of the qos or the account: fewer jobs at once (squeue --me), fewer --nodes, a shorter --time, or "
        f"another --qos; {_LIMITS}",
    ),
    (r"\baccount\b", "give the account that pays with --account; sacctmgr show associations user=$USER lists yours"),
    (r"\bqos\b", "take another --qos; sacctmgr show associations user=$USER format=account,qos lists yours"),
    ("reservation", "see scontrol show reservation for its name, its time and who may use it"),
    ("time limit", "give a shorter --time, or a --qos that allows so much"),
    ("node count", "ask for fewer --nodes; sinfo shows how many there are"),
    ("node configuration", "ask for fewer --nodes or --tasks-per-node; sinfo -N -l shows what nodes have"),
    ("dependency", "see squeue --me for the job that --dependency names"),
    ("feature", "the site profile's constraint names no kind of node there is; sinfo -o '%N %f' shows them"),
    (
        "partition",
        "the site profile's partition is not there, not up, or not for you: sinfo shows which are, scontrol show "
        "partition who may use them",
    ),
    ("invalid job id", "Slurm has forgotten this job, or never had it; squeue --me shows yours"),
    ("permission denied", "it is another user's, or for administrators; squeue --me shows your jobs"),
    (rf"contact slurm controller|{_UNHEARD.pattern}", _CONTROLLER),
)


def remedy_for(command: str, words: str) -> str:
    """What helps where a ``command`` with its arguments says ``words``."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, words, re.I):
            return remedy
    if command.startswith("sbatch"):
        return "mend what it says, or render the script, and try it by hand: sbatch --test-only FILE.sh"
    return f"mend what it says; by hand: {command}"
