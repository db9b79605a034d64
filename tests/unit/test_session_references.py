"""References by name, in a real etcd."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.announcement import ScanRequest, draft_scan
from mpistream.launch.references import find_reference, reference_path, resolve_references, store_reference
from mpistream.launch.sessions import camera_counting, session_request, start_session
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, StorageError
from mpistream.model.scan import CountingParameters, Thresholds
from mpistream.model.session import ReferenceKind
from mpistream.storage.thresholds_file import SavedThresholds
from tests.unit.registered import deployment

DARK, MASK, THRESHOLDS = ReferenceKind.DARK, ReferenceKind.MASK, ReferenceKind.THRESHOLDS


@pytest.fixture
def sessions(etcd: Coordination) -> SessionRegistry:
    return SessionRegistry(etcd)


@pytest.fixture
def dark(sessions: SessionRegistry, tmp_path: Path) -> Path:
    """A dark reference, named ``night``."""
    path = tmp_path / "dark.npy"
    np.save(path, np.full((576, 576), 30, np.float32))
    store_reference(sessions, DARK, "night", path, "monday", {"frames": 100})
    return path


@pytest.fixture
def thresholds(sessions: SessionRegistry, tmp_path: Path) -> Path:
    """Found after a dark reference; named ``night``, too."""
    path = tmp_path / "thresholds.json"
    found = Thresholds(background=44.0, xray=1500.0, calibrated=False)
    counting = CountingParameters(dark="/earlier.npy")
    path.write_text(SavedThresholds(source="sim:8x8", thresholds=found, counting=counting).to_json())
    store_reference(sessions, THRESHOLDS, "night", path)
    return path


def request_with(tmp_path: Path, thresholds: str | None = None, **counting: str) -> ScanRequest:
    file = None if thresholds is None else Path(thresholds)
    return ScanRequest("sim:8x8", tmp_path / "scan.h5", CountingParameters(**counting), thresholds=file)


def test_names_become_paths(sessions: SessionRegistry, dark: Path, thresholds: Path, tmp_path: Path) -> None:
    """And the scan's record says which names were used."""
    request = resolve_references(sessions, request_with(tmp_path, "ref:night", dark="ref:night"))
    assert (request.counting.dark, request.thresholds) == (str(dark), thresholds)
    draft, _ = draft_scan(request, Config())
    assert draft.references == {"dark": "night", "thresholds": "night"}
    assert (draft.counting.background, draft.counting.thresholds_from) == (44.0, str(thresholds))


def test_paths_stay_paths(sessions: SessionRegistry, tmp_path: Path) -> None:
    request = request_with(tmp_path, "/t.json", dark="/d.npy", gain="/g.npy", pixel_mask="/m.npy")
    assert resolve_references(sessions, request) == request


def test_a_name_that_nobody_gave(sessions: SessionRegistry, dark: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no dark reference day") as caught:
        resolve_references(sessions, request_with(tmp_path, dark="ref:day"))
    assert "there are: night" in caught.value.remedy
    assert "mpistream dark SOURCE" in caught.value.remedy
    with pytest.raises(ConfigError, match="there is no pixel mask night"):
        resolve_references(sessions, request_with(tmp_path, pixel_mask="ref:night"))
    with pytest.raises(ConfigError, match="'' can be no name"):
        resolve_references(sessions, request_with(tmp_path, dark="ref:"))


def test_a_file_that_is_another_one_is_not_used(sessions: SessionRegistry, dark: Path, tmp_path: Path) -> None:
    np.save(dark, np.full((576, 576), 31, np.float32))
    with pytest.raises(StorageError, match=r"dark.npy has changed since it became dark reference night") as caught:
        resolve_references(sessions, request_with(tmp_path, dark="ref:night"))
    assert "--name night" in caught.value.remedy
    store_reference(sessions, DARK, "night", dark)
    assert resolve_references(sessions, request_with(tmp_path, dark="ref:night")).counting.dark == str(dark)
    dark.unlink()
    with pytest.raises(StorageError, match="No such file") as gone:
        resolve_references(sessions, request_with(tmp_path, dark="ref:night"))
    assert "--name night" in gone.value.remedy


def test_what_is_stored(sessions: SessionRegistry, dark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_reference(sessions, DARK, "night")
    assert (found.path, found.session, found.about) == (str(dark), "monday", {"frames": 100})
    monkeypatch.chdir(tmp_path)
    again = store_reference(sessions, DARK, "night", Path("dark.npy"))
    assert (again.path, again.sha256) == (found.path, found.sha256)
    assert sessions.references() == [again]
    with pytest.raises(ConfigError, match="can be no name of a reference"):
        store_reference(sessions, DARK, "a/b", dark)
    with pytest.raises(StorageError, match=r"no.npy cannot be read"):
        store_reference(sessions, DARK, "x", tmp_path / "no.npy")
    sessions.forget_reference(DARK, "night")
    assert sessions.references() == []


def test_a_session_takes_what_has_the_name_when_a_scan_starts(
    etcd: Coordination, sessions: SessionRegistry, dark: Path, thresholds: Path, tmp_path: Path
) -> None:
    start_session(sessions, "monday", tmp_path, CountingParameters(dark="ref:night"), Path("ref:night"))
    later = tmp_path / "later.npy"
    np.save(later, np.full((576, 576), 32, np.float32))
    with deployment(etcd, []) as running:
        assert session_request(sessions, running.registry, "monday", "sim:8x8").counting.dark == str(dark)
        store_reference(sessions, DARK, "night", later)
        request = session_request(sessions, running.registry, "monday", "sim:8x8")
    assert (request.counting.dark, request.thresholds) == (str(later), thresholds)
    assert draft_scan(request, Config())[0].references == {"dark": "night", "thresholds": "night"}


def test_files_in_a_sessions_folder_have_names_of_their_own(sessions: SessionRegistry, tmp_path: Path) -> None:
    start_session(sessions, "monday", tmp_path, CountingParameters())
    first, second = (reference_path(sessions, DARK, "night", "monday") for _ in range(2))
    assert first != second
    assert {first.parent, second.parent} == {tmp_path / "references"}
    assert first.name.startswith("night_dark_")
    assert first.suffix == ".npy"
    with pytest.raises(ConfigError, match="there is no session tuesday"):
        reference_path(sessions, DARK, "night", "tuesday")


@pytest.mark.parametrize("parameter", ["dark", "gain", "pixel_mask", "thresholds"])
def test_names_without_a_deployment_that_knows_any(tmp_path: Path, parameter: str) -> None:
    if parameter == "thresholds":
        request = request_with(tmp_path, "ref:night")
    else:
        request = replace(request_with(tmp_path), counting=CountingParameters(**{parameter: "ref:night"}))
    with pytest.raises(ConfigError, match="ref:night is no file"):
        draft_scan(request, Config())


def test_scans_of_the_camera_take_what_their_session_says(
    sessions: SessionRegistry, dark: Path, thresholds: Path, tmp_path: Path
) -> None:
    start_session(sessions, "monday", tmp_path, CountingParameters(dark="ref:night"), Path("ref:night"))
    session = sessions.session("monday")
    assert session is not None
    counting = camera_counting(sessions, session)
    assert (counting.background, counting.thresholds_from, counting.dark) == (44.0, str(thresholds), str(dark))
