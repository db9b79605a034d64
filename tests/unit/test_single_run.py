"""What a scan with processes of its own leaves behind; the processes are made up, etcd is real."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.launch import single_run
from mpistream.launch.scan_follower import ScanEnd
from mpistream.model.config import Config
from mpistream.model.errors import ScanFailed
from mpistream.model.scan import ScanRecord
from mpistream.storage.placement import partial_path
from tests.unit.registered import deployment, scan_record, summary

END = ScanEnd(ScanStatus(ScanState.COMMITTED, 1.0), summary())


class MadeUpTestbed:
    unfinished = ()

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def supervise(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def draft(tmp_path: Path) -> ScanRecord:
    return scan_record(output=str(tmp_path / "scan.h5"), journals=str(tmp_path / "journals"))


@pytest.fixture
def run(
    etcd: Coordination, draft: ScanRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[single_run.Follow], ScanEnd]]:
    with deployment(etcd) as running:
        monkeypatch.setattr(single_run, "Testbed", lambda *_, **__: MadeUpTestbed(running.registry))
        monkeypatch.setattr(single_run.tempfile, "mkdtemp", lambda **_: str(tmp_path / "testbed"))
        yield lambda follow: single_run.run_once(draft, 1, 1, Config(), follow, print)


@pytest.mark.parametrize("error", [None, ScanFailed("no peak"), KeyboardInterrupt()])
def test_no_partial_file_is_left_of_a_scan_that_was_redirected(
    run: Callable[[single_run.Follow], ScanEnd], tmp_path: Path, error: BaseException | None
) -> None:
    """Whoever was killed may have left one at either place."""
    places = [tmp_path / "scan.h5", tmp_path / "elsewhere" / "other.h5"]
    places[1].parent.mkdir()

    def follow(registry: Registry, draft: ScanRecord, turn: Callable[[], object]) -> ScanEnd:
        registry.announce(draft)
        registry.redirect(draft.uid, str(places[1]))
        for place in places:
            partial_path(place, f"{draft.uid.hex}.5-0").touch()
        if error is not None:
            raise error
        return END

    if error is None:
        assert run(follow) == END
    else:
        with pytest.raises(type(error)):
            run(follow)
    assert [list(place.parent.glob("*.partial.*")) for place in places] == [[], []]


def test_a_scan_that_was_never_announced(run: Callable[[single_run.Follow], ScanEnd]) -> None:
    def follow(registry: Registry, draft: ScanRecord, turn: Callable[[], object]) -> ScanEnd:
        raise ScanFailed("no rank group is registered")

    with pytest.raises(ScanFailed, match="no rank group is registered"):
        run(follow)
