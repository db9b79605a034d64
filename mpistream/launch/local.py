"""What is particular about starting etcd and MPI on this machine."""

import shutil
import socket
from pathlib import Path

#: Several MPI ranks on few cores: no binding, and a waiting rank yields. OpenMPI's names; others ignore them.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}


def mpiexec() -> str:
    """OpenMPI's launcher by its own name where several MPIs may be installed."""
    return "mpiexec.openmpi" if shutil.which("mpiexec.openmpi") else "mpiexec"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def etcd_command(data: Path, client_port: int, peer_port: int) -> list[str]:
    """An etcd of one member, reached from this machine only."""
    client, peer = (f"http://127.0.0.1:{port}" for port in (client_port, peer_port))
    return [
        "etcd",
        *("--name", "local", "--data-dir", str(data), "--log-level", "warn"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"local={peer}"),
        # progress is written several times a second; only its latest value matters
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"),
    ]
