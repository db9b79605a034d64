"""Hosts of a deployment as network namespaces on one bridge, whose links can be cut, made lossy and slow.

Needs root, iproute2 and nftables.
"""

import contextlib
import subprocess

from mpistream.launch.cluster import namespaces
from mpistream.launch.cluster.namespaces import INTERFACE


def lacking() -> str:
    """Why there can be no namespaces here; "" where there can."""
    return namespaces.lacking("tc", "nft")


class Network(namespaces.Network):
    """Processes that enter a namespace keep their pids."""

    def lose(self, name: str, per_mille: int) -> None:
        """Drops that share of the packets which arrive there; 0 ends it."""
        inside = [*self.entering(name), "nft"]
        with contextlib.suppress(subprocess.CalledProcessError):
            _run(*inside, "delete table inet faults")
        if per_mille:
            _run(*inside, "add table inet faults")
            _run(*inside, "add chain inet faults arriving { type filter hook input priority 0 ; }")
            rule = f"iifname {INTERFACE} numgen random mod 1000 < {per_mille} drop"
            _run(*inside, f"add rule inet faults arriving {rule}")

    def slow(self, name: str, megabits_per_second: int) -> None:
        """Limits the rate at which it sends, with a queue of 50 ms; 0 ends it."""
        inside = [*self.entering(name), "tc"]
        with contextlib.suppress(subprocess.CalledProcessError):
            _run(*inside, "qdisc", "del", "dev", INTERFACE, "root")
        if megabits_per_second:
            rate = ["rate", f"{megabits_per_second}mbit", "burst", "1mb", "latency", "50ms"]
            _run(*inside, "qdisc", "add", "dev", INTERFACE, "root", "tbf", *rate)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
