"""A few faults of each kind with every run of the tests; `make faults` brings in many more. See docs/faults.md."""

from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, leftovers, stages
from tests.faults.namespaces import lacking
from tests.faults.plans import BY_HAND, TESTBED, short_campaign
from tests.faults.report import broken_bars, failures, table

SEED = 4
SIDE = 32
RANKS = 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", [TESTBED, BY_HAND])
def test_nothing_is_lost(place: str, tmp_path: Path) -> None:
    """Every dataset is that of the undisturbed run, and nothing is left behind."""
    plans = [plan for plan in short_campaign(SEED, not lacking(), not lacking()) if plan.where == place]
    with stages(tmp_path, SEED, SIDE, RANKS, {place}, tmp_path / "evidence") as found:
        campaign = Campaign(found)
        losses = campaign.losses() if place == TESTBED else []
        campaign.run(plans)
        left = leftovers(found[place].deployment)
    left += [*found[place].deployment.troubles, *found[place].deployment.kill_all()]
    print(table(campaign.results))
    assert [*failures(campaign.results), *losses, *left, *broken_bars(campaign.results, kills=0)] == []
