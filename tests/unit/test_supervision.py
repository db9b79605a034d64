"""Programs that are started again: real small ones."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpistream.launch import supervision
from mpistream.launch.processes import has_ended, session_members
from mpistream.launch.supervision import MOST_BRIEF_LIVES, Program, SupervisedProgram
from mpistream.model.errors import ScanFailed

WAITS = "import time; print('here', flush=True); time.sleep(60)"
#: Starts a child in a process group of its own, as mpiexec does.
LAUNCHES = (
    "import os, subprocess, sys, time\n"
    "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], process_group=0).pid, flush=True)\n"
    "time.sleep(60)"
)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., SupervisedProgram]]:
    programs: list[SupervisedProgram] = []

    def start(code: str, processes: int = 1) -> SupervisedProgram:
        command = (sys.executable, "-c", code)
        log = tmp_path / "worker.log"
        programs.append(SupervisedProgram(Program("worker", "worker-3", command, log, {}, processes)))
        return programs[-1]

    yield start
    for program in programs:
        program.child.end(patience_seconds=0)


def turn_until(program: SupervisedProgram, condition: Callable[[], Any], seconds: float = 15.0) -> list[str]:
    """What the turns say until ``condition`` holds."""
    deadline, said = time.monotonic() + seconds, []
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        if news := program.turn():
            said.append(news)
        time.sleep(0.02)
    return said


def test_a_killed_program_is_started_again_at_once(supervise: Callable[..., SupervisedProgram]) -> None:
    program = supervise(WAITS)
    turn_until(program, lambda: "here" in program.program.log.read_text())
    first = program.child.pid
    assert program.turn() == ""
    killed = time.monotonic()
    os.kill(first, signal.SIGKILL)
    (news,) = turn_until(program, lambda: program.child.pid != first)
    assert time.monotonic() - killed < 1
    assert news.startswith("worker-3 was killed by SIGKILL: here; it was started again")
    assert program.child.is_running
    assert program.cannot_live == ""


def test_a_stopped_program_is_not_dead(supervise: Callable[..., SupervisedProgram]) -> None:
    program = supervise(WAITS)
    pid = program.child.pid
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 0.5
    assert turn_until(program, lambda: time.monotonic() > deadline) == []
    assert program.child.pid == pid
    assert program.child.is_running


def test_nothing_of_it_is_left_when_it_starts_again(supervise: Callable[..., SupervisedProgram]) -> None:
    program = supervise(LAUNCHES, processes=2)
    launcher = program.child
    turn_until(program, lambda: launcher.log.read_text().endswith("\n"))
    (other,) = set(session_members(launcher.pid)) - {launcher.pid}
    assert other == int(launcher.log.read_text())
    os.kill(other, signal.SIGSTOP)
    os.kill(launcher.pid, signal.SIGKILL)
    turn_until(program, lambda: program.child is not launcher)
    assert has_ended(other)


def test_a_launcher_that_lost_a_process_and_does_not_end_is_ended(
    supervise: Callable[..., SupervisedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "LOST_SECONDS", 0.2)
    monkeypatch.setattr(supervision, "_COUNT_SECONDS", 0.05)
    program = supervise(LAUNCHES, processes=2)
    launcher = program.child
    turn_until(program, lambda: len(session_members(launcher.pid)) == 2)
    deadline = time.monotonic() + 0.5
    assert turn_until(program, lambda: time.monotonic() > deadline) == []
    os.kill(int(launcher.log.read_text()), signal.SIGKILL)
    said = turn_until(program, lambda: program.child is not launcher)
    assert "had lost a process" in said[0]
    assert "SIGKILL" in said[1]


def test_a_launcher_that_never_starts_all_its_processes_is_ended(
    supervise: Callable[..., SupervisedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "STARTING_SECONDS", 0.4)
    monkeypatch.setattr(supervision, "_COUNT_SECONDS", 0.05)
    program = supervise(LAUNCHES, processes=3)
    launcher = program.child
    said = turn_until(program, lambda: program.child is not launcher)
    assert "had not started all of its 2 ranks" in said[0]


def test_a_program_that_cannot_be_started_is_tried_again(supervise: Callable[..., SupervisedProgram]) -> None:
    program = supervise(WAITS)
    logs = program.program.log.parent
    moved = logs.rename(logs.with_name("elsewhere"))
    os.kill(program.child.pid, signal.SIGKILL)
    with pytest.raises(ScanFailed, match="worker-3 cannot be started"):
        turn_until(program, lambda: False)
    moved.rename(logs)
    turn_until(program, lambda: program.child.is_running)


def test_a_program_that_cannot_live_is_tried_again_after_a_pause(
    supervise: Callable[..., SupervisedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "PAUSE_SECONDS", 0.5)
    program = supervise("import sys; print('mpistream: error: no disk'); print('  add one'); sys.exit(1)")
    with pytest.raises(ScanFailed, match="worker-3 exited with 1: no disk; add one; it has ended 5 times") as caught:
        turn_until(program, lambda: False)
    assert str(program.program.log) in caught.value.remedy
    assert program.program.log.read_text().count("no disk") == MOST_BRIEF_LIVES
    assert program.cannot_live == caught.value.message
    with pytest.raises(ScanFailed, match="5 times"):
        program.turn()
    time.sleep(0.6)
    assert "it was started again" in program.turn()
    assert program.cannot_live == ""
    with pytest.raises(ScanFailed, match="it has ended 6 times"):
        turn_until(program, lambda: False)


def test_ends_after_a_life_are_no_reason_for_a_pause(
    supervise: Callable[..., SupervisedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "BRIEF_SECONDS", 0.0)
    program = supervise("pass")
    said: list[str] = []
    turn_until(program, lambda: said.append(news) if (news := program.turn()) else len(said) > MOST_BRIEF_LIVES)
    assert all("exited with 0" in news for news in said)


def test_last_words_are_those_of_the_last_start(supervise: Callable[..., SupervisedProgram], tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    program = supervise(
        f"from pathlib import Path\nflag = Path({str(flag)!r})\n"
        "print('second' if flag.exists() else 'mpistream: error: first')\nflag.touch()"
    )
    assert "first" in turn_until(program, lambda: flag.exists() and program.child.log_start > 0)[0]
    turn_until(program, lambda: not program.child.is_running)
    assert program.child.how_it_ended() == "worker-3 exited with 0: second"
