"""etcd: plain reads and writes, leased registrations, watches that survive a lost connection.

The only module that knows etcd3. Values are JSON, so that ``etcdctl get --prefix`` shows what a person can read.
"""

import json
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import etcd3
import etcd3.etcdrpc as etcdrpc
import grpc
from etcd3.utils import increment_last_byte

from mpistream.control.process_identity import is_known_dead
from mpistream.model.errors import CoordinationError, EtcdUnreachable

_log = logging.getLogger(__name__)

#: A server that stops answering (without closing the connection) is noticed by pings, not only by the next request.
#: etcd refuses clients that ping more often than every 5 s.
_GRPC_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
]

#: Instead of a value: no such key.
ABSENT = object()

#: What a watcher is told: the key below the prefix, and its value, or None when it was deleted.
Change = tuple[str, Any]


class Coordination:
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
    def _translated(self) -> Iterator[None]:
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
        with self._translated():
            return str(self._client.status().version)

    def get(self, key: str) -> Any | None:
        with self._translated():
            value, _ = self._client.get(self.prefix + key)
        return None if value is None else _load(key, value)

    def get_prefix(self, key: str) -> dict[str, Any]:
        """All values below ``key``, by the rest of their keys."""
        return self._snapshot(key)[0]

    def _snapshot(self, key: str) -> tuple[dict[str, Any], int]:
        with self._translated():
            response = self._client.get_prefix_response(self.prefix + key)
        start = len(self.prefix + key)
        values = {kv.key.decode(errors="replace")[start:]: _load_or_none(kv.key, kv.value) for kv in response.kvs}
        return {name: value for name, value in values.items() if value is not None}, response.header.revision

    def put(self, key: str, value: Any, lease: "etcd3.Lease | None" = None) -> None:
        with self._translated():
            self._client.put(self.prefix + key, _dump(value), lease=lease)

    def create(self, key: str, value: Any) -> bool:
        """Writes an immutable fact; False, and nothing written, if the key exists."""
        with self._translated():
            return bool(self._client.put_if_not_exists(self.prefix + key, _dump(value)))

    def replace(self, key: str, expected: Any, value: Any) -> bool:
        """Writes ``value`` only where ``expected`` stands; False otherwise."""
        with self._translated():
            return bool(self._client.replace(self.prefix + key, _dump(expected), _dump(value)))

    def write_while(self, guard: str, guarding: Any, key: str, value: Any, expected: Any = ABSENT) -> bool:
        """Writes only while ``guarding`` stands at ``guard``, and ``expected`` (ABSENT: nothing) at ``key``."""
        conditions = self._client.transactions
        with self._translated():
            unchanged = (
                conditions.version(self.prefix + key) == 0
                if expected is ABSENT
                else conditions.value(self.prefix + key) == _dump(expected)
            )
            guarded = conditions.value(self.prefix + guard) == _dump(guarding)
            write = conditions.put(self.prefix + key, _dump(value))
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
            unchanged = conditions.value(self.prefix + key) == _dump(expected)
            done = self._client.transaction(
                compare=[unchanged], success=[conditions.delete(self.prefix + key)], failure=[]
            )
            return bool(done[0])

    def grant_lease(self, seconds: int) -> "etcd3.Lease":
        with self._translated():
            return self._client.lease(seconds)

    def create_leased(self, key: str, value: Any, lease: "etcd3.Lease") -> bool:
        """As ``create``, for as long as the lease lives."""
        with self._translated():
            return bool(self._client.put_if_not_exists(self.prefix + key, _dump(value), lease=lease))

    def register(self, key: str, value: Any, lease_seconds: int) -> "Registration":
        """A key that disappears within ``lease_seconds`` after this process did.

        One that another process holds is waited for that long, since that process may just have died; then
        CoordinationError is raised. That of a process known to have died is taken over at once.
        """
        registration = Registration(self, key, value, lease_seconds)
        registration.take(wait=True)
        return registration

    def take_role(self, key: str, value: Any, lease_seconds: int, on_lost: Callable[[], None]) -> "Registration | None":
        """As ``register``, without waiting: None where another process has the key.

        ``on_lost`` is called, from a thread of its own, should the lease run out and another process take the key.
        """
        registration = Registration(self, key, value, lease_seconds, on_lost)
        return registration if registration.take(wait=False) else None

    def watch(self, key: str, on_change: Callable[[Change], None]) -> "Watch":
        """Reports everything below ``key``, now and whenever it changes, from a thread of its own."""
        return Watch(self, key, on_change)

    def open_watch_stream(self, key: str, start_revision: int) -> "WatchStream":
        full = (self.prefix + key).encode()
        request = etcdrpc.WatchRequest(
            create_request=etcdrpc.WatchCreateRequest(
                key=full, range_end=increment_last_byte(full), start_revision=start_revision
            )
        )
        return WatchStream(etcdrpc.WatchStub(self._client.channel), request, len(full))

    def sibling(self) -> "Coordination":
        """Another connection to the same etcd: a broken one is closed without disturbing the others."""
        return Coordination(self.endpoints, self.prefix, self.timeout_seconds)

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


def _dump(value: Any) -> str:
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


class Watch:
    """Keeps a picture of all keys under a prefix and reports changes to it, across lost connections.

    After a loss everything is listed again and compared, so no change is missed, though several may be seen as one.
    """

    _LONGEST_PAUSE_SECONDS = 2.0

    def __init__(self, coordination: Coordination, key: str, on_change: Callable[[Change], None]) -> None:
        self._coordination = coordination.sibling()
        self._key = key
        self._on_change = on_change
        self._known: dict[str, Any] = {}
        self._closed = threading.Event()
        self._stream: WatchStream | None = None
        self._revision = self._list()
        self._thread = threading.Thread(target=self._run, name=f"watch {key}", daemon=True)
        self._thread.start()

    def _list(self) -> int:
        current, revision = self._coordination._snapshot(self._key)
        for key in self._known.keys() - current.keys():
            self._report(key, None)
        for key, value in current.items():
            if key not in self._known or self._known[key] != value:
                self._report(key, value)
        return revision

    def _report(self, key: str, value: Any) -> None:
        if value is None:
            self._known.pop(key, None)
        else:
            self._known[key] = value
        try:
            self._on_change((key, value))
        except Exception:
            _log.exception("ignored a change of %s%s in etcd: %r", self._key, key, value)

    def _run(self) -> None:
        pause_seconds = 0.1
        listed = True
        while not self._closed.is_set():
            try:
                if not listed:
                    self._revision = self._list()
                    listed, pause_seconds = True, 0.1
                self._stream = self._coordination.open_watch_stream(self._key, self._revision + 1)
                if self._closed.is_set():  # close() may have looked before there was a stream
                    self._stream.close()
                    return
                for key, value in self._stream:
                    self._report(key, value)
            except (grpc.RpcError, CoordinationError, ValueError) as error:
                if not self._closed.is_set():
                    _log.warning("lost the watch on %s, trying again: %s", self._key, _first_line(error))
            listed = False
            if self._stream is not None:
                self._stream.close()
            if self._closed.wait(pause_seconds):
                return
            pause_seconds = min(2 * pause_seconds, self._LONGEST_PAUSE_SECONDS)
            self._reconnect()

    def _reconnect(self) -> None:
        self._coordination.close()
        try:
            self._coordination = self._coordination.sibling()
        except CoordinationError as error:
            _log.warning("cannot connect to etcd: %s", error.message)  # the next listing fails, and leads here again

    def close(self) -> None:
        self._closed.set()
        if self._stream is not None:
            self._stream.close()
        self._thread.join(timeout=self._coordination.timeout_seconds + 1)
        self._coordination.close()


def _first_line(error: BaseException) -> str:
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return str(error.details())
    return str(error).partition("\n")[0]


class Registration:
    """A leased key, kept alive by a thread of its own; written again should the lease have run out."""

    def __init__(
        self,
        coordination: Coordination,
        key: str,
        value: Any,
        lease_seconds: int,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._coordination = coordination.sibling()
        self._key = key
        self._value = value
        self._lease_seconds = lease_seconds
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._lock = threading.Lock()  # over the value: what is written last is what was given last
        self._thread = threading.Thread(target=self._keep_alive, name=f"lease {key}", daemon=True)

    @property
    def value(self) -> Any:
        return self._value

    def take(self, wait: bool) -> bool:
        """Takes the key and keeps it. False without ``wait`` where another process has it; with it, raises
        CoordinationError when that one does not let go for a lease's time.
        """
        try:
            self._lease = self._coordination.grant_lease(self._lease_seconds)
            taken = self._take_key(wait)
        except BaseException:
            self._coordination.close()
            raise
        if taken:
            self._thread.start()
        else:
            self._withdraw()
        return taken

    def _take_key(self, wait: bool) -> bool:
        # etcd may keep a dead process's key for a second longer than its lease says
        deadline = time.monotonic() + self._lease_seconds + 2
        while not self._coordination.create_leased(self._key, self._value, self._lease):
            if self._closed.is_set():
                return False
            other = self._coordination.get(self._key)
            if self._is_mine(other):
                # an earlier attempt was carried out, though its answer never came; or this process's own last lease
                with self._lock:
                    self._coordination.put(self._key, self._value, self._lease)
                return True
            if isinstance(other, dict) and is_known_dead(str(other.get("process", ""))):
                self._coordination.delete_if(self._key, other)
                continue
            if not wait:
                return False
            if time.monotonic() > deadline:
                who = "another process"
                if isinstance(other, dict) and {"pid", "host"} <= other.keys():
                    who = f"pid {other['pid']} on {other['host']}"
                raise CoordinationError(
                    f"{self._key} is already there, served by {who}", "end that process first, or take another name"
                )
            self._closed.wait(0.2)
            with self._coordination._translated():
                self._lease.refresh()
        return True

    def _is_mine(self, other: Any) -> bool:
        if isinstance(other, dict) and isinstance(self._value, dict) and "process" in self._value:
            return other.get("process") == self._value["process"]
        return _dump(other) == _dump(self._value)

    def update(self, value: Any) -> None:
        """Writes another value under the same key and lease. Raises EtcdUnreachable; it is then written later."""
        with self._lock:
            self._value = value
            self._coordination.put(self._key, value, self._lease)

    def _keep_alive(self) -> None:
        registered = True
        while not self._closed.wait(self._lease_seconds / 3):
            try:
                with self._coordination._translated():
                    alive = any(answer.TTL > 0 for answer in self._lease.refresh())
                if not alive:
                    _log.warning("the lease on %s had run out; registering again", self._key)
                    registered = False
                    self._lease = self._coordination.grant_lease(self._lease_seconds)
                if not registered:
                    registered = self._take_key(wait=self._on_lost is None)
                    if not registered:
                        self._lost()
                        return
            except EtcdUnreachable as error:
                _log.warning("cannot refresh the lease on %s: %s", self._key, error.message)
            except CoordinationError as error:
                # Another process serves in this one's place: two would answer for the same name.
                _log.error("this process ends: %s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _lost(self) -> None:
        if self._on_lost is not None and not self._closed.is_set():
            self._on_lost()

    def close(self) -> None:
        """Withdraws the registration at once; where etcd does not answer, the lease runs out by itself."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._coordination.timeout_seconds + 1)
        self._withdraw()

    def _withdraw(self) -> None:
        try:
            with self._coordination._translated():
                self._lease.revoke()
        except CoordinationError as error:
            _log.warning("could not withdraw %s: %s", self._key, error.message)
        self._coordination.close()
