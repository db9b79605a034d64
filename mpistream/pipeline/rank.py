"""A rank of the MPI job.

receiving thread    receive -> assemble -> count         ZeroMQ only        (receiver.py)
main thread         gather -> write                      MPI and HDF5 only  (here, assembly.py)
leader (rank 0)     scans in, states out                 etcd only          (leader.py)
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NoReturn

from mpi4py import MPI

from mpistream.control.registry import GroupEntry
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, MpistreamError
from mpistream.model.routing_table import RankEndpoints
from mpistream.pipeline.assembly import write_scan
from mpistream.pipeline.leader import Assembled, AssemblyFailed, JobLeader
from mpistream.pipeline.process import connect_etcd, new_incarnation, on_termination, open_registry
from mpistream.pipeline.receiver import Order, RankReceiver, StopOrder
from mpistream.pipeline.watchdog import StalledError, Watchdog
from mpistream.reduction.rank_map import RankMap, map_ranks
from mpistream.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

_TURN_SECONDS = 1.0
_LATER_SECONDS = 0.5


def run_rank(load_config: Callable[[], Config]) -> None:
    """Serves scan after scan until the job is told to end. Whatever goes wrong ends the whole MPI job at once."""
    try:
        comm = world()
        config = load_config()
        rank_map = map_ranks(comm, config.ranks.ranks_per_group)
        with joined(config, comm, rank_map) as job:
            for order in job.orders():
                if isinstance(order, StopOrder):
                    break
                job.watchdog.assembly_begins()
                try:
                    summary = write_scan(comm, config, order.scan, order.ends, job.name)  # gather -> write
                    job.tell_leader(Assembled(order.scan.record.uid, summary))
                except MpistreamError as error:  # the same on every rank
                    job.tell_leader(AssemblyFailed(order.scan.record.uid, error))
                finally:
                    job.watchdog.assembly_ends()
    except BaseException as error:
        abort(error)


def world() -> MPI.Comm:
    """All ranks of the job. Raises ConfigError where the launcher started separate jobs instead of one."""
    comm = MPI.COMM_WORLD
    expected = os.environ.get("SLURM_NTASKS") if "SLURM_PROCID" in os.environ else None
    if expected is not None and int(expected) != comm.size:
        raise ConfigError(
            f"srun started {expected} tasks, but MPI knows of {comm.size}: they do not form one job",
            "name the process manager that this MPI was built for, for instance srun --mpi=pmix",
        )
    return comm


def abort(error: BaseException) -> NoReturn:
    """Says what went wrong and ends every rank of the job. Works from any thread."""
    if not isinstance(error, MpistreamError):
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
    watchdog: Watchdog
    leader: JobLeader | None
    _orders: Mailbox[Order]

    def orders(self) -> Iterator[Order]:
        """What the leader wants done with MPI. Waiting costs no CPU; the receiving thread is watched meanwhile."""
        while True:
            yield from self._orders.wait(_TURN_SECONDS)
            if self.watchdog.receiver_is_stalled():
                raise StalledError("the receiving thread makes no progress; ending the MPI job")

    def tell_leader(self, news: Assembled | AssemblyFailed) -> None:
        if self.leader is not None:
            self.leader.news.put(news)


@contextmanager
def joined(config: Config, comm: MPI.Comm, rank_map: RankMap) -> Iterator[_Job]:
    """Binds this rank's sockets, registers its group, and on rank 0 leads the job. Collective on entering."""
    orders: Mailbox[Order] = Mailbox()
    watchdog = Watchdog(config.watchdog, comm.rank, peers=range(comm.size) if rank_map.is_leader else [0])
    incarnation = new_incarnation()
    receiver = RankReceiver(config, comm.rank, comm.size, incarnation, orders, watchdog, abort)
    data, answers = receiver.data_endpoint, receiver.answer_endpoint
    me = RankEndpoints(comm.rank, rank_map.group, rank_map.host, os.getpid(), incarnation, data, answers)
    ranks = tuple(comm.allgather(me))
    name = comm.bcast(f"{rank_map.host}-{os.getpid()}")
    with ExitStack() as stack:
        registration = None
        if rank_map.leads_group:
            registry = open_registry(config, stack.enter_context(connect_etcd(config)))
            group = tuple(rank for rank in ranks if rank.group == rank_map.group)
            registration = registry.register_group(GroupEntry(name, rank_map.group, rank_map.host, group))
        # Every group stands in etcd before the table that routes to it.
        comm.Barrier()
        table = comm.bcast(registry.publish_routing(name, ranks) if rank_map.is_leader else None)
        receiver.adopt(table)
        receiver.start(comm.bcast(receiver.hub_endpoint))
        stack.callback(receiver.stop)
        on_termination(receiver.request_stop)
        leader = None
        if rank_map.is_leader:
            _print_map(ranks)
            receiver.wait_for_everybody(config.watchdog.stall_seconds)
            leader = JobLeader(registry, table, receiver.outbox.put, config.stream.patience_seconds, abort)
            receiver.report_to(leader.news.put)
            leader.start()
            stack.callback(leader.close)
        if registration is not None:
            # Withdrawn before all else ends: a launcher that ends its ranks leaves them little time.
            stack.callback(registration.close)
        yield _Job(name, watchdog, leader, orders)


def _print_map(ranks: tuple[RankEndpoints, ...]) -> None:
    for rank in ranks:
        _log.info("rank %d, group %d, %s pid %d: %s", rank.rank, rank.group, rank.host, rank.pid, rank.data_endpoint)
