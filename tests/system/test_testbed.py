"""A testbed that stays up: what runs, what stands in etcd, scans after each other, and that it ends."""

import json
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from tests.system.command_line import CommandLine, endpoint_in, etcdctl, finish, processes_with
from tests.system.datasets import assert_frames_of, assert_same_events
from tests.system.sector_writer import (
    BACKGROUND,
    EMPTY,
    SECTORS,
    XRAY,
    MadeUpScan,
    write_frames,
)

ROLES = {"supervisor": 1, "etcd": 1, "mpiexec": 1, "producer": 4, "aggregator": 1, "consumer": 4}
LISTENING = ("etcd", "aggregator", "consumer")
THRESHOLDS = ("--background", BACKGROUND, "--xray", XRAY)
SETTLING_SECONDS = 2.0
IDLE_SECONDS = 10.0
#: Watches, leases and a look around now and then: 0.06 on a quiet machine, twice that beside other tests. A single
#: thread that polls takes more.
IDLE_SHARE_OF_A_CORE = 0.25


def is_open(endpoint: str) -> bool:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that the processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def scan(testbed: CommandLine, source: str | Path, output: Path, *options: object) -> dict:
    source = f"files:{source}" if isinstance(source, Path) else source
    return testbed.run(
        "testbed", "scan", "--source", source, "--output", output, *THRESHOLDS, "--json", *options
    ).last_json


def test_ps_lists_every_process(testbed: CommandLine) -> None:
    entries = json.loads(testbed.run("testbed", "ps", "--json").succeeded().stdout)
    assert all(set(entry) == {"role", "name", "pid", "endpoint"} for entry in entries)
    assert Counter(entry["role"] for entry in entries) == ROLES
    assert len({entry["name"] for entry in entries}) == len({entry["pid"] for entry in entries}) == len(entries)
    running = processes_with(str(testbed.folder))
    assert {entry["pid"] for entry in entries} <= set(running)
    for entry in entries:
        assert entry["role"] not in LISTENING or is_open(entry["endpoint"]), entry
    table = testbed.run("testbed", "ps").succeeded().stdout
    assert all(entry["name"] in table and str(entry["pid"]) in table for entry in entries)


def test_no_data_costs_no_cpu(testbed: CommandLine, output: Path) -> None:
    scan(testbed, "sim:2x2?electrons=50", output)
    time.sleep(SETTLING_SECONDS)
    pids = list(processes_with(str(testbed.folder)))
    assert len(pids) >= sum(ROLES.values())
    before, started = cpu_seconds(pids), time.monotonic()
    time.sleep(IDLE_SECONDS)
    used, passed = cpu_seconds(pids) - before, time.monotonic() - started
    assert used / passed < IDLE_SHARE_OF_A_CORE


def test_etcd_shows_what_a_person_can_read(testbed: CommandLine, output: Path) -> None:
    scan(testbed, "sim:2x3?electrons=50", output)
    endpoint = endpoint_in(testbed.folder / "testbed" / "mpistream.toml")
    lines = etcdctl(endpoint, "get", "--prefix", "").splitlines()
    keys, values = lines[::2], [json.loads(value) for value in lines[1::2]]
    assert all(key.startswith("/testbed/") for key in keys)
    assert all(isinstance(value, dict) for value in values)
    stored = dict(zip(keys, values, strict=True))
    assert {f"/testbed/producers/{sector}" for sector in range(SECTORS)} <= set(stored)
    assert any(value.get("state") == "committed" for value in values)
    for key in [key for key in keys if key.split("/")[2] in ("producers", "aggregators", "groups")]:
        (answer,) = json.loads(etcdctl(endpoint, "get", key, "-w", "json"))["kvs"]
        assert answer.get("lease"), f"{key} has no lease"


def test_two_scans_of_the_same_number_are_not_mixed(testbed: CommandLine, output: Path) -> None:
    scans = [MadeUpScan(2, 2, 2, 5, scan_number=12, seed=seed) for seed in (1, 2)]
    for number, made_up in enumerate(scans):
        path = output.with_name(f"{number}.h5")
        scan(testbed, made_up.write(testbed.folder / f"same-number-{number}"), path)
        assert_same_events(path, made_up.expected_events())
        assert_frames_of(path, made_up)


def test_scans_asked_for_at_once(testbed: CommandLine, output: Path) -> None:
    scans = [MadeUpScan(3, 3, 1, 0, scan_number=number, seed=number) for number in (21, 22, 23)]
    started = []
    for made_up in scans:
        folder = made_up.write(testbed.folder / f"at-once-{made_up.seed}")
        path = output.with_name(f"{made_up.seed}.h5")
        arguments = ("--source", f"files:{folder}", "--output", path, *THRESHOLDS)
        started.append((testbed.start("testbed", "scan", *arguments), made_up, path))
    for command, made_up, path in started:
        finish(command).succeeded()
        assert_same_events(path, made_up.expected_events())


def test_what_others_write_into_etcd_harms_nothing(testbed: CommandLine, output: Path) -> None:
    endpoint = endpoint_in(testbed.folder / "testbed" / "mpistream.toml")
    keys = {"scans/nonsense": "1", "scans/stop": "{}", "routing/9x": "{}", "progress/x": "no JSON"}
    keys |= {"scans/x/state": "{}", "jobs/x/stop": "{}"}
    keys |= {
        f"scans/{uuid4()}/{what}": value for what, value in (("abort", "{}"), ("record", "{}"), ("state", "no JSON"))
    }
    for key, value in keys.items():
        etcdctl(endpoint, "put", f"/testbed/{key}", value)
    try:
        assert scan(testbed, "sim:2x2?electrons=50", output)["frames"] == 4
    finally:
        for key in keys:
            etcdctl(endpoint, "del", f"/testbed/{key}")


def test_a_scan_after_one_that_failed(testbed: CommandLine, output: Path) -> None:
    zeros = write_frames(testbed.folder / "zeros", EMPTY)
    testbed.run("testbed", "scan", "--source", f"files:{zeros}", "--output", output).failed_with("sample frames")
    assert not output.exists()
    assert scan(testbed, "sim:2x2?electrons=50", output)["frames"] == 4


def test_a_scan_after_one_that_was_interrupted(testbed: CommandLine, output: Path) -> None:
    arguments = ("--source", "sim:200x200?electrons=20", "--output", output, *THRESHOLDS)
    command = testbed.start("testbed", "scan", *arguments)
    testbed.wait_for_stream(command)
    command.send_signal(signal.SIGINT)
    interrupted = finish(command, seconds=30)
    assert interrupted.status == 130, interrupted
    assert "Traceback" not in interrupted.stderr
    assert not output.exists()
    assert scan(testbed, "sim:2x2?electrons=50", output)["frames"] == 4


def test_a_second_testbed_in_the_same_folder_is_refused(testbed: CommandLine) -> None:
    testbed.run("testbed", "up").failed_with("a testbed is running", str(testbed.folder / "testbed"))
    assert len(json.loads(testbed.run("testbed", "ps", "--json").succeeded().stdout)) == sum(ROLES.values())


@pytest.mark.parametrize("command", ["ps", "down", "scan"])
def test_without_a_testbed(cli: CommandLine, output: Path, command: str) -> None:
    options = ("--source", "sim:2x2", "--output", output) if command == "scan" else ()
    folder = cli.folder / "nothing-here"
    cli.run("testbed", command, "--folder", folder, *options).failed_with("no testbed is running", str(folder))
    assert not folder.exists()


def test_down_leaves_nothing(place: Path) -> None:
    """In a folder given with --folder, with another number of ranks."""
    cli = CommandLine(place / "other")
    folder = cli.folder / "bed"
    cli.run("testbed", "up", "--folder", folder, "--groups", 1, "--ranks-per-group", 1).succeeded()
    entries = json.loads(cli.run("testbed", "ps", "--folder", folder, "--json").succeeded().stdout)
    assert Counter(entry["role"] for entry in entries) == ROLES | {"consumer": 1}
    cli.run("testbed", "down", "--folder", folder).succeeded()
    assert not processes_with(str(cli.folder))
    assert not [entry for entry in entries if entry["role"] in LISTENING and is_open(entry["endpoint"])]
    cli.run("testbed", "down", "--folder", folder).failed_with("no testbed is running")
