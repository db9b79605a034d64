"""Keys in etcd that are there for as long as their process lives."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from mpistream.control.etcd_client import EtcdClient, as_text
from mpistream.control.process_identity import is_known_dead
from mpistream.model.errors import CoordinationError, EtcdUnreachable
from mpistream.model.vital_thread import vital_thread

_log = logging.getLogger(__name__)


class Registration:
    """A leased key, kept alive by a thread of its own; written again should the lease have run out."""

    def __init__(
        self,
        client: EtcdClient,
        key: str,
        value: Any,
        lease_seconds: int,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._client = client.sibling()
        self._key = key
        self._value = value
        self._lease_seconds = lease_seconds
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._lock = threading.Lock()  # over the value: what is written last is what was given last
        self._is_written = True
        self._thread = vital_thread(self._keep_alive, f"lease {key}", self._closed)

    @property
    def value(self) -> Any:
        return self._value

    def take(self, wait: bool) -> bool:
        """Takes the key and keeps it. False without ``wait`` where another process has it; with it, raises
        CoordinationError when that one does not let go for a lease's time.
        """
        try:
            self._lease = self._client.grant_lease(self._lease_seconds)
            taken = self._take_key(wait)
        except BaseException:
            self._client.close()
            raise
        if taken:
            self._thread.start()
        else:
            self._withdraw()
        return taken

    def _take_key(self, wait: bool) -> bool:
        # etcd may keep a dead process's key for a second longer than its lease says
        deadline = time.monotonic() + self._lease_seconds + 2
        while not self._client.create_leased(self._key, self._value, self._lease):
            if self._closed.is_set():
                return False
            other = self._client.get(self._key)
            if self._is_mine(other):
                # an earlier attempt was carried out, though its answer never came; or this process's own last lease
                with self._lock:
                    if self._client.replace(self._key, other, self._value, self._lease):
                        return True
            elif self._is_of_the_dead(other) and self._client.delete_if(self._key, other):
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
            self._client.refresh_lease(self._lease)
        return True

    @staticmethod
    def _is_of_the_dead(other: Any) -> bool:
        return isinstance(other, dict) and is_known_dead(str(other.get("process", "")))

    def _is_mine(self, other: Any) -> bool:
        if isinstance(other, dict) and isinstance(self._value, dict) and "process" in self._value:
            return other.get("process") == self._value["process"]
        return as_text(other) == as_text(self._value)

    def update(self, value: Any) -> None:
        """Writes another value under the same key and lease. Raises EtcdUnreachable; it is then written later.

        Where the key is gone, or another process's meanwhile, it is written when the key is taken again, if at all.
        """
        with self._lock:
            self._value, self._is_written = value, False
        self._write()

    def _write(self) -> None:
        with self._lock:
            there = self._client.get(self._key)
            if there is not None and self._is_mine(there):
                self._is_written = self._client.replace(self._key, there, self._value, self._lease)

    def _keep_alive(self) -> None:
        registered = True
        while not self._closed.wait(self._lease_seconds / 3):
            try:
                alive = self._client.refresh_lease(self._lease)
                if not alive and self._on_lost is not None:
                    self._lost()  # another process may have had the key meanwhile
                    return
                if not alive:
                    _log.warning("the lease on %s had run out; registering again", self._key)
                    registered = False
                    self._lease = self._client.grant_lease(self._lease_seconds)
                if not registered:
                    registered = self._take_key(wait=True)
                if not self._is_written:
                    self._write()
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
            self._thread.join(timeout=self._client.timeout_seconds + 1)
        self._withdraw()

    def _withdraw(self) -> None:
        try:
            self._client.revoke_lease(self._lease)
        except CoordinationError as error:
            _log.warning("could not withdraw %s: %s", self._key, error.message)
        self._client.close()
