"""What is particular about starting etcd and MPI on this machine."""

import random
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

_FIRST_PORT = 20_000
_PORTS_TRIED = 100


def mpiexec() -> str:
    """OpenMPI's launcher by its own name where several MPIs may be installed."""
    return "mpiexec.openmpi" if shutil.which("mpiexec.openmpi") else "mpiexec"


def free_port() -> int:
    """Below those ports that the system gives away by itself: nobody else gets it while a server restarts."""
    first_given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(_FIRST_PORT, first_given_away)
    for port in random.sample(candidates, min(_PORTS_TRIED, len(candidates))):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server of this machine could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def etcd_command(data: Path, client_port: int, peer_port: int, host: str = "127.0.0.1") -> list[str]:
    """An etcd of one member, reached at ``host``: as a rule from this machine only."""
    client, peer = (f"http://{host}:{port}" for port in (client_port, peer_port))
    return [
        "etcd",
        *("--name", "local", "--data-dir", str(data), "--log-level", "warn"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"local={peer}"),
        # progress is written several times a second; only its latest value matters
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"),
    ]
