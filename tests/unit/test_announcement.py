"""What a user asks for, before any process hears of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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
from mpistream.model.scan import CountingParameters, Thresholds
from mpistream.storage.thresholds_file import SavedThresholds
from tests.unit.made_up_registry import MadeUpRegistry


@pytest.fixture
def request_(tmp_path: Path) -> ScanRequest:
    return ScanRequest("sim:16x16", tmp_path / "scan.h5", CountingParameters())


def test_a_draft_is_the_scan_but_for_its_routing(request_: ScanRequest) -> None:
    draft, _ = draft_scan(request_, Config())
    assert (draft.rows, draft.columns, draft.source) == (16, 16, "sim:16x16")
    assert (draft.output, draft.routing_version) == (str(request_.output), 0)
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


def test_a_scan_is_announced_under_the_latest_table(request_: ScanRequest) -> None:
    registry: Any = MadeUpRegistry()
    draft, _ = draft_scan(request_, Config())
    record = announce(registry, draft)
    assert registry.announced == [record]
    assert (record.uid, record.routing_version) == (draft.uid, 1)
    assert record.announced_unix_seconds >= draft.announced_unix_seconds


def test_a_scan_is_announced_only_where_all_that_it_needs_is_there(request_: ScanRequest) -> None:
    draft, _ = draft_scan(request_, Config())
    absences: list[tuple[dict[str, Any], str]] = [
        ({"jobs": []}, "no rank group is registered"),
        ({"jobs": ["an earlier one"]}, "no rank group is registered"),
        ({"sectors": [0, 3]}, "no producer is registered for sector 1, 2"),
        ({"names": []}, "no aggregator is registered"),
    ]
    for absence, message in absences:
        registry: Any = MadeUpRegistry(**absence)
        with pytest.raises(ScanFailed, match=message) as caught:
            announce(registry, draft)
        assert caught.value.remedy
        assert registry.announced == []
    direct: Any = MadeUpRegistry(names=[])
    announce(direct, draft.model_copy(update={"direct": True}))
