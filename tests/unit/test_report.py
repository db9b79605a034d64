"""What is printed of a scan."""

import json

import pytest

from mpistream.cli.report import print_json, print_summary
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.launch.scan_follower import ScanEnd
from tests.unit.registered import summary

INCOMPLETE = ScanStatus(ScanState.INCOMPLETE, 1.0, "sector 2 was gone", "the rest is there")


def test_a_scan_that_another_job_finished_does_not_know_all_times(capsys: pytest.CaptureFixture[str]) -> None:
    counters = summary().counters.model_copy(update={"blocks_repeated": 7})
    found = summary(seconds={}, complete=False, counters=counters)
    print_summary(found)
    text = capsys.readouterr().out
    assert text.count("not known") == 2
    assert "7 blocks of a sector came more than once" in text
    print_json(ScanEnd(INCOMPLETE, found))
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["complete"], report["reason"]) == ("incomplete", False, "sector 2 was gone")
    assert (report["seconds_streaming"], report["gigabytes_per_second"]) == (None, {})


def test_the_times_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summary(seconds={"streaming": 2.0, "last_frame_to_dataset": 0.25}))
    text = capsys.readouterr().out
    assert "streaming 2.00, last frame to dataset 0.25" in text
    assert "came again" not in text
