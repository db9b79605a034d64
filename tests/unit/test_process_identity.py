"""Who is dead: asked about real processes of this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mpistream.control.process_identity import is_known_dead, this_process

TELL = "from mpistream.control.process_identity import this_process; print(this_process(), flush=True); input()"


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One that waits, and the identity that it gives itself."""
    command = [sys.executable, "-c", TELL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_this_process_lives_and_keeps_its_identity() -> None:
    assert not is_known_dead(this_process())
    assert this_process() == this_process()
    assert f"/{os.getpid()}/" in this_process()


def test_a_process_lives_until_it_is_killed() -> None:
    with another_process() as (process, identity):
        assert identity != this_process()
        assert f"/{process.pid}/" in identity
        assert not is_known_dead(identity)
        process.send_signal(signal.SIGSTOP)
        assert not is_known_dead(identity), "a process that is stopped may go on"
        process.kill()
        process.wait(timeout=10)
        assert is_known_dead(identity)


def test_a_process_that_only_waits_to_be_reaped_is_dead() -> None:
    with another_process() as (process, identity):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert os.path.exists(f"/proc/{process.pid}"), "nobody has reaped it"
        assert is_known_dead(identity)


def test_another_process_with_the_same_number_is_another_one() -> None:
    head, _, start = this_process().rpartition("/")
    assert is_known_dead(f"{head}/{int(start) - 1}")


def test_of_a_process_elsewhere_nothing_is_known() -> None:
    boot, namespace, pid, start = this_process().split("/")
    for elsewhere in (
        f"00000000-1111-2222-3333-444444444444/{namespace}/{pid}/1",
        f"{boot}/pid:[1]/{pid}/1",
        f"{boot}/{namespace}x/999999999/1",
        f"unknown-5/{pid}/{start}",
    ):
        assert not is_known_dead(elsewhere)


@pytest.mark.parametrize(
    "text", ["", "/", "///", "x", "1/2/3/4", "a/b", "\0/\0/1/1", "-1", "//5/5", "boot/ns/pid/start"]
)
def test_what_is_no_identity_is_not_known_to_be_dead(text: str) -> None:
    assert not is_known_dead(text)


@pytest.mark.parametrize("pid", ["", "x", "-1", "1.0", "../self", "²"])
def test_what_is_no_process_number_is_not_known_to_be_dead(pid: str) -> None:
    boot, namespace, _, start = this_process().split("/")
    assert not is_known_dead(f"{boot}/{namespace}/{pid}/{start}")
