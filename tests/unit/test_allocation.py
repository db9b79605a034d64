"""How the MPI job is started on the nodes that are left, and an allocation without a scheduler."""

import os
import time
from pathlib import Path

import pytest

from mpistream.launch.cluster import allocation
from mpistream.launch.cluster.allocation import LocalAllocation, check_command, on_nodes
from mpistream.launch.cluster.step import LAST_LINES, Step
from mpistream.model.errors import MpistreamError
from tests.system.command_line import wait_until
from tests.unit.batch_jobs import program

OURS = ["--kill-on-bad-exit=1", "--overlap", "--job-name=step"]


def test_all_nodes_are_as_the_script_says() -> None:
    command = ["srun", "-N", "4", "--mpi=pmix", "mpistream", "consume"]
    assert on_nodes(command, "step", ["a", "b"], all_nodes=True) == ["srun", *OURS, *command[1:]]
    assert on_nodes(["mpiexec", "-n", "4", "x"], "step", ["a"], all_nodes=False) == ["mpiexec", "-n", "4", "x"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (
            ("--mpi=pmix", "--ntasks-per-node=8", "--cpu-bind=cores"),
            ("--mpi=pmix", "--ntasks-per-node=8", "--cpu-bind=cores"),
        ),
        (("-N", "4", "-n32", "-c", "4", "-l"), ("-c", "4", "-l")),
        (("-N4", "--nodes=4", "--nodes", "4", "--ntasks=8", "-w", "a,b", "--exclude=c"), ()),
    ],
)
def test_without_a_node(options: tuple[str, ...], kept: tuple[str, ...]) -> None:
    program = ("numactl", "--preferred=2", "mpistream", "consume", "-n", "4", "--nodes=9")
    found = on_nodes(["/usr/bin/srun", *options, *program], "step", ["a", "c"], all_nodes=False)
    (env, *unset), rest = found[: found.index("/usr/bin/srun")], found[found.index("/usr/bin/srun") + 1 :]
    assert env == "env"
    assert "--unset=SLURM_NNODES" in unset
    assert rest == [*OURS, "--nodes=2", "--nodelist=a,c", *kept, *program]


def test_without_a_scheduler() -> None:
    here = LocalAllocation()
    assert here.number == f"local-{os.getpid()}"
    assert here.bad_nodes() == {}
    assert here.ends_by_unix_seconds() is None
    assert not here.can_requeue
    with pytest.raises(MpistreamError, match="there is no queue"):
        here.requeue()


def test_slurm_that_does_not_answer_at_once_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = f'case "$*" in "show hostnames"*) echo c1; echo c2;; *) cat {tmp_path}/shown;; esac'
    program(tmp_path, "scontrol", answers)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(allocation, "_ASK_SECONDS", 0.0)
    environment = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "big", "SLURM_JOB_NODELIST": "c[1-2]"}
    found = allocation.SlurmAllocation(environment)
    assert found.nodes == ("c1", "c2")
    assert (found.ends_by_unix_seconds(), found.can_requeue) == (None, False)
    (tmp_path / "shown").write_text("JobId=7 JobName=x Requeue=1 Restarts=0 EndTime=1800000000 Deadline=N/A\n")
    assert (found.ends_by_unix_seconds(), found.can_requeue) == (1800000000.0, True)
    (tmp_path / "shown").unlink()
    assert (found.ends_by_unix_seconds(), found.can_requeue) == (1800000000.0, True)


@pytest.fixture
def slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> allocation.SlurmAllocation:
    """A job on c1 to c4; the file ``nodes`` is what scontrol shows of them."""
    (tmp_path / "nodes").write_text("")
    answers = f'"show hostnames"*) printf "c%s\\n" 1 2 3 4;; "show node"*) cat {tmp_path}/nodes;;'
    program(tmp_path, "scontrol", f'case "$*" in {answers} esac')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(allocation, "PROBE_SECONDS", 1.0)
    environment = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "big", "SLURM_JOB_NODELIST": "c[1-4]"}
    return allocation.SlurmAllocation({**environment, "SLURMD_NODENAME": "c1"})


def srun(folder: Path, cases: str) -> None:
    """A program in srun's place that does as ``cases`` says for the node that it is to run on."""
    find_node = 'for word in "$@"; do case "$word" in --nodelist=*) node=${word#--nodelist=};; esac; done'
    program(folder, "srun", f'{find_node}\necho "$node" >> {folder}/asked\ncase "$node" in {cases} esac')


def test_what_slurm_thinks_of_nodes(slurm_job: allocation.SlurmAllocation, tmp_path: Path) -> None:
    srun(tmp_path, "*) exit 0;;")
    states = {"c1": "ALLOCATED", "c2": "IDLE+DRAIN", "c3": "DOWN*", "c4": "MIXED*"}
    shown = [f"NodeName={node} Arch=x86_64 State={state} ThreadsPerCore=1" for node, state in states.items()]
    (tmp_path / "nodes").write_text("\n".join(shown) + "\n")
    assert slurm_job.bad_nodes() == {
        "c2": "is IDLE+DRAIN",
        "c3": "is DOWN and does not answer",
        "c4": "is MIXED and does not answer",
    }
    assert (tmp_path / "asked").read_text() == "c1\n", "those are not asked any more"


@pytest.mark.parametrize("state", ["IDLE+DRAIN", "ALLOCATED+DRAIN", "MIXED+DRAIN+INVALID_REG"])
def test_a_node_that_is_drained_is_done_without(
    slurm_job: allocation.SlurmAllocation, tmp_path: Path, state: str
) -> None:
    srun(tmp_path, "*) exit 0;;")
    (tmp_path / "nodes").write_text(f"NodeName=c3 State={state} Reason=memory\n")
    assert slurm_job.bad_nodes() == {"c3": f"is {state}"}


def test_a_node_that_runs_no_task_is_done_without(slurm_job: allocation.SlurmAllocation, tmp_path: Path) -> None:
    """One refuses, one hangs; what hangs is ended."""
    srun(tmp_path, f"c2) exit 1;; c3) echo $$ > {tmp_path}/hangs; exec sleep 60;; *) exit 0;;")
    began = time.monotonic()
    assert slurm_job.bad_nodes() == {"c2": "runs no task", "c3": "runs no task"}
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "hangs").read_text())
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("cases", ["*) exit 1;;", "c1) exit 1;; *) exit 0;;"])
def test_where_not_even_this_node_runs_a_task_it_is_not_the_nodes(
    slurm_job: allocation.SlurmAllocation, tmp_path: Path, cases: str
) -> None:
    srun(tmp_path, cases)
    assert slurm_job.bad_nodes() == {}


def test_who_is_told_to_end_does_not_wait_for_nodes(
    slurm_job: allocation.SlurmAllocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "PROBE_SECONDS", 60.0)
    srun(tmp_path, "*) exec sleep 60;;")
    began = time.monotonic()
    assert slurm_job.bad_nodes(lambda: True) == {}
    assert time.monotonic() - began < 30


def test_where_slurm_does_not_answer_the_nodes_are_asked_all_the_same(
    slurm_job: allocation.SlurmAllocation, tmp_path: Path
) -> None:
    program(tmp_path, "scontrol", "exit 1")
    srun(tmp_path, "c4) exit 1;; *) exit 0;;")
    assert slurm_job.bad_nodes() == {"c4": "runs no task"}


def test_a_launcher_that_is_not_there() -> None:
    with pytest.raises(MpistreamError, match="not installed") as raised:
        check_command(["no-such-launcher", "x"])
    assert raised.value.remedy


def test_a_step_passes_on_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        f"echo $MPISTREAM_BATCH_JOB; for i in $(seq {LAST_LINES}); do echo line $i; done; printf unfinished; exit 3"
    )
    step = Step("step", ["sh", "-c", script], ["a"], tmp_path / "step.log", "4711")
    wait_until(step.turn, 10, "its end")
    assert not step.turn()
    said = capsys.readouterr().out.splitlines()
    assert said == ["4711", *(f"line {number}" for number in range(1, LAST_LINES + 1)), "unfinished"]
    record = step.record()
    assert record.last_lines == tuple(said[-LAST_LINES:])
    assert (record.exit_status, record.nodes) == (3, ("a",))
    assert record.how == "the MPI job exited with 3: unfinished"
    assert record.ended_unix_seconds is not None


def test_a_step_that_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo deaf; while :; do sleep 1; done"
    step = Step("step", ["sh", "-c", script], ["a"], tmp_path / "step.log", "1")
    wait_until(lambda: step.turn() or step.record().last_lines, 10, "its first words")
    step.ask_to_end(signal_launcher=True)
    assert step.asked is not None
    assert not step.turn()
    step.kill("the MPI job was killed: it did not end when asked")
    wait_until(step.turn, 10, "its end")
    assert step.record().exit_status == 137
    assert step.record().how == "the MPI job was killed: it did not end when asked"
