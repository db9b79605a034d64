"""Hosts of a deployment as network namespaces on one bridge, whose links can be cut, made lossy and slow.

Needs root, iproute2 and nftables.
"""

import contextlib
import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

_TOOLS = ("ip", "tc", "nft", "nsenter")
_INTERFACE = "eth0"


def lacking() -> str:
    """Why there can be no namespaces here; "" where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"{', '.join(missing)} not installed: see `make setup`" if missing else ""


class Network:
    """One namespace per name, with an address of its own. The bridge has ``address``, which all of them reach.

    Namespaces are entered by nsenter: `ip -n` would mount, which is not possible everywhere that this is.

    A context manager: leaving removes namespaces and bridge, whatever runs in them.
    """

    def __init__(self, *names: str) -> None:
        self._tag = f"mpf{os.getpid() % 100_000}"
        self._subnet = f"10.213.{os.getpid() % 250}"
        self.address = f"{self._subnet}.1"
        self._numbers = {name: number for number, name in enumerate(names)}

    def address_of(self, name: str) -> str:
        return f"{self._subnet}.{self._numbers[name] + 10}"

    def entering(self, name: str) -> list[str]:
        """What a command begins with to run there. The process keeps its pid."""
        return ["nsenter", f"--net=/run/netns/{self._namespace(name)}"]

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{self._numbers[name]}"

    def _port(self, name: str) -> str:
        """The bridge's end of the link."""
        return f"{self._tag}p{self._numbers[name]}"

    def __enter__(self) -> Self:
        try:
            _run("ip", "link", "add", self._tag, "type", "bridge")
            _run("ip", "addr", "add", f"{self.address}/24", "dev", self._tag)
            _run("ip", "link", "set", self._tag, "up")
            for name in self._numbers:
                self._add(name)
        except BaseException:
            self.remove()
            raise
        return self

    def _add(self, name: str) -> None:
        namespace, port = self._namespace(name), self._port(name)
        _run("ip", "netns", "add", namespace)
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", _INTERFACE, "netns", namespace)
        _run("ip", "link", "set", port, "master", self._tag, "up")
        inside = [*self.entering(name), "ip"]
        _run(*inside, "addr", "add", f"{self.address_of(name)}/24", "dev", _INTERFACE)
        for interface in ("lo", _INTERFACE):
            _run(*inside, "link", "set", interface, "up")

    def cut(self, name: str) -> None:
        _run("ip", "link", "set", self._port(name), "down")

    def mend(self, name: str) -> None:
        _run("ip", "link", "set", self._port(name), "up")

    def lose(self, name: str, per_mille: int) -> None:
        """Drops that share of the packets which arrive there; 0 ends it."""
        inside = [*self.entering(name), "nft"]
        with contextlib.suppress(subprocess.CalledProcessError):
            _run(*inside, "delete table inet faults")
        if per_mille:
            _run(*inside, "add table inet faults")
            _run(*inside, "add chain inet faults arriving { type filter hook input priority 0 ; }")
            rule = f"iifname {_INTERFACE} numgen random mod 1000 < {per_mille} drop"
            _run(*inside, f"add rule inet faults arriving {rule}")

    def slow(self, name: str, megabits_per_second: int) -> None:
        """Limits the rate at which it sends, with a queue of 50 ms; 0 ends it."""
        inside = [*self.entering(name), "tc"]
        with contextlib.suppress(subprocess.CalledProcessError):
            _run(*inside, "qdisc", "del", "dev", _INTERFACE, "root")
        if megabits_per_second:
            rate = ["rate", f"{megabits_per_second}mbit", "burst", "1mb", "latency", "50ms"]
            _run(*inside, "qdisc", "add", "dev", _INTERFACE, "root", "tbf", *rate)

    def remove(self) -> None:
        for name in self._numbers:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "link", "del", self._port(name))
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", self._namespace(name))
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", self._tag)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
