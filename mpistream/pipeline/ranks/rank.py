"""A rank of the MPI job.

receiving thread    receive -> assemble -> count -> journal   ZeroMQ, one file   (receiver.py, rank_scan.py)
main thread         gather -> write                           MPI and HDF5 only  (here, assembly.py)
leader (rank 0)     scans in, decisions and states out        etcd only          (leader.py, conducting.py)
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

from mpi4py import MPI

from mpistream.control.registry import GroupEntry, Registry
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, MpistreamError
from mpistream.model.routing_table import RankEndpoints
from mpistream.model.scan import ScanSummary
from mpistream.pipeline.leading.leader import Assembled, AssemblyFailed, JobLeader
from mpistream.pipeline.process import connect_etcd, new_incarnation, on_termination, open_registry
from mpistream.pipeline.ranks.assembly import gather_scan, summary_of_written, write_scan
from mpistream.pipeline.ranks.orders import CountedScan, Order, StopOrder
from mpistream.pipeline.ranks.rank_table import rank_table
from mpistream.pipeline.ranks.receiver import RankReceiver
from mpistream.pipeline.ranks.watchdog import StalledError, Watchdog
from mpistream.reduction.calibration import load_fitting
from mpistream.reduction.rank_map import map_ranks
from mpistream.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

_TURN_SECONDS = 1.0
_LATER_SECONDS = 0.5


def run_rank(load_config: Callable[[], Config]) -> None:
    """Serves scan after scan until the job is told to end. Whatever goes wrong ends the whole MPI job at once."""
    try:
        comm = world()
        config = load_config()
        with joined(config, comm) as job:
            for scan in job.counted_scans():  # receive -> assemble -> count -> journal
                with job.assembling(scan) as finish:
                    summary = summary_of_written(comm, scan)
                    if summary is None:
                        gathered = gather_scan(comm, config, scan)  # gather
                        summary = write_scan(comm, config, scan, gathered, job.name)  # write
                    finish(summary)
    except BaseException as error:
        abort(error)


def world() -> MPI.Comm:
    """All ranks of the job. Raises ConfigError where the launcher started separate jobs instead of one."""
    comm = MPI.COMM_WORLD
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if comm.size == 1 and tasks > 1 and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"srun started {tasks} tasks, but MPI knows of one: they do not form one job",
            "name the process manager that this MPI was built for, for instance srun --mpi=pmix",
        )
    return comm


def abort(error: BaseException) -> NoReturn:
    """Says what went wrong and ends every rank of the job. Works from any thread."""
    if isinstance(error, KeyboardInterrupt):
        error = MpistreamError("the MPI job was interrupted")
    elif not isinstance(error, MpistreamError):
        _log.exception("rank %d failed", MPI.COMM_WORLD.rank, exc_info=error)
        error = MpistreamError(f"rank {MPI.COMM_WORLD.rank} failed: {error!r}", "its log has the traceback")
    if MPI.COMM_WORLD.rank:
        # What is wrong is often wrong on all ranks alike; then rank 0 says it for all and ends the job meanwhile.
        time.sleep(_LATER_SECONDS)
    print(f"mpistream: error: {error}", file=sys.stderr, flush=True)
    MPI.COMM_WORLD.Abort(1)
    os._exit(1)


@dataclass(frozen=True)
class _Job:
    """One rank's part in the running job."""

    name: str
    _watchdog: Watchdog
    _leader: JobLeader | None
    _orders: Mailbox[Order]

    def counted_scans(self) -> Iterator[CountedScan]:
        """The scans that all ranks have counted, in the same order on all of them, until the job is to end.

        Waiting costs no CPU; the receiving thread is watched meanwhile.
        """
        while True:
            for order in self._orders.wait(_TURN_SECONDS):
                if isinstance(order, StopOrder):
                    return
                yield order
            if self._watchdog.receiver_is_stalled():
                raise StalledError("the receiving thread makes no progress; ending the MPI job")

    @contextmanager
    def assembling(self, scan: CountedScan) -> Iterator[Callable[[ScanSummary], None]]:
        """While MPI and HDF5 are called for ``scan``; the leader hears how it ends.

        A MpistreamError is the same on every rank and ends only this scan.
        """

        def finish(summary: ScanSummary) -> None:
            self._tell_leader(Assembled(scan.record.uid, summary))

        self._watchdog.assembly_begins()
        try:
            yield finish
        except MpistreamError as error:
            self._tell_leader(AssemblyFailed(scan.record.uid, error))
        finally:
            self._watchdog.assembly_ends()

    def _tell_leader(self, news: Assembled | AssemblyFailed) -> None:
        if self._leader is not None:
            self._leader.news.put(news)


@contextmanager
def joined(config: Config, comm: MPI.Comm) -> Iterator[_Job]:
    """Binds this rank's sockets, registers its group, and on rank 0 leads the job. Collective on entering."""
    rank_map = map_ranks(comm, config.ranks.ranks_per_group)
    orders: Mailbox[Order] = Mailbox()
    watchdog = Watchdog(config.watchdog, comm.rank, peers=range(comm.size) if rank_map.is_leader else [0])
    receiver = RankReceiver(config, comm.rank, comm.size, new_incarnation(), orders, watchdog, abort)
    ranks = tuple(comm.allgather(receiver.endpoints(rank_map.group, rank_map.host)))
    name = f"{ranks[0].host}-{ranks[0].pid}-{ranks[0].incarnation}"
    on_termination(receiver.request_stop)
    with ExitStack() as stack:
        ranks = tuple(replace(rank, job=name) for rank in ranks)
        registry = registration = leader = None
        if rank_map.leads_group:
            registry = open_registry(config, stack.enter_context(connect_etcd(config)))
            group = tuple(rank for rank in ranks if rank.group == rank_map.group)
            groups = len({rank.group for rank in ranks})
            batch_job = os.environ.get("MPISTREAM_BATCH_JOB") or os.environ.get("SLURM_JOB_ID", "")
            entry = GroupEntry(name, rank_map.group, groups, rank_map.host, group, batch_job=batch_job)
            registration = registry.register_group(entry)
        # Every group stands in etcd before the job has a share of any scan.
        comm.Barrier()
        receiver.start(comm.bcast(receiver.talk.hub_endpoint))
        stack.callback(receiver.stop)
        if registry and rank_map.is_leader:
            leader = _lead(config, registry, name, ranks, receiver)
            stack.callback(leader.close)
        if registration is not None:
            # Withdrawn before all else ends: a launcher that ends its ranks leaves them little time.
            stack.callback(registration.close)
        yield _Job(name, watchdog, leader, orders)


def _lead(
    config: Config, registry: Registry, job: str, ranks: tuple[RankEndpoints, ...], receiver: RankReceiver
) -> JobLeader:
    _log.info("the ranks of this job:\n  %s", "\n  ".join(rank_table(ranks)))
    receiver.talk.wait_for_everybody(config.watchdog.stall_seconds)
    leader = JobLeader(registry, config, job, ranks, receiver.talk.outbox.put, abort)
    receiver.talk.report_to(leader.news.put)
    leader.start()
    load_fitting()
    return leader
