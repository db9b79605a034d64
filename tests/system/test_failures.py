"""Processes that die or stop in the middle of a scan: it is finished all the same, and nothing of it is lost."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.command_line import CommandLine, finish, kill, nothing_is_left, wait_until
from tests.system.datasets import assert_same_events, frames_of

#: Streams for a few seconds.
SCAN = ("--source", "sim:64x64?electrons=50", "--background", 60, "--xray", 2000)
#: Far more than can be streamed while a test lasts.
LONG = ("--source", "sim:400x400?electrons=20", "--background", 60, "--xray", 2000)
COUNTED_BEFORE = 200
SOON_SECONDS = 25  # "within seconds", on a machine that has other things to do as well
STALL_SECONDS = 3.0
LEASE_SECONDS = 2
STOPPED_SECONDS = 1.0  # not long enough for a lease to run out


@pytest.fixture(scope="module")
def testbed(cli: CommandLine) -> Iterator[CommandLine]:
    """One that notices quickly who is gone."""
    config = cli.folder / "quick.toml"
    config.write_text(f"[etcd]\nlease_seconds = {LEASE_SECONDS}\n[watchdog]\nstall_seconds = {STALL_SECONDS}\n")
    cli.run("testbed", "up", "--config", config).succeeded()
    yield cli
    cli.run("testbed", "down").succeeded()


@pytest.fixture(scope="module")
def expected(testbed: CommandLine, place: Path) -> list:
    """The events of a scan that nothing happened to."""
    path = place / "undisturbed.h5"
    testbed.run("testbed", "scan", *SCAN, "--output", path).succeeded()
    return frames_of(path)


def victims(cli: CommandLine, who: str) -> list[int]:
    match who:
        case "producer":
            return list(cli.processes("produce", "2"))
        case "aggregator":
            return list(cli.processes("aggregate"))
        case "etcd":
            return [pid for pid, line in cli.processes("--data-dir").items() if line.startswith("etcd ")]
        case "mpiexec":
            return [pid for pid, line in cli.processes("consume").items() if line.startswith("mpiexec")]
        case "supervisor":
            return list(cli.processes("supervise"))
        case _:
            return [sorted(cli.ranks())[int(who.removeprefix("rank "))]]


def strike(cli: CommandLine, who: str, number: signal.Signals = signal.SIGKILL) -> None:
    (victim,) = wait_until(lambda: victims(cli, who), SOON_SECONDS, who)
    os.kill(victim, number)


def start_scan(testbed: CommandLine, output: Path, *options: object) -> "subprocess.Popen[str]":
    """A scan that has got so far that frames are counted."""
    command = testbed.start("testbed", "scan", *SCAN, "--output", output, *options)
    testbed.wait_for_stream(command, COUNTED_BEFORE)
    return command


def wait_until_whole(testbed: CommandLine) -> None:
    def is_whole() -> bool:
        state = testbed.run("status", "--json").last_json
        return not state["problems"] and sum(len(job["ranks"]) for job in state["jobs"]) == 4

    wait_until(is_whole, 60, "a whole testbed")


@pytest.mark.parametrize("who", ["producer", "aggregator", "rank 0", "rank 3", "mpiexec", "etcd"])
def test_a_killed_process_costs_nothing(testbed: CommandLine, expected: list, output: Path, who: str) -> None:
    command = start_scan(testbed, output)
    strike(testbed, who)
    finish(command).succeeded()
    assert_same_events(output, expected)
    wait_until_whole(testbed)
    log = (testbed.folder / "testbed" / "supervisor.log").read_text()
    assert "it was started again" in log


def test_a_rank_that_crashes(testbed: CommandLine, expected: list, output: Path) -> None:
    command = start_scan(testbed, output, "--direct")
    strike(testbed, "rank 1", signal.SIGSEGV)
    finish(command).succeeded()
    assert_same_events(output, expected)
    wait_until_whole(testbed)


@pytest.mark.parametrize("who", ["rank 0", "rank 3"])
def test_a_stopped_rank(testbed: CommandLine, expected: list, output: Path, who: str) -> None:
    """Its job notices that it is silent, and ends; another one finishes the scan."""
    command = start_scan(testbed, output)
    strike(testbed, who, signal.SIGSTOP)
    finish(command).succeeded()
    assert_same_events(output, expected)
    wait_until_whole(testbed)


def test_a_process_that_is_stopped_for_a_while(testbed: CommandLine, expected: list, output: Path) -> None:
    """It is not started a second time."""
    command = start_scan(testbed, output)
    stopped = victims(testbed, "producer") + victims(testbed, "aggregator")
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    finish(command).succeeded()
    assert_same_events(output, expected)
    assert victims(testbed, "producer") + victims(testbed, "aggregator") == stopped


def test_the_supervisor_is_killed(testbed: CommandLine, expected: list, output: Path) -> None:
    """Its processes end with it. The next testbed in the folder goes on with the scan, and so does the command; even
    where a process is killed while it starts.
    """
    command = start_scan(testbed, output)
    before = victims(testbed, "producer")
    strike(testbed, "supervisor")
    testbed.run("testbed", "ps").failed_with("no testbed is running")
    again = testbed.start("testbed", "up")
    wait_until(lambda: set(victims(testbed, "producer")) - set(before), SOON_SECONDS, "a producer that starts")
    kill(sorted(set(victims(testbed, "producer")) - set(before)))
    assert "unfinished scans go on" in finish(again).succeeded().stdout
    finish(command).succeeded()
    assert_same_events(output, expected)


def test_a_testbed_that_ends_in_the_middle_of_a_scan(testbed: CommandLine, expected: list, output: Path) -> None:
    command = start_scan(testbed, output)
    down = testbed.run("testbed", "down").succeeded()
    assert "not finished: scan" in down.stderr
    assert "testbed up" in down.stderr
    testbed.run("testbed", "up", "--groups", 1, "--ranks-per-group", 3).succeeded()
    finish(command).succeeded()
    assert_same_events(output, expected)
    assert "not finished" not in testbed.run("testbed", "down").succeeded().stderr
    assert "go on" not in testbed.run("testbed", "up").succeeded().stdout


def test_an_unfinished_scan_can_be_forgotten(testbed: CommandLine, output: Path) -> None:
    command = testbed.start("testbed", "scan", *LONG, "--output", output)
    testbed.wait_for_stream(command)
    command.kill()
    command.communicate(timeout=10)
    assert "not finished" in testbed.run("testbed", "down").succeeded().stderr
    assert "go on" not in testbed.run("testbed", "up", "--fresh").succeeded().stdout
    assert testbed.run("scan", "list", "--json").last_json == []
    for journals in output.parent.iterdir():
        shutil.rmtree(journals)


# one scan with processes of its own


@pytest.fixture
def alone(place: Path) -> Iterator[CommandLine]:
    """Runs with a folder of their own, beside the testbed."""
    cli = CommandLine(place / "alone")
    with nothing_is_left(str(cli.folder)):
        yield cli
    shutil.rmtree(cli.folder)


def start_run(cli: CommandLine, output: Path, scan: tuple[object, ...]) -> "subprocess.Popen[str]":
    command = cli.start("testbed", "run", *scan, "--output", output)
    cli.wait_for_stream(command, COUNTED_BEFORE)
    return command


def folders_of_runs(cli: CommandLine) -> list[Path]:
    return list(cli.folder.glob("tmp/mpistream-testbed-*"))


def assert_no_output(output: Path) -> None:
    assert list(output.parent.iterdir()) == []


def test_a_run_in_which_one_after_the_other_is_killed(alone: CommandLine, expected: list, output: Path) -> None:
    command = start_run(alone, output, SCAN)
    for who in ("producer", "aggregator", "etcd", "rank 2"):
        strike(alone, who)
    ended = finish(command).succeeded()
    assert ended.stderr.count("it was started again") >= 4
    assert_same_events(output, expected)
    assert folders_of_runs(alone) == []


def test_a_rank_killed_while_the_dataset_is_written(alone: CommandLine, place: Path, output: Path) -> None:
    """Watched without a pause: the file is there for a fraction of a second only."""
    scan = ("--source", "sim:24x24?electrons=3000", "--background", 60, "--xray", 2000)
    command = alone.start("testbed", "run", *scan, "--output", output, "--groups", 1, "--ranks-per-group", 3)
    ranks = wait_until(lambda: len(found := alone.ranks()) == 3 and found, 60, "three ranks")
    wait_until(lambda: any(".partial" in path.name for path in output.parent.iterdir()), 60, "a partial file")
    kill([max(ranks)])
    finish(command).succeeded()
    reference = place / "reference.h5"
    alone.run("testbed", "run", *scan, "--output", reference).succeeded()
    assert_same_events(output, frames_of(reference))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_scheduler(alone: CommandLine, output: Path, number: signal.Signals) -> None:
    command = start_run(alone, output, LONG)
    command.send_signal(number)
    ended = finish(command, SOON_SECONDS)
    assert ended.status == 130, ended
    assert "interrupted" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert_no_output(output)
    assert folders_of_runs(alone) == []


def test_the_run_itself_is_killed(alone: CommandLine, expected: list, output: Path) -> None:
    """Nobody is left to end the processes: they notice by themselves. What they counted is still there."""
    command = start_run(alone, output, SCAN)
    command.kill()
    command.communicate(timeout=10)
    wait_until(lambda: not alone.processes(), SOON_SECONDS, "the end of all processes")
    assert not output.exists()
    (folder,) = folders_of_runs(alone)
    assert "go on" in alone.run("testbed", "up", "--folder", folder).succeeded().stdout
    wait_until(output.exists, 60, "the dataset")
    alone.run("testbed", "down", "--folder", folder).succeeded()
    assert_same_events(output, expected)


def test_a_program_that_cannot_run_ends_the_run(alone: CommandLine, output: Path) -> None:
    """One that ends again and again is given up; what was counted is kept."""
    command = start_run(alone, output, LONG)
    wait_until(lambda: _killed_again(alone, command), 60, "the end of the run")
    failed = finish(command, SOON_SECONDS).failed_with("aggregator", "5 times")
    assert "nothing is lost" in failed.stderr
    (folder,) = folders_of_runs(alone)
    alone.run("testbed", "up", "--folder", folder).succeeded()
    aborted = alone.run("scan", "abort", "latest", "--keep", "--folder", folder, "--json").last_json
    assert aborted["state"] == "aborted"
    assert aborted["frames"] >= COUNTED_BEFORE
    assert output.exists()
    alone.run("testbed", "down", "--folder", folder).succeeded()


def _killed_again(cli: CommandLine, command: "subprocess.Popen[str]") -> bool:
    kill(list(cli.processes("aggregate")))
    return command.poll() is not None
