"""What a batch job runs in: its nodes, which of them are of use, its time limit, and how its MPI job is started there.

Slurm notices a dead node only after minutes (SlurmdTimeout), and one that hangs perhaps never: nodes are asked.
"""

import logging
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mpistream.launch.cluster.slurm import Slurm
from mpistream.model.errors import MpistreamError, SchedulerError

_log = logging.getLogger(__name__)

#: A node that has not run a trivial task within so many seconds is of no use.
PROBE_SECONDS = 20.0
_ASK_SECONDS = 30.0
_TURN_SECONDS = 0.05
_BAD_STATES = ("DOWN", "FAIL", "NOT_RESPONDING", "DRAIN", "INVALID_REG", "POWERED_DOWN", "POWERING_DOWN", "UNKNOWN")


def _never() -> bool:
    return False


class Allocation(Protocol):
    """``number`` and ``cluster`` name the batch job. ``nodes`` are all that it was given.

    restarts     how often it has begun before
    can_requeue  there is a queue, and the job may go back into it
    log          where its output goes; empty where that is not known
    """

    number: str
    cluster: str
    nodes: tuple[str, ...]
    restarts: int
    can_requeue: bool
    log: str

    def ends_by_unix_seconds(self) -> float | None:
        """When the time limit ends it; None where there is none, or nobody knows."""
        ...

    def bad_nodes(self, is_interrupted: Callable[[], bool] = _never) -> dict[str, str]:
        """Which of the nodes are of no use, and why. Takes half a minute at most."""
        ...

    def launcher(self, command: Sequence[str], name: str, good: Sequence[str]) -> list[str]:
        """The command that starts the MPI job on the nodes ``good``."""
        ...

    def cancel_step(self, name: str) -> None:
        """Ends what the launcher may have left on other nodes."""
        ...

    def requeue(self) -> None:
        """Puts the batch job into the queue again: it is ended, and begins anew. Raises SchedulerError."""
        ...


def this_allocation() -> Allocation:
    """That of the batch job which this process runs in. Raises SchedulerError."""
    return SlurmAllocation(os.environ) if os.environ.get("SLURM_JOB_ID") else LocalAllocation()


class LocalAllocation:
    """No scheduler: this machine, for as long as it takes."""

    def __init__(self) -> None:
        self.number = f"local-{os.getpid()}"
        self.cluster = socket.gethostname()
        self.nodes: tuple[str, ...] = (socket.gethostname(),)
        self.restarts = 0
        self.can_requeue = False
        self.log = _standard_output()

    def ends_by_unix_seconds(self) -> float | None:
        return None

    def bad_nodes(self, is_interrupted: Callable[[], bool] = _never) -> dict[str, str]:
        return {}

    def launcher(self, command: Sequence[str], name: str, good: Sequence[str]) -> list[str]:
        return list(command)

    def cancel_step(self, name: str) -> None:
        """mpiexec and its ranks are one session: nothing is elsewhere."""

    def requeue(self) -> None:
        raise SchedulerError("there is no queue here", "start the command again")


class SlurmAllocation:
    """That of the Slurm job whose variables stand in ``environment``."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._slurm = Slurm()
        self.number = environment["SLURM_JOB_ID"]
        self.cluster = environment.get("SLURM_CLUSTER_NAME") or self._slurm.cluster()
        names = environment.get("SLURM_JOB_NODELIST", socket.gethostname())
        self.nodes: tuple[str, ...] = tuple(self._slurm.run("scontrol", "show", "hostnames", names).split())
        self.restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        self.can_requeue = False
        self.log = _standard_output()
        self._here = environment.get("SLURMD_NODENAME", "")
        self._ends_by: float | None = None
        self._asked: float | None = None
        self._look()

    def ends_by_unix_seconds(self) -> float | None:
        self._look()
        return self._ends_by

    def _look(self) -> None:
        """Now and then: an operator may give a job more time; and what Slurm does not answer it may answer later."""
        if self._asked is not None and time.monotonic() - self._asked < _ASK_SECONDS:
            return
        try:
            shown = self._slurm.job(self.number) or {}
            end = shown.get("EndTime", "")
            self._ends_by = float(end) if end.isdecimal() else None
            self.can_requeue = shown.get("Requeue") == "1"
        except SchedulerError as error:
            _log.warning("the job's time limit is not asked for: %s", error.message)
        self._asked = time.monotonic()

    def bad_nodes(self, is_interrupted: Callable[[], bool] = _never) -> dict[str, str]:
        bad = self._bad_by_state()
        for node in self._silent([node for node in self.nodes if node not in bad], is_interrupted):
            bad[node] = "runs no task"
        return bad

    def _bad_by_state(self) -> dict[str, str]:
        try:
            shown = self._slurm.nodes(",".join(self.nodes))
        except SchedulerError as error:
            _log.warning("the states of the nodes are not known: %s", error.message)
            return {}
        states = {node: re.split(r"[+*]", shown.get(node, {}).get("State", "")) for node in self.nodes}
        silent = {node for node, fields in shown.items() if "*" in fields.get("State", "")}
        return {
            node: f"is {'+'.join(filter(None, words))}{' and does not answer' if node in silent else ''}"
            for node, words in states.items()
            if node in silent or any(word in _BAD_STATES for word in words)
        }

    def _silent(self, nodes: Sequence[str], is_interrupted: Callable[[], bool]) -> list[str]:
        """Those that do not run a trivial task in time; none where not even this one does: then it is not the nodes."""
        probes = {node: self._start_probe(node) for node in nodes}
        deadline = time.monotonic() + PROBE_SECONDS
        while any(probe.poll() is None for probe in probes.values()):
            if time.monotonic() > deadline or is_interrupted():
                break
            time.sleep(_TURN_SECONDS)
        silent = [node for node, probe in probes.items() if probe.poll() != 0]
        for probe in probes.values():
            if probe.poll() is None:
                probe.kill()
            probe.wait()
        if is_interrupted() or (self._here or next(iter(nodes), "")) in silent:
            _log.warning("no node runs a trivial task at the moment: nothing is known of them")
            return []
        return silent

    def _start_probe(self, node: str) -> "subprocess.Popen[bytes]":
        command = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--time=1", "--mem=0"]
        command += ["--job-name=mpistream-probe", "--mpi=none", "true"]
        return subprocess.Popen(
            command,
            env=_step_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def launcher(self, command: Sequence[str], name: str, good: Sequence[str]) -> list[str]:
        return on_nodes(command, name, good, all_nodes=len(good) == len(self.nodes))

    def cancel_step(self, name: str) -> None:
        try:
            steps = self._slurm.run("squeue", "--noheader", "--steps", f"--jobs={self.number}", "--format=%i|%j")
            for line in steps.splitlines():
                step, _, step_name = line.strip().partition("|")
                if step_name == name:
                    self._slurm.run("scancel", "--signal=KILL", step)
        except SchedulerError as error:
            _log.warning("what is left of the MPI job could not be ended: %s", error.message)

    def requeue(self) -> None:
        self._slurm.run("scontrol", "requeue", self.number)


def on_nodes(command: Sequence[str], name: str, good: Sequence[str], all_nodes: bool) -> list[str]:
    """With srun: the step ends with its first rank that fails, shares what an earlier one has left behind, and, unless
    that is ``all_nodes``, is on the nodes ``good`` only.
    """
    program, *rest = command
    if Path(program).name != "srun":
        return list(command)
    options = ["--kill-on-bad-exit=1", "--overlap", f"--job-name={name}"]
    if all_nodes:
        return [program, *options, *rest]
    # what the script's own options, or sbatch's, say of the number of nodes and tasks no longer holds
    forgotten = [f"--unset={variable}" for variable in _SIZES]
    here = [f"--nodes={len(good)}", f"--nodelist={','.join(good)}"]
    return ["env", *forgotten, program, *options, *here, *_without_sizes(rest)]


#: Variables of sbatch from which srun takes how many nodes and tasks there are.
_SIZES = ("SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_DISTRIBUTION")
#: Options of srun that have no value.
_FLAGS = ("-l", "-u", "-v", "-Q", "-X", "-k", "-O", "-s")
_SIZE_OPTIONS = {"--nodes": "-N", "--ntasks": "-n", "--nodelist": "-w", "--exclude": "-x"}


def _without_sizes(arguments: Sequence[str]) -> list[str]:
    """srun's arguments without those that say how many nodes or tasks, or which nodes. The program behind the options
    is not touched: it begins with the first word that is no option and no option's value.
    """
    kept: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            return [*kept, word, *words]
        if word in (*_SIZE_OPTIONS, *_SIZE_OPTIONS.values()):
            words = words[1:]
        elif word.partition("=")[0] in _SIZE_OPTIONS or re.fullmatch(r"-[Nn]\d+(-\d+)?", word):
            continue
        else:
            kept.append(word)
            if re.fullmatch(r"-[a-zA-Z]", word) and words and word not in _FLAGS:
                kept.append(words.pop(0))
    return kept


def _step_environment() -> dict[str, str]:
    """For a step of its own size, whatever sbatch was told."""
    return {name: value for name, value in os.environ.items() if name not in (*_SIZES, "SLURM_NTASKS_PER_NODE")}


def _standard_output() -> str:
    """The file that this process prints to; empty where that is none."""
    with suppress(OSError):
        path = Path(os.readlink("/proc/self/fd/1"))
        return str(path) if path.is_file() else ""
    return ""


def check_command(command: Sequence[str]) -> None:
    """Raises MpistreamError for a command that cannot be started."""
    if shutil.which(command[0]) is None:
        raise MpistreamError(
            f"{command[0]} is not installed, or not in PATH",
            "load the site's modules in the job's script; here: mpiexec -n 4 mpistream consume --config FILE",
        )
