"""How the MPI job is started on the nodes that are left, and an allocation without a scheduler."""

import os
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
