"""Child processes: real ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpistream.launch.processes import Child, end_marked, has_ended, last_words, session_members, start_child
from mpistream.model.errors import MpistreamError, ScanFailed


@pytest.fixture
def start(tmp_path: Path):
    children: list[Child] = []

    def start_python(code: str, **environment: str) -> Child:
        command = [sys.executable, "-c", code]
        children.append(start_child("worker", "worker-3", command, tmp_path / "worker.log", environment))
        return children[-1]

    yield start_python
    for child in children:
        child.end(patience_seconds=0)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """A zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_child_prints_goes_to_its_log(start) -> None:
    child = start("import os, sys; print(os.environ['GREETING']); print('oh', file=sys.stderr)", GREETING="hello")
    wait_until(lambda: not child.is_running)
    assert sorted(child.log.read_text().split()) == ["hello", "oh"]


def test_a_child_has_no_terminal_and_a_session_of_its_own(start) -> None:
    child = start("import os, sys; print(sys.stdin.read() == '', os.getsid(0) == os.getpid())")
    wait_until(lambda: not child.is_running)
    assert child.log.read_text() == "True True\n"


def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(MpistreamError, match="no-such-program is not installed"):
        start_child("worker", "worker", ["no-such-program"], tmp_path / "log")


def test_a_child_that_ended_is_reported_with_its_last_words(start) -> None:
    child = start("import time; print('started', flush=True); time.sleep(60)")
    wait_until(lambda: "started" in child.log.read_text())
    child.check_running()
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: not child.is_running)
    with pytest.raises(ScanFailed, match="worker-3 was killed by SIGKILL: started") as caught:
        child.check_running()
    assert str(child.log) in caught.value.remedy
    child = start("print('mpistream: error: the disk is full'); print('  free some'); raise SystemExit(3)")
    wait_until(lambda: not child.is_running)
    with pytest.raises(ScanFailed, match="worker-3 exited with 3: the disk is full"):
        child.check_running()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it said nothing"),
        (b"\n \n", "it said nothing"),
        (b"one\ntwo\n\n", "two"),
        (b"mpistream: error: first\n  remedy\nmpistream: error: second\nthe end\n", "first; remedy"),
        (b"mpistream: error: first\nmpistream: error: second\n", "first"),
        (b"\xff\xfe broken\n", "�� broken"),
    ],
)
def test_last_words(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "log").write_bytes(text)
    assert last_words(tmp_path / "log") == words


def test_a_child_that_is_asked_ends_by_itself(start) -> None:
    child = start(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('asked'))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    wait_until(lambda: "ready" in child.log.read_text())
    child.ask_to_end()
    child.end(patience_seconds=10)
    assert last_words(child.log) == "asked"
    child.ask_to_end()  # harmless when it has ended


def test_a_child_that_will_not_end_is_killed_with_what_it_started(start) -> None:
    child = start(
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n"
        "time.sleep(60)"
    )
    wait_until(lambda: child.log.read_text().endswith("\n"))
    grandchild = int(child.log.read_text())
    child.ask_to_end()
    started = time.monotonic()
    child.end(patience_seconds=0.3)
    assert time.monotonic() - started < 5
    assert not child.is_running
    wait_until(lambda: not is_alive(grandchild))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mpistream.launch.processes import start_child\n"
        "print(start_child('worker', 'worker', ['sleep', '60'], Path(sys.argv[1])).pid, flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # The child has asked for its parent's death signal once it is the program itself.
        wait_until(lambda: "sleep" in Path(f"/proc/{child}/cmdline").read_text().split("\0")[0])
        assert is_alive(child)
        parent.send_signal(how)
        parent.wait(timeout=10)
        wait_until(lambda: not is_alive(child))


def test_what_an_ended_child_has_left_in_its_session_is_ended(start) -> None:
    """Also what has a process group of its own."""
    child = start(
        "import subprocess\n"
        "processes = [subprocess.Popen(['sleep', '60'], process_group=group) for group in (None, 0)]\n"
        "print(*(process.pid for process in processes))"
    )
    wait_until(lambda: not child.is_running)
    left = sorted(map(int, child.log.read_text().split()))
    assert sorted(session_members(child.pid)) == left
    assert not child.session_is_gone()
    wait_until(child.session_is_gone)
    assert all(map(has_ended, left))
    assert "worker-3 exited with 0" in child.how_it_ended()


MARKED = "import signal, time; signal.signal(signal.SIGTERM, {}); print('ready', flush=True); time.sleep(60)"


def test_processes_are_known_by_their_mark(start, tmp_path: Path) -> None:
    """By request, then by force; whatever they have started, too. Others are left alone."""
    mark = {"THE_MARK": str(tmp_path)}
    code = f"import subprocess; subprocess.Popen(['sleep', '60']); {MARKED}"
    willing = start(code.format("signal.SIG_DFL"), **mark)
    unwilling = start(MARKED.format("signal.SIG_IGN"), **mark)
    stopped = start(MARKED.format("signal.SIG_DFL"), **mark)
    other = start(MARKED.format("signal.SIG_DFL"), THE_MARK=f"{tmp_path}-2")
    wait_until(lambda: willing.log.read_text().count("ready") == 4)
    os.kill(stopped.pid, signal.SIGSTOP)
    (grandchild,) = set(session_members(willing.pid)) - {willing.pid}
    end_marked(f"THE_MARK={tmp_path}", patience_seconds=0.5)
    assert [child.is_running for child in (willing, unwilling, stopped, other)] == [False, False, False, True]
    assert has_ended(grandchild)
    assert "SIGTERM" in willing.how_it_ended()
    assert "SIGKILL" in unwilling.how_it_ended()
    started = time.monotonic()
    end_marked(f"THE_MARK={tmp_path}", patience_seconds=10)
    assert time.monotonic() - started < 5
