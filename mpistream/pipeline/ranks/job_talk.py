"""What one rank of a job and the others tell each other: news for the leader, its orders, signs of life."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.pipeline.ranks.watchdog import StalledError, Watchdog
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import JobHub, Sockets

_HEARTBEAT_SECONDS = 1.0


class JobTalk:
    """A rank's end of the star, and on rank 0 its middle.

    It belongs to the receiving thread, but for ``outbox``, ``report_to`` and ``wait_for_everybody``. Nothing that is
    said while the job begins is lost: orders wait until every rank can hear them, news until there is a leader.
    """

    def __init__(self, sockets: Sockets, host: str, rank: int, size: int, watchdog: Watchdog) -> None:
        self._sockets = sockets
        self._rank = rank
        self._size = size
        self._watchdog = watchdog
        self._hub = sockets.job_hub(host) if rank == 0 else None
        #: what other threads want told: the leader's to all ranks, on another rank to the leader
        self.outbox: Mailbox[JobMessage] = Mailbox()
        sockets.wait_for(self.outbox)
        self._orders: deque[JobMessage] = deque()
        self._news: deque[JobMessage] = deque()
        self._on_news: Callable[[JobMessage], None] | None = None
        self._present: set[int] = set()
        self._everybody_is_here = threading.Event()
        self._last_heartbeat = 0.0

    @property
    def hub_endpoint(self) -> str:
        return self._hub.endpoint if self._hub else ""

    def join(self, hub_endpoint: str) -> None:
        """To be called once, before any turn."""
        self._spoke = self._sockets.job_spoke(hub_endpoint, self._rank)

    def report_to(self, on_news: Callable[[JobMessage], None]) -> None:
        """Rank 0: the ranks' news go to the leader, those too that have come already."""
        self._on_news = on_news

    def wait_for_everybody(self, patience_seconds: float) -> None:
        """Rank 0: until every rank has spoken. Raises StalledError."""
        if not self._everybody_is_here.wait(patience_seconds):
            raise StalledError(
                f"only {len(self._present)} of {self._size} ranks can reach rank 0 at {self.hub_endpoint}",
                "[network] host must be an address that the other nodes reach",
            )

    def tell(self, kind: JobMessageKind, uid: UUID, fields: dict[str, Any] | None = None, binary: bytes = b"") -> None:
        """News of a scan, to the leader."""
        self._spoke.tell(JobMessage(kind, self._rank, {"uid": str(uid), **(fields or {})}, binary))

    def turn(self) -> Iterator[JobMessage]:
        """Passes on what the ranks say; yields the leader's orders to this one. Raises LostMessageError."""
        if self._hub is not None:
            self._lead(self._hub)
        else:
            for message in self.outbox.take():
                self._spoke.tell(message)
        for message in self._spoke.receive():
            self._watchdog.heard_from(message.rank)
            if message.kind is not JobMessageKind.HEARTBEAT:
                yield message

    def _lead(self, hub: JobHub) -> None:
        for message in hub.receive():
            self._watchdog.heard_from(message.rank)
            self._present.add(message.rank)
            self._news.append(message)
        while self._on_news is not None and self._news:
            self._on_news(self._news.popleft())
        self._orders.extend(self.outbox.take())
        if len(self._present) == self._size:
            while self._orders:
                hub.tell_all(self._orders.popleft())
            self._everybody_is_here.set()

    def beat(self) -> None:
        """Every rank shows the leader that it is alive, the leader every rank; who is silent ends the job.

        To be called after each ``turn``: whoever has spoken is heard there. Raises StalledError.
        """
        self._watchdog.check()
        now = time.monotonic()
        if now - self._last_heartbeat < _HEARTBEAT_SECONDS:
            return
        self._last_heartbeat = now
        heartbeat = JobMessage(JobMessageKind.HEARTBEAT, self._rank)
        self._spoke.tell(heartbeat)
        if self._hub is not None:
            self._hub.tell_all(heartbeat)
