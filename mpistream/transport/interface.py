"""The address of this host under which others reach its sockets."""

import socket
from contextlib import suppress
from dataclasses import dataclass

import psutil

from mpistream.model.config import NetworkConfig
from mpistream.model.errors import ConfigError

_ONLY_THIS_HOST = "127.0.0.1"


@dataclass(frozen=True)
class OutsideAddress:
    """What sockets bind that are connected to from outside the MPI job, and the name or address to connect to."""

    bound: str
    published: str


def own_address(network: NetworkConfig) -> str:
    """``host``, or the IPv4 address of ``interface``. Raises ConfigError naming the interfaces that there are."""
    if network.interface is None:
        return network.host or _ONLY_THIS_HOST
    addresses = {name: found[0] for name, found in _addresses().items()}
    if network.interface not in addresses:
        there = ", ".join(f"{name} ({address})" for name, address in sorted(addresses.items()))
        raise ConfigError(
            f"{socket.gethostname()} has no interface {network.interface!r} with an IPv4 address",
            f"it has {there}: name one in [network] interface, or with --interface",
        )
    return addresses[network.interface]


def outside_address(network: NetworkConfig) -> OutsideAddress:
    """``own_address``, published under ``external_name`` where there is one. Raises ConfigError.

    An interface may have further addresses; where the name stands for one of them, that one is bound: whoever connects
    to the name would find no socket at the first.
    """
    address = own_address(network)
    if network.external_name is None:
        return OutsideAddress(address, address)
    name = network.external_name.replace("{host}", socket.gethostname().partition(".")[0])
    if network.interface is not None:
        meant = _resolved(name)
        address = next((own for own in _all_addresses(network.interface) if own in meant), address)
    return OutsideAddress(address, name)


def _resolved(name: str) -> set[str]:
    """The IPv4 addresses of a name; none where this host does not know it: it is meant for others."""
    with suppress(OSError, UnicodeError):
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None, socket.AF_INET)}
    return set()


def _all_addresses(interface: str) -> list[str]:
    """Its own, and those that it has under labels (``hsn0:chn``)."""
    found = _addresses()
    names = [interface, *(name for name in found if name.startswith(f"{interface}:"))]
    return [address for name in names for address in found.get(name, [])]


def _addresses() -> dict[str, list[str]]:
    """The IPv4 addresses of every interface that has one."""
    found: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET:
                found.setdefault(name, []).append(address.address)
    return found
