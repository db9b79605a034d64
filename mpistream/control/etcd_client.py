"""etcd: reads, writes, transactions, streams of changes.

The only module that knows etcd3. Values are JSON, so that ``etcdctl get --prefix`` shows what a person can read.
"""

import json
import logging
import queue
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import etcd3
import etcd3.etcdrpc as etcdrpc
import grpc
from etcd3.utils import increment_last_byte

from mpistream.model.errors import CoordinationError, EtcdUnreachable

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

#: Instead of a value: no such key.
ABSENT = object()

#: What a watcher is told: the key below the prefix, and its value, or None when it was deleted.
Change = tuple[str, Any]


class EtcdClient:
    """A connection to etcd; all keys lie under ``prefix``. Every call ends within ``timeout_seconds``."""

    def __init__(self, endpoints: list[str], prefix: str, timeout_seconds: float) -> None:
        self.endpoints = endpoints
        self.prefix = prefix
        self.timeout_seconds = timeout_seconds
        self._client = self._connect()

    def _connect(self) -> "etcd3.Etcd3Client":
        host, _, port = self.endpoints[0].rpartition(":")
        if len(self.endpoints) > 1:
            # gRPC's own notation for several addresses, which takes no names; etcd3 appends the last port.
            host, _, port = f"ipv4:{','.join(map(_numeric, self.endpoints))}".rpartition(":")
        return etcd3.client(host=host, port=int(port), timeout=self.timeout_seconds, grpc_options=_GRPC_OPTIONS)

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except (grpc.RpcError, etcd3.exceptions.Etcd3Exception, ValueError) as error:
            detail = error.details() if isinstance(error, grpc.RpcError) and hasattr(error, "details") else str(error)
            raise EtcdUnreachable(
                f"no etcd reachable at {', '.join(self.endpoints)} ({detail or type(error).__name__})",
                "start etcd there, or set [etcd] endpoints in the configuration file to where it runs",
            ) from error

    def check(self) -> str:
        """The server's version. Raises CoordinationError when none answers."""
        with self.translated():
            return str(self._client.status().version)

    def get(self, key: str) -> Any | None:
        with self.translated():
            value, _ = self._client.get(self.prefix + key)
        return None if value is None else _load(key, value)

    def get_prefix(self, key: str) -> dict[str, Any]:
        """All values below ``key``, by the rest of their keys."""
        return self.snapshot(key)[0]

    def snapshot(self, key: str) -> tuple[dict[str, Any], int]:
        with self.translated():
            response = self._client.get_prefix_response(self.prefix + key)
        start = len(self.prefix + key)
        values = {kv.key.decode(errors="replace")[start:]: _load_or_none(kv.key, kv.value) for kv in response.kvs}
        return {name: value for name, value in values.items() if value is not None}, response.header.revision

    def put(self, key: str, value: Any, lease: "etcd3.Lease | None" = None) -> None:
        with self.translated():
            self._client.put(self.prefix + key, as_text(value), lease=lease)

    def create(self, key: str, value: Any) -> bool:
        """Writes an immutable fact; False, and nothing written, if the key exists."""
        with self.translated():
            return bool(self._client.put_if_not_exists(self.prefix + key, as_text(value)))

    def create_all(self, values: Mapping[str, Any]) -> bool:
        """As ``create`` for several keys at once: all are written, or, where one exists, none."""
        conditions = self._client.transactions
        with self.translated():
            absent = [conditions.version(self.prefix + key) == 0 for key in values]
            writes = [conditions.put(self.prefix + key, as_text(value)) for key, value in values.items()]
            return bool(self._client.transaction(compare=absent, success=writes, failure=[])[0])

    def replace(self, key: str, expected: Any, value: Any, lease: "etcd3.Lease | None" = None) -> bool:
        """Writes ``value`` only where ``expected`` stands; False otherwise."""
        conditions = self._client.transactions
        with self.translated():
            unchanged = conditions.value(self.prefix + key) == as_text(expected)
            write = conditions.put(self.prefix + key, as_text(value), lease)
            return bool(self._client.transaction(compare=[unchanged], success=[write], failure=[])[0])

    def write_while(self, guard: str, guarding: Any, key: str, value: Any, expected: Any = ABSENT) -> bool:
        """Writes only while ``guarding`` stands at ``guard``, and ``expected`` (ABSENT: nothing) at ``key``."""
        conditions = self._client.transactions
        with self.translated():
            unchanged = (
                conditions.version(self.prefix + key) == 0
                if expected is ABSENT
                else conditions.value(self.prefix + key) == as_text(expected)
            )
            guarded = conditions.value(self.prefix + guard) == as_text(guarding)
            write = conditions.put(self.prefix + key, as_text(value))
            return bool(self._client.transaction(compare=[guarded, unchanged], success=[write], failure=[])[0])

    def delete(self, key: str) -> None:
        with self.translated():
            self._client.delete(self.prefix + key)

    def delete_prefix(self, key: str) -> None:
        with self.translated():
            self._client.delete_prefix(self.prefix + key)

    def delete_if(self, key: str, expected: Any) -> bool:
        """Deletes a key only while ``expected`` stands there."""
        conditions = self._client.transactions
        with self.translated():
            unchanged = conditions.value(self.prefix + key) == as_text(expected)
            done = self._client.transaction(
                compare=[unchanged], success=[conditions.delete(self.prefix + key)], failure=[]
            )
            return bool(done[0])

    def grant_lease(self, seconds: int) -> "etcd3.Lease":
        with self.translated():
            return self._client.lease(seconds)

    def create_leased(self, key: str, value: Any, lease: "etcd3.Lease") -> bool:
        """As ``create``, for as long as the lease lives."""
        with self.translated():
            return bool(self._client.put_if_not_exists(self.prefix + key, as_text(value), lease=lease))

    def open_watch_stream(self, key: str, start_revision: int) -> "WatchStream":
        full = (self.prefix + key).encode()
        request = etcdrpc.WatchRequest(
            create_request=etcdrpc.WatchCreateRequest(
                key=full, range_end=increment_last_byte(full), start_revision=start_revision
            )
        )
        return WatchStream(etcdrpc.WatchStub(self._client.channel), request, len(full))

    def sibling(self) -> Self:
        """Another connection to the same etcd: a broken one is closed without disturbing the others."""
        return type(self)(self.endpoints, self.prefix, self.timeout_seconds)

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
        self._responses = stub.Watch(iter(self._requests.get, None))

    def __iter__(self) -> Iterator[Change]:
        """Raises grpc.RpcError when the connection is lost; ends after ``close``."""
        for response in self._responses:
            if response.compact_revision or (response.canceled and not response.created):
                return
            for event in response.events:
                key = event.kv.key.decode(errors="replace")[self._prefix_length :]
                yield key, (None if event.type == event.DELETE else _load_or_none(event.kv.key, event.kv.value))

    def close(self) -> None:
        self._requests.put(None)
        self._responses.cancel()
