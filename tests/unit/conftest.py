"""A real etcd for all tests of this folder; it is started when the first of them asks for it."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from mpistream.control.coordination import Coordination
from tests.etcd_server import EtcdServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
def etcd(server: EtcdServer) -> Iterator[Coordination]:
    """A connection with a prefix of its own."""
    with server.connect(f"/{uuid4()}/") as connection:
        yield connection
