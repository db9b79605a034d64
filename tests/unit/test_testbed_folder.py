"""What a testbed leaves in its folder, and who may use it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpistream.launch.local import free_port, is_free
from mpistream.launch.supervisor import default_folder
from mpistream.launch.testbed_folder import ProcessEntry, TestbedFolder, TestbedState
from mpistream.model.errors import MpistreamError

STATE = TestbedState(17, (ProcessEntry("etcd", "etcd", 18, "127.0.0.1:2379"),), ("producer-1 ended",), ("uid",))


def test_one_at_a_time(tmp_path: Path) -> None:
    folder, other = TestbedFolder(tmp_path / "bed"), TestbedFolder(tmp_path / "bed")
    assert not folder.is_running()
    assert folder.holder() is None
    with folder.held():
        assert other.is_running()
        assert other.holder() == os.getpid()
        with pytest.raises(MpistreamError, match=r"a testbed is running in .*bed"), other.held():
            pass
    assert not other.is_running()
    with other.held():
        assert folder.is_running()
        assert folder.holder() == os.getpid()


@pytest.mark.parametrize("text", ["", "[1]", '{"supervisor": 4, "processes": []}'])
def test_a_torn_state_means_only_that_scans_may_be_unfinished(tmp_path: Path, text: str) -> None:
    (tmp_path / "testbed.json").write_text(text)
    assert TestbedFolder(tmp_path).state() == TestbedState(0)


def test_whoever_dies_holds_nothing_any_more(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mpistream.launch.testbed_folder import TestbedFolder\n"
        "with TestbedFolder(Path(sys.argv[1])).held():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert TestbedFolder(tmp_path).is_running()
        holder.kill()
    assert not TestbedFolder(tmp_path).is_running()


def test_the_state_comes_back(tmp_path: Path) -> None:
    folder = TestbedFolder(tmp_path)
    assert folder.state() is None
    folder.write_state(STATE)
    assert TestbedFolder(tmp_path).state() == STATE
    assert json.loads((tmp_path / "testbed.json").read_text())["supervisor"] == 17
    folder.forget_state()
    assert folder.state() is None
    folder.forget_state()


def test_what_is_kept_and_what_goes(tmp_path: Path) -> None:
    folder = TestbedFolder(tmp_path)
    assert not folder.holds_something_else()
    (tmp_path / "thesis.tex").touch()
    assert folder.holds_something_else()
    with folder.held():
        assert not folder.holds_something_else()
    for place in (folder.etcd, folder.logs):
        place.mkdir()
    folder.config_path.touch()
    folder.log.touch()
    folder.write_state(STATE)
    folder.forget_scans()
    assert {path.name for path in tmp_path.iterdir()} == {
        "logs",
        "supervisor.log",
        "mpistream-testbed.lock",
        "thesis.tex",
    }
    folder.clear()
    folder.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"mpistream-testbed.lock", "thesis.tex"}


def test_a_server_s_port_is_given_to_nobody_else() -> None:
    first_given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(port < first_given_away and is_free(port) for port in ports)


def test_a_testbed_lives_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MPISTREAM_TESTBED", raising=False)
    assert default_folder() == tmp_path / "state" / "mpistream" / "testbed"
    monkeypatch.setenv("MPISTREAM_TESTBED", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
