"""What a campaign has shown: a table for people, the raw figures, and whether the bars hold."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mpistream.model.fault_points import FAULT_POINTS
from tests.faults.plans import FULL_KILLS
from tests.faults.runs import FaultResult
from tests.faults.trials import TrialResult

#: Median seconds to recover, without and with a restart of the MPI job.
MEDIAN_SECONDS = {False: 5.0, True: 15.0}
POINT_TIMES = 5


@dataclass
class _Row:
    trials: int = 0
    recovered: int = 0
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    def cells(self) -> list[str]:
        return [
            str(self.trials),
            str(self.recovered),
            *(_figures(self.seconds[restarted]) for restarted in (False, True)),
        ]


def _figures(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):5.1f} {max(seconds):5.1f} {len(seconds):4d}" if seconds else ""


def rows(results: Iterable[TrialResult]) -> dict[str, _Row]:
    """By the label of the fault. A fault that did not strike is not counted."""
    found: dict[str, _Row] = defaultdict(_Row)
    for result in results:
        for fault in result.faults:
            if fault.struck:
                row = found[fault.label]
                row.trials += 1
                row.recovered += not result.problems
                if fault.seconds is not None:
                    row.seconds[fault.restarted].append(fault.seconds)
    return dict(sorted(found.items()))


def table(results: list[TrialResult]) -> str:
    head = ["fault", "trials", "recovered", "no restart of the MPI job", "with its restart"]
    under = ["", "", "", "median  worst  n", "median  worst  n"]
    lines = [head, under, *([label, *row.cells()] for label, row in rows(results).items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return f"Seconds to recover: the longest silence of the scan after the fault.\n\n{text}"


def failures(results: list[TrialResult]) -> list[str]:
    return [
        f"trial {result.plan.number} ({result.plan.variant}, {result.plan.where}; "
        f"{', '.join(fault.label for fault in result.faults) or 'no fault'}): {problem}"
        for result in results
        for problem in result.problems
    ]


def broken_bars(results: list[TrialResult], kills: int) -> list[str]:
    """What does not hold of what a campaign of ``kills`` kills has to show; 0: the short form."""
    broken = []
    struck = [fault for result in results for fault in result.faults if fault.struck]
    for restarted, bar in MEDIAN_SECONDS.items():
        seconds = [fault.seconds for fault in struck if fault.restarted is restarted and fault.seconds is not None]
        if seconds and statistics.median(seconds) >= bar:
            how = "with" if restarted else "without"
            broken.append(
                f"the median recovery {how} a restart takes {statistics.median(seconds):.1f} s, not < {bar:g} s"
            )
    if kills:
        broken += _too_few(struck, kills)
    return broken


def _too_few(struck: list[FaultResult], kills: int) -> list[str]:
    times: dict[str, int] = defaultdict(int)
    for fault in struck:
        times[fault.label] += 1
    wanted = POINT_TIMES if kills >= FULL_KILLS else 1
    broken = [
        f"{point} was hit {times[f'at {point}']} times, not {wanted}"
        for point in FAULT_POINTS
        if times[f"at {point}"] < wanted
    ]
    killed = sum(count for label, count in times.items() if label.startswith("SIGKILL"))
    return broken + ([f"{killed} processes were killed, not {kills}"] if killed < kills else [])
