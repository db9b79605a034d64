"""What every process does alike: connect to etcd, end on a signal."""

import signal
import time
from collections.abc import Callable
from types import FrameType

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.model.config import Config


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


def new_incarnation() -> int:
    """Tells this start of a process from its earlier ones."""
    return time.time_ns()


def on_termination(callback: Callable[[], None]) -> None:
    """Calls ``callback`` when this process is asked to end (SIGTERM, Ctrl-C), once however often it is asked."""

    def handle(number: int, frame: FrameType | None) -> None:
        # An interpreter that ends puts back the default action, which would kill it; what is ignored stays ignored.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        callback()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
