"""etcd as the processes of a deployment use it: plain reads and writes, leased registrations, watches."""

from collections.abc import Callable
from typing import Any

from mpistream.control.etcd_client import ABSENT, Change, EtcdClient
from mpistream.control.registration import Registration
from mpistream.control.watch import Watch

__all__ = ["ABSENT", "Change", "Coordination", "Registration", "Watch"]


class Coordination(EtcdClient):
    """A connection to etcd; all keys lie under ``prefix``. Every call ends within ``timeout_seconds``."""

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

        ``on_lost`` is called once, from a thread of its own, should the lease run out, whether another process takes
        the key or not. The registration is then over.
        """
        registration = Registration(self, key, value, lease_seconds, on_lost)
        return registration if registration.take(wait=False) else None

    def watch(self, key: str, on_change: Callable[[Change], None]) -> "Watch":
        """Reports everything below ``key``, now and whenever it changes, from a thread of its own."""
        return Watch(self, key, on_change)
