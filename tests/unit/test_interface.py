"""Under which address a host's sockets are published."""

import socket

import psutil
import pytest

from mpistream.model.config import NetworkConfig
from mpistream.model.errors import ConfigError
from mpistream.transport import interface
from mpistream.transport.interface import OutsideAddress, outside_address, own_address


def test_without_anything_it_is_this_machine_alone() -> None:
    assert own_address(NetworkConfig()) == "127.0.0.1"


def test_a_host_is_taken_as_it_is() -> None:
    assert own_address(NetworkConfig(host="192.0.2.1")) == "192.0.2.1"


def test_an_interface_stands_for_its_address() -> None:
    assert own_address(NetworkConfig(interface="lo")) == "127.0.0.1"
    for name, addresses in psutil.net_if_addrs().items():
        if found := [address.address for address in addresses if address.family == socket.AF_INET]:
            assert own_address(NetworkConfig(interface=name)) == found[0]


def test_an_interface_that_is_not_there_is_refused_naming_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no interface 'hsn7'") as refused:
        own_address(NetworkConfig(interface="hsn7"))
    assert "lo (127.0.0.1)" in refused.value.remedy


def test_without_another_name_it_is_the_same_from_outside() -> None:
    assert outside_address(NetworkConfig()) == OutsideAddress("127.0.0.1", "127.0.0.1")
    assert outside_address(NetworkConfig(host="192.0.2.1")) == OutsideAddress("192.0.2.1", "192.0.2.1")


def test_the_address_is_bound_and_the_name_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "nid001234.local")
    network = NetworkConfig(interface="lo", external_name="{host}.chn.invalid")
    assert outside_address(network) == OutsideAddress("127.0.0.1", "nid001234.chn.invalid")
    assert own_address(network) == "127.0.0.1"
    fixed = NetworkConfig(host="192.0.2.1", external_name="gateway.invalid")
    assert outside_address(fixed) == OutsideAddress("192.0.2.1", "gateway.invalid")


@pytest.mark.parametrize(
    ("meant", "bound"),
    [
        ("192.0.2.9", "192.0.2.9"),  # the card's second address
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.1", "192.0.2.1"),  # somebody in between translates it
        ("127.0.0.1", "192.0.2.1"),  # a node that takes its name for itself alone
    ],
)
def test_of_several_addresses_the_one_that_the_name_stands_for_is_bound(
    monkeypatch: pytest.MonkeyPatch, meant: str, bound: str
) -> None:
    addresses = {"lo": ["127.0.0.1"], "hsn0": ["192.0.2.1"], "hsn0:chn": ["192.0.2.9"], "hsn01": ["198.51.100.1"]}
    monkeypatch.setattr(interface, "_addresses", lambda: addresses)
    monkeypatch.setattr(interface, "_resolved", lambda name: {meant})
    found = outside_address(NetworkConfig(interface="hsn0", external_name="node.example.org"))
    assert found == OutsideAddress(bound, "node.example.org")
