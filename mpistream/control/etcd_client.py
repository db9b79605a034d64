"""etcd: reads, writes, transactions, streams of changes.

The only module that knows etcd3. Values are JSON, so that ``etcdctl get --prefix`` shows what a person can read.
"""

import json
import logging
import queue
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import etcd3
import etcd3.etcdrpc as etcdrpc
import grpc
from etcd3.utils import increment_last_byte

from mpistream.model.errors import CoordinationError, EtcdRefuses, EtcdUnreachable

_log = logging.getLogger(__name__)

#: A server that stops answering (without closing the connection) is noticed by pings, not only by the next request.
#: etcd refuses clients that ping more often than every 5 s.
_GRPC_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),  # a listing of everything about a thousand scans has more than 4 MiB
    ("grpc.max_reconnect_backoff_ms", 2_000),  # otherwise two minutes after a long outage
]

#: A member that is cut off from the others then ends the watch, which it would otherwise keep open and silent.
_MEMBER_HAS_LEADER = (("hasleader", "true"),)

#: The connection is lost, or the answer did not come in time. INTERNAL and UNKNOWN are gRPC's own words for the former,
#: unless etcd says more.
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
_AWAY_IN_SILENCE = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
#: etcd will never do this.
_WRONG = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}
_TOO_LARGE = ("request is too large", "message larger than max")
_NO_SPACE = "database space exceeded"
_NO_ENTRY = ("permission denied", "user name is empty", "invalid auth token")

#: Instead of a value: no such key.
ABSENT = object()

#: What a watcher is told: the key below the prefix, and its value, or None when it was deleted.
Change = tuple[str, Any]


class EtcdClient:
    """A connection to etcd; all keys lie under ``prefix``. Every call ends within ``timeout_seconds``.

    Of several endpoints the first that can be reached is asked, and kept until it fails.
    """

    def __init__(self, endpoints: list[str], prefix: str, timeout_seconds: float) -> None:
        self.endpoints = endpoints
        self.prefix = prefix
        self.timeout_seconds = timeout_seconds
        #: gRPC takes no names where it is given several addresses
        self._addresses = {endpoint: _numeric(endpoint) for endpoint in endpoints} if len(endpoints) > 1 else {}
        self._lock = threading.Lock()  # over which endpoint is the first
        self._client = self._connect()

    def _connect(self) -> "etcd3.Etcd3Client":
        host, _, port = self.endpoints[0].rpartition(":")
        if len(self.endpoints) > 1:
            # gRPC's own notation for several addresses; etcd3 appends the last port.
            addresses = ",".join(self._addresses[endpoint] for endpoint in self.endpoints)
            host, _, port = f"ipv4:{addresses}".rpartition(":")
        return etcd3.client(host=host, port=int(port), timeout=self.timeout_seconds, grpc_options=_GRPC_OPTIONS)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raises EtcdUnreachable for what may succeed later, CoordinationError for what never will."""
        client = self._client
        try:
            yield
        except (grpc.RpcError, etcd3.exceptions.Etcd3Exception) as error:
            code, words = _answer(error)
            if code is grpc.StatusCode.DEADLINE_EXCEEDED or (code in _AWAY and words.startswith("etcdserver")):
                self._leave(client)
            raise _translation(code, words or str(error) or type(error).__name__, self._places) from error
        except ValueError as error:
            if "channel" not in str(error).lower():
                raise
            raise _away(str(error), self._places) from error  # ``close``, or ``_leave`` for another thread's call

    @property
    def _places(self) -> str:
        return ", ".join(sorted(self.endpoints))

    def _leave(self, client: "etcd3.Etcd3Client") -> None:
        """Goes on with the next endpoint: gRPC itself stays with a member that it is connected to, though that one be
        cut off from the others.
        """
        with self._lock:
            if client is not self._client or len(self.endpoints) == 1:
                return
            self.endpoints = _next_first(self.endpoints)
            self._client = self._connect()
        client.close()

    def check(self) -> str:
        """The server's version. Raises CoordinationError when none answers."""
        with self._translated():
            return str(self._client.status().version)

    def get(self, key: str) -> Any | None:
        with self._translated():
            value, _ = self._client.get(self.prefix + key)
        return None if value is None else _load(key, value)

    def get_prefix(self, key: str) -> dict[str, Any]:
        """All values below ``key``, by the rest of their keys."""
        return self.snapshot(key)[0]

    def snapshot(self, key: str) -> tuple[dict[str, Any], int]:
        with self._translated():
            response = self._client.get_prefix_response(self.prefix + key)
        start = len(self.prefix + key)
        values = {kv.key.decode(errors="replace")[start:]: _load_or_none(kv.key, kv.value) for kv in response.kvs}
        return {name: value for name, value in values.items() if value is not None}, response.header.revision

    def put(self, key: str, value: Any, lease: "etcd3.Lease | None" = None) -> None:
        with self._translated():
            self._client.put(self.prefix + key, as_text(value), lease=lease)

    def create(self, key: str, value: Any) -> bool:
        """Writes an immutable fact; False, and nothing written, if the key exists."""
        with self._translated():
            return bool(self._client.put_if_not_exists(self.prefix + key, as_text(value)))

    def create_all(
        self,
        values: Mapping[str, Any],
        without: Sequence[str] = (),
        beside: Sequence[str] = (),
        instead_of: Sequence[str] = (),
    ) -> bool:
        """As ``create`` for several keys at once: all are written, or, where one of them, or a key of ``without``,
        exists, none; nor where one of ``beside`` or ``instead_of`` does not. Those of ``instead_of`` are deleted.
        """
        conditions = self._client.transactions
        with self._translated():
            absent = [conditions.version(self.prefix + key) == 0 for key in (*values, *without)]
            there = [conditions.version(self.prefix + key) > 0 for key in (*beside, *instead_of)]
            writes = [conditions.put(self.prefix + key, as_text(value)) for key, value in values.items()]
            deletions = [conditions.delete(self.prefix + key) for key in instead_of]
            done = self._client.transaction(compare=absent + there, success=writes + deletions, failure=[])
            return bool(done[0])

    def replace(self, key: str, expected: Any, value: Any, lease: "etcd3.Lease | None" = None) -> bool:
        """Writes ``value`` only where ``expected`` stands; False otherwise."""
        conditions = self._client.transactions
        with self._translated():
            unchanged = conditions.value(self.prefix + key) == as_text(expected)
            write = conditions.put(self.prefix + key, as_text(value), lease)
            return bool(self._client.transaction(compare=[unchanged], success=[write], failure=[])[0])

    def write_while(self, guard: str, guarding: Any, key: str, value: Any, expected: Any = ABSENT) -> bool:
        """Writes only while ``guarding`` stands at ``guard``, and ``expected`` (ABSENT: nothing) at ``key``."""
        conditions = self._client.transactions
        with self._translated():
            unchanged = (
                conditions.version(self.prefix + key) == 0
                if expected is ABSENT
                else conditions.value(self.prefix + key) == as_text(expected)
            )
            guarded = conditions.value(self.prefix + guard) == as_text(guarding)
            write = conditions.put(self.prefix + key, as_text(value))
            return bool(self._client.transaction(compare=[guarded, unchanged], success=[write], failure=[])[0])

    def delete(self, key: str) -> None:
        with self._translated():
            self._client.delete(self.prefix + key)

    def delete_prefix(self, key: str) -> None:
        with self._translated():
            self._client.delete_prefix(self.prefix + key)

    def delete_if(self, key: str, expected: Any) -> bool:
        """Deletes a key only while ``expected`` stands there."""
        conditions = self._client.transactions
        with self._translated():
            unchanged = conditions.value(self.prefix + key) == as_text(expected)
            done = self._client.transaction(
                compare=[unchanged], success=[conditions.delete(self.prefix + key)], failure=[]
            )
            return bool(done[0])

    def grant_lease(self, seconds: int) -> "etcd3.Lease":
        with self._translated():
            return self._client.lease(seconds)

    def refresh_lease(self, lease: "etcd3.Lease") -> bool:
        """False where it has run out."""
        with self._translated():
            return any(answer.TTL > 0 for answer in self._client.refresh_lease(lease.id))

    def revoke_lease(self, lease: "etcd3.Lease") -> None:
        with self._translated():
            self._client.revoke_lease(lease.id)

    def create_leased(self, key: str, value: Any, lease: "etcd3.Lease") -> bool:
        """As ``create``, for as long as the lease lives."""
        with self._translated():
            return bool(self._client.put_if_not_exists(self.prefix + key, as_text(value), lease=lease))

    def open_watch_stream(self, key: str, start_revision: int) -> "WatchStream":
        """It ends where the member that it goes to is cut off from the others."""
        full = (self.prefix + key).encode()
        request = etcdrpc.WatchRequest(
            create_request=etcdrpc.WatchCreateRequest(
                key=full, range_end=increment_last_byte(full), start_revision=start_revision
            )
        )
        with self._translated():
            return WatchStream(etcdrpc.WatchStub(self._client.channel), request, len(full))

    def sibling(self, elsewhere: bool = False) -> Self:
        """Another connection to the same etcd: a broken one is closed without disturbing the others.

        ``elsewhere``: to the next of several endpoints.
        """
        endpoints = _next_first(self.endpoints) if elsewhere else self.endpoints
        return type(self)(endpoints, self.prefix, self.timeout_seconds)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _numeric(endpoint: str) -> str:
    """``host:port`` with the host's IPv4 address."""
    host, _, port = endpoint.rpartition(":")
    try:
        return f"{socket.gethostbyname(host)}:{port}"
    except OSError as error:
        raise CoordinationError(f"{host} in [etcd] endpoints has no address: {error}", "correct the name") from error


def _next_first(endpoints: list[str]) -> list[str]:
    return [*endpoints[1:], endpoints[0]]


def _answer(error: BaseException) -> tuple[grpc.StatusCode | None, str]:
    """What gRPC, or etcd itself, says: etcd3's own exceptions keep no more than the kind of it."""
    cause = error if isinstance(error, grpc.RpcError) else error.__context__
    if not isinstance(cause, grpc.Call):
        return None, ""
    code, words = cause.code(), cause.details() or ""
    if code in _AWAY and cause is not error and not words.startswith("etcdserver"):
        words = ""  # gRPC's about its inner workings
    return code, words


def _translation(code: grpc.StatusCode | None, words: str, places: str) -> CoordinationError:
    if code in _AWAY or (code in _AWAY_IN_SILENCE and not words.startswith("etcdserver")):
        return _away(words, places)
    if any(text in words for text in _TOO_LARGE):
        return CoordinationError(
            f"etcd at {places} does not take this: {words}", "start etcd with larger --max-request-bytes"
        )
    message = f"etcd at {places} refuses to do this: {words}"
    if _NO_SPACE in words:
        return EtcdRefuses(
            message,
            "make room: etcdctl compact REVISION, etcdctl defrag, then etcdctl alarm disarm; "
            "start etcd with larger --quota-backend-bytes",
        )
    if any(text in words for text in _NO_ENTRY) or code is grpc.StatusCode.UNAUTHENTICATED:
        return EtcdRefuses(message, "mpistream has no name and password for etcd: etcdctl auth disable")
    if code in _WRONG:
        return CoordinationError(message, "this version of mpistream and this etcd do not fit: see their logs")
    return EtcdRefuses(message, "the log of etcd may say more")


def _away(words: str, places: str) -> EtcdUnreachable:
    remedy = "start etcd there, or set [etcd] endpoints in the configuration file to where it runs"
    if words.startswith("etcdserver"):
        remedy = "most of etcd's members must run and reach each other: etcdctl endpoint status"
    return EtcdUnreachable(f"no etcd reachable at {places} ({words})", remedy)


def as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _load(key: str, value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise CoordinationError(f"{key} in etcd holds no JSON: {value[:80]!r}", "correct or delete it") from error


def _load_or_none(key: bytes, value: bytes) -> Any:
    """None for what somebody else has written there: one bad key must not hide the others."""
    try:
        return json.loads(value)
    except ValueError:
        _log.error("ignored %s in etcd, which holds no JSON: %r", key.decode(errors="replace"), value[:80])
        return None


class WatchStream:
    """One watch over one connection, as a stream of changes. etcd3's own watcher spins when the server goes away."""

    def __init__(self, stub: Any, request: Any, prefix_length: int) -> None:
        self._prefix_length = prefix_length
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(request)
        self._responses = stub.Watch(iter(self._requests.get, None), metadata=_MEMBER_HAS_LEADER)

    def __iter__(self) -> Iterator[Change]:
        """Raises grpc.RpcError when the connection is lost; ends after ``close``."""
        for response in self._responses:
            if response.compact_revision or response.canceled:
                return
            for event in response.events:
                key = event.kv.key.decode(errors="replace")[self._prefix_length :]
                yield key, (None if event.type == event.DELETE else _load_or_none(event.kv.key, event.kv.value))

    def close(self) -> None:
        self._requests.put(None)
        self._responses.cancel()
