"""The processes started one by one from a configuration file, as on several hosts."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mpistream.launch.local import MPI_ENVIRONMENT, etcd_command, free_port, mpiexec
from tests.system.command_line import CommandLine, Finished, etcd_values, etcdctl, finish, wait_until
from tests.system.datasets import assert_same_events
from tests.system.sector_writer import BACKGROUND, SECTORS, XRAY, MadeUpScan

RANKS = 4
MPIEXEC = (mpiexec(), "-n", str(RANKS))
START_SECONDS = 60
PRODUCERS = tuple(f"producers/{sector}" for sector in range(SECTORS))
AGGREGATOR = "aggregators/second"
REGISTRATIONS = {*PRODUCERS, AGGREGATOR, "groups/0", "groups/1"}
ABSENT_SECONDS = 8.0  # more than a producer takes to start on a busy machine
LEASE_SECONDS = 14  # so long that a registration that is gone soon was withdrawn


@pytest.fixture(scope="module")
def config(place: Path) -> Iterator[Path]:
    """The configuration of a deployment whose etcd runs."""
    client, peer = free_port(), free_port()
    endpoint = f"127.0.0.1:{client}"
    config = place / "mpistream.toml"
    config.write_text(
        f'deployment = "by-hand"\n[etcd]\nendpoints = ["{endpoint}"]\nlease_seconds = {LEASE_SECONDS}\n'
        f"[stream]\nabsent_seconds = {ABSENT_SECONDS}\n[ranks]\nranks_per_group = 2\n"
    )
    command = etcd_command(place / "etcd", client, peer)
    with (place / "etcd.log").open("wb") as log:
        etcd = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: etcdctl(endpoint, "endpoint", "status"), START_SECONDS, "etcd")
        yield config
    finally:
        etcd.terminate()
        etcd.wait(20)


@dataclass
class Deployment:
    """Processes started by hand, by the key under which they register in etcd; ``groups`` is the MPI job."""

    cli: CommandLine
    config: Path
    commands: dict[str, "subprocess.Popen[str]"]

    def start(self, name: str) -> None:
        kind, _, which = name.partition("/")
        arguments = {
            "producers": ("produce", "--sector", which),
            "aggregators": ("aggregate", "--name", which),
            "groups": ("consume",),
        }[kind]
        launcher = MPIEXEC if kind == "groups" else ()
        self.commands[name] = self.cli.start(*arguments, "--config", self.config, launcher=launcher)

    def wait_until_registered(self) -> None:
        wait_until(lambda: self.registered() == REGISTRATIONS, START_SECONDS, "the registration of every process")

    def wait_until_withdrawn(self, name: str) -> None:
        """Sooner than the lease runs out."""
        wait_until(
            lambda: not any(key.startswith(name) for key in self.registered()),
            LEASE_SECONDS / 2,
            f"the withdrawal of {name}",
        )

    def registered(self) -> set[str]:
        """``producers/0``, ``aggregators/second``, ``groups/0``, ... as etcd shows them.

        Of the groups those to which frames are routed: from then on their job takes scans.
        """
        stored = etcd_values(self.config, "/by-hand/")
        tables = [value for key, value in stored.items() if key.startswith("/by-hand/routing/")]
        latest = max(tables, key=lambda table: table["version"], default={"ranks": []})
        jobs = {rank["job"] for rank in latest["ranks"]}
        parts = [key.split("/")[2:] for key in stored]
        found = {f"{part[0]}/{part[-1]}" for part in parts if part[0] in ("producers", "aggregators")}
        return found | {f"groups/{part[2]}" for part in parts if part[0] == "groups" and part[1] in jobs}

    def scan(self, source: str, output: Path, *options: object) -> Finished:
        return self.cli.run(
            *("testbed", "scan", "--config", self.config, "--source", source, "--output", output),
            *("--background", BACKGROUND, "--xray", XRAY, *options),
        )


@pytest.fixture(scope="module")
def running(cli: CommandLine, config: Path) -> Iterator[Deployment]:
    cli.environment.update(MPI_ENVIRONMENT)
    deployment = Deployment(cli, config, {})
    try:
        for name in (*PRODUCERS, AGGREGATOR, "groups"):
            deployment.start(name)
        yield deployment
    finally:
        for command in deployment.commands.values():
            command.terminate()
        for command in deployment.commands.values():
            finish(command, 60)


@pytest.fixture
def deployment(running: Deployment) -> Deployment:
    """All of it running, whatever the test before has ended."""
    for name, command in list(running.commands.items()):
        if command.poll() is not None:
            running.start(name)
    running.wait_until_registered()
    return running


def test_a_scan_with_processes_started_by_hand(deployment: Deployment, place: Path, output: Path) -> None:
    made_up = MadeUpScan(3, 4, 1, 7, 5, seed=4, sectors_lost=0.1)
    folder = made_up.write(place / "sectors")
    report = deployment.scan(f"files:{folder}", output, "--json").last_json
    assert report["frames"] == len(made_up.present)
    assert_same_events(output, made_up.expected_events())


def assert_ended_cleanly(command: "subprocess.Popen[str]") -> None:
    ended = finish(command, 30)
    assert ended.status == 0, ended
    assert "Traceback" not in ended.stderr
    assert "error" not in ended.stderr


@pytest.mark.parametrize(("name", "what"), [(AGGREGATOR, "no aggregator"), (PRODUCERS[1], "sector 1")])
def test_sigterm_withdraws_a_process(deployment: Deployment, output: Path, name: str, what: str) -> None:
    """A scan says what is missing; started again, the process is taken up."""
    deployment.commands[name].send_signal(signal.SIGTERM)
    deployment.wait_until_withdrawn(name)
    assert_ended_cleanly(deployment.commands[name])
    deployment.scan("sim:2x2", output, "--wait-seconds", 0).failed_with(what)
    deployment.start(name)
    deployment.wait_until_registered()
    deployment.scan("sim:2x2", output).succeeded()


def start_scan(deployment: Deployment, output: Path) -> "subprocess.Popen[str]":
    """A scan that has got so far that frames are counted."""
    command = deployment.cli.start(
        *("testbed", "scan", "--config", deployment.config, "--source", "sim:40x40?electrons=50", "--output", output),
        *("--background", 60, "--xray", 2000, "--json"),
    )

    def is_streaming() -> bool:
        assert command.poll() is None, finish(command)
        progress = etcd_values(deployment.config, "/by-hand/progress/")
        states = etcd_values(deployment.config, "/by-hand/scans/")
        running = [key.split("/")[3] for key, value in states.items() if value.get("state") == "streaming"]
        return any(progress.get(f"/by-hand/progress/{uid}", {"frames": 0})["frames"] > 100 for uid in running)

    wait_until(is_streaming, START_SECONDS, "a stream")
    return command


def test_a_producer_that_ends_and_is_started_again(deployment: Deployment, output: Path) -> None:
    command = start_scan(deployment, output)
    deployment.commands[PRODUCERS[2]].send_signal(signal.SIGTERM)
    deployment.wait_until_withdrawn(PRODUCERS[2])
    deployment.start(PRODUCERS[2])
    report = finish(command).last_json
    assert (report["state"], report["frames"], report["frames_incomplete"]) == ("committed", 1600, 0)


def test_a_producer_that_stays_away(deployment: Deployment, output: Path) -> None:
    """The scan goes on without its sector after a while; the exit status says that something is missing."""
    command = start_scan(deployment, output)
    deployment.commands[PRODUCERS[2]].send_signal(signal.SIGTERM)
    ended = finish(command)
    assert ended.status == 3, ended
    assert "the scan is incomplete" in ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert (report["state"], report["complete"], report["frames"]) == ("incomplete", False, 1600)
    assert 0 < report["frames_incomplete"] < 1600
    assert output.exists()


@pytest.mark.parametrize("hear_late", [False, True])
def test_sigterm_for_every_rank_ends_the_mpi_job(deployment: Deployment, output: Path, hear_late: bool) -> None:
    """This is what srun sends, and a rank may hear of it only when the others have long begun to end."""
    command = deployment.commands["groups"]
    ranks = [psutil.Process(rank) for rank in deployment.cli.ranks()]
    if hear_late:
        ranks.pop(0).terminate()
        deployment.wait_until_withdrawn("groups")
    deadline = time.monotonic() + LEASE_SECONDS / 2
    while command.poll() is None and time.monotonic() < deadline:
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.terminate()
    deployment.wait_until_withdrawn("groups")
    assert_ended_cleanly(command)
    deployment.scan("sim:2x2", output, "--wait-seconds", 0).failed_with("no rank group is registered")


def test_sigterm_for_mpiexec_ends_the_mpi_job(deployment: Deployment, output: Path) -> None:
    """Its exit status is OpenMPI's own affair. The next MPI job takes over."""
    command = deployment.commands["groups"]
    command.send_signal(signal.SIGTERM)
    deployment.wait_until_withdrawn("groups")
    assert "Traceback" not in finish(command, 30).stderr
    deployment.start("groups")
    deployment.wait_until_registered()
    deployment.scan("sim:2x2", output).succeeded()
