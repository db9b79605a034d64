"""Which trials a campaign consists of: from its seed, always the same."""

import random
from collections.abc import Iterator
from dataclasses import replace

from mpistream.model.fault_points import FAULT_POINTS
from tests.faults.deployment import LEASE_SECONDS, STALL_SECONDS
from tests.faults.injections import Fault
from tests.faults.trials import Plan

TESTBED, BY_HAND = "testbed", "by hand"
#: Of a hundred processes killed.
_KILLED = {"producer": 28, "aggregator": 20, "rank": 16, "leader": 16, "mpiexec": 8, "etcd": 9, "supervisor": 3}
_MPI = ("rank", "leader", "mpiexec")
#: Points that a scan passes many times: they are armed while it is under way.
_OFTEN = ("producer.before-send", "aggregator.before-forward", *(p for p in FAULT_POINTS if p.endswith("journal")))
_OFTEN += ("rank.before-ack", "rank.after-ack")
#: Points that are passed when a job has died.
_AFTER_A_LOSS = ("leader.before-table", "leader.after-table", "leader.before-seal", "leader.after-seal")
_CALIBRATING = ("leader.before-thresholds", "leader.after-thresholds")
_GIVEN = ("given", "direct", "lossy", "files")
_ALL = (*_GIVEN, "calibrated", "direct-calibrated")
_SHORT = ("given", "calibrated")
#: A subset of the points in which every part and every stage has one.
_SHORT_POINTS = ("rank.torn-journal", "producer.before-end", "leader.before-seal", "rank.before-rename")

#: More than a lease and the time for which its end may be a mistake.
_TAKEN_FOR_DEAD_SECONDS = 2 * LEASE_SECONDS + 6.0

FULL_KILLS = 200
_KILLS_PER_ROUND = 40
_STOPPED = ("producer", "aggregator", "rank", "leader", "mpiexec", "etcd", "supervisor")


def full_campaign(seed: int, kills: int, with_networks: bool, with_disks: bool) -> list[Plan]:
    """``kills`` processes killed, and everything else in proportion; at full size every point at least 5 times."""
    chance = random.Random(seed)
    rounds = max(1, round(kills / _KILLS_PER_ROUND))
    trials = list(_kills(chance, kills))
    for turn in range(rounds):
        trials += [_point(chance, point, turn) for point in FAULT_POINTS]
    for turn in range(max(1, rounds // 2)):
        trials += _stops(chance, turn)
        trials += _etcd(chance)
        trials += _chaos(chance, 2)
        trials += _both_jobs(chance)
        trials += _links(chance) if with_networks else []
        trials += _full_disks(chance) if with_disks else []
    chance.shuffle(trials)
    trials += [
        Plan(0, BY_HAND, "given", (Fault("etcd-away", "", chance.random(), 30.0, how),)) for how in ("KILL", "STOP")
    ]
    return _numbered(trials)


def short_campaign(seed: int, with_networks: bool, with_disks: bool) -> list[Plan]:
    """A few of each kind."""
    chance = random.Random(seed)
    kills = [Fault("kill", role, chance.uniform(0.1, 0.8)) for role in ("producer", "aggregator", "etcd")]
    trials = [
        Plan(0, TESTBED, "given", tuple(kills)),
        Plan(0, TESTBED, "calibrated", (Fault("kill", "leader", chance.uniform(0.2, 0.7)),)),
        *(replace(_point(chance, point, 0), where=TESTBED, variant="given") for point in _SHORT_POINTS),
        Plan(0, BY_HAND, "given", (Fault("etcd-leader", "", chance.uniform(0.2, 0.6), 3.0),)),
        Plan(0, BY_HAND, "given", (Fault("kill", "rank", chance.uniform(0.2, 0.6)),)),
        Plan(0, BY_HAND, "given", (Fault("chaos", "", -1.0, 0.0, str(seed)),)),
    ]
    if with_networks:
        lossy = Fault("lossy", "aggregator", -1.0, 0.0, "10")
        trials.append(Plan(0, BY_HAND, "given", (lossy, Fault("cut", "producers", chance.uniform(0.2, 0.6), 2.0))))
    if with_disks:
        trials.append(Plan(0, TESTBED, "given", (Fault("disk", "room", -1.0, 1.0, "dataset"),)))
    return _numbered(trials)


def _numbered(trials: list[Plan]) -> list[Plan]:
    return [replace(plan, number=number) for number, plan in enumerate(trials)]


def _kills(chance: random.Random, kills: int) -> Iterator[Plan]:
    """One to three kills in a trial; no more than one of them of an MPI job or of what the rest hangs on."""
    roles = [role for role, share in _KILLED.items() for _ in range(max(1, round(kills * share / 100)))]
    chance.shuffle(roles)
    heavy = [role for role in roles if role not in ("producer", "aggregator")]
    light = [role for role in roles if role in ("producer", "aggregator")]
    while heavy or light:
        chosen = [heavy.pop()] if heavy and (not light or chance.random() < 0.7) else []
        for _ in range(min(len(light), chance.choice([0, 1, 1, 2]) if chosen else chance.choice([1, 1, 2, 3]))):
            chosen.append(light.pop())
        faults = tuple(Fault("kill", role, chance.uniform(0.0, 1.05)) for role in chosen)
        where = TESTBED if "supervisor" in chosen else chance.choice([TESTBED, BY_HAND])
        yield Plan(0, where, chance.choice(_ALL), faults, overwrite=chance.random() < 0.1)


def _point(chance: random.Random, point: str, turn: int) -> Plan:
    """Killed there as a rule, stopped for a while in every fourth round."""
    stopped = turn % 4 == 3
    at = chance.uniform(0.05, 0.5) if point in _OFTEN else -1.0
    fault = Fault("point", point, at, chance.uniform(0.5, 8.0) if stopped else 0.0, "STOP" if stopped else "KILL")
    loss = Fault("kill", "rank", chance.uniform(0.1, 0.6))
    faults = (fault, loss) if point in _AFTER_A_LOSS else (fault,)
    if point.startswith("aggregator"):
        variant = chance.choice(("given", "calibrated", "lossy"))
    else:
        variant = chance.choice(("calibrated", "direct-calibrated") if point in _CALIBRATING else _ALL)
    # With two jobs the loss of one is noticed by the other, which then comes to these points.
    return Plan(0, TESTBED if turn % 2 == 0 else BY_HAND, variant, faults)


def _stops(chance: random.Random, turn: int) -> list[Plan]:
    trials = []
    for role in _STOPPED:
        for detail in ("short", "long"):
            longest = max(LEASE_SECONDS, STALL_SECONDS)
            seconds = chance.uniform(0.3, 1.5) if detail == "short" else chance.uniform(longest + 1, longest + 5)
            fault = Fault("stop", role, chance.uniform(0.0, 0.9), seconds, detail)
            anywhere = (TESTBED, BY_HAND) if role != "supervisor" else (TESTBED,)
            where = anywhere[(turn + (detail == "long")) % len(anywhere)]
            trials.append(Plan(0, where, chance.choice(_ALL), (fault,)))
    return trials


def _etcd(chance: random.Random) -> list[Plan]:
    lost = Fault("etcd-leader", "", chance.uniform(0.0, 0.9), 3.0)
    return [Plan(0, BY_HAND, chance.choice(_ALL), (lost,))]


def _chaos(chance: random.Random, trials: int) -> list[Plan]:
    seeds = [str(chance.randrange(2**31)) for _ in range(trials)]
    return [Plan(0, BY_HAND, chance.choice(_SHORT), (Fault("chaos", "", -1.0, 0.0, seed),)) for seed in seeds]


def _both_jobs(chance: random.Random) -> list[Plan]:
    """No MPI job is left for a while, or the second one dies when it goes on for the first."""
    kills = tuple(Fault("kill", "leader", chance.uniform(0.1, 0.8)) for _ in range(2))
    return [Plan(0, BY_HAND, chance.choice(_ALL), kills)]


def _links(chance: random.Random) -> list[Plan]:
    trials = []
    for name in ("producers", "aggregator", "job-0", "job-1"):
        cut = Fault("cut", name, chance.uniform(0.0, 0.8), chance.uniform(2.0, 5.0))
        trials.append(Plan(0, BY_HAND, chance.choice(_ALL), (cut,)))
    for name in ("producers", "aggregator", "job-0"):  # so long that it is taken for dead, and then comes back
        cut = Fault("cut", name, chance.uniform(0.0, 0.6), _TAKEN_FOR_DEAD_SECONDS)
        trials.append(Plan(0, BY_HAND, chance.choice(_ALL), (cut,)))
    for name in ("aggregator", "job-0"):
        trials.append(Plan(0, BY_HAND, "given", (Fault("lossy", name, -1.0, 0.0, "10"),)))
    trials.append(
        Plan(0, BY_HAND, "given", (Fault("slow", chance.choice(("producers", "aggregator")), -1.0, 0.0, "800"),))
    )
    return trials


def _full_disks(chance: random.Random) -> list[Plan]:
    return [
        Plan(0, TESTBED, "given", (Fault("disk", remedy, -1.0, chance.uniform(0.5, 3.0), detail),))
        for remedy, detail in (("room", "dataset"), ("redirect", "dataset"), ("room", "journals"))
    ]
