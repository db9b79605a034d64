"""Slurm on this machine: nodes, ranks that span them, a scan, a node that dies, and what is left at the end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from mpistream.launch.supervisor import config_of
from tests.slurm.cluster import NODES, Cluster
from tests.system.command_line import CommandLine, endpoint_in, etcd_values, finish, kill, nothing_is_left, wait_until
from tests.system.datasets import event_arrays, summed_arrays

SCAN = ("--source", "sim:8x9?flyback=yes&loss=0.02&seed=3", "--background", 60, "--xray", 2000)
ALLREDUCE = """
import socket
from mpi4py import MPI
print(socket.gethostname(), MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(1), flush=True)
"""
pytestmark = pytest.mark.cluster
SPANNING = ("srun", "--nodes=4", "--ntasks-per-node=2", "--mpi=pmix")


def test_all_nodes_are_idle_and_have_addresses_of_their_own(cluster: Cluster) -> None:
    said = cluster.cli.run("testbed", "slurm", "status", "--json").last_json
    assert [(node["name"], node["state"]) for node in said["nodes"]] == [(name, "idle") for name in NODES]
    assert len({node["address"] for node in said["nodes"]}) == len(NODES)
    assert said["jobs"] == []


def test_the_ranks_of_all_nodes_are_one_job(cluster: Cluster) -> None:
    lines = cluster.run(*SPANNING, sys.executable, "-c", ALLREDUCE).succeeded().stdout.splitlines()
    assert sorted(lines) == [f"{node} {2 * number + task} 8" for number, node in enumerate(NODES) for task in (0, 1)]


def test_a_scan_is_counted_by_a_group_on_every_node(cluster: Cluster, tmp_path: Path) -> None:
    addresses = {node: f"tcp://{address}:" for node, address in addresses_of(cluster).items()}
    ranks = cluster.start(*SPANNING, sys.executable, "-m", "mpistream", "consume", "--config", cluster.config)
    try:
        groups = wait_until(lambda: groups_of(cluster, 4), 60, "four rank groups")
        for group in groups:
            assert group["batch_job"] == cluster.jobs()[0]
            assert len(group["ranks"]) == 2
            assert all(rank["data_endpoint"].startswith(addresses[group["host"]]) for rank in group["ranks"])
            assert all(rank["cores"] for rank in group["ranks"])
        assert {group["host"] for group in groups} == set(NODES)
        command = ("testbed", "scan", "--config", cluster.config, *SCAN, "--output", tmp_path / "slurm.h5")
        cluster.cli.run(*command).succeeded()
        assert "batch job" in cluster.cli.run("status").succeeded().stdout
    finally:
        cluster.run("scancel", *cluster.jobs())
        said = finish(ranks).stderr
    assert "rank" in said
    assert "cores" in said
    cluster.cli.run("testbed", "run", *SCAN, "--output", tmp_path / "here.h5").succeeded()
    for arrays in (event_arrays, summed_arrays):
        found, expected = arrays(tmp_path / "slurm.h5"), arrays(tmp_path / "here.h5")
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def addresses_of(cluster: Cluster) -> dict[str, str]:
    nodes = cluster.cli.run("testbed", "slurm", "status", "--json").last_json["nodes"]
    return {node["name"]: node["address"] for node in nodes}


def groups_of(cluster: Cluster, number: int) -> list[dict]:
    """None before there are so many."""
    found = list(etcd_values(cluster.config, "/testbed/groups/").values())
    return found if len(found) == number else []


def test_a_killed_node_is_noticed_and_its_job_runs_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nhostname\nexec sleep 300\n")
    output = tmp_path / "output"
    batch = ("sbatch", "--parsable", "--nodes=1", "--nodelist=c1", "--requeue", f"--output={output}", script)
    job = cluster.run(*batch).succeeded().stdout.strip()
    wait_until(lambda: output.exists() and output.read_text() == "c1\n", 60, "the job's first line")
    cluster.kill_node("c1")
    assert not [line for line in cluster.cli.processes().values() if "slurmstepd" in line and f"[{job}." in line]
    cluster.wait_for_state("c1", "down")
    assert cluster.run("squeue", "--noheader", "--format=%T").stdout.split() == ["PENDING"]
    cluster.run("scontrol", "update", f"jobid={job}", "reqnodelist=", "starttime=now").succeeded()
    wait_until(lambda: "c1" not in output.read_text().split()[-1:], 60, "another node that has the job")
    cluster.revive_node("c1")
    wait_until(lambda: cluster.states()["c1"] == "idle", 60, "an idle node")


def test_a_node_that_dies_by_itself_is_started_again(cluster: Cluster) -> None:
    host, *_ = [pid for pid, line in cluster.cli.processes().items() if "unshare" in line and "--pid" in line]
    kill([host])
    wait_until(lambda: "was started again" in (cluster.folder / "supervisor.log").read_text(), 30, "a node's return")
    everywhere = ("srun", "--nodes=4", "--ntasks-per-node=1", "hostname")
    wait_until(lambda: sorted(cluster.run(*everywhere).stdout.split()) == list(NODES), 90, "a step on all nodes")


@contextmanager
def second_testbed(folder: Path, **environment: str) -> Iterator[Cluster]:
    """With two nodes. Its processes, network and mounts are gone after."""
    cli = CommandLine(folder)
    cli.environment.update(environment)
    with nothing_is_left(str(folder)):
        cli.run("testbed", "slurm", "up", "--nodes", 2).succeeded()
        second = Cluster(folder / "testbed", cli)
        link = f"mpistream{endpoint_in(second.config).split('.')[2]}"
        assert link in psutil.net_if_addrs()
        yield second
    wait_until(lambda: link not in psutil.net_if_addrs(), 30, "the network's end")
    assert str(folder) not in Path("/proc/self/mounts").read_text()


def end(cluster: Cluster, step: "subprocess.Popen[str]") -> None:
    cluster.cli.run("testbed", "slurm", "down").succeeded()
    give_up(step)


def give_up(step: "subprocess.Popen[str]") -> None:
    """Slurm is gone for srun, which runs beside the testbed and would go on asking for a while."""
    os.killpg(step.pid, signal.SIGKILL)
    step.communicate()


@pytest.mark.usefixtures("cluster")
def test_two_testbeds_do_not_meet_and_an_ended_one_leaves_nothing(tmp_path: Path) -> None:
    with second_testbed(tmp_path) as second:
        assert second.states() == {"c1": "idle", "c2": "idle"}
        step = second.start("srun", "--nodes=2", "--ntasks-per-node=1", "sleep", 300)
        wait_until(lambda: set(second.states().values()) == {"mixed"}, 60, "a running step")
        end(second, step)
        second.cli.run("testbed", "slurm", "status").failed_with()


def test_without_its_supervisor_nothing_goes_on(tmp_path: Path) -> None:
    with second_testbed(tmp_path) as second:
        step = second.start("srun", "--nodes=2", "--ntasks-per-node=1", "sleep", 300)
        wait_until(lambda: set(second.states().values()) == {"mixed"}, 60, "a running step")
        kill(list(second.cli.processes("slurm", "supervise")))
        give_up(step)


def test_nodes_without_mounts_of_their_own_work_too(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    refuses = tmp_path / "bin" / "mount"
    refuses.write_text("#!/bin/sh\necho 'mount: permission denied' >&2\nexit 32\n")
    refuses.chmod(0o755)
    path = f"{refuses.parent}:{CommandLine(tmp_path).environment['PATH']}"
    with second_testbed(tmp_path, PATH=path) as second:
        assert not json.loads((second.folder / "slurm" / "testbed.json").read_text())["own_mounts"]
        command = ("srun", "--nodes=2", "--ntasks-per-node=2", sys.executable, "-c", ALLREDUCE)
        done = second.run(*command).succeeded()
        assert sorted(done.stdout.splitlines()) == ["c1 0 4", "c1 1 4", "c2 2 4", "c2 3 4"], done
        step = second.start("srun", "--nodes=2", "--ntasks-per-node=1", "sleep", 300)
        wait_until(lambda: set(second.states().values()) == {"mixed"}, 60, "a running step")
        end(second, step)


def test_what_cannot_be_is_refused_with_a_remedy(cluster: Cluster, tmp_path: Path) -> None:
    cli, elsewhere = cluster.cli, CommandLine(tmp_path)
    cli.run("testbed", "slurm", "up").failed_with("is running")
    cli.run("testbed", "slurm", "kill-node", "c9").failed_with("c9")
    elsewhere.run("testbed", "slurm", "status").failed_with("no Slurm testbed")
    elsewhere.environment["PATH"] = str(Path(sys.executable).parent)
    elsewhere.run("testbed", "slurm", "up").failed_with("slurmctld", "not installed")
    assert config_of(cluster.folder).network.interface == "eth0"
