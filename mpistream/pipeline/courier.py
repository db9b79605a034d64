"""What a process has to tell etcd, or to ask it, in a thread of its own: the stream goes on while etcd is away."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mpistream.model.errors import CoordinationError, EtcdUnreachable
from mpistream.model.vital_thread import vital_thread

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
_STATUS_SECONDS = 1.0

Action = Callable[[], object]


class Courier:
    """Does one action after the other; each is repeated until etcd answers.

    Statuses are for people: the latest is written at most once a second, and not again if etcd does not take it.
    """

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Action] = queue.SimpleQueue()
        self._status: Action | None = None
        self._status_due = 0.0
        self._closed = threading.Event()
        self._thread = vital_thread(self._run, "courier", self._closed)
        self._thread.start()

    def do(self, action: Action) -> None:
        """Errors other than EtcdUnreachable are logged."""
        self._actions.put(action)

    def say(self, status: Action) -> None:
        """``status`` takes the place of one that is not written yet."""
        self._status = status

    def _run(self) -> None:
        while True:
            try:
                action = self._actions.get(timeout=_STATUS_SECONDS)
            except queue.Empty:
                if self._closed.is_set():
                    return
                self._write_status()
            else:
                self._persist(action)
                self._write_status()

    def _persist(self, action: Action) -> None:
        while True:
            try:
                action()
                return
            except EtcdUnreachable as error:
                if self._closed.is_set():
                    _log.error("left undone: %s", error.message)
                    return
                _log.warning("trying again: %s", error.message)
                self._closed.wait(_RETRY_SECONDS)
            except Exception as error:
                _log.exception("etcd was not told: %r", error)
                return

    def _write_status(self) -> None:
        status, now = self._status, time.monotonic()
        if status is None or now < self._status_due or self._closed.is_set():
            return
        self._status, self._status_due = None, now + _STATUS_SECONDS
        try:
            status()
        except CoordinationError as error:
            _log.debug("no status: %s", error.message)
        except Exception as error:
            _log.exception("no status: %r", error)  # what is to be done matters more

    def close(self, timeout_seconds: float) -> None:
        """Does what is left, each thing once."""
        self._closed.set()
        self._actions.put(lambda: None)  # ends the wait
        self._thread.join(timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(timeout_seconds=10.0)
