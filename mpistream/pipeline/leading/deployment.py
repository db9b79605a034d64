"""Who is there: which job conducts, who gets blocks, whose journals are sealed.

Decided in control/membership.py, from facts; here it is carried out by the job that conducts. While another job does,
this one looks on, ready to take over.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from uuid import UUID

from mpistream.control.coordination import Registration
from mpistream.control.membership import hands_over, next_ranks, to_seal, whole_jobs
from mpistream.control.process_identity import is_known_dead
from mpistream.control.registry import Registry
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.block_set import BlockSet
from mpistream.model.config import Config
from mpistream.model.errors import StorageError
from mpistream.model.fault_points import reach
from mpistream.model.geometry import SECTORS
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.storage.journal import examine_journal

_log = logging.getLogger(__name__)

_PRODUCER = "producer-"
_LOOK_SECONDS = 1.0
#: While no scan is under way and nobody is missed.
_QUIET_LOOK_SECONDS = 3.0


class Deployment:
    """The role of the conducting job, whether this job has it or not; and what that job sees and does.

    role           None while another job conducts
    is_up_to_date  what this job knows is no older than its role
    table          the latest routing table; None while there is none
    gone_sectors   sectors whose producers have been away for too long, and why

    Every method may raise EtcdUnreachable; whatever was not done is done in a later turn.
    """

    def __init__(
        self,
        registry: Registry,
        config: Config,
        job: str,
        leader: RankEndpoints,
        look_again: Callable[[], None],
        catch_up: Callable[[], None],
    ) -> None:
        """``look_again`` makes for another turn soon; ``catch_up`` reads everything about scans from etcd, now."""
        self._registry = registry
        self._absent_seconds = config.stream.absent_seconds
        self._grace_seconds = float(config.etcd.lease_seconds)
        self._job = job
        self._leader = leader
        self.look_again = look_again
        self._catch_up = catch_up
        self.is_up_to_date = False
        self.role: Registration | None = None
        self.table: RoutingTable | None = None
        self.gone_sectors: Mapping[int, str] = {}
        self._lost = False
        self._look_at = 0.0
        self._published = 0.0
        self._absent: dict[str, float] = {}  # job or producer -> since when it is not registered
        self._holds_up_since: float | None = None
        self._conduct_from = 0.0
        self._unread: set[UUID] = set()  # scans that wait for journals that could not be read

    def look(self) -> None:
        """Something has changed in etcd: the next turn reads it."""
        self._look_at = 0.0

    def etcd_was_away(self) -> None:
        """Leases may have run out though nobody died."""
        self._absent.clear()
        self.look()

    def lose_role(self) -> None:
        """Another job conducts, or will; also called from the lease's own thread."""
        self._lost = True
        self.look_again()

    def was_overtaken(self) -> None:
        """What was decided no longer fits what stands in etcd: somebody else was faster, or another job conducts."""
        self._catch_up()
        if self._registry.conductor() != self._job:
            self.lose_role()

    def close(self) -> None:
        if self.role is not None:
            self.role.close()
            self.role = None

    def turn(self, scans: Iterable[ScanFacts], now: float) -> None:
        """Looks around where that is due, and does what follows from it."""
        lost, self._lost = self._lost, False
        if lost and self.role is not None:
            _log.warning("this MPI job conducts no longer")
            self.close()
        if now < self._look_at:
            return
        scans = list(scans)
        quiet = self.role is not None and not self._absent and not any(facts.is_unfinished for facts in scans)
        self._look_at = now + (_QUIET_LOOK_SECONDS if quiet else _LOOK_SECONDS)
        if self.role is None and now >= self._conduct_from:
            self._try_to_conduct()
        if self.role is not None and not self.is_up_to_date:
            self._get_up_to_date()
        elif self.role is not None:
            self.gone_sectors = self._absent_sectors(now)
            self._keep_table(self.role, scans, now)

    def _try_to_conduct(self) -> None:
        registry, leader = self._registry, self._leader
        self.role = registry.take_conductor(self._job, leader.host, leader.pid, on_lost=self.lose_role)
        if self.role is not None:
            _log.info("this MPI job conducts")
            self.is_up_to_date = False

    def _get_up_to_date(self) -> None:
        """Watches may lag behind what the job that conducted before has done: nothing is decided from their news."""
        self.table = self._registry.latest_routing()
        self._catch_up()
        self._absent.clear()
        self.gone_sectors = {}
        self.is_up_to_date = True
        self.look()
        self.look_again()

    def _keep_table(self, role: Registration, scans: list[ScanFacts], now: float) -> None:
        registered = self._registry.groups()
        jobs = whole_jobs(group for group in registered if not is_known_dead(group.process))
        gone = self._gone(self._known_jobs(scans), jobs, now)
        if self._has_held_up(hands_over(jobs, self._job, scans, gone), now):
            _log.error("this MPI job cannot get ready for a scan that has begun; another one may conduct")
            self.close()
            self._conduct_from = now + 2 * _QUIET_LOOK_SECONDS
            return
        ranks = next_ranks(jobs, self._job, scans, self.table, gone)
        if ranks is not None:
            reach("leader.before-table")
            self.table = self._registry.publish_routing(role, ranks)
            self._published = now
            reach("leader.after-table")
            if self.table is None:
                self.lose_role()
                return
            _log.info("routing table %d: %s", self.table.version, ", ".join(sorted(self.table.jobs)))
        if self.table is None:
            return
        for facts, job in to_seal(scans, self.table, gone):
            if not self._producers_follow(now):
                self.look()
                return
            try:
                self._seal(role, facts, job)
            except StorageError as error:
                _log.error("scan %s: the journals of MPI job %s cannot be read yet: %s", facts.uid, job, error.message)
                if facts.state is not None:
                    self._unread.add(facts.uid)
                    self._registry.set_state(facts.uid, facts.state, error, role)

    def _has_held_up(self, holds_up: bool, now: float) -> bool:
        """Whether a healthy job has waited for this one for so long that it is no mere start."""
        self._holds_up_since = (self._holds_up_since or now) if holds_up else None
        return self._holds_up_since is not None and now - self._holds_up_since > self._grace_seconds

    def _known_jobs(self, scans: Iterable[ScanFacts]) -> dict[str, set[str]]:
        """The other jobs that get blocks or have some, and processes of theirs."""
        known: dict[str, set[str]] = {}
        for rank in self.table.ranks if self.table else ():
            known.setdefault(rank.job, set()).add(rank.process)
        for facts in scans:
            for share in facts.shares.values() if facts.is_unfinished else ():
                known.setdefault(share.job, set()).add(share.process)
        known.pop(self._job, None)
        return known

    def _gone(self, jobs: Mapping[str, set[str]], present: Mapping[str, object], now: float) -> set[str]:
        """Jobs that have ended: known to have died on this machine, or unregistered for longer than a mistake lasts."""
        gone = set()
        for name in [name for name in self._absent if name not in jobs and not name.startswith(_PRODUCER)]:
            del self._absent[name]
        for job, processes in jobs.items():
            if job in present:
                self._absent.pop(job, None)
                continue
            since = self._absent.setdefault(job, now)
            if any(map(is_known_dead, processes)) or now - since > self._grace_seconds:
                gone.add(job)
        return gone

    def _producers_follow(self, now: float) -> bool:
        """Whether every producer goes by the latest table, so that none takes an acknowledgement of the lost job any
        more. One that does not say so in time will notice from the seal what it must send again.
        """
        assert self.table is not None
        if now - self._published > self._grace_seconds:
            return True
        return all(
            producer.table >= self.table.version
            for producer in self._registry.producers()
            if not is_known_dead(producer.process)
        )

    def _seal(self, role: Registration, facts: ScanFacts, job: str) -> None:
        """From now on a lost job's journals end where they end now."""
        record, before = facts.record, self._registry.share_to_seal(facts.uid, job)
        assert record is not None
        if before is None:
            facts.shares |= self._registry.shares(facts.uid)
            return
        share = JobShare.from_json(before)
        blocks, journals, totals = BlockSet(record.block_range), [], dict.fromkeys(share.totals, 0)
        for journal in share.journals:
            good_bytes = 0
            if journal.path:
                examined = examine_journal(Path(journal.path), scan_uid=record.uid)
                blocks.add(examined.blocks)
                good_bytes = examined.bytes
                totals = {name: number + examined.totals.get(name, 0) for name, number in totals.items()}
            journals.append(JournalExtent(journal.rank, journal.incarnation, journal.path, good_bytes))
        sealed = share.changed(blocks=blocks, sealed=True, journals=tuple(journals), totals=totals, problem="")
        reach("leader.before-seal")
        if self._registry.seal_share(facts.uid, sealed, before, role):
            _log.warning("scan %s: MPI job %s is lost; its journals hold %d blocks", facts.uid, job, len(blocks))
            facts.shares[job] = sealed
            self._registry.delete_status("jobs", job)
            if facts.uid in self._unread and facts.state is not None:
                self._unread.discard(facts.uid)
                self._registry.set_state(facts.uid, facts.state, None, role)
            reach("leader.after-seal")
        else:
            self.was_overtaken()
            self.look()

    def _absent_sectors(self, now: float) -> dict[int, str]:
        present = {producer.sector for producer in self._registry.producers() if not is_known_dead(producer.process)}
        gone = {}
        for sector in range(SECTORS):
            name = f"{_PRODUCER}{sector}"
            if sector in present:
                self._absent.pop(name, None)
            elif now - self._absent.setdefault(name, now) > self._absent_seconds:
                gone[sector] = (
                    f"the producer of sector {sector} was gone for more than {self._absent_seconds:g} s: "
                    "what it had not sent is missing"
                )
        return gone
