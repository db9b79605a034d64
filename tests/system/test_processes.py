"""The processes started one by one from a configuration file, as on several hosts."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.command_line import CommandLine, etcd_values, etcdctl, finish, wait_until
from tests.system.datasets import assert_same_events
from tests.system.sector_writer import BACKGROUND, SECTORS, XRAY, MadeUpScan

RANKS = 4
MPIEXEC = ("mpiexec.openmpi", "-n", str(RANKS))
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
START_SECONDS = 60
LEASE_SECONDS = 30  # so long that a registration that is gone soon was withdrawn


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config(place: Path) -> Iterator[Path]:
    """The configuration of a deployment whose etcd runs."""
    client, peer = free_port(), free_port()
    endpoint = f"127.0.0.1:{client}"
    config = place / "mpistream.toml"
    config.write_text(
        f'deployment = "by-hand"\n[etcd]\nendpoints = ["{endpoint}"]\nlease_seconds = {LEASE_SECONDS}\n'
        "[ranks]\nranks_per_group = 2\n"
    )
    command = ["etcd", "--name", "etcd", "--data-dir", str(place / "etcd"), "--log-level", "error"]
    for kind, port in (("client", client), ("peer", peer)):
        command += [f"--listen-{kind}-urls", f"http://127.0.0.1:{port}"]
    command += ["--advertise-client-urls", f"http://127.0.0.1:{client}"]
    command += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
    command += ["--initial-cluster", f"etcd=http://127.0.0.1:{peer}"]
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
    """Processes started by hand; ``commands`` are by the part of the etcd key below which they register."""

    cli: CommandLine
    config: Path
    commands: dict[str, "subprocess.Popen[str]"]

    def registered(self) -> set[str]:
        """``producers/0``, ``aggregators/aggregator``, ``groups/0``, ... as etcd shows them."""
        keys = etcd_values(self.config, "/by-hand/")
        parts = [key.split("/")[2:] for key in keys]
        return {f"{part[0]}/{part[-1]}" for part in parts if part[0] in ("producers", "aggregators", "groups")}

    def scan(self, *options: object):
        return self.cli.run(
            *("testbed", "scan", "--config", self.config, "--background", BACKGROUND, "--xray", XRAY, *options)
        )


@pytest.fixture(scope="module")
def deployment(cli: CommandLine, config: Path) -> Iterator[Deployment]:
    cli.environment.update(MPI_ENVIRONMENT)
    option = ("--config", config)
    commands = {f"producers/{sector}": cli.start("produce", "--sector", sector, *option) for sector in range(SECTORS)}
    commands["aggregators/second"] = cli.start("aggregate", "--name", "second", *option)
    commands["groups"] = cli.start("consume", *option, launcher=MPIEXEC)
    deployment = Deployment(cli, config, commands)
    expected = {*(f"producers/{sector}" for sector in range(SECTORS)), "aggregators/second", "groups/0", "groups/1"}
    try:
        wait_until(lambda: deployment.registered() == expected, START_SECONDS, "the registration of every process")
        yield deployment
    finally:
        for command in commands.values():
            command.terminate()
        for command in commands.values():
            finish(command, 60)


def test_a_scan_with_processes_started_by_hand(deployment: Deployment, place: Path, output: Path) -> None:
    made_up = MadeUpScan(3, 4, 1, 7, 5, seed=4, sectors_lost=0.1)
    folder = made_up.write(place / "sectors")
    report = deployment.scan("--source", f"files:{folder}", "--output", output, "--json").last_json
    assert report["frames"] == len(made_up.present)
    assert_same_events(output, made_up.expected_events())


@pytest.mark.parametrize("name", ["aggregators/second", "producers/1", "groups"])
def test_sigterm_ends_a_process_cleanly(deployment: Deployment, output: Path, name: str) -> None:
    """Each of these withdraws its registration at once, and a scan says what is missing."""
    command = deployment.commands[name]
    command.send_signal(signal.SIGTERM)
    wait_until(
        lambda: not any(key.startswith(name) for key in deployment.registered()),
        LEASE_SECONDS / 2,
        f"the withdrawal of {name}",
    )
    ended = finish(command, 30)
    assert ended.status == 0, ended
    assert "Traceback" not in ended.stderr
    what = {"aggregators/second": "aggregator", "producers/1": "sector 1", "groups": "rank group"}[name]
    deployment.scan("--source", "sim:2x2", "--output", output).failed_with(what)
