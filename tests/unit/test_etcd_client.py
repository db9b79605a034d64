"""Reads and writes against a real etcd: one that answers, refuses, is away, or is cut off from the others."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from mpistream.control.coordination import Coordination
from mpistream.model.errors import CoordinationError, EtcdRefuses, EtcdUnreachable
from tests.etcd_server import EtcdServer
from tests.unit.etcd_members import EtcdMembers
from tests.unit.etcd_values import answers, mine
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
