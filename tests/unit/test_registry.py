"""The registry against a real etcd."""

import threading
import time
from collections.abc import Callable
from uuid import uuid4

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry, Registry
from mpistream.control.run_state import IllegalTransition, ScanState
from mpistream.model.errors import CoordinationError, ScanFailed
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, Thresholds
from tests.etcd_server import EtcdServer
from tests.unit.made_up_blocks import scan_record
from tests.unit.picture import Picture, until
from tests.unit.test_conductor import end_of, summary_of

LEASE_SECONDS = 2
RANKS = tuple(RankEndpoints(rank, 0, "node", 100 + rank, 5, f"tcp://a:{rank}", f"tcp://b:{rank}") for rank in range(2))


@pytest.fixture
def registry(etcd: Coordination) -> Registry:
    return Registry(etcd, LEASE_SECONDS)


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
    asked: list[str] = []
    watches = [registry.watch_stop(job, lambda job=job: asked.append(job)) for job in ("job-1", "job-2")]
    registry.request_stop("job-1")
    until(lambda: asked)
    assert asked == ["job-1"]
    late = registry.watch_stop("job-1", lambda: asked.append("late"))
    assert asked == ["job-1", "late"]
    for watch in (*watches, late):
        watch.close()


def test_keys_that_are_no_versions_are_no_routing_tables(registry: Registry, etcd: Coordination) -> None:
    etcd.put("routing/old", {})
    assert registry.latest_routing() is None
    table = registry.publish_routing("job-1", RANKS)
    assert (table.version, registry.latest_routing()) == (1, table)


def test_a_deployment_knows_whether_a_scan_streams(registry: Registry, etcd: Coordination) -> None:
    etcd.put("scans/nonsense/state", 5)
    etcd.put("scans/nonsense/record", "streaming")
    uid = announced(registry).uid
    assert not registry.is_streaming()
    registry.set_state(uid, ScanState.STREAMING)
    assert registry.is_streaming()
    registry.set_state(uid, ScanState.DRAINING)
    assert not registry.is_streaming()
