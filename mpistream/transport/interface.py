"""The address of this host under which others reach its sockets."""

import socket

import psutil

from mpistream.model.config import NetworkConfig
from mpistream.model.errors import ConfigError

_ONLY_THIS_HOST = "127.0.0.1"


def own_address(network: NetworkConfig) -> str:
    """``host``, or the IPv4 address of ``interface``. Raises ConfigError naming the interfaces that there are."""
    if network.interface is None:
        return network.host or _ONLY_THIS_HOST
    addresses = _addresses()
    if network.interface not in addresses:
        there = ", ".join(f"{name} ({address})" for name, address in sorted(addresses.items()))
        raise ConfigError(
            f"{socket.gethostname()} has no interface {network.interface!r} with an IPv4 address",
            f"it has {there}: name one in [network] interface, or with --interface",
        )
    return addresses[network.interface]


def _addresses() -> dict[str, str]:
    """The first IPv4 address of every interface that has one."""
    found: dict[str, str] = {}
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET:
                found.setdefault(name, address.address)
    return found
