"""Coordination and the registry against a real etcd, which is killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from mpistream.control.coordination import Change, Coordination
from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry, Registry
from mpistream.control.run_state import IllegalTransition, ScanState
from mpistream.model.errors import CoordinationError, ScanFailed
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, Thresholds
from tests.etcd_server import EtcdServer
from tests.unit.made_up_blocks import scan_record
from tests.unit.test_conductor import end_of, summary_of

LEASE_SECONDS = 2
RANKS = tuple(RankEndpoints(rank, 0, "node", 100 + rank, 5, f"tcp://a:{rank}", f"tcp://b:{rank}") for rank in range(2))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
def etcd(server: EtcdServer) -> Iterator[Coordination]:
    """A connection with a prefix of its own."""
    with server.connect(f"/{uuid4()}/") as connection:
        yield connection


@pytest.fixture
def registry(etcd: Coordination) -> Registry:
    return Registry(etcd, LEASE_SECONDS)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Picture:
    """What a watch has reported."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.values: dict[str, Any] = {}

    def __call__(self, change: Change) -> None:
        self.changes.append(change)
        key, value = change
        if value is None:
            del self.values[key]
        else:
            self.values[key] = value


# plain reads and writes


def test_the_server_tells_its_version(etcd: Coordination) -> None:
    assert etcd.check().startswith("3.")


def test_values_are_read_as_they_were_written(etcd: Coordination) -> None:
    value = {"text": "Größe", "numbers": [1, 2.5, None, True], "nested": {"a": {}}}
    assert etcd.get("key") is None
    etcd.put("key", value)
    assert etcd.get("key") == value
    etcd.put("key", [])
    assert etcd.get("key") == []
    etcd.delete("key")
    assert etcd.get("key") is None
    etcd.delete("key")


def test_a_fact_is_written_once(etcd: Coordination) -> None:
    assert etcd.create("fact", 1)
    assert not etcd.create("fact", 2)
    assert etcd.get("fact") == 1


def test_a_value_is_replaced_only_where_the_expected_one_stands(etcd: Coordination) -> None:
    assert not etcd.replace("key", {"a": 1, "b": 2}, 3)
    etcd.put("key", {"b": 2, "a": 1})
    assert etcd.replace("key", {"a": 1, "b": 2}, 3)
    assert not etcd.replace("key", {"a": 1, "b": 2}, 4)
    assert etcd.get("key") == 3


def test_a_prefix_is_read_at_once_without_its_neighbours(etcd: Coordination) -> None:
    for key in ("scans/b/state", "scans/a/record", "scans/a", "scanners/c", "scans0"):
        etcd.put(key, key)
    assert etcd.get_prefix("scans/") == {
        "a": "scans/a",
        "a/record": "scans/a/record",
        "b/state": "scans/b/state",
    }
    assert etcd.get_prefix("nothing/") == {}


def test_deployments_do_not_see_each_other(server: EtcdServer, etcd: Coordination) -> None:
    etcd.put("key", 1)
    with server.connect(f"/{uuid4()}/") as other:
        assert other.get("key") is None
        assert other.get_prefix("") == {}


def test_a_person_reads_json_with_etcdctl(server: EtcdServer, etcd: Coordination) -> None:
    etcd.put("scans/17/state", {"state": "streaming", "reason": ""})
    key, value = server.etcdctl("get", "--prefix", etcd.prefix).splitlines()
    assert key == f"{etcd.prefix}scans/17/state"
    assert json.loads(value) == {"state": "streaming", "reason": ""}


# an etcd that does not answer


def test_an_etcd_that_is_not_there_is_named_with_a_remedy() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        check_unreachable(endpoint)


def test_an_etcd_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        check_unreachable(f"127.0.0.1:{silent.getsockname()[1]}")


def check_unreachable(endpoint: str) -> None:
    with Coordination([endpoint], "/test/", timeout_seconds=0.25) as nowhere:
        calls: list[Callable[[], object]] = [
            nowhere.check,
            lambda: nowhere.get("key"),
            lambda: nowhere.get_prefix("key"),
            lambda: nowhere.put("key", 1),
            lambda: nowhere.create("key", 1),
            lambda: nowhere.replace("key", 1, 2),
            lambda: nowhere.delete("key"),
            lambda: nowhere.register("key", 1, LEASE_SECONDS),
            lambda: nowhere.watch("key", print),
        ]
        for call in calls:
            started = time.monotonic()
            with pytest.raises(CoordinationError, match=f"no etcd reachable at {endpoint}") as caught:
                call()
            assert time.monotonic() - started < 1.0
            assert "[etcd] endpoints" in caught.value.remedy


def test_the_member_that_answers_is_found_among_several(server: EtcdServer) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        for endpoints in ([dead, server.endpoint], [server.endpoint, dead]):
            with Coordination(endpoints, "/test/", timeout_seconds=5.0) as either:
                until(lambda either=either: answers(either))
                either.put("key", 1)
                assert either.get("key") == 1


def answers(coordination: Coordination) -> bool:
    try:
        return bool(coordination.check())
    except CoordinationError:
        return False


# leases


def test_a_registration_outlives_its_lease_and_ends_at_once_when_it_is_closed(etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    assert etcd.get("producers/1") == {"pid": 7}
    time.sleep(1.5 * LEASE_SECONDS)
    assert etcd.get("producers/1") == {"pid": 7}
    registration.close()
    assert etcd.get("producers/1") is None


def test_a_registration_disappears_with_its_process(server: EtcdServer, etcd: Coordination) -> None:
    code = (
        "import sys, time\n"
        "from mpistream.control.coordination import Coordination\n"
        "etcd = Coordination([sys.argv[1]], sys.argv[2], 5.0)\n"
        f"registration = etcd.register('producers/1', {{'pid': 7}}, {LEASE_SECONDS})\n"
        "print('registered', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, server.endpoint, etcd.prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "registered\n"
        assert etcd.get("producers/1") == {"pid": 7}
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)
        until(lambda: etcd.get("producers/1") is None, seconds=LEASE_SECONDS + 3)


def test_a_registration_whose_lease_was_revoked_is_written_again(server: EtcdServer, etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    stored = json.loads(server.etcdctl("get", etcd.prefix + "producers/1", "--write-out=json"))
    server.etcdctl("lease", "revoke", f"{stored['kvs'][0]['lease']:x}")
    assert etcd.get("producers/1") is None
    until(lambda: etcd.get("producers/1") == {"pid": 7}, seconds=LEASE_SECONDS + 3)
    registration.close()
    assert etcd.get("producers/1") is None


# watches


def test_a_watch_reports_what_is_there_and_every_change(etcd: Coordination) -> None:
    etcd.put("scans/1/state", "announced")
    etcd.put("scanners/1", "not watched")
    picture = Picture()
    watch = etcd.watch("scans/", picture)
    assert picture.changes == [("1/state", "announced")]
    etcd.put("scans/1/state", "streaming")
    etcd.put("scans/2/state", "announced")
    etcd.delete("scans/1/state")
    until(lambda: len(picture.changes) == 4)
    assert picture.changes[1:] == [("1/state", "streaming"), ("2/state", "announced"), ("1/state", None)]
    watch.close()
    etcd.put("scans/3/state", "announced")
    time.sleep(0.2)
    assert len(picture.changes) == 4


def test_a_watch_may_be_closed_as_soon_as_it_is_opened(etcd: Coordination) -> None:
    for _ in range(20):
        watch = etcd.watch("scans/", print)
        started = time.monotonic()
        watch.close()
        assert time.monotonic() - started < 2


def test_a_watch_sees_a_registration_end(etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    picture = Picture()
    watch = etcd.watch("producers/", picture)
    assert picture.values == {"1": {"pid": 7}}
    registration.close()
    until(lambda: picture.values == {})
    watch.close()


def test_a_watch_and_a_registration_survive_the_death_of_etcd(tmp_path: Path) -> None:
    """etcd is killed for seconds and comes back; changes made before the watch is back are not missed."""
    with EtcdServer(tmp_path) as server, server.connect() as etcd:
        for number in range(5):
            etcd.put(f"scans/{number}", "before")
        picture = Picture()
        watch = etcd.watch("scans/", picture)
        registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
        threads, cpu = threading.active_count(), time.process_time()
        server.kill()
        time.sleep(2.5)
        assert time.process_time() - cpu < 0.5, "waiting for etcd costs CPU"
        assert threading.active_count() <= threads + 2
        server.start()
        # Another client, so that this one's connection need not be back.
        for arguments in (("put", "/test/scans/1", '"after"'), ("del", "/test/scans/2"), ("put", "/test/scans/9", "9")):
            server.etcdctl(*arguments)
        expected = {"0": "before", "1": "after", "3": "before", "4": "before", "9": 9}
        until(lambda: picture.values == expected, seconds=15)
        assert [key for key, _ in picture.changes].count("0") == 1, "what did not change was reported again"
        until(lambda: answers(etcd), seconds=15)
        etcd.put("scans/1", "later")
        until(lambda: picture.values["1"] == "later")
        until(lambda: etcd.get("producers/1") == {"pid": 7})
        time.sleep(LEASE_SECONDS + 1)
        assert etcd.get("producers/1") == {"pid": 7}
        watch.close()
        registration.close()


def test_a_watch_is_closed_while_etcd_is_away(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server, server.connect(timeout_seconds=1.0) as etcd:
        watch = etcd.watch("scans/", print)
        registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
        server.kill()
        time.sleep(0.5)
        started = time.monotonic()
        watch.close()
        registration.close()
        assert time.monotonic() - started < 5


# the registry


def announced(registry: Registry, **changes: object) -> ScanRecord:
    record = scan_record(uid=uuid4(), **changes)
    registry.announce(record)
    return record


def test_registered_processes_are_found_until_they_leave(registry: Registry) -> None:
    group = GroupEntry("job-1", 0, "node", RANKS)
    producer = ProducerEntry(2, 2, "camera", 99, 5)
    aggregators = [AggregatorEntry(name, "edge", 7, f"tcp://{name}:1", f"tcp://{name}:2") for name in ("a", "b")]
    registrations = [
        registry.register_group(group),
        registry.register_producer(producer),
        *(registry.register_aggregator(aggregator) for aggregator in reversed(aggregators)),
    ]
    assert registry.groups() == [group]
    assert registry.producers() == [producer]
    assert registry.aggregators() == aggregators
    for registration in registrations:
        registration.close()
    assert (registry.groups(), registry.producers(), registry.aggregators()) == ([], [], [])


def test_an_announced_scan_is_read_as_it_was_written(registry: Registry) -> None:
    record = announced(registry)
    assert registry.record(record.uid) == record
    assert registry.status(record.uid).state is ScanState.ANNOUNCED
    assert registry.record(uuid4()) is None
    with pytest.raises(CoordinationError, match="knows no scan"):
        registry.status(uuid4())


def test_a_scan_is_announced_once(registry: Registry) -> None:
    record = announced(registry)
    registry.set_state(record.uid, ScanState.STREAMING)
    with pytest.raises(CoordinationError, match="was announced before"):
        registry.announce(record.model_copy(update={"output": "elsewhere.h5"}))
    assert registry.record(record.uid) == record
    assert registry.status(record.uid).state is ScanState.STREAMING


def test_states_follow_each_other_and_the_first_end_holds(registry: Registry) -> None:
    uid = announced(registry).uid
    with pytest.raises(IllegalTransition):
        registry.set_state(uid, ScanState.ASSEMBLING)
    assert registry.set_state(uid, ScanState.STREAMING)
    assert registry.set_state(uid, ScanState.FAILED, ScanFailed("the disk is full", "free some"))
    status = registry.status(uid)
    assert (status.state, status.reason, status.remedy) == (ScanState.FAILED, "the disk is full", "free some")
    assert abs(status.since_unix_seconds - time.time()) < 60
    assert not registry.set_state(uid, ScanState.ABORTED)
    assert not registry.set_state(uid, ScanState.DRAINING)
    assert registry.status(uid) == status


def test_a_state_that_is_written_again_is_no_error(registry: Registry) -> None:
    """After a timeout nobody knows whether the first attempt was carried out."""
    uid = announced(registry).uid
    assert registry.set_state(uid, ScanState.STREAMING)
    assert registry.set_state(uid, ScanState.STREAMING)
    assert registry.status(uid).state is ScanState.STREAMING


def test_of_several_who_end_a_scan_the_first_wins(server: EtcdServer, etcd: Coordination) -> None:
    registries = [Registry(server.connect(etcd.prefix), LEASE_SECONDS) for _ in range(4)]
    uid = announced(registries[0]).uid
    ends = [ScanState.FAILED, ScanState.ABORTED] * 2
    done: dict[int, bool] = {}

    def end(number: int) -> None:
        done[number] = registries[number].set_state(uid, ends[number])

    together([lambda number=number: end(number) for number in range(4)])
    state = registries[0].status(uid).state
    assert any(done.values())
    assert {ends[number] for number, it_is_so in done.items() if it_is_so} == {state}


def together(actions: list[Callable[[], object]]) -> None:
    """All at once, each in a thread of its own; a failure of one is raised here."""
    barrier, failures = threading.Barrier(len(actions)), []

    def act(action: Callable[[], object]) -> None:
        try:
            barrier.wait(timeout=5)
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=act, args=[action]) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert failures == []


def test_two_jobs_publish_their_tables_under_different_versions(server: EtcdServer, etcd: Coordination) -> None:
    published: list[RoutingTable] = []

    def publish(job: str) -> None:
        with server.connect(etcd.prefix) as connection:
            registry = Registry(connection, LEASE_SECONDS)
            published.extend(registry.publish_routing(job, RANKS) for _ in range(5))

    together([lambda: publish("job-1"), lambda: publish("job-2")])
    assert sorted(table.version for table in published) == list(range(1, 11))
    registry = Registry(etcd, LEASE_SECONDS)
    for table in published:
        assert registry.routing(table.version) == table
    latest = registry.latest_routing()
    assert latest is not None
    assert latest.version == 10, "versions are numbers, not texts"
    with pytest.raises(CoordinationError, match="no routing table of version 11"):
        registry.routing(11)


def test_there_is_no_table_before_the_first(registry: Registry) -> None:
    assert registry.latest_routing() is None


def test_a_new_table_is_seen_by_those_who_watch(registry: Registry) -> None:
    seen: list[RoutingTable] = []
    first = registry.publish_routing("job-1", RANKS)
    watch = registry.watch_routing(seen.append)
    second = registry.publish_routing("job-2", RANKS[:1])
    until(lambda: len(seen) == 2)
    assert seen == [first, second]
    watch.close()


def test_the_news_of_a_scan_reach_those_who_watch(registry: Registry) -> None:
    record, other = announced(registry), announced(registry)
    one, all_scans = Picture(), Picture()
    watches = [registry.watch_scan(record.uid, one), registry.watch_scans(all_scans)]
    thresholds = Thresholds(background=1.0, xray=2.0, calibrated=True)
    registry.set_state(record.uid, ScanState.STREAMING)
    registry.write_thresholds(record.uid, thresholds)
    registry.write_end(record.uid, end_of(3))
    registry.write_fault(record.uid, "producer-1", ScanFailed("no disk", "buy one"))
    registry.request_abort(record.uid, "by the user")
    registry.write_summary(record.uid, summary_of(record))
    until(lambda: "summary" in one.values)
    assert set(one.values) == {"record", "state", "thresholds", "ends/3", "faults/producer-1", "abort", "summary"}
    assert one.values["faults/producer-1"] == {"message": "no disk", "remedy": "buy one"}
    assert one.values["abort"] == {"reason": "by the user"}
    assert Thresholds.model_validate(one.values["thresholds"]) == thresholds
    assert registry.summary(record.uid) == summary_of(record)
    until(lambda: f"{record.uid}/summary" in all_scans.values)
    assert f"{other.uid}/record" in all_scans.values
    assert registry.summary(other.uid) is None
    for watch in watches:
        watch.close()


def test_facts_of_a_scan_are_written_once(etcd: Coordination, registry: Registry) -> None:
    record = announced(registry)
    first = end_of(3)
    registry.write_end(record.uid, first)
    registry.write_end(record.uid, first.model_copy(update={"records": 0}))
    assert etcd.get(f"scans/{record.uid}/ends/3") == first.model_dump(mode="json")


def test_progress_is_empty_before_the_first(registry: Registry) -> None:
    uid = announced(registry).uid
    assert registry.progress(uid) == {}
    registry.write_progress(uid, {"frames": 3})
    assert registry.progress(uid) == {"frames": 3}


def test_a_job_is_asked_to_stop(registry: Registry) -> None:
    picture = Picture()
    watch = registry.watch_job("job-1", picture)
    registry.request_stop("job-2")
    registry.request_stop("job-1")
    until(lambda: picture.values)
    assert list(picture.values) == ["stop"]
    watch.close()


def test_the_client_of_a_parent_goes_on_after_a_fork(etcd: Coordination) -> None:
    etcd.put("key", 1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert etcd.get("key") == 1
