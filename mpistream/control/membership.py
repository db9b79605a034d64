"""Which MPI jobs share the blocks, and whose journals are to be sealed. Pure."""

from collections.abc import Collection, Iterable

from mpistream.control.registry import GroupEntry
from mpistream.control.run_state import UNDER_WAY, ScanState
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.routing_table import RankEndpoints, RoutingTable

_BEGUN = (*UNDER_WAY, ScanState.ASSEMBLING)


def whole_jobs(groups: Iterable[GroupEntry]) -> dict[str, tuple[RankEndpoints, ...]]:
    """The jobs of which every group is registered, with their ranks in order."""
    by_job: dict[str, list[GroupEntry]] = {}
    for group in groups:
        by_job.setdefault(group.job, []).append(group)
    return {
        job: tuple(sorted((rank for group in entries for rank in group.ranks), key=lambda rank: rank.rank))
        for job, entries in sorted(by_job.items())
        if len(entries) == entries[0].groups
    }


def next_ranks(
    jobs: dict[str, tuple[RankEndpoints, ...]],
    conducting: str,
    scans: Iterable[ScanFacts],
    latest: RoutingTable | None,
    gone: Collection[str] = (),
) -> tuple[RankEndpoints, ...] | None:
    """The ranks of the routing table that should follow ``latest``; None where that one still fits.

    A job gets blocks once it is ready for every scan that is under way. One that is registered no longer stays in the
    table until it is ``gone``: a lease may run out by mistake. The conducting job's ranks come first.
    """
    under_way = [facts for facts in scans if facts.state in UNDER_WAY]
    ready = {job: ranks for job, ranks in jobs.items() if _is_ready(job, under_way)}
    if latest is not None:
        for job in latest.jobs - set(gone):
            ready.setdefault(job, tuple(rank for rank in latest.ranks if rank.job == job))
    for job in gone:
        ready.pop(job, None)
    if conducting not in ready:
        return None
    ranks = tuple(rank for job in sorted(ready, key=lambda job: (job != conducting, job)) for rank in ready[job])
    fits = latest is not None and latest.ranks == ranks and latest.conducting == conducting
    return None if fits else ranks


def hands_over(jobs: Collection[str], conducting: str, scans: Iterable[ScanFacts], gone: Collection[str] = ()) -> bool:
    """Whether another job had better conduct: a scan that has begun waits for this one to be ready, and ``jobs``, those
    that are whole, have another one that is.
    """
    begun = [facts for facts in scans if facts.state in _BEGUN]
    others = (job for job in jobs if job != conducting and job not in gone)
    return not _is_ready(conducting, begun) and any(_is_ready(job, begun) for job in others)


def _is_ready(job: str, under_way: Iterable[ScanFacts]) -> bool:
    shares = [facts.shares.get(job) for facts in under_way]
    return all(share is not None and share.ready and not share.sealed for share in shares)


def to_seal(scans: Iterable[ScanFacts], table: RoutingTable, gone: Collection[str]) -> list[tuple[ScanFacts, str]]:
    """The scans and lost jobs whose journals have to be sealed, now that ``table`` routes nothing to them."""
    return [
        (facts, share.job)
        for facts in scans
        if facts.is_unfinished
        for share in facts.shares.values()
        if not share.sealed and share.job in gone and share.job not in table.jobs
    ]
