"""etcd without a server: keys, leases, comparisons and watches as control/ has them, and its failures."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpistream.control.coordination import ABSENT, Change
from mpistream.model.errors import CoordinationError, EtcdUnreachable


def dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


class MadeUpEtcd:
    """The keys of one deployment. ``on_write(key, before, after)`` sees every change; None: no such key."""

    def __init__(
        self, now: Callable[[], float], lease_seconds: float, is_known_dead: Callable[[str], bool] = lambda name: False
    ) -> None:
        self.now = now
        self.lease_seconds = lease_seconds
        self.is_known_dead = is_known_dead
        self.values: dict[str, str] = {}
        self.is_away = False
        self.on_write: Callable[[str, Any, Any], None] = lambda key, before, after: None
        self.clients: list[Client] = []

    def get(self, key: str) -> Any:
        text = self.values.get(key)
        return None if text is None else json.loads(text)

    def below(self, key: str) -> dict[str, Any]:
        return {name[len(key) :]: json.loads(text) for name, text in self.values.items() if name.startswith(key)}

    def write(self, key: str, value: Any) -> None:
        """None deletes."""
        before = self.get(key)
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = dump(value)
        if value is not None or before is not None:
            self.on_write(key, before, value)
            for client in self.clients:
                client.changed(key, value)

    def come_back(self) -> None:
        """Leases do not run out while etcd is away."""
        self.is_away = False
        for client in self.clients:
            for registration in client.registrations:
                registration.renewed = self.now()

    def expire(self) -> None:
        """Takes away the keys of those who have not renewed their leases in time."""
        if self.is_away:
            return
        for client in self.clients:
            for registration in client.registrations:
                if registration.is_held and self.now() - registration.renewed > self.lease_seconds:
                    registration.run_out()


class Client:
    """What one process sees of etcd: in place of Coordination.

    ``before_call`` and ``after_call`` may end or stop the process there, or lose the answer.
    is_cut_off  this process alone does not reach etcd
    lags        what its watches should tell waits
    """

    def __init__(self, etcd: MadeUpEtcd, before_call: Callable[[], None], after_call: Callable[[], None]) -> None:
        self.etcd = etcd
        self.is_cut_off = False
        self.lags = False
        self.registrations: list[MadeUpRegistration] = []
        self.watches: list[MadeUpWatch] = []
        self._before_call, self._after_call = before_call, after_call
        etcd.clients.append(self)

    @property
    def is_unreachable(self) -> bool:
        return self.etcd.is_away or self.is_cut_off

    def _reach(self) -> None:
        self._before_call()
        if self.is_unreachable:
            raise EtcdUnreachable("no etcd reachable")

    def _write(self, key: str, value: Any, condition: bool) -> bool:
        if condition:
            self.etcd.write(key, value)
        self._after_call()
        return condition

    def get(self, key: str) -> Any:
        self._reach()
        return self.etcd.get(key)

    def get_prefix(self, key: str) -> dict[str, Any]:
        self._reach()
        return self.etcd.below(key)

    def put(self, key: str, value: Any) -> None:
        self._reach()
        self._write(key, value, True)

    def create(self, key: str, value: Any) -> bool:
        self._reach()
        return self._write(key, value, key not in self.etcd.values)

    def create_all(
        self,
        values: Mapping[str, Any],
        without: Sequence[str] = (),
        beside: Sequence[str] = (),
        instead_of: Sequence[str] = (),
    ) -> bool:
        self._reach()
        absent = not any(key in self.etcd.values for key in (*values, *without))
        may_be = absent and all(key in self.etcd.values for key in (*beside, *instead_of))
        for key, value in (*values.items(), *((key, None) for key in instead_of)) if may_be else ():
            self.etcd.write(key, value)
        self._after_call()
        return may_be

    def replace(self, key: str, expected: Any, value: Any) -> bool:
        self._reach()
        return self._write(key, value, self.etcd.values.get(key) == dump(expected))

    def write_while(self, guard: str, guarding: Any, key: str, value: Any, expected: Any = ABSENT) -> bool:
        self._reach()
        unchanged = self.etcd.values.get(key) == (None if expected is ABSENT else dump(expected))
        return self._write(key, value, unchanged and self.etcd.values.get(guard) == dump(guarding))

    def delete(self, key: str) -> None:
        self._reach()
        self._write(key, None, True)

    def delete_prefix(self, key: str) -> None:
        self._reach()
        for name in [name for name in self.etcd.values if name.startswith(key)]:
            self.etcd.write(name, None)
        self._after_call()

    def register(self, key: str, value: Any, lease_seconds: int) -> "MadeUpRegistration":
        registration = self.take_role(key, value, lease_seconds, None)
        if registration is None:
            raise CoordinationError(f"{key} is already there")
        return registration

    def take_role(
        self, key: str, value: Any, lease_seconds: int, on_lost: Callable[[], None] | None
    ) -> "MadeUpRegistration | None":
        self._reach()
        registration = MadeUpRegistration(self, key, value, on_lost)
        if not registration.can_be_taken:
            return None
        for before in [before for before in self.registrations if before.key == key]:
            self.registrations.remove(before)
        self.registrations.append(registration)
        registration.take()
        return registration

    def watch(self, key: str, on_change: Callable[[Change], None]) -> "MadeUpWatch":
        watch = MadeUpWatch(self, key, on_change)
        self._reach()
        watch.list()
        self.watches.append(watch)
        return watch

    def changed(self, key: str, value: Any) -> None:
        for watch in self.watches:
            if key.startswith(watch.key):
                watch.pending.append((key[len(watch.key) :], value))

    def deliver(self, most: int | None = None) -> None:
        """What the threads of the watches do: each tells the changes in the order in which they were made."""
        if self.is_unreachable:
            return
        for watch in list(self.watches):
            for _ in range(len(watch.pending) if most is None else min(most, len(watch.pending))):
                watch.tell(watch.pending.popleft())

    def list_anew(self) -> None:
        """The connections of the watches broke: what has changed is seen as one change."""
        if not self.is_unreachable:
            for watch in list(self.watches):
                watch.list()

    def renew(self) -> None:
        """What the threads of the registrations do."""
        if not self.is_unreachable:
            for registration in [one for one in self.registrations if not one.is_closed]:
                registration.renew()

    def end(self) -> None:
        """The process is gone: its keys stay until their leases run out."""
        self.watches.clear()


class MadeUpRegistration:
    """A leased key: in place of Registration."""

    def __init__(self, client: Client, key: str, value: Any, on_lost: Callable[[], None] | None) -> None:
        self.key = key
        self.value = value
        self.is_held = self.is_closed = False
        self.is_taken_since: float | None = None
        self.renewed = client.etcd.now()
        self._is_written = False
        self._client = client
        self._on_lost = on_lost

    @property
    def can_be_taken(self) -> bool:
        """Nobody has it, or a process that is known to have died, or this one."""
        other = self._client.etcd.get(self.key)
        return (
            other is None
            or other["process"] == self.value["process"]
            or self._client.etcd.is_known_dead(other["process"])
        )

    def take(self) -> None:
        self.is_held, self.is_taken_since = True, None
        self._write()

    def update(self, value: Any) -> None:
        self.value, self._is_written = value, False
        self._client._reach()
        self._write()

    def _write(self) -> None:
        if self.is_held:
            self._is_written = True
            self._client.etcd.write(self.key, self.value)

    def run_out(self) -> None:
        self.is_held = False
        standing = self._client.etcd.get(self.key)
        if standing is not None and standing["process"] == self.value["process"]:
            self._client.etcd.write(self.key, None)

    def renew(self) -> None:
        """A role that was lost is lost. Any other key that another process has by now is waited for, as long as a lease
        lasts; then this process ends.
        """
        now = self._client.etcd.now()
        self.renewed = now
        if self.is_held:
            if not self._is_written:
                self._write()
        elif self._on_lost is not None:
            self.is_closed = True
            self._on_lost()
        elif self.can_be_taken:
            self.take()
        else:
            self.is_taken_since = now if self.is_taken_since is None else self.is_taken_since
            if now - self.is_taken_since > self._client.etcd.lease_seconds + 2:
                raise CoordinationError(f"{self.key} is already there")

    def close(self) -> None:
        """Where etcd does not answer, the lease runs out by itself."""
        self.is_closed = True
        if self.is_held and not self._client.is_unreachable:
            self.run_out()


class MadeUpWatch:
    """In place of Watch: what it still has to tell waits in ``pending``."""

    def __init__(self, client: Client, key: str, on_change: Callable[[Change], None]) -> None:
        self.key = key
        self.pending: deque[Change] = deque()
        self._client = client
        self._on_change = on_change
        self._known: dict[str, Any] = {}

    def tell(self, change: Change) -> None:
        key, value = change
        if value is None:
            self._known.pop(key, None)
        else:
            self._known[key] = value
        self._on_change(change)

    def list(self) -> None:
        """Tells what differs from what it has told before."""
        self.pending.clear()
        current = self._client.etcd.below(self.key)
        for key in self._known.keys() - current.keys():
            self.tell((key, None))
        for key, value in sorted(current.items()):
            if self._known.get(key) != value:
                self.tell((key, value))

    def close(self) -> None:
        if self in self._client.watches:
            self._client.watches.remove(self)
