"""What every process does alike: connect to etcd, end on a signal."""

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.model.config import Config
from mpistream.model.errors import EtcdUnreachable

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_RETRY_SECONDS = 0.5


def connect_etcd(config: Config) -> Coordination:
    """A checked connection. Raises EtcdUnreachable when none answers."""
    coordination = Coordination(config.etcd.endpoints, config.etcd_prefix, config.etcd.timeout_seconds)
    try:
        coordination.check()
    except BaseException:
        coordination.close()
        raise
    return coordination


def open_registry(config: Config, coordination: Coordination) -> Registry:
    return Registry(coordination, config.etcd.lease_seconds)


def persist(action: Callable[[], _T], patience_seconds: float) -> _T:
    """Does ``action`` as soon as etcd answers: while it is away the stream goes on, and what is to be recorded waits.

    Raises EtcdUnreachable when it stays away for ``patience_seconds``.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return action()
        except EtcdUnreachable as error:
            if time.monotonic() > deadline:
                raise
            _log.warning("trying again: %s", error.message)
            time.sleep(_RETRY_SECONDS)


def new_incarnation() -> int:
    """Tells this start of a process from its earlier ones."""
    return time.time_ns()


def on_termination(callback: Callable[[], None]) -> None:
    """Calls ``callback`` when this process is asked to end (SIGTERM, Ctrl-C)."""

    def handle(number: int, frame: FrameType | None) -> None:
        callback()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
