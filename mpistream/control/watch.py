"""Watches on keys of etcd that survive a lost connection."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc

from mpistream.control.etcd_client import Change, EtcdClient, WatchStream
from mpistream.model.errors import CoordinationError
from mpistream.model.vital_thread import vital_thread

_log = logging.getLogger(__name__)


class Watch:
    """Keeps a picture of all keys under a prefix and reports changes to it, across lost connections.

    After a loss everything is listed again and compared, so no change is missed, though several may be seen as one.
    """

    _LONGEST_PAUSE_SECONDS = 2.0

    def __init__(self, client: EtcdClient, key: str, on_change: Callable[[Change], None]) -> None:
        self._client = client.sibling()
        self._key = key
        self._on_change = on_change
        self._known: dict[str, Any] = {}
        self._closed = threading.Event()
        self._stream: WatchStream | None = None
        try:
            self._revision = self._list()
        except BaseException:
            self._client.close()
            raise
        self._thread = vital_thread(self._run, f"watch {key}", self._closed)
        self._thread.start()

    def _list(self) -> int:
        current, revision = self._client.snapshot(self._key)
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
            elsewhere = False
            try:
                if not listed:
                    self._revision = self._list()
                    listed, pause_seconds = True, 0.1
                self._stream = self._client.open_watch_stream(self._key, self._revision + 1)
                if self._closed.is_set():  # close() may have looked before there was a stream
                    self._stream.close()
                    return
                for key, value in self._stream:
                    self._report(key, value)
            except (grpc.RpcError, CoordinationError) as error:
                if not self._closed.is_set():
                    _log.warning("lost the watch on %s, trying again: %s", self._key, _first_line(error))
                # after any other call that failed the client has chosen by itself
                elsewhere = isinstance(error, grpc.RpcError)
            listed = False
            if self._stream is not None:
                self._stream.close()
            if self._closed.wait(pause_seconds):
                return
            pause_seconds = min(2 * pause_seconds, self._LONGEST_PAUSE_SECONDS)
            self._reconnect(elsewhere)

    def _reconnect(self, elsewhere: bool) -> None:
        self._client.close()
        try:
            self._client = self._client.sibling(elsewhere)
        except CoordinationError as error:
            _log.warning("cannot connect to etcd: %s", error.message)  # the next listing fails, and leads here again

    def close(self) -> None:
        self._closed.set()
        if self._stream is not None:
            self._stream.close()
        self._thread.join(timeout=self._client.timeout_seconds + 1)
        self._client.close()


def _first_line(error: BaseException) -> str:
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return str(error.details())
    return str(error).partition("\n")[0]
