"""Faults on purpose: `python -m tests.faults campaign` and `python -m tests.faults soak`. See docs/faults.md."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.campaign import Campaign, leftovers, stages
from tests.faults.namespaces import lacking
from tests.faults.plans import TESTBED, full_campaign, short_campaign
from tests.faults.report import broken_bars, failures, table
from tests.faults.soak import Soak

_SIDE, _RANKS = 40, 2
_SOAK_SIDE = 12


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    commands = parser.add_subparsers(required=True)
    campaign = commands.add_parser("campaign", help="scans under faults; each must give the undisturbed dataset")
    campaign.add_argument("--trials", type=int, default=40, help="processes to kill; all else in proportion")
    campaign.add_argument("--short", action="store_true", help="a few of each kind, in about two minutes")
    campaign.add_argument("--only", type=int, nargs="*", help="these trials of the campaign")
    campaign.set_defaults(run=run_campaign)
    soak = commands.add_parser("soak", help="many scans one after the other; nothing may grow")
    soak.add_argument("--scans", type=int, default=60)
    soak.set_defaults(run=run_soak)
    for command in (campaign, soak):
        command.add_argument("--seed", type=int, default=None, help="that of an earlier run repeats it")
        command.add_argument("--json", type=Path, help="write the raw figures there")
        command.add_argument("--folder", type=Path, help="for everything; kept where something went wrong")
    options = parser.parse_args()
    # nothing may be left behind then either
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    seed = int(time.time()) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mpistream-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    print(f"seed {seed}; folder {folder}", flush=True)
    problems, figures = options.run(options, seed, folder.absolute())
    if options.json:
        options.json.write_text(json.dumps({"seed": seed, "problems": problems, **figures}, indent=1, default=str))
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if problems:
        print(f"seed {seed} repeats it; evidence: {folder / 'evidence'}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 1 if problems else 0


def run_campaign(options: argparse.Namespace, seed: int, folder: Path) -> tuple[list[str], dict[str, Any]]:
    can_mount = not lacking()
    if options.short:
        plans, kills = short_campaign(seed, not lacking(), can_mount), 0
    else:
        plans, kills = full_campaign(seed, options.trials, not lacking(), can_mount), options.trials
    if options.only:
        plans, kills = [plan for plan in plans if plan.number in options.only], 0
    begin = time.monotonic()
    places = {plan.where for plan in plans}
    left = []
    with stages(folder, seed, _SIDE, _RANKS, places, folder / "evidence") as found:
        campaign = Campaign(found)
        losses = campaign.losses() if TESTBED in found else []
        campaign.run(plans)
        for place, stage in found.items():
            left += [f"{place}: {one}" for one in leftovers(stage.deployment)]
    for place, stage in found.items():
        left += [f"{place}: {one}" for one in (*stage.deployment.troubles, *stage.deployment.kill_all())]
    print(f"\n{table(campaign.results)}\n\n{len(campaign.results)} trials in {(time.monotonic() - begin) / 60:.1f} min")
    problems = [*failures(campaign.results), *losses, *left, *broken_bars(campaign.results, kills)]
    return problems, {"trials": [result.to_json() for result in campaign.results]}


def run_soak(options: argparse.Namespace, seed: int, folder: Path) -> tuple[list[str], dict[str, Any]]:
    with stages(folder, seed, _SOAK_SIDE, _RANKS, {TESTBED}, folder / "evidence") as found:
        soak = Soak(found[TESTBED])
        soak.run(options.scans, found[TESTBED].variants["given"])
    left = [*found[TESTBED].deployment.troubles, *found[TESTBED].deployment.kill_all()]
    history = {name: [asdict(one) for one in figures] for name, figures in soak.history.items()}
    for name, figures in soak.history.items():
        if figures:
            print(f"{name:<20} {figures[0]} -> {figures[-1]}")
    return [*soak.problems, *left], {"history": history}


if __name__ == "__main__":
    sys.exit(main())
