"""The doctor on a sound installation, and on ones with parts missing, foreign, dead or hanging."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mpistream.launch import doctor
from mpistream.model.config import Config
from mpistream.model.errors import MpistreamError
from tests.etcd_server import EtcdServer


def run_doctor(*arguments: object, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "mpistream", "doctor", *map(str, arguments)]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


def checks(output: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(output)["checks"]}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def write_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_sound_installation_with_its_configuration(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        path = tmp_path / "mpistream.toml"
        path.write_text(Config.load(None, {"etcd.endpoints": [server.endpoint]}).to_toml())
        status, output = run_doctor("--config", path, "--json")
    found = checks(output)
    assert [name for name, check in found.items() if check["necessary"] and not check["ok"]] == []
    assert status == 0
    assert json.loads(output)["ok"]
    assert "2 ranks in one world" in found["MPI"]["detail"]
    assert "2 ranks wrote a file together" in found["parallel HDF5"]["detail"]
    assert "started, written and read" in found["etcd"]["detail"]
    assert server.endpoint in found["configured etcd"]["detail"]


def test_missing_programs_are_named_with_what_installs_them(tmp_path: Path) -> None:
    status, output = run_doctor(PATH=str(tmp_path))
    assert status == 1
    assert output.splitlines()[-1] == "broken: MPI, etcd"
    for line in ("mpiexec is not installed", "openmpi-bin", "etcd is not installed", "etcd-server", "etcd-client"):
        assert line in output


def test_a_configuration_is_checked_and_its_etcd_tried(tmp_path: Path) -> None:
    path = tmp_path / "mpistream.toml"
    path.write_text(
        "[etcd]\nendpoints = ['127.0.0.1:1']\ntimeout_seconds = 0.5\n[network]\nhost = '192.0.2.1'\n"
        f"[journal]\ndirectory = '/not/there'\n[stream]\nspill_directory = '{tmp_path}'\n"
    )
    status, output = run_doctor("--config", path, "--json", PATH=str(tmp_path))
    found = checks(output)
    assert status == 1
    assert found["configuration"]["ok"]
    assert "no etcd reachable at 127.0.0.1:1" in found["configured etcd"]["detail"]
    assert "cannot bind a port on 192.0.2.1" in found["ZeroMQ"]["detail"]
    assert not found["etcd"]["necessary"]
    assert "cannot write to /not/there: No such file" in found["journals"]["detail"]
    assert found["spill"]["ok"]
    path.write_text("[etcd]\nport = 3\n")
    finding = next(finding for finding in doctor.examine(path) if finding.name == "configuration")
    assert "unknown key 'port' in [etcd]" in finding.detail
    assert "endpoints" in finding.remedy


def test_a_launcher_of_another_mpi_is_recognised(programs: Path) -> None:
    """It starts the processes, but they do not find each other."""
    write_program(programs, "mpiexec.openmpi", 'shift 2; "$@"; "$@"')
    with pytest.raises(MpistreamError, match="does not belong to: 2 ranks started, each sees a world of 1") as caught:
        doctor._mpi()
    assert "--no-binary=mpi4py" in caught.value.remedy


def test_what_fails_is_told_in_its_own_words(programs: Path) -> None:
    write_program(programs, "mpiexec.openmpi", "echo 'ModuleNotFoundError: No module named mpi4py'; echo ---; exit 3")
    with pytest.raises(MpistreamError, match="ModuleNotFoundError: No module named mpi4py"):
        doctor._mpi()
    write_program(programs, "etcd", "[ $1 = --version ] && echo etcd Version: 9 || echo no disk; exit $(($# > 1))")
    with pytest.raises(MpistreamError, match="etcd exited with 1: no disk"):
        doctor._etcd_server()


def test_what_hangs_is_ended(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.5)
    write_program(programs, "mpiexec.openmpi", f"echo $$ > {programs}/pid; exec sleep 60")
    started = time.monotonic()
    with pytest.raises(MpistreamError, match=r"mpiexec\.openmpi did not end within 0\.5 s"):
        doctor._mpi()
    assert time.monotonic() - started < 10
    assert not Path(f"/proc/{int((programs / 'pid').read_text())}").exists()


def test_limits_that_are_too_low_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LEAST_FILES", "_LEAST_SHARED_MEMORY", "_LEAST_TEMPORARY", "_LEAST_MEMORY"):
        monkeypatch.setattr(doctor, name, 10**18)
    for look in (doctor._open_files, doctor._shared_memory, doctor._temporary_folder, doctor._memory):
        with pytest.raises(MpistreamError):
            look()


def test_whatever_a_broken_package_raises_becomes_a_finding() -> None:
    def look() -> str:
        raise TypeError("Descriptors cannot be created directly")

    finding = doctor._Check("etcd", look, "install the pinned protobuf").find()
    assert (finding.ok, finding.remedy) == (False, "install the pinned protobuf")
    assert finding.detail == "TypeError: Descriptors cannot be created directly"
