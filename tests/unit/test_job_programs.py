"""What a job's program refuses before it begins anything: a session that was never started, sources that are none."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.programs import Scans, live, request_scan, single
from mpistream.launch.cluster.series import timeseries, tomography
from mpistream.model.errors import ConfigError
from mpistream.model.session import Mode

Program = Callable[[Any, Scans], Any]
PROGRAMS: dict[str, Program] = {
    "live": lambda run, scans: live(run),
    "single": single,
    "the next one": lambda run, scans: single(run, None),
    "timeseries": lambda run, scans: timeseries(run, scans, 3, 0.0, False),
    "tomography": lambda run, scans: tomography(run, scans, [0.0, 10.0]),
}


@pytest.fixture
def run(etcd: Coordination) -> Any:
    """A batch job that serves a session which nobody has started. It has nothing but etcd."""
    return SimpleNamespace(
        order=SimpleNamespace(session="nobody", mode=Mode.SINGLE),
        sessions=SessionRegistry(etcd),
        allocation=SimpleNamespace(number="7", restarts=0),
        persist=lambda action: action(),
    )


def scans_into(folder: Path, source: str = "sim:4x4?seed={index}") -> Scans:
    return Scans(source, folder / "out")


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_scan_is_announced_in_a_session_that_was_never_started(run: Any, tmp_path: Path, program: Program) -> None:
    with pytest.raises(ConfigError, match="there is no session nobody") as raised:
        program(run, scans_into(tmp_path))
    assert "mpistream session start" in raised.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["live", "the next one"])
def test_who_waits_for_scans_of_others_needs_a_session(run: Any, tmp_path: Path, name: str) -> None:
    run.order.session = ""
    with pytest.raises(ConfigError, match="a single job needs a session") as raised:
        PROGRAMS[name](run, scans_into(tmp_path))
    assert "--session NAME" in raised.value.remedy


def test_a_scan_of_ones_own_needs_none(run: Any, tmp_path: Path) -> None:
    run.order.session = ""
    scans = scans_into(tmp_path, "sim:4x4")
    assert request_scan(run, scans, scans.source, scans.output).session == ""


@pytest.mark.parametrize("name", ["timeseries", "tomography"])
@pytest.mark.parametrize(("source", "message"), [("sim:4x4", "the same for all scans"), ("sim:4x4?{a}", "filled in")])
def test_a_series_whose_sources_are_none_begins_nothing(
    run: Any, tmp_path: Path, name: str, source: str, message: str
) -> None:
    run.order.session = ""
    with pytest.raises(ConfigError, match=message):
        PROGRAMS[name](run, scans_into(tmp_path, source))
    assert not list(tmp_path.iterdir())
