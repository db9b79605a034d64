"""What the campaign's figures are made from: plans, silences, growth."""

from collections import Counter
from pathlib import Path

import pytest

from mpistream.model.fault_points import FAULT_POINTS
from tests.faults.plans import FULL_KILLS, full_campaign, short_campaign
from tests.faults.processes import ROLES
from tests.faults.report import POINT_TIMES
from tests.faults.scan_watch import ScanWatch
from tests.faults.soak import FIRST_COUNTED, Figures, growth
from tests.faults.surroundings import label_of


def test_a_full_campaign_has_what_it_promises() -> None:
    plans = full_campaign(1, FULL_KILLS, with_networks=True, with_disks=True)
    labels = Counter(label_of(fault) for plan in plans for fault in plan.faults)
    assert all(labels[f"at {point}"] >= POINT_TIMES for point in FAULT_POINTS)
    assert all(labels[f"SIGKILL {role}"] for role in ROLES)
    assert sum(count for label, count in labels.items() if label.startswith("SIGKILL")) >= FULL_KILLS
    assert [plan.number for plan in plans] == list(range(len(plans)))


def test_a_seed_repeats_a_campaign() -> None:
    assert full_campaign(3, 40, True, True) == full_campaign(3, 40, True, True)
    assert full_campaign(3, 40, True, True) != full_campaign(4, 40, True, True)
    assert short_campaign(3, True, True) == short_campaign(3, True, True)


@pytest.mark.parametrize(
    ("begin", "end", "silence"),
    [
        (1.0, 99.0, 5.0),  # from 4 to 9
        (5.0, 99.0, 4.0),  # it lasted already
        (1.0, 3.5, 2.0),  # another fault follows at 3.5
        (9.5, 99.0, 0.5),
        (10.0, 99.0, None),  # nothing moved any more
    ],
)
def test_silences(begin: float, end: float, silence: float | None) -> None:
    moves = [(moment, "progress") for moment in (0.5, 2.0, 4.0, 9.0, 10.0)]
    watch = ScanWatch(None, Path("scan.h5"), 0, moves=moves)  # type: ignore[arg-type]
    assert watch.silence_after(begin, end) == silence


def test_growth_is_told_from_noise() -> None:
    mebibyte = 2**20
    steady = [Figures((100 + number % 5) * mebibyte, 20, 8, 12) for number in range(60)]
    leaking = [Figures(one.resident_bytes, 20 + number // 10, 8, 12) for number, one in enumerate(steady)]
    swelling = [Figures((100 + number) * mebibyte, 20, 8, 12) for number in range(60)]
    assert growth("rank 1", steady) == []
    assert "descriptors" in "".join(growth("rank 1", leaking))
    assert "resident memory" in "".join(growth("rank 1", swelling))
    warm_up = [Figures(mebibyte, 1, 1, 1)] * FIRST_COUNTED
    assert growth("rank 1", warm_up + steady) == []
