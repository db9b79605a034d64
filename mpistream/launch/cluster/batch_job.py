"""Puts a batch job together: its allocation, its record, etcd, and what it runs beside its MPI job."""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.allocation import Allocation, check_command, this_allocation
from mpistream.launch.cluster.batch_run import FAILED, BatchRun, JobOrder, Program
from mpistream.launch.cluster.notices import Signals
from mpistream.launch.cluster.record import JobRecord, say
from mpistream.launch.cluster.services import Services, own_host, with_configuration
from mpistream.model.config import Config
from mpistream.model.errors import EtcdUnreachable, MpistreamError
from mpistream.model.session import BatchJobState

_TURN_SECONDS = 0.5


class Surroundings(Enum):
    """What a mode's scans are streamed through."""

    NONE = auto()  # nothing: the command reads files
    DEPLOYMENT = auto()  # the deployment that the configuration describes
    CAMERA_HERE = auto()  # one of its own in the same etcd, whose producers and aggregator the batch job brings along
    ALL_HERE = auto()  # likewise, with an etcd of its own, too


def run_batch_job(
    order: JobOrder,
    program: Program,
    config_path: Path | None,
    surroundings: Surroundings,
    shared_folder: Path,
    interface: str | None = None,
) -> int:
    """The exit status of `mpistream job run`. Nothing that it has started is left.

    config_path    None where nothing is streamed, and nobody is to know of the job
    shared_folder  one that all nodes see: the configuration of a deployment of its own lies there meanwhile
    interface      whose address the processes of such a deployment bind; None: as the configuration says
    """
    config = Config.load(config_path, {"network.interface": interface})
    check_command(order.command)
    allocation = this_allocation()
    with ExitStack() as opened:
        signals = opened.enter_context(Signals())
        etcd = _connected(opened, config)
        sessions = SessionRegistry(etcd)
        record = JobRecord(sessions if config_path else None, allocation, order.mode, order.session)
        opened.callback(record.close)
        say(_beginning(order, allocation))
        try:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="mpistream-job-")))
            services = Services(folder)
            opened.callback(services.close)
            registry: Registry | None = None
            if surroundings in (Surroundings.DEPLOYMENT, Surroundings.CAMERA_HERE):
                _wait_for(etcd, config.stream.patience_seconds, signals)
            if surroundings is not Surroundings.NONE:
                assert config_path is not None
                if surroundings is not Surroundings.DEPLOYMENT:
                    own = shared_folder / f"mpistream-{allocation.number}.toml"
                    opened.callback(own.unlink, missing_ok=True)
                    has_etcd = surroundings is Surroundings.ALL_HERE
                    config = own_deployment(services, config, allocation, own, has_etcd)
                    order = replace(order, command=with_configuration(order.command, config_path, own))
                registry = Registry(_connected(opened, config), config.etcd.lease_seconds)
            has_session = surroundings in (Surroundings.DEPLOYMENT, Surroundings.CAMERA_HERE)
            run = BatchRun(
                order,
                config,
                registry,
                sessions if has_session else None,
                allocation,
                record,
                services,
                signals,
                folder,
            )
            return run.perform(program)
        except (MpistreamError, OSError) as raised:
            error = raised if isinstance(raised, MpistreamError) else MpistreamError(str(raised), "see the job's log")
            say(f"the job has failed: {error.message}; {error.remedy}")
            record.ends(BatchJobState.FAILED, error.message, error.remedy)
            return FAILED


def _connected(opened: ExitStack, config: Config) -> Coordination:
    """Not checked: etcd may be away."""
    etcd = Coordination(config.etcd.endpoints, config.etcd_prefix, config.etcd.timeout_seconds)
    opened.callback(etcd.close)
    return etcd


def own_deployment(services: Services, config: Config, allocation: Allocation, own: Path, has_etcd: bool) -> Config:
    """Starts the camera's side of a deployment of this job alone; its configuration, which stands in ``own``, too."""
    host = own_host(config, len(allocation.nodes))
    changes: dict[str, Any] = {"deployment": f"{config.deployment}-{allocation.number}"}
    # whoever connects to its ranks is in the job itself, where names for the outside may lead nowhere
    changes["network"] = config.network.model_copy(update={"external_name": None})
    if has_etcd:
        changes["etcd"] = config.etcd.model_copy(update={"endpoints": [services.start_etcd(host)]})
    changed = config.model_copy(update=changes)
    own.write_text(changed.to_toml())
    services.start_camera(own, host)
    return changed


def _beginning(order: JobOrder, allocation: Allocation) -> str:
    again = f", begun again ({allocation.restarts})" if allocation.restarts else ""
    session = f", session {order.session}" if order.session else ""
    where = f"on {', '.join(allocation.nodes)}"
    return f"job {allocation.number} of {allocation.cluster}{again}: {order.mode}{session}, {where}"


def _wait_for(etcd: Coordination, seconds: float, signals: Signals) -> None:
    """Raises EtcdUnreachable where etcd does not answer within ``seconds``, or before the job is told to end."""
    deadline, said = time.monotonic() + seconds, False
    while True:
        try:
            etcd.check()
            return
        except EtcdUnreachable as error:
            if time.monotonic() > deadline or signals.told or signals.warning:
                raise
            if not said:
                say(f"waiting: {error.message}")
            said = True
            time.sleep(_TURN_SECONDS)
