"""A process that dies or stops: the run ends soon, says which one it was, and leaves nothing behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.system.command_line import CommandLine, finish, nothing_is_left, wait_until

#: Far more than can be streamed while a test lasts.
LONG = ("--source", "sim:400x400?electrons=20", "--background", 60, "--xray", 2000)
SOON_SECONDS = 25  # "within seconds", on a machine that has other things to do as well
STALL_SECONDS = 3.0


@pytest.fixture(autouse=True)
def _nothing_is_left(cli: CommandLine):
    with nothing_is_left(str(cli.folder)):
        yield


def start_run(cli: CommandLine, output: Path, *options: object):
    """A run that has got so far that frames are counted."""
    command = cli.start("testbed", "run", *LONG, "--output", output, *options)
    cli.wait_for_stream(command)
    return command


def clear_folders(cli: CommandLine) -> None:
    """Failed runs keep their logs; the next test looks for the one testbed that runs."""
    for config in cli.folder.glob("tmp/mpistream-testbed-*/mpistream.toml"):
        config.unlink()


@pytest.fixture(autouse=True)
def _one_testbed_at_a_time(cli: CommandLine):
    yield
    clear_folders(cli)


def assert_no_output(output: Path) -> None:
    assert list(output.parent.iterdir()) == []


def test_a_killed_rank(cli: CommandLine, output: Path) -> None:
    command = start_run(cli, output)
    os.kill(sorted(cli.ranks())[1], signal.SIGKILL)
    finish(command, SOON_SECONDS).failed_with("consumers", "killed by SIGKILL")
    assert_no_output(output)


def test_a_rank_that_crashes(cli: CommandLine, output: Path) -> None:
    command = start_run(cli, output)
    os.kill(sorted(cli.ranks())[0], signal.SIGSEGV)
    finish(command, SOON_SECONDS).failed_with("consumers", "killed by SIGSEGV")
    assert_no_output(output)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_stopped_rank(cli: CommandLine, output: Path, rank: int) -> None:
    config = cli.folder / f"stall-{rank}.toml"
    config.write_text(f"[watchdog]\nstall_seconds = {STALL_SECONDS}\n")
    command = start_run(cli, output, "--config", config)
    os.kill(sorted(cli.ranks())[rank], signal.SIGSTOP)
    finish(command, STALL_SECONDS + SOON_SECONDS).failed_with(f"rank {rank} ", "silent")
    assert_no_output(output)


def test_a_killed_producer(cli: CommandLine, output: Path) -> None:
    command = start_run(cli, output)
    (producer,) = cli.processes("produce", "2")
    os.kill(producer, signal.SIGKILL)
    finish(command, SOON_SECONDS).failed_with("producer-2", "SIGKILL")
    assert_no_output(output)


def test_a_killed_aggregator(cli: CommandLine, output: Path) -> None:
    command = start_run(cli, output)
    (aggregator,) = cli.processes("aggregate")
    os.kill(aggregator, signal.SIGKILL)
    finish(command, SOON_SECONDS).failed_with("aggregator", "SIGKILL")
    assert_no_output(output)


def test_a_killed_etcd(cli: CommandLine, output: Path) -> None:
    command = start_run(cli, output)
    (etcd,) = [pid for pid, line in cli.processes("--data-dir").items() if line.startswith("etcd ")]
    os.kill(etcd, signal.SIGKILL)
    finish(command, 2 * SOON_SECONDS).failed_with("etcd")
    assert_no_output(output)


def test_a_rank_killed_while_the_dataset_is_written(cli: CommandLine, output: Path) -> None:
    command = cli.start(
        *("testbed", "run", "--source", "sim:24x24?electrons=3000", "--background", 60, "--xray", 2000),
        *("--output", output, "--groups", 1, "--ranks-per-group", 3),
    )
    ranks = wait_until(lambda: len(found := cli.ranks()) == 3 and found, 30, "three ranks")
    # Watched without a pause: the file is there for a fraction of a second only.
    deadline = time.monotonic() + 60
    while not any(output.parent.iterdir()):
        assert time.monotonic() < deadline
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    assert not output.exists(), "the dataset was written before its ranks could be stopped"
    os.kill(max(ranks), signal.SIGKILL)
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    finish(command, SOON_SECONDS).failed_with("rank 2")
    assert_no_output(output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_scheduler(cli: CommandLine, output: Path, number: signal.Signals) -> None:
    command = start_run(cli, output)
    command.send_signal(number)
    ended = finish(command, SOON_SECONDS)
    assert ended.status == 130, ended
    assert "interrupted" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert_no_output(output)


def test_the_run_itself_is_killed(cli: CommandLine, output: Path) -> None:
    """Nobody is left to end the processes: they notice by themselves."""
    command = start_run(cli, output)
    command.kill()
    command.communicate(timeout=10)
    wait_until(lambda: not cli.processes(), SOON_SECONDS, "the end of all processes")
    assert_no_output(output)


def test_a_testbed_whose_rank_was_killed(cli: CommandLine, output: Path) -> None:
    cli.run("testbed", "up", "--groups", 1).succeeded()
    command = cli.start("testbed", "scan", *LONG, "--output", output)
    cli.wait_for_stream(command)
    os.kill(sorted(cli.ranks())[1], signal.SIGKILL)
    finish(command, SOON_SECONDS).failed_with("MPI job")
    cli.run("testbed", "scan", *LONG, "--output", output).failed_with("no rank group is registered")
    cli.run("testbed", "down").succeeded()
    assert_no_output(output)
