"""Which of the processes that a scan needs are not registered, and since when."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mpistream.control.registry import Registry
from mpistream.model.errors import EtcdUnreachable, ScanFailed
from mpistream.model.geometry import SECTORS

#: A job that is being started again registers a little later.
NOBODY_SECONDS = 2.0
_TURN_SECONDS = 0.1


@dataclass(frozen=True)
class Absence:
    """One kind of process that is missing, in words. ``sector``: that of a producer, otherwise None."""

    what: str
    message: str
    remedy: str
    sector: int | None = None


_NO_GROUP = Absence("a rank group", "no rank group is registered", "start the MPI job: mpiexec -n 4 mpistream consume")
_NO_AGGREGATOR = Absence("an aggregator", "no aggregator is registered", "start it again: mpistream aggregate")


def absent_groups(registry: Registry) -> list[Absence]:
    return [] if registry.groups() else [_NO_GROUP]


def absent_producers(sectors: Iterable[int]) -> list[Absence]:
    """Where producers of ``sectors`` are registered."""
    return [
        Absence(
            f"a producer of sector {sector}",
            f"no producer is registered for sector {sector}",
            f"start it again: mpistream produce --sector {sector}",
            sector,
        )
        for sector in sorted(set(range(SECTORS)) - set(sectors))
    ]


def absent_senders(registry: Registry, direct: bool) -> list[Absence]:
    """Of the producers, and of aggregators where one is needed."""
    absences = absent_producers(producer.sector for producer in registry.producers())
    if not direct and not registry.aggregators():
        absences.append(_NO_AGGREGATOR)
    return absences


def check_present(registry: Registry, direct: bool) -> None:
    """Raises ScanFailed unless a rank group, all producers, and an aggregator where one is needed, are registered."""
    if absences := absent_groups(registry):
        raise ScanFailed(absences[0].message, absences[0].remedy)
    absences = absent_senders(registry, direct)
    if sectors := [str(absence.sector) for absence in absences if absence.sector is not None]:
        raise ScanFailed(
            f"no producer is registered for sector {', '.join(sectors)}",
            "start one for each sector: mpistream produce --sector N; if one has ended, its log says why",
        )
    if absences:
        raise ScanFailed(absences[0].message, "start one (mpistream aggregate), or stream with --direct")


def wait_until_present(
    registry: Registry, direct: bool, seconds: float, turn: Callable[[], object] = lambda: None
) -> None:
    """What has just ended may be on its way back. ``turn`` is called several times a second.

    Raises ScanFailed, EtcdUnreachable when something is still missing after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        turn()
        try:
            check_present(registry, direct)
            return
        except (ScanFailed, EtcdUnreachable):
            if time.monotonic() > deadline:
                raise
            time.sleep(_TURN_SECONDS)


class AbsenceNotes:
    """Says once what has been missing for ``patience_seconds``, and once that it is there again.

    A lease may run out by mistake and be taken anew: nobody is missed sooner.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._since: dict[Absence, float] = {}
        self._noted: set[Absence] = set()

    def look(self, absences: list[Absence]) -> list[str]:
        """What there is to say now that these are missing."""
        now = time.monotonic()
        back = self._noted - set(absences)
        self._noted -= back
        self._since = {absence: self._since.get(absence, now) for absence in absences}
        late = [
            absence
            for absence, since in self._since.items()
            if absence not in self._noted and now - since > self._patience_seconds
        ]
        self._noted.update(late)
        return [f"{absence.what} is registered again" for absence in back] + [
            f"waiting: {absence.message}; {absence.remedy}" for absence in late
        ]

    def nothing_is_known(self) -> None:
        """etcd is away: nobody is missed for the time being."""
        self._since.clear()
