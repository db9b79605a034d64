"""The queue that sockets can be waited for together with."""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from mpistream.transport.mailbox import Mailbox


@pytest.fixture
def mailbox() -> Iterator[Mailbox[int]]:
    box: Mailbox[int] = Mailbox()
    yield box
    box.close()


def is_readable(mailbox: Mailbox[int]) -> bool:
    return bool(select.select([mailbox], [], [], 0)[0])


def test_what_was_put_is_taken_once_and_in_order(mailbox: Mailbox[int]) -> None:
    assert mailbox.take() == []
    for item in range(5):
        mailbox.put(item)
    assert is_readable(mailbox)
    assert mailbox.take() == list(range(5))
    assert mailbox.take() == []
    assert not is_readable(mailbox)


def test_waiting_ends_as_soon_as_something_comes(mailbox: Mailbox[int]) -> None:
    threading.Timer(0.1, mailbox.put, [7]).start()
    started = time.monotonic()
    assert mailbox.wait(timeout_seconds=10) == [7]
    assert time.monotonic() - started < 5


def test_waiting_in_vain_ends_in_time_and_costs_no_cpu(mailbox: Mailbox[int]) -> None:
    started, cpu = time.monotonic(), time.thread_time()
    assert mailbox.wait(timeout_seconds=0.3) == []
    assert time.monotonic() - started >= 0.29
    assert time.thread_time() - cpu < 0.1


def test_wait_into_hands_over_every_item(mailbox: Mailbox[int]) -> None:
    taken: list[int] = []
    mailbox.put(1)
    mailbox.put(2)
    mailbox.wait_into(taken.append, timeout_seconds=1)
    assert taken == [1, 2]


def test_nothing_is_lost_between_threads(mailbox: Mailbox[int]) -> None:
    senders, each = 4, 2000

    def send(sender: int) -> None:
        for number in range(each):
            mailbox.put(sender * each + number)

    threads = [threading.Thread(target=send, args=[sender]) for sender in range(senders)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    deadline = time.monotonic() + 30
    while len(taken) < senders * each and time.monotonic() < deadline:
        taken += mailbox.wait(timeout_seconds=5)
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(senders * each))
    for sender in range(senders):
        mine = [item for item in taken if item // each == sender]
        assert mine == sorted(mine)


def test_a_signal_handler_may_put(mailbox: Mailbox[int]) -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: mailbox.put(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert mailbox.wait(timeout_seconds=5) == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_comes_too_late_goes_nowhere() -> None:
    """Above all not into another file, which has the number by now."""
    box: Mailbox[int] = Mailbox()
    number = box.fileno()
    box.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    assert other == number
    box.put(7)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(other)
    box.close()
    os.close(other)
