"""News for a loop that waits on sockets, from the other threads of its process."""

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue with a file descriptor, so that one wait covers sockets and news. Waiting costs no CPU."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()  # unlike select.select for descriptors of any number
        self._poll.register(self._event, select.POLLIN)
        self._is_closed = False
        self._closing = threading.RLock()  # a signal handler may put while its own thread does

    def fileno(self) -> int:
        return self._event

    def put(self, item: T) -> None:
        """From any thread, and from a signal handler. Once the mailbox is closed, nothing comes of it."""
        with self._closing:
            if not self._is_closed:
                self._items.append(item)
                os.eventfd_write(self._event, 1)

    def take(self) -> list[T]:
        """Everything that has come, without waiting."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        # Appended before the event is raised: what is taken here early leaves a spurious wake-up, never a lost item.
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def wait(self, timeout_seconds: float) -> list[T]:
        """Everything that comes within ``timeout_seconds``, as soon as there is something."""
        self._poll.poll(timeout_seconds * 1000)
        return self.take()

    def wait_into(self, take: Callable[[T], None], timeout_seconds: float) -> None:
        """Hands everything that comes within ``timeout_seconds`` to ``take``."""
        for item in self.wait(timeout_seconds):
            take(item)

    def close(self) -> None:
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._event)
