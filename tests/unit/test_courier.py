"""What a process tells etcd in a thread of its own, and how it notices that it was stopped itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from mpistream.model.errors import CoordinationError, EtcdRefuses, EtcdUnreachable
from mpistream.pipeline import courier as courier_module
from mpistream.pipeline.courier import Courier
from mpistream.pipeline.producing.stop_detector import StopDetector


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Courier]:
    monkeypatch.setattr(courier_module, "_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(courier_module, "_STATUS_SECONDS", 0.1)
    with Courier() as made:
        yield made


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def failing(times: int, error: Exception, done: list[str], name: str) -> Callable[[], None]:
    def action() -> None:
        nonlocal times
        times -= 1
        if times >= 0:
            raise error
        done.append(name)

    return action


def test_actions_are_done_in_order_and_repeated_while_etcd_is_away(courier: Courier) -> None:
    done: list[str] = []
    courier.do(failing(3, EtcdUnreachable("away"), done, "first"))
    courier.do(failing(3, EtcdRefuses("no space"), done, "second"))
    until(lambda: len(done) == 2)
    assert done == ["first", "second"]


def test_an_action_that_cannot_be_done_does_not_hold_up_the_next(courier: Courier) -> None:
    done: list[str] = []
    courier.do(failing(1, CoordinationError("nonsense"), done, "first"))
    courier.do(failing(1, KeyError("a mistake"), done, "second"))
    courier.do(failing(0, KeyError(), done, "third"))
    until(lambda: done == ["third"])


def test_of_several_statuses_the_latest_is_written(courier: Courier) -> None:
    done: list[str] = []
    for number in range(200):
        courier.say(failing(0, KeyError(), done, str(number)))
        time.sleep(0.002)
    until(lambda: done[-1] == "199")
    assert len(done) <= 10
    courier.say(failing(1, EtcdUnreachable("away"), done, "not written again"))
    time.sleep(0.3)
    assert done[-1] == "199"


def test_a_status_that_cannot_be_made_stops_nothing(courier: Courier, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    courier.say(failing(1, KeyError("a mistake"), done, "status"))
    until(lambda: "no status: KeyError('a mistake')" in caplog.text)
    courier.do(failing(0, KeyError(), done, "end"))
    until(lambda: done == ["end"])
    courier.say(failing(0, KeyError(), done, "status"))
    until(lambda: done == ["end", "status"])


BREAKS = """
import time
from mpistream.pipeline.courier import Courier
class Broken(Courier):
    def _persist(self, action):
        raise KeyError("a mistake")
with Broken() as courier:
    courier.do(print)
    time.sleep(20)
print("it went on without the thread")
"""


def test_a_process_does_not_go_on_without_its_courier() -> None:
    done = subprocess.run([sys.executable, "-c", BREAKS], capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" in done.stderr
    assert "this process ends, since its thread 'courier' failed: KeyError('a mistake')" in done.stderr


def test_closing_does_what_is_left_once() -> None:
    done: list[str] = []
    with Courier() as courier:
        courier.do(failing(99, EtcdUnreachable("away"), done, "first"))
        courier.do(failing(0, EtcdUnreachable("away"), done, "second"))
        started = time.monotonic()
    assert done == ["second"]
    assert time.monotonic() - started < 3


def test_closing_does_not_wait_for_ever() -> None:
    courier = Courier()
    courier.do(lambda: time.sleep(2))
    started = time.monotonic()
    courier.close(timeout_seconds=0.2)
    assert time.monotonic() - started < 1.5


def test_a_process_that_runs_was_not_stopped() -> None:
    detector = StopDetector(limit_seconds=0.2)
    time.sleep(0.5)  # the main thread waits, the process does not
    assert not detector.was_stopped()
    detector.close()


STOPPED = """
import sys, time
from mpistream.pipeline.producing.stop_detector import StopDetector
detector = StopDetector(0.3)
time.sleep(0.1)
print(detector.was_stopped(), flush=True)
sys.stdin.readline()
print(detector.was_stopped(), detector.was_stopped(), flush=True)
detector.close()
"""


def test_a_process_that_was_stopped_knows_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "False\n"
        os.kill(process.pid, signal.SIGSTOP)
        process.stdin.write("\n")  # lies there when the process wakes
        process.stdin.flush()
        time.sleep(0.6)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == "True False\n"
    finally:
        process.kill()
        process.wait(timeout=5)
