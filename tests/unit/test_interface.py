"""Under which address a host's sockets are published."""

import socket

import psutil
import pytest

from mpistream.model.config import NetworkConfig
from mpistream.model.errors import ConfigError
from mpistream.transport.interface import own_address


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
