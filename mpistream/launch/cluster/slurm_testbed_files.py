"""The folder of a Slurm testbed: what lies in it, and the configuration of its Slurm.

mpistream.toml, logs/, ...      as in every testbed's folder
slurm/slurm.conf, mpi.conf      with SLURM_CONF=slurm.conf Slurm's commands speak to this Slurm
slurm/testbed.json              its nodes
slurm/completed-jobs.txt        a line per job that has ended, by Slurm
slurm/killed/NODE               the node is to stay dead
slurm/state, spool, tmp         Slurm's own; munge.key, munge.socket: how its processes trust each other
"""

import json
import os
import shlex
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mpistream.launch.local import MPI_ENVIRONMENT
from mpistream.launch.testbed_folder import TestbedFolder
from mpistream.model.errors import MpistreamError

#: A node that does not answer for so long is down, and its jobs are requeued.
NODE_SILENT_SECONDS = 20
#: So many processor cores each node pretends to have.
NODE_CPUS = 8
#: The first job of a start has a number so much higher than that of the start before: etcd, which outlives this Slurm,
#: knows jobs by their numbers.
JOBS_OF_A_START = 10_000

#: What MPI ranks need in their environment on a testbed's nodes. Slurm's task prolog gives it to every task there, so
#: that batch scripts need not.
RANK_ENVIRONMENT = {**MPI_ENVIRONMENT, "HDF5_USE_FILE_LOCKING": "FALSE"}
#: Where nodes share this machine's /dev/shm, OpenMPI's transport through shared memory crashes.
_WITHOUT_OWN_MOUNTS = {"OMPI_MCA_btl": "tcp,self"}

_LONGEST_SOCKET = 100  # bytes of a socket's path, of which the kernel takes 107

_CONFIGURATION = """\
# The Slurm of an mpistream testbed; written anew by every `mpistream testbed slurm up`.
ClusterName=testbed
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={slurm}/state
SlurmdSpoolDir={slurm}/spool/%n
TmpFS={slurm}/tmp/%n
SlurmctldPidFile={slurm}/slurmctld.pid
SlurmdPidFile={slurm}/slurmd-%n.pid
AuthType=auth/munge
# a requeued job waits until the credentials of its first start have expired
AuthInfo=socket={slurm}/munge.socket,cred_expire=30
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={slurm}/task_prolog
SwitchType=switch/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={slurm}/completed-jobs.txt
JobRequeue=1
FirstJobId={first_job}
MinJobAge=86400
ReturnToService=2
SlurmdTimeout={silent_seconds}
KillWait=5
TreeWidth=1000
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=16000
{nodes}
PartitionName=testbed Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

_MPI_CONFIGURATION = """\
# The other kind of fence, a tree, lets some ranks out of MPI_Init before all are in (Slurm 22.05, one start in 15).
PMIxCollFence=ring
"""


@dataclass(frozen=True)
class SlurmDescription:
    """What others read of a Slurm testbed: ``nodes`` are name -> address; ``address`` is this machine's among them.

    ``own_mounts``: nodes have mounts, processes and shared memory of their own. ``first_job``: the number of its first.
    """

    address: str
    nodes: dict[str, str]
    own_mounts: bool
    first_job: int = 1


class SlurmFolder:
    """The part of a testbed's folder that is Slurm's."""

    def __init__(self, folder: TestbedFolder) -> None:
        self.path = folder.path / "slurm"
        self._mark = folder.environment

    @property
    def configuration(self) -> Path:
        return self.path / "slurm.conf"

    @property
    def key(self) -> Path:
        return self.path / "munge.key"

    @property
    def socket(self) -> Path:
        return self.path / "munge.socket"

    @property
    def environment(self) -> dict[str, str]:
        """For Slurm's commands."""
        return {"SLURM_CONF": str(self.configuration)}

    def make(self, description: SlurmDescription, port: int) -> None:
        """Everything that Slurm needs there, and nothing of an earlier one. Raises MpistreamError for a long path."""
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            raise MpistreamError(
                f"{self.path} is too long for a socket in it", "choose a --folder with a shorter path, below /tmp say"
            )
        with suppress(MpistreamError, ValueError, TypeError):
            description = replace(description, first_job=self.description().first_job + JOBS_OF_A_START)
        shutil.rmtree(self.path, ignore_errors=True)
        for name in ("state", "killed", *(f"{kind}/{node}" for kind in ("spool", "tmp") for node in description.nodes)):
            (self.path / name).mkdir(parents=True)
        self.key.touch(mode=0o600)
        self.key.write_bytes(os.urandom(1024))
        own_mounts = {} if description.own_mounts else _WITHOUT_OWN_MOUNTS
        self._write_task_prolog({**RANK_ENVIRONMENT, **own_mounts, **self._mark})
        self.configuration.write_text(self._configuration(description, port))
        (self.path / "mpi.conf").write_text(_MPI_CONFIGURATION)
        (self.path / "testbed.json").write_text(json.dumps(asdict(description), indent=2) + "\n")

    def _configuration(self, description: SlurmDescription, port: int) -> str:
        nodes = "\n".join(f"NodeName={name} NodeAddr={address}" for name, address in description.nodes.items())
        return _CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            address=description.address,
            port=port,
            slurm=self.path,
            first_job=description.first_job,
            silent_seconds=NODE_SILENT_SECONDS,
            cpus=NODE_CPUS,
            nodes=nodes,
        )

    def _write_task_prolog(self, environment: Mapping[str, str]) -> None:
        lines = [f"echo export {shlex.quote(f'{name}={value}')}" for name, value in environment.items()]
        prolog = self.path / "task_prolog"
        prolog.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        prolog.chmod(0o755)

    def description(self) -> SlurmDescription:
        """Raises MpistreamError where no Slurm testbed was ever started."""
        try:
            return SlurmDescription(**json.loads((self.path / "testbed.json").read_text()))
        except FileNotFoundError:
            raise MpistreamError(
                f"there is no Slurm testbed in {self.path.parent}", "start one with `mpistream testbed slurm up`"
            ) from None

    def killed(self, name: str) -> Path:
        """The file that says that a node is to stay dead."""
        return self.path / "killed" / name
