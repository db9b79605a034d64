"""Where the ranks of a job are, for people: nodes, cores, endpoints."""

import os
from collections.abc import Iterable, Sequence

from mpistream.model.routing_table import RankEndpoints

_HEADINGS = ("rank", "group", "node", "pid", "cores", "blocks to", "answers from")


def own_cores() -> str:
    """The processor cores that this process may use, as in "0-3,8"."""
    return ranges(os.sched_getaffinity(0))


def ranges(numbers: Iterable[int]) -> str:
    """``{0, 1, 2, 3, 8}`` -> ``"0-3,8"``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def rank_table(ranks: Sequence[RankEndpoints]) -> list[str]:
    """A line of headings, then one per rank."""
    rows = [
        _HEADINGS,
        *((str(rank.rank), str(rank.group), rank.host, str(rank.pid), rank.cores, *_endpoints(rank)) for rank in ranks),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _endpoints(rank: RankEndpoints) -> tuple[str, str]:
    return rank.data_endpoint, rank.answer_endpoint
