"""What a user asks for, before any process hears of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.run_state import ScanState
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.model.config import Config
from mpistream.model.errors import (
    ConfigError,
    MpistreamError,
    ReferenceImageError,
    ScanFailed,
    SourceError,
    StorageError,
)
from mpistream.model.geometry import RECORD_BYTES, SECTORS
from mpistream.model.scan import CountingParameters, Durability, Thresholds
from mpistream.storage.thresholds_file import SavedThresholds
from tests.unit.registered import EVERYTHING, deployment


@pytest.fixture
def request_(tmp_path: Path) -> ScanRequest:
    return ScanRequest("sim:16x16", tmp_path / "scan.h5", CountingParameters())


def test_a_draft_is_the_scan(request_: ScanRequest) -> None:
    draft, _ = draft_scan(request_, Config())
    assert (draft.rows, draft.columns, draft.source) == (16, 16, "sim:16x16")
    assert draft.output == str(request_.output)
    assert draft.block_frames == Config().stream.block_frames
    assert draft_scan(request_, Config())[0].uid != draft.uid


def test_what_is_wrong_is_found_before_anything_starts(request_: ScanRequest, tmp_path: Path) -> None:
    (tmp_path / "there.h5").touch()
    least = 2 * SECTORS * 8 * RECORD_BYTES
    small = Config.load(None, {"stream.window_bytes": least})
    cases: list[tuple[ScanRequest, Config, type[MpistreamError], str]] = [
        (replace(request_, output=tmp_path / "there.h5"), Config(), StorageError, "exists"),
        (replace(request_, output=tmp_path), Config(), StorageError, "is a folder"),
        (replace(request_, output=tmp_path / "no" / "scan.h5"), Config(), StorageError, "does not exist"),
        (replace(request_, source="sim:16"), Config(), SourceError, "16"),
        (replace(request_, counting=CountingParameters(gain="no.npy")), Config(), ReferenceImageError, "no.npy"),
        (replace(request_, counting=CountingParameters(pixel_mask="no.npy")), Config(), ReferenceImageError, "no.npy"),
        (replace(request_, thresholds=tmp_path / "no.json"), Config(), StorageError, "no.json"),
        (request_, small, ConfigError, "calibration looks at 32 blocks, but only 2 "),
    ]
    for wrong, config, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            draft_scan(wrong, config)
        assert caught.value.remedy
    draft_scan(replace(request_, output=tmp_path / "there.h5", overwrite=True), Config())
    draft_scan(replace(request_, counting=CountingParameters(background=40, xray=900)), small)


@pytest.mark.parametrize("used", ["dark", "gain", "pixel_mask", "thresholds"])
def test_a_scan_never_overwrites_what_it_reads(request_: ScanRequest, tmp_path: Path, used: str) -> None:
    path = tmp_path / "used"
    path.write_bytes(b"precious")
    if used == "thresholds":
        wrong = replace(request_, thresholds=path)
    else:
        wrong = replace(request_, counting=CountingParameters(**{used: str(path)}))
    with pytest.raises(StorageError, match="is read by this command"):
        draft_scan(replace(wrong, output=tmp_path / "." / "used", overwrite=True), Config())
    assert path.read_bytes() == b"precious"


def test_a_background_below_0_is_said(request_: ScanRequest) -> None:
    for background, notes in ((0.0, 0), (-5.0, 1)):
        counting = CountingParameters(background=background, xray=900)
        assert len(draft_scan(replace(request_, counting=counting), Config())[1]) == notes


def test_saved_thresholds_become_given_ones(request_: ScanRequest, tmp_path: Path) -> None:
    """A scan with them looks at no sample, which would not fit into this window; what is odd is noted."""
    thresholds = Thresholds(background=44.125, xray=1500, calibrated=True, statistics={"optimized_mean": 30.5})
    saved = SavedThresholds(source="sim:8x8", thresholds=thresholds, counting=CountingParameters())
    (tmp_path / "saved.json").write_text(saved.to_json())
    config = Config.load(None, {"stream.window_bytes": 2 * SECTORS * 8 * RECORD_BYTES})
    counting = CountingParameters(row_dark="median", centroids=True)
    draft, notes = draft_scan(replace(request_, counting=counting, thresholds=tmp_path / "saved.json"), config)
    assert draft.counting == CountingParameters(
        background=44.125,
        xray=1500,
        row_dark="median",
        row_dark_level=30.5,
        centroids=True,
        thresholds_from=str(tmp_path / "saved.json"),
    )
    assert len(notes) == 1
    assert "saved.json" in notes[0]


def test_a_scan_is_announced_as_it_was_drafted(request_: ScanRequest, etcd: Coordination) -> None:
    draft, _ = draft_scan(request_, Config())
    with deployment(etcd) as running:
        record = announce(running.registry, draft)
        assert running.registry.record(draft.uid) == record
        assert running.registry.status(draft.uid).state is ScanState.ANNOUNCED
    assert record.model_copy(update={"announced_unix_seconds": draft.announced_unix_seconds}) == draft
    assert record.announced_unix_seconds >= draft.announced_unix_seconds


def test_an_output_has_one_scan_at_a_time(request_: ScanRequest, etcd: Coordination) -> None:
    first, second = draft_scan(request_, Config())[0], draft_scan(request_, Config())[0]
    with deployment(etcd) as running:
        announce(running.registry, first)
        with pytest.raises(StorageError, match=str(first.uid)):
            announce(running.registry, second)
        assert running.registry.record(second.uid) is None
        running.registry.set_state(first.uid, ScanState.ABORTED, ScanFailed("enough"))
        announce(running.registry, second)


def test_a_scan_is_announced_only_where_all_that_it_needs_is_there(request_: ScanRequest, etcd: Coordination) -> None:
    draft, _ = draft_scan(request_, Config())
    with deployment(etcd, [name for name in EVERYTHING if not name.startswith("aggregators")]) as running:
        with pytest.raises(ScanFailed, match="no aggregator is registered"):
            announce(running.registry, draft)
        assert running.registry.scans() == {}
        announce(running.registry, draft.model_copy(update={"direct": True}))


def test_where_journals_go(request_: ScanRequest, tmp_path: Path) -> None:
    """Beside the output, unless the configuration names a folder; each scan has one of its own."""
    draft, _ = draft_scan(request_, Config())
    assert draft.journals == str(tmp_path / f"scan.h5.journal.{draft.uid.hex}")
    assert draft.durability is Durability.WRITE
    fast = tmp_path / "fast"
    config = Config.load(None, {"journal.directory": str(fast), "journal.durability": "fsync"})
    with pytest.raises(StorageError, match=r"folder for journals .* does not exist"):
        draft_scan(request_, config)
    fast.mkdir()
    draft, _ = draft_scan(request_, config)
    assert draft.journals == str(fast / f"scan.h5.journal.{draft.uid.hex}")
    assert draft.durability is Durability.FSYNC
    assert list(fast.iterdir()) == []


def test_a_recording_is_not_counted_and_lies_beside_its_output(request_: ScanRequest, tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    config = Config.load(None, {"journal.directory": str(tmp_path / "fast")})
    draft, _ = draft_scan(replace(request_, recording=True), config)
    assert draft.recording
    assert Path(draft.journals).parent == tmp_path
    for counting in (CountingParameters(background=1, xray=2), CountingParameters(centroids=True)):
        with pytest.raises(ConfigError, match=r"so it has no (background, xray|centroids)") as caught:
            draft_scan(replace(request_, recording=True, counting=counting), config)
        assert "--source raw:" in caught.value.remedy
    with pytest.raises(ConfigError, match="so it has no thresholds"):
        draft_scan(replace(request_, recording=True, thresholds=tmp_path / "x.json"), config)
