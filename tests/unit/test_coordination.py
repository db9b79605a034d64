"""Coordination against a real etcd, which is killed and started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import etcd3.etcdrpc as etcdrpc
import grpc
import pytest

from mpistream.control.coordination import Change, Coordination, Registration
from mpistream.control.etcd_client import WatchStream
from mpistream.control.process_identity import this_process
from mpistream.model.errors import CoordinationError, EtcdRefuses, EtcdUnreachable
from tests.etcd_server import EtcdServer
from tests.unit.etcd_members import EtcdMembers
from tests.unit.picture import Picture, until

LEASE_SECONDS = 2


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


def test_a_value_that_is_no_json_is_refused_alone_and_skipped_among_others(
    server: EtcdServer, etcd: Coordination, caplog: pytest.LogCaptureFixture
) -> None:
    etcd.put("scans/1", "good")
    server.etcdctl("put", etcd.prefix + "scans/2", "by hand")
    with pytest.raises(CoordinationError, match="scans/2 in etcd holds no JSON") as caught:
        etcd.get("scans/2")
    assert not isinstance(caught.value, EtcdUnreachable)
    assert caught.value.remedy
    assert etcd.get_prefix("scans/") == {"1": "good"}
    assert f"ignored {etcd.prefix}scans/2" in caplog.text


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
            lambda: nowhere.write_while("guard", 1, "key", 2),
            lambda: nowhere.write_while("guard", 1, "key", 2, expected=3),
            lambda: nowhere.delete("key"),
            lambda: nowhere.delete_if("key", 1),
            lambda: nowhere.delete_prefix("key"),
            lambda: nowhere.take_role("key", 1, LEASE_SECONDS, on_lost=list),
            lambda: nowhere.register("key", 1, LEASE_SECONDS),
            lambda: nowhere.watch("key", print),
        ]
        for call in calls:
            started = time.monotonic()
            with pytest.raises(EtcdUnreachable, match=f"no etcd reachable at {endpoint}") as caught:
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


# an etcd that answers, and refuses


class Refusal(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """As gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        self._code, self._words = code, words

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._words


Code = grpc.StatusCode
REFUSED, AWAY, WRONG = EtcdRefuses, EtcdUnreachable, CoordinationError


@pytest.mark.parametrize(
    ("code", "words", "kind", "remedy"),
    [
        (Code.UNAVAILABLE, "etcdserver: no leader", AWAY, "most of etcd's members"),
        (Code.UNAVAILABLE, "etcdserver: request timed out", AWAY, "most of etcd's members"),
        (Code.UNAVAILABLE, "failed to connect to all addresses", AWAY, "start etcd there"),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", AWAY, "start etcd there"),
        (Code.CANCELLED, "Channel closed!", AWAY, "start etcd there"),
        (Code.UNKNOWN, "Stream removed", AWAY, "start etcd there"),
        (Code.INTERNAL, "Received RST_STREAM with error code 2", AWAY, "start etcd there"),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", REFUSED, "etcdctl alarm disarm"),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", REFUSED, "log of etcd"),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", REFUSED, "etcdctl auth disable"),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", REFUSED, "etcdctl auth disable"),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", REFUSED, "log of etcd"),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", WRONG, "--max-request-bytes"),
        (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (9 vs. 8)", WRONG, "--max-request-bytes"),
        (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", WRONG, "do not fit"),
    ],
)
def test_what_etcd_says_decides_whether_it_is_asked_again(
    code: grpc.StatusCode, words: str, kind: type[CoordinationError], remedy: str
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise Refusal(code, words)

    with Coordination(["127.0.0.1:1"], "/test/", timeout_seconds=0.25) as etcd:
        etcd._client.kvstub.Put = etcd._client.kvstub.Txn = fail
        for call in (lambda: etcd.put("key", 1), lambda: etcd.create("key", 1)):
            with pytest.raises(CoordinationError) as caught:
                call()
            assert type(caught.value) is kind
            assert remedy in caught.value.remedy
            assert "127.0.0.1:1" in caught.value.message
            if words.startswith("etcdserver"):
                assert words in caught.value.message


def test_a_mistake_of_the_caller_is_no_absence_of_etcd(etcd: Coordination) -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="Circular"):
        etcd.put("key", endless)


def test_a_closed_connection_reaches_nothing(server: EtcdServer) -> None:
    etcd = server.connect()
    etcd.close()
    with pytest.raises(EtcdUnreachable):
        etcd.get("key")
    with pytest.raises(EtcdUnreachable):
        etcd.open_watch_stream("key", 1)


@pytest.mark.parametrize("megabytes", [1.8, 8])
def test_what_is_too_large_is_refused_for_good(etcd: Coordination, megabytes: float) -> None:
    """The first by etcd, the second by the gRPC in front of it."""
    with pytest.raises(CoordinationError, match=r"larger than max|too large") as caught:
        etcd.put("key", "x" * int(megabytes * 2**20))
    assert not isinstance(caught.value, EtcdUnreachable)
    assert "--max-request-bytes" in caught.value.remedy


def test_an_etcd_without_space_takes_a_write_once_it_has_some(tmp_path: Path) -> None:
    members = EtcdMembers(tmp_path, 1, ("--quota-backend-bytes", str(2**20)))
    with (
        members.running(),
        Coordination(members.endpoints, "/test/", timeout_seconds=5.0) as etcd,
        closing(etcd.register("producers/1", mine(table=0), LEASE_SECONDS)) as registration,
    ):

        def fill() -> None:
            for _ in range(100):
                etcd.put("key", "x" * 2**17)

        with pytest.raises(EtcdRefuses, match="database space exceeded") as caught:
            fill()
        assert isinstance(caught.value, EtcdUnreachable), "whoever waits for etcd waits for space"
        assert "etcdctl alarm disarm" in caught.value.remedy
        with pytest.raises(EtcdRefuses):
            registration.update(mine(table=3))
        time.sleep(1.5 * LEASE_SECONDS)
        assert etcd.get("producers/1") == mine(table=0), "leases live on"
        (status,) = json.loads(members.etcdctl("endpoint", "status", "--write-out=json"))
        members.etcdctl("compact", str(status["Status"]["header"]["revision"]))
        members.etcdctl("defrag")
        members.etcdctl("alarm", "disarm")
        until(lambda: etcd.get("producers/1") == mine(table=3), seconds=LEASE_SECONDS + 2)
        etcd.put("key", 1)


def test_an_etcd_that_wants_a_password_says_so(tmp_path: Path) -> None:
    members = EtcdMembers(tmp_path, 1)
    with members.running(), Coordination(members.endpoints, "/test/", timeout_seconds=5.0) as etcd:
        members.etcdctl("user", "add", "root:root")
        members.etcdctl("user", "grant-role", "root", "root")
        members.etcdctl("auth", "enable")
        for call in (lambda: etcd.get("key"), lambda: etcd.put("key", 1)):
            with pytest.raises(EtcdRefuses, match="etcdserver") as caught:
                call()
            assert "etcdctl auth disable" in caught.value.remedy


# members that are cut off from the others


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    three = EtcdMembers(tmp_path_factory.mktemp("members"), 3)
    with three.running():
        yield three


@contextmanager
def only_the_first_left(members: EtcdMembers) -> Iterator[None]:
    """It cannot do anything alone, but keeps its connections."""
    members.stop(1)
    members.stop(2)
    try:
        yield
    finally:
        members.go_on(1)
        members.go_on(2)


def test_a_watch_on_a_member_that_is_cut_off_notices_and_misses_nothing(
    members: EtcdMembers, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = f"/{uuid4()}/"
    with (
        Coordination(members.endpoints, prefix, timeout_seconds=1.0) as etcd,
        Coordination(members.endpoints[1:], prefix, timeout_seconds=5.0) as others,
    ):
        until(lambda: answers(others))
        others.put("scans/1", "before")
        picture = Picture()
        with closing(etcd.watch("scans/", picture)):
            until(lambda: picture.values == {"1": "before"})
            with only_the_first_left(members):
                until(lambda: "lost the watch on scans/" in caplog.text, seconds=15)
            until(lambda: answers(others), seconds=15)
            until(lambda: writes(others, "scans/2", "after"), seconds=15)
            until(lambda: picture.values == {"1": "before", "2": "after"}, seconds=20)


def writes(etcd: Coordination, key: str, value: object) -> bool:
    try:
        etcd.put(key, value)
    except EtcdUnreachable:
        return False
    return True


def test_everything_moves_from_a_member_that_is_cut_off_to_the_next_endpoint(
    members: EtcdMembers, server: EtcdServer
) -> None:
    """The test's other etcd stands for the members that still have one another."""
    prefix = f"/{uuid4()}/"
    with (
        Coordination([members.endpoints[0], server.endpoint], prefix, timeout_seconds=1.0) as etcd,
        server.connect(prefix) as elsewhere,
    ):
        until(lambda: writes(etcd, "scans/1", "here"))
        assert elsewhere.get("scans/1") is None
        elsewhere.put("scans/2", "there")
        picture = Picture()
        with closing(etcd.watch("scans/", picture)), closing(etcd.register("producers/1", mine(), LEASE_SECONDS)):
            assert picture.values == {"1": "here"}
            with only_the_first_left(members):
                until(lambda: picture.values == {"2": "there"}, seconds=20)
                until(lambda: writes(etcd, "scans/3", "there"), seconds=10)
                assert elsewhere.get("scans/3") == "there"
                until(lambda: elsewhere.get("producers/1") == mine(), seconds=10)


# leases


def test_a_registration_outlives_its_lease_and_ends_at_once_when_it_is_closed(etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    assert etcd.get("producers/1") == {"pid": 7}
    time.sleep(1.5 * LEASE_SECONDS)
    assert etcd.get("producers/1") == {"pid": 7}
    registration.close()
    assert etcd.get("producers/1") is None


def test_a_registration_disappears_with_its_process_for_the_next_one(server: EtcdServer, etcd: Coordination) -> None:
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
        started = time.monotonic()
        successor = etcd.register("producers/1", {"pid": 8}, LEASE_SECONDS)
        assert time.monotonic() - started < LEASE_SECONDS + 2
        assert etcd.get("producers/1") == {"pid": 8}
        successor.close()


def test_a_key_that_a_living_process_holds_is_refused(etcd: Coordination) -> None:
    registration = etcd.register("aggregators/a", {"pid": 7, "host": "edge"}, LEASE_SECONDS)
    with pytest.raises(CoordinationError, match="aggregators/a is already there, served by pid 7 on edge"):
        etcd.register("aggregators/a", {"pid": 8, "host": "edge"}, LEASE_SECONDS)
    assert etcd.get("aggregators/a") == {"pid": 7, "host": "edge"}
    registration.close()


def revoke_lease(server: EtcdServer, etcd: Coordination, key: str) -> None:
    stored = json.loads(server.etcdctl("get", etcd.prefix + key, "--write-out=json"))
    server.etcdctl("lease", "revoke", f"{stored['kvs'][0]['lease']:x}")


def test_a_registration_whose_lease_was_revoked_is_written_again(server: EtcdServer, etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    revoke_lease(server, etcd, "producers/1")
    assert etcd.get("producers/1") is None
    until(lambda: etcd.get("producers/1") == {"pid": 7}, seconds=LEASE_SECONDS + 3)
    registration.close()
    assert etcd.get("producers/1") is None


def test_a_registration_is_tried_again_until_the_key_is_there(server: EtcdServer, etcd: Coordination) -> None:
    """etcd may be lost again between the new lease and the key."""
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    create, failures = registration._client.create_leased, []

    def fail_twice(*arguments: Any) -> bool:
        if len(failures) < 2:
            failures.append(1)
            raise EtcdUnreachable("no etcd reachable")
        return create(*arguments)

    registration._client.create_leased = fail_twice  # type: ignore[method-assign]
    revoke_lease(server, etcd, "producers/1")
    until(lambda: etcd.get("producers/1") == {"pid": 7}, seconds=3 * LEASE_SECONDS + 3)
    assert len(failures) == 2
    registration.close()


def test_a_registration_whose_answer_was_lost_is_its_own(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was written, though nobody said so: it must not take itself for another process."""
    registration = etcd.register("producers/1", {"pid": 7, "host": "edge"}, LEASE_SECONDS)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    create, failures = registration._client.create_leased, []

    def answer_the_second_time(*arguments: Any) -> bool:
        written = create(*arguments)
        if not failures:
            failures.append(1)
            raise EtcdUnreachable("no etcd reachable")
        return written

    registration._client.create_leased = answer_the_second_time  # type: ignore[method-assign]
    revoke_lease(server, etcd, "producers/1")
    until(lambda: failures, seconds=LEASE_SECONDS + 3)
    time.sleep(2 * LEASE_SECONDS + 2.5)
    assert etcd.get("producers/1") == {"pid": 7, "host": "edge"}
    assert killed == []
    registration.close()
    assert etcd.get("producers/1") is None


def test_a_process_whose_key_another_one_has_taken_ends(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    registration = etcd.register("producers/1", {"pid": 7, "host": "edge"}, LEASE_SECONDS)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    revoke_lease(server, etcd, "producers/1")
    etcd.put("producers/1", {"pid": 8, "host": "edge"})
    until(lambda: killed, seconds=2 * LEASE_SECONDS + 5)
    assert killed == [(os.getpid(), signal.SIGTERM)]
    registration.close()
    assert etcd.get("producers/1") == {"pid": 8, "host": "edge"}


def test_a_key_that_another_process_takes_meanwhile_is_not_overwritten(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own old key runs out, and another process has it, just after it was seen."""
    other = {"pid": 8, "host": "edge", "process": "another machine's"}
    etcd.put("producers/1", mine())
    get = Coordination.get

    def see_the_old_one(client: Coordination, key: str) -> Any:
        seen = get(client, key)
        etcd.put(key, other)
        return seen

    monkeypatch.setattr(Coordination, "get", see_the_old_one)
    assert etcd.take_role("producers/1", mine(), LEASE_SECONDS, on_lost=list) is None
    monkeypatch.undo()
    assert etcd.get("producers/1") == other


# guarded writes


GUARD = {"job": "job-1"}


def test_a_guarded_write_makes_a_key_only_where_there_is_none(etcd: Coordination) -> None:
    etcd.put("conductor", GUARD)
    assert etcd.write_while("conductor", GUARD, "routing/1", {"version": 1})
    assert not etcd.write_while("conductor", GUARD, "routing/1", {"version": 2})
    assert etcd.get("routing/1") == {"version": 1}


def test_a_guarded_write_replaces_only_what_is_expected(etcd: Coordination) -> None:
    etcd.put("conductor", GUARD)
    assert not etcd.write_while("conductor", GUARD, "state", "b", expected="a")
    assert etcd.get("state") is None
    etcd.put("state", {"y": 1, "x": 2})
    assert not etcd.write_while("conductor", GUARD, "state", "b", expected={"y": 1})
    assert etcd.write_while("conductor", GUARD, "state", None, expected={"x": 2, "y": 1})
    assert etcd.write_while("conductor", GUARD, "state", "c", expected=None), "null is a value"
    assert etcd.get("state") == "c"


def test_without_its_guard_nothing_is_written(etcd: Coordination) -> None:
    etcd.put("state", "a")
    for guarding in (None, {"job": "job-2"}, [GUARD]):
        if guarding is not None:
            etcd.put("conductor", guarding)
        assert not etcd.write_while("conductor", GUARD, "state", "b", expected="a")
        assert not etcd.write_while("conductor", GUARD, "new", "b")
    assert etcd.get_prefix("") == {"state": "a", "conductor": [GUARD]}


def test_a_guard_goes_with_its_lease(server: EtcdServer, etcd: Coordination) -> None:
    role = etcd.take_role("conductor", GUARD, LEASE_SECONDS, on_lost=list)
    assert role is not None
    assert etcd.write_while("conductor", role.value, "state", 1)
    role.close()
    assert not etcd.write_while("conductor", role.value, "state", 2, expected=1)


def test_a_key_is_deleted_only_where_the_expected_value_stands(etcd: Coordination) -> None:
    assert not etcd.delete_if("key", 1)
    etcd.put("key", {"a": 1, "b": 2})
    assert not etcd.delete_if("key", {"a": 1})
    assert etcd.delete_if("key", {"b": 2, "a": 1})
    assert etcd.get("key") is None


def test_everything_below_a_prefix_is_deleted(etcd: Coordination) -> None:
    for key in ("shares/a", "shares/b", "share"):
        etcd.put(key, key)
    etcd.delete_prefix("shares/")
    assert etcd.get_prefix("") == {"share": "share"}


# roles


@contextmanager
def holder(server: EtcdServer, prefix: str, action: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which does ``action`` in etcd and then waits."""
    code = (
        "import sys, time\n"
        "from mpistream.control.coordination import Coordination\n"
        "from mpistream.control.process_identity import this_process\n"
        "etcd = Coordination([sys.argv[1]], sys.argv[2], 5.0)\n"
        "value = {'pid': 7, 'host': 'edge', 'process': this_process()}\n"
        f"held = etcd.{action}\n"
        "print('held' if held else 'refused', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, server.endpoint, prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


TAKE_CONDUCTOR = "take_role('conductor', value, 30, on_lost=list)"


def mine(**more: object) -> dict[str, object]:
    return {"pid": os.getpid(), "host": "edge", "process": this_process(), **more}


def test_a_role_is_taken_by_one(server: EtcdServer, etcd: Coordination) -> None:
    with holder(server, etcd.prefix, TAKE_CONDUCTOR):
        started = time.monotonic()
        assert etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list) is None
        assert time.monotonic() - started < 1, "nobody waits for a role"
        assert etcd.get("conductor")["pid"] == 7


def test_a_role_that_nobody_takes_leaves_no_thread(etcd: Coordination) -> None:
    etcd.put("conductor", "somebody")
    threads = threading.active_count()
    for _ in range(5):
        assert etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list) is None
    until(lambda: threading.active_count() <= threads + 1)


def test_the_role_of_a_process_that_was_killed_is_taken_over_at_once(server: EtcdServer, etcd: Coordination) -> None:
    """Long before its lease runs out."""
    with holder(server, etcd.prefix, TAKE_CONDUCTOR) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)
        started = time.monotonic()
        role = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list)
        assert time.monotonic() - started < 1
        assert role is not None
        assert etcd.get("conductor") == mine() == role.value
        role.close()
        assert etcd.get("conductor") is None


def test_the_role_of_a_process_that_was_stopped_is_taken_when_its_lease_has_run_out(
    server: EtcdServer, etcd: Coordination
) -> None:
    action = f"take_role('conductor', value, {LEASE_SECONDS}, on_lost=lambda: print('lost', flush=True))"
    with holder(server, etcd.prefix, action) as process:
        process.send_signal(signal.SIGSTOP)
        assert etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list) is None
        roles: list[Registration] = []

        def take() -> bool:
            role = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list)
            roles.extend([role] if role else [])
            return bool(roles)

        until(take, seconds=LEASE_SECONDS + 3)
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert process.stdout.readline() == "lost\n", "it notices when it goes on"
        assert etcd.get("conductor") == mine()
        roles[0].close()


def test_a_role_that_was_lost_to_another_process_is_told_once(server: EtcdServer, etcd: Coordination) -> None:
    lost: list[str] = []
    role = etcd.take_role(
        "conductor", mine(), LEASE_SECONDS, on_lost=lambda: lost.append(threading.current_thread().name)
    )
    assert role is not None
    revoke_lease(server, etcd, "conductor")
    etcd.put("conductor", {"pid": 8, "process": "another machine's"})
    until(lambda: lost, seconds=LEASE_SECONDS + 3)
    time.sleep(LEASE_SECONDS)
    assert lost == ["lease conductor"]
    role.close()
    assert etcd.get("conductor") == {"pid": 8, "process": "another machine's"}


def test_a_role_whose_lease_ran_out_is_lost_though_nobody_took_it(server: EtcdServer, etcd: Coordination) -> None:
    """Somebody may have had it meanwhile."""
    lost: list[int] = []
    role = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=lambda: lost.append(1))
    assert role is not None
    revoke_lease(server, etcd, "conductor")
    until(lambda: lost, seconds=LEASE_SECONDS + 3)
    assert etcd.get("conductor") is None
    role.close()
    again = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=lambda: lost.append(2))
    assert again is not None
    again.close()
    assert lost == [1]


# registrations of processes that are known to be dead, or that change


def test_the_key_of_a_process_that_was_killed_is_taken_over_at_once(server: EtcdServer, etcd: Coordination) -> None:
    with holder(server, etcd.prefix, "register('producers/1', value, 30)") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)
        started = time.monotonic()
        successor = etcd.register("producers/1", mine(), LEASE_SECONDS)
        assert time.monotonic() - started < 1
        assert etcd.get("producers/1") == mine()
        time.sleep(1.5 * LEASE_SECONDS)
        assert etcd.get("producers/1") == mine(), "the old lease no longer holds the key"
        successor.close()


def test_a_registration_is_updated(etcd: Coordination) -> None:
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    registration.update(mine(table=3))
    assert etcd.get("producers/1") == mine(table=3) == registration.value
    time.sleep(1.5 * LEASE_SECONDS)
    assert etcd.get("producers/1") == mine(table=3)
    registration.close()
    assert etcd.get("producers/1") is None


def test_an_update_outlives_a_lost_lease(server: EtcdServer, etcd: Coordination) -> None:
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    registration.update(mine(table=3))
    revoke_lease(server, etcd, "producers/1")
    until(lambda: etcd.get("producers/1") == mine(table=3), seconds=LEASE_SECONDS + 3)
    registration.update(mine(table=4))
    assert etcd.get("producers/1") == mine(table=4)
    registration.close()


def test_an_update_outlives_etcd_and_its_data(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server, server.connect(timeout_seconds=1.0) as etcd:
        registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
        server.kill()
        with pytest.raises(EtcdUnreachable):
            registration.update(mine(table=3))
        shutil.rmtree(tmp_path / "data")
        server.start()
        until(lambda: answers(etcd) and etcd.get("producers/1") == mine(table=3), seconds=20)
        registration.close()


def test_an_update_that_etcd_did_not_take_is_written_later(etcd: Coordination) -> None:
    """Though the lease has never run out."""
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    replace = registration._client.replace

    def refuse(*arguments: Any) -> None:
        registration._client.replace = replace  # type: ignore[method-assign]
        raise EtcdUnreachable("no etcd reachable")

    registration._client.replace = refuse  # type: ignore[method-assign]
    with pytest.raises(EtcdUnreachable):
        registration.update(mine(table=3))
    with closing(registration):
        until(lambda: etcd.get("producers/1") == mine(table=3), seconds=LEASE_SECONDS + 2)


def test_an_update_does_not_take_the_key_from_another_process(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was stopped for longer than its lease, and goes on."""
    monkeypatch.setattr(os, "kill", lambda *arguments: None)
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    revoke_lease(server, etcd, "producers/1")
    other = {"pid": 8, "host": "edge", "process": "another machine's", "table": 9}
    etcd.put("producers/1", other)
    deadline = time.monotonic() + LEASE_SECONDS + 1
    with closing(registration):
        while time.monotonic() < deadline:
            with suppress(EtcdUnreachable):
                registration.update(mine(table=5))
            assert etcd.get("producers/1") == other
            time.sleep(0.05)
    assert etcd.get("producers/1") == other


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


def test_a_watch_skips_values_that_are_no_json(
    server: EtcdServer, etcd: Coordination, caplog: pytest.LogCaptureFixture
) -> None:
    server.etcdctl("put", etcd.prefix + "scans/1", "by hand")
    changes: list[Change] = []
    watch = etcd.watch("scans/", changes.append)
    server.etcdctl("put", etcd.prefix + "scans/2", "by hand")
    etcd.put("scans/3", "good")
    until(lambda: ("3", "good") in changes)
    assert [change for change in changes if change[1] is not None] == [("3", "good")]
    for number in (1, 2):
        assert f"ignored {etcd.prefix}scans/{number}" in caplog.text
    watch.close()


def test_a_watch_goes_on_after_a_change_that_its_listener_cannot_take(
    etcd: Coordination, caplog: pytest.LogCaptureFixture
) -> None:
    etcd.put("scans/1", "bad")
    heard: list[str] = []

    def listen(change: Change) -> None:
        if change[1] == "bad":
            raise KeyError(change[0])
        heard.append(change[0])

    watch = etcd.watch("scans/", listen)
    etcd.put("scans/2", "bad")
    etcd.put("scans/3", "good")
    until(lambda: heard == ["3"])
    assert caplog.text.count("ignored a change of scans/") == 2
    watch.close()


def test_a_watch_may_be_closed_as_soon_as_it_is_opened(etcd: Coordination) -> None:
    for _ in range(20):
        watch = etcd.watch("scans/", print)
        started = time.monotonic()
        watch.close()
        assert time.monotonic() - started < 2


def test_a_watch_that_etcd_refuses_from_the_start_is_over() -> None:
    class Stub:
        def Watch(self, *arguments: object, **more: object) -> Iterator[etcdrpc.WatchResponse]:
            yield etcdrpc.WatchResponse(created=True, canceled=True, cancel_reason="etcdserver: permission denied")
            pytest.fail("nothing more ever comes")

    assert list(WatchStream(Stub(), etcdrpc.WatchRequest(), 0)) == []


def test_a_watch_that_cannot_list_leaves_no_connection(etcd: Coordination, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Coordination] = []
    closed: list[Coordination] = []
    sibling, close = Coordination.sibling, Coordination.close

    def open_one(client: Coordination, *arguments: Any) -> Coordination:
        opened.append(sibling(client, *arguments))
        return opened[-1]

    def close_one(client: Coordination) -> None:
        closed.append(client)
        close(client)

    def fail(client: Coordination, key: str) -> None:
        raise EtcdUnreachable("no etcd reachable")

    monkeypatch.setattr(Coordination, "sibling", open_one)
    monkeypatch.setattr(Coordination, "close", close_one)
    monkeypatch.setattr(Coordination, "snapshot", fail)
    with pytest.raises(EtcdUnreachable):
        etcd.watch("scans/", print)
    assert len(opened) == 1
    assert closed == opened


BREAKS = """
import sys, threading, time
from mpistream.control.coordination import Coordination
def break_down(*arguments):
    if threading.current_thread() is not threading.main_thread():
        raise KeyError("a mistake")
with Coordination([sys.argv[1]], sys.argv[2], 5.0) as etcd:
    if sys.argv[3] == "watch":
        Coordination.open_watch_stream = break_down
        etcd.watch("scans/", print)
    else:
        etcd.register("producers/1", {"pid": 7}, 1)
        Coordination.refresh_lease = break_down
    time.sleep(20)
print("it went on without the thread")
"""


@pytest.mark.parametrize(("what", "thread"), [("watch", "watch scans/"), ("registration", "lease producers/1")])
def test_a_process_ends_when_such_a_thread_meets_what_it_did_not_expect(
    server: EtcdServer, etcd: Coordination, what: str, thread: str
) -> None:
    command = [sys.executable, "-c", BREAKS, server.endpoint, etcd.prefix, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" in done.stderr
    assert (
        f"mpistream: error: this process ends, since its thread '{thread}' failed: KeyError('a mistake')" in done.stderr
    )


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


def test_the_client_of_a_parent_goes_on_after_a_fork(etcd: Coordination) -> None:
    etcd.put("key", 1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert etcd.get("key") == 1
