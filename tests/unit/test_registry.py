"""The registry against a real etcd."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from mpistream.control.coordination import Coordination, Registration
from mpistream.control.process_identity import this_process
from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry, Registry
from mpistream.control.run_state import ScanState
from mpistream.model.block_set import BlockSet
from mpistream.model.errors import CoordinationError, EtcdUnreachable, ScanFailed
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, SectorEnd, Thresholds
from tests.etcd_server import EtcdServer
from tests.unit.made_up_blocks import scan_record
from tests.unit.made_up_registry import LEASE_SECONDS, OtherProcess, RegistryOf
from tests.unit.picture import Picture, until
from tests.unit.registered import summary

RANKS = tuple(
    RankEndpoints(rank, 0, "node", 100 + rank, 5, f"tcp://a:{rank}", f"tcp://b:{rank}", "job-1") for rank in range(2)
)


@pytest.fixture
def registry(etcd: Coordination) -> Registry:
    return Registry(etcd, LEASE_SECONDS)


@pytest.fixture
def role(registry: Registry) -> Iterator[Registration]:
    role = conducting(registry)
    yield role
    role.close()


def conducting(registry: Registry, job: str = "job-1") -> Registration:
    role = registry.take_conductor(job, "node", 100, on_lost=list)
    assert role is not None
    return role


def announced(registry: Registry, **changes: object) -> ScanRecord:
    record = scan_record(uid=uuid4(), **changes)
    registry.announce(record)
    return record


def end_of(sector: int, **changes: Any) -> SectorEnd:
    return SectorEnd(
        sector=sector,
        producer_id=sector,
        blocks=2,
        records=8,
        digest=sector,
        sectors_duplicate=0,
        sectors_rejected=0,
        seconds_reading=0.5,
        seconds_sending=0.25,
    ).model_copy(update=changes)


class AnswerLost:
    """etcd carries out the next call of a method, though its answer never comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, etcd: Coordination, method: str) -> None:
        self._original = getattr(etcd, method)
        self._lost = False
        monkeypatch.setattr(etcd, method, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        result = self._original(*arguments, **named)
        if not self._lost:
            self._lost = True
            raise EtcdUnreachable("no etcd reachable")
        return result


# processes


def test_registered_processes_are_found_until_they_leave(registry: Registry) -> None:
    group = GroupEntry("job-1", 0, 1, "node", RANKS, this_process())
    producer = ProducerEntry(2, 2, "camera", 99, 5, process=this_process())
    aggregators = [
        AggregatorEntry(name, "edge", 7, f"tcp://{name}:1", f"tcp://{name}:2", 5, this_process()) for name in ("a", "b")
    ]
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


def test_a_producer_says_which_table_it_goes_by(registry: Registry) -> None:
    entry = ProducerEntry(2, 2, "camera", 99, 5)
    registration = registry.register_producer(entry)
    registry.update_producer(registration, ProducerEntry(2, 2, "camera", 99, 5, table=7))
    assert registry.producers() == [ProducerEntry(2, 2, "camera", 99, 5, 7, this_process())]
    registration.close()


def test_entries_of_other_releases_are_left_out(
    registry: Registry, etcd: Coordination, caplog: pytest.LogCaptureFixture
) -> None:
    etcd.put("producers/0", {"producer_id": 0, "sector": 0, "shoe_size": 43})
    etcd.put("groups/old/0", {"job": "old"})
    etcd.put("aggregators/x", 5)
    registration = registry.register_producer(ProducerEntry(1, 1, "camera", 99, 5))
    assert [producer.sector for producer in registry.producers()] == [1]
    assert (registry.groups(), registry.aggregators()) == ([], [])
    for key in ("producers/0", "groups/old/0", "aggregators/x"):
        assert f"ignored {key} in etcd" in caplog.text
    registration.close()


def test_who_comes_and_goes_is_noticed(registry: Registry) -> None:
    seen: list[str] = []
    watches = [
        registry.watch_groups(lambda: seen.append("groups")),
        registry.watch_producers(lambda: seen.append("producers")),
        registry.watch_aggregators(lambda: seen.append("aggregators")),
        registry.watch_conductor(lambda: seen.append("conductor")),
    ]
    registrations = [
        registry.register_group(GroupEntry("job-1", 0, 1, "node", RANKS)),
        registry.register_producer(ProducerEntry(2, 2, "camera", 99, 5)),
        registry.register_aggregator(AggregatorEntry("a", "edge", 7, "tcp://c:1", "tcp://c:2")),
        conducting(registry),
    ]
    for number, registration in enumerate(registrations):
        until(lambda number=number: len(seen) >= 4 + number)
        registration.close()
    until(lambda: len(seen) == 8)
    assert sorted(seen) == sorted(2 * ["groups", "producers", "aggregators", "conductor"])
    for watch in watches:
        watch.close()


# the job that conducts


def test_one_job_conducts(registry: Registry, etcd: Coordination) -> None:
    assert registry.conductor() is None
    role = conducting(registry)
    assert registry.conductor() == "job-1"
    with OtherProcess() as process:
        other = RegistryOf(etcd, process.identity)
        assert other.take_conductor("job-2", "node", 200, on_lost=list) is None
        role.close()
        second = other.take_conductor("job-2", "node", 200, on_lost=list)
        assert second is not None
        assert registry.conductor() == "job-2"
        assert registry.take_conductor("job-1", "node", 100, on_lost=list) is None
        process.kill()
        conducting(registry).close()
        second.close()


def test_tables_are_a_history_with_the_job_that_wrote_each(registry: Registry, role: Registration) -> None:
    assert registry.latest_routing() is None
    published = [registry.publish_routing(role, RANKS[: 1 + number % 2]) for number in range(11)]
    assert [table.version for table in published if table] == list(range(1, 12))
    for table in published:
        assert table is not None
        assert table.conducting == "job-1"
        assert registry.routing(table.version) == table
    assert registry.latest_routing() == published[-1], "versions are numbers, not texts"
    with pytest.raises(CoordinationError, match="no routing table of version 12"):
        registry.routing(12)


def test_a_job_that_conducts_no_longer_publishes_nothing(registry: Registry, etcd: Coordination) -> None:
    old = conducting(registry)
    old.close()
    assert registry.publish_routing(old, RANKS) is None
    with OtherProcess() as process:
        other = RegistryOf(etcd, process.identity)
        role = conducting(other, "job-2")
        table = other.publish_routing(role, RANKS)
        assert registry.publish_routing(old, RANKS) is None
        assert registry.latest_routing() == table
        role.close()


def test_a_table_whose_answer_was_lost_is_not_written_twice_in_one_attempt(
    registry: Registry, role: Registration, etcd: Coordination
) -> None:
    """etcd3 may repeat a request: its second answer says that the key was there already."""
    write = etcd.write_while

    def twice(*arguments: Any) -> bool:
        write(*arguments)
        return write(*arguments)

    etcd.write_while = twice  # type: ignore[method-assign]
    table = registry.publish_routing(role, RANKS)
    assert table is not None
    assert (table.version, registry.latest_routing()) == (1, table)


def test_a_new_table_is_seen_by_those_who_watch(registry: Registry, role: Registration) -> None:
    seen: list[RoutingTable] = []
    first = registry.publish_routing(role, RANKS)
    watch = registry.watch_routing(seen.append)
    second = registry.publish_routing(role, RANKS[:1])
    until(lambda: len(seen) == 2)
    assert seen == [first, second]
    watch.close()


def test_keys_that_are_no_versions_are_no_routing_tables(
    registry: Registry, role: Registration, etcd: Coordination
) -> None:
    etcd.put("routing/old", {})
    assert registry.latest_routing() is None
    table = registry.publish_routing(role, RANKS)
    assert table is not None
    assert (table.version, registry.latest_routing()) == (1, table)


# scans


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
    registry.announce(record)  # once more, since the answer did not come
    assert registry.status(record.uid).state is ScanState.STREAMING
    with pytest.raises(CoordinationError, match="was announced before"):
        registry.announce(record.model_copy(update={"scan_number": 99}))
    assert registry.record(record.uid) == record


def test_all_scans_in_the_order_of_their_last_changes(registry: Registry, etcd: Coordination) -> None:
    assert registry.scans() == {}
    etcd.put("scans/nonsense/state", {"state": "streaming"})
    etcd.put(f"scans/{uuid4()}/state", {"state": "unheard of"})
    uids = [announced(registry).uid for _ in range(3)]
    assert list(registry.scans()) == uids
    registry.set_state(uids[0], ScanState.STREAMING)
    found = registry.scans()
    assert list(found) == [uids[1], uids[2], uids[0]]
    assert found[uids[0]] == registry.status(uids[0])


def test_states_follow_each_other_and_the_first_end_holds(registry: Registry) -> None:
    uid = announced(registry).uid
    assert not registry.set_state(uid, ScanState.ASSEMBLING)
    assert not registry.set_state(uid, ScanState.COMMITTED)
    assert registry.status(uid).state is ScanState.ANNOUNCED
    assert registry.set_state(uid, ScanState.STREAMING)
    assert registry.set_state(uid, ScanState.FAILED, ScanFailed("the disk is full", "free some"))
    status = registry.status(uid)
    assert (status.state, status.reason, status.remedy) == (ScanState.FAILED, "the disk is full", "free some")
    assert abs(status.since_unix_seconds - time.time()) < 60
    assert not registry.set_state(uid, ScanState.ABORTED)
    assert not registry.set_state(uid, ScanState.DRAINING)
    assert not registry.set_state(uid, ScanState.FAILED, ScanFailed("something else"))
    assert not registry.set_state(uid, ScanState.ANNOUNCED)
    assert registry.status(uid) == status


def test_a_state_that_is_written_again_is_no_error(registry: Registry) -> None:
    """After a timeout nobody knows whether the first attempt was carried out."""
    uid = announced(registry).uid
    assert registry.set_state(uid, ScanState.STREAMING)
    status = registry.status(uid)
    assert registry.set_state(uid, ScanState.STREAMING)
    assert registry.status(uid) == status


def assembling(registry: Registry) -> UUID:
    uid = announced(registry).uid
    for state in (ScanState.STREAMING, ScanState.DRAINING, ScanState.ASSEMBLING):
        assert registry.set_state(uid, state)
    return uid


def test_a_scan_says_what_it_waits_for_in_the_state_it_is_in(registry: Registry) -> None:
    uid = assembling(registry)
    since = registry.status(uid).since_unix_seconds
    for error in (ScanFailed("the disk is full", "free some"), ScanFailed("the folder is gone", "make it"), None):
        assert registry.set_state(uid, ScanState.ASSEMBLING, error)
        status = registry.status(uid)
        assert (status.reason, status.remedy) == ((error.message, error.remedy) if error else ("", ""))
        assert (status.state, status.since_unix_seconds) == (ScanState.ASSEMBLING, since)
    assert registry.set_state(uid, ScanState.COMMITTED)
    assert registry.status(uid).reason == ""


def test_only_the_conducting_job_takes_a_scan_on(registry: Registry, etcd: Coordination, role: Registration) -> None:
    uid = announced(registry).uid
    assert registry.set_state(uid, ScanState.STREAMING, role=role)
    role.close()
    assert not registry.set_state(uid, ScanState.DRAINING, role=role)
    assert not registry.set_state(uid, ScanState.FAILED, ScanFailed("lost"), role)
    with OtherProcess() as process:
        other = conducting(RegistryOf(etcd, process.identity), "job-2")
        assert not registry.set_state(uid, ScanState.DRAINING, role=role)
        assert registry.status(uid).state is ScanState.STREAMING
        assert registry.set_state(uid, ScanState.DRAINING, role=other)
        other.close()
    assert registry.status(uid).state is ScanState.DRAINING


def test_a_state_that_changes_meanwhile_is_not_overwritten(
    registry: Registry, etcd: Coordination, role: Registration
) -> None:
    uid = announced(registry).uid
    status = registry.status

    def then_aborted(uid: UUID) -> Any:
        before = status(uid)
        registry.status = status  # type: ignore[method-assign]
        assert registry.set_state(uid, ScanState.ABORTED, ScanFailed("by the user"))
        return before

    for by in (None, role):
        registry.status = then_aborted  # type: ignore[method-assign]
        assert not registry.set_state(uid, ScanState.STREAMING, role=by)
        assert registry.status(uid).reason == "by the user"
        uid = announced(registry).uid


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


def test_the_news_of_a_scan_reach_those_who_watch(registry: Registry) -> None:
    record, other = announced(registry), announced(registry)
    one, all_scans = Picture(), Picture()
    watches = [registry.watch_scan(record.uid, one), registry.watch_scans(all_scans)]
    thresholds = Thresholds(background=1.0, xray=2.0, calibrated=True)
    registry.set_state(record.uid, ScanState.STREAMING)
    assert registry.write_thresholds(record.uid, thresholds) == thresholds
    registry.write_end(record.uid, end_of(3))
    registry.write_fault(record.uid, "job-1-rank-1", ScanFailed("no disk", "buy one"))
    registry.request_abort(record.uid, "by the user", keep=True)
    registry.redirect(record.uid, "/elsewhere/scan.h5")
    registry.write_share(record.uid, share(), None)
    registry.write_summary(record.uid, summary())
    until(lambda: "summary" in one.values)
    assert one.values.keys() == {
        *("record", "state", "thresholds", "ends/3", "faults/job-1-rank-1"),
        *("abort", "output", "shares/job-1", "summary"),
    }
    assert one.values["faults/job-1-rank-1"] == {"message": "no disk", "remedy": "buy one"}
    assert one.values["abort"] == {"reason": "by the user", "keep": True}
    assert one.values["output"] == {"output": "/elsewhere/scan.h5"}
    assert JobShare.from_json(one.values["shares/job-1"]) == share()
    assert Thresholds.model_validate(one.values["thresholds"]) == thresholds
    assert registry.summary(record.uid) == summary()
    until(lambda: f"{record.uid}/summary" in all_scans.values)
    assert f"{other.uid}/record" in all_scans.values
    assert registry.summary(other.uid) is None
    for watch in watches:
        watch.close()


def test_the_first_end_of_a_sector_holds_unless_it_is_cut(registry: Registry) -> None:
    uid = announced(registry).uid
    assert registry.ends(uid) == {}
    assert registry.write_end(uid, end_of(3))
    assert registry.write_end(uid, end_of(3)), "an attempt whose answer was lost"
    assert not registry.write_end(uid, end_of(3, records=0))
    cut = SectorEnd.cut_short(1, "gone")
    assert registry.write_end(uid, cut)
    assert not registry.write_end(uid, end_of(1))
    assert not registry.write_end(uid, SectorEnd.cut_short(1, "gone once more"))
    assert registry.ends(uid) == {1: cut, 3: end_of(3)}
    late = SectorEnd.cut_short(3, "it will not send again what is missing")
    assert registry.write_end(uid, late)
    assert registry.write_end(uid, late)
    assert not registry.write_end(uid, end_of(3))
    assert registry.ends(uid) == {1: cut, 3: late}


def test_thresholds_are_pinned_once(registry: Registry) -> None:
    uid = announced(registry).uid
    first, second = (Thresholds(background=number, xray=9.0, calibrated=True) for number in (1.0, 2.0))
    assert registry.write_thresholds(uid, first) == first
    assert registry.write_thresholds(uid, second) == first


# shares


def share(*blocks: int, job: str = "job-1", **changes: Any) -> JobShare:
    made = JobShare(
        job,
        BlockSet.of(range(1, 20), blocks),
        ready=True,
        journals=(JournalExtent(0, 5, "/journals/rank-0.journal", 36 + len(blocks)),),
        totals={"frames": 4 * len(blocks)},
    )
    return made.changed(**changes)


def test_a_job_replaces_its_own_share(registry: Registry) -> None:
    uid = announced(registry).uid
    assert registry.shares(uid) == {}
    assert registry.write_share(uid, share(), None)
    assert registry.write_share(uid, share(1, 2), share())
    assert registry.write_share(uid, share(3, job="job-2"), None)
    assert registry.shares(uid) == {"job-1": share(1, 2), "job-2": share(3, job="job-2")}
    assert not registry.write_share(uid, share(1, 2, 3), share(1))
    assert not registry.write_share(uid, share(9), None)
    assert registry.shares(uid)["job-1"] == share(1, 2)
    registry.delete_shares(uid)
    assert registry.shares(uid) == {}
    assert not registry.write_share(uid, share(1, 2, 3), share(1, 2)), "the scan has been tidied up"
    assert registry.shares(uid) == {}


def test_a_share_whose_answer_was_lost_is_written(
    registry: Registry, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = announced(registry).uid
    for method, before, after in (("create", None, share()), ("replace", share(), share(1, 2))):
        AnswerLost(monkeypatch, etcd, method)
        with pytest.raises(EtcdUnreachable):
            registry.write_share(uid, after, before)
        assert registry.write_share(uid, after, before)
        assert registry.shares(uid) == {"job-1": after}


def seal(registry: Registry, uid: UUID, sealed: JobShare, role: Registration) -> bool:
    before = registry.share_to_seal(uid, sealed.job)
    return before is not None and registry.seal_share(uid, sealed, before, role)


def test_a_sealed_share_is_the_last_word(registry: Registry, etcd: Coordination) -> None:
    """Whatever the job, taken for dead, still has to say."""
    uid = announced(registry).uid
    assert registry.write_share(uid, share(1, 2), None)
    with OtherProcess() as process:
        other = RegistryOf(etcd, process.identity)
        role = conducting(other, "job-2")
        sealed = share(1, 2, 3, sealed=True)
        assert seal(other, uid, sealed, role)
        assert other.share_to_seal(uid, "job-1") is None
        for late in (share(1, 2, 3, 4), sealed.changed(sealed=False)):
            assert not registry.write_share(uid, late, share(1, 2))
            assert not registry.write_share(uid, late, None)
        assert registry.shares(uid) == {"job-1": sealed}
        role.close()


def test_what_a_job_writes_meanwhile_keeps_it_from_being_sealed(registry: Registry, role: Registration) -> None:
    """Its journals hold more, then, than was seen in them: they are looked at once more."""
    uid = announced(registry).uid
    registry.write_share(uid, share(1, job="job-2"), None)
    before = registry.share_to_seal(uid, "job-2")
    registry.write_share(uid, share(1, 2, job="job-2"), share(1, job="job-2"))
    assert not registry.seal_share(uid, share(1, job="job-2", sealed=True), before, role)
    assert registry.shares(uid) == {"job-2": share(1, 2, job="job-2")}
    sealed = share(1, 2, job="job-2", sealed=True)
    assert seal(registry, uid, sealed, role)
    assert registry.shares(uid) == {"job-2": sealed}


def test_only_the_conducting_job_seals(registry: Registry, role: Registration) -> None:
    uid = announced(registry).uid
    registry.write_share(uid, share(1, job="job-2"), None)
    role.close()
    assert not seal(registry, uid, share(1, job="job-2", sealed=True), role)
    assert registry.shares(uid) == {"job-2": share(1, job="job-2")}


def test_a_share_that_is_gone_is_not_sealed(registry: Registry, role: Registration) -> None:
    uid = announced(registry).uid
    assert registry.share_to_seal(uid, "job-1") is None
    registry.write_share(uid, share(1), None)
    before = registry.share_to_seal(uid, "job-1")
    registry.delete_shares(uid)
    assert not registry.seal_share(uid, share(1, sealed=True), before, role)
    assert registry.shares(uid) == {}


# for people


def test_progress_is_empty_before_the_first(registry: Registry) -> None:
    uid = announced(registry).uid
    assert registry.progress(uid) == {}
    registry.write_progress(uid, {"frames": 3})
    assert registry.progress(uid) == {"frames": 3}


def test_what_processes_say_of_themselves(registry: Registry) -> None:
    assert registry.statuses("jobs") == {}
    registry.write_status("jobs", "job-1", {"ranks": []})
    registry.write_status("producers", "0", {"sent": 3})
    registry.write_status("producers", "0", {"sent": 4})
    jobs, producers = registry.statuses("jobs"), registry.statuses("producers")
    assert jobs.keys() == {"job-1"}
    assert jobs["job-1"]["ranks"] == []
    assert abs(producers["0"].pop("unix_seconds") - time.time()) < 60
    assert producers == {"0": {"sent": 4}}
    registry.delete_status("jobs", "job-1")
    assert registry.statuses("jobs") == {}


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
