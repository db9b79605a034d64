"""What a batch job runs besides its MPI job: under which address, and with which configuration."""

import socket
from pathlib import Path

import pytest

from mpistream.launch.cluster.allocation import LocalAllocation
from mpistream.launch.cluster.batch_job import own_deployment
from mpistream.launch.cluster.services import Services, own_host, with_configuration
from mpistream.model.config import Config, NetworkConfig
from mpistream.model.errors import ConfigError

OWN = Path("/x/own.toml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("/p/m/mpistream", "consume", "--config", "/p/m"), ("/p/m/mpistream", "consume", "--config", "/x/own.toml")),
        (("/p/m.backup", "--config=/p/m", "/p/m2"), ("/p/m.backup", "--config=/x/own.toml", "/p/m2")),
        (("--journal=/p/m/x", "/p/m/"), ("--journal=/p/m/x", "/x/own.toml")),
    ],
)
def test_only_whole_words_are_another_configuration(words: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert with_configuration(words, Path("/p/m"), OWN) == expected


def test_a_relative_configuration_is_found_however_it_is_written() -> None:
    assert with_configuration(("consume", "--config", "./m.toml"), Path("m.toml"), OWN)[-1] == str(OWN)


def test_a_command_that_does_not_name_the_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not name the configuration /p/m") as raised:
        with_configuration(("srun", "/p/m/mpistream", "consume", "--config", "/p/n"), Path("/p/m"), OWN)
    assert "--config /p/m" in raised.value.remedy


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of a Slurm job whose own name is a loopback address to it, as on Debian."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")


@pytest.mark.usefixtures("node")
def test_other_nodes_are_not_given_a_loopback_address() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.1\.1, which the other nodes do not reach") as raised:
        own_host(Config(), nodes=2)
    assert "--interface" in raised.value.remedy
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1, which"):
        own_host(Config(network=NetworkConfig(interface="lo")), nodes=2)


@pytest.mark.usefixtures("node")
def test_a_node_alone_reaches_itself() -> None:
    assert own_host(Config(), nodes=1) == "127.0.1.1"
    assert own_host(Config(network=NetworkConfig(interface="lo")), nodes=1) == "127.0.0.1"


def test_a_host_of_the_configuration_is_another_machine_s_in_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(network=NetworkConfig(host="192.0.2.1"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert own_host(config, nodes=1) == "192.0.2.1"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.7")
    assert own_host(config, nodes=2) == "192.0.2.7"


class NotedServices(Services):
    """Starts nothing."""

    host = ""

    def start_camera(self, config: Path, host: str) -> None:
        self.host = host


def test_a_deployment_inside_the_job_needs_no_name_for_the_outside(tmp_path: Path) -> None:
    services, own = NotedServices(tmp_path), tmp_path / "own.toml"
    config = Config(network=NetworkConfig(interface="lo", external_name="{host}.example.org"))
    changed = own_deployment(services, config, LocalAllocation(), own, has_etcd=False)
    assert changed == Config.load(own)
    assert changed.network == NetworkConfig(interface="lo")
    assert services.host == "127.0.0.1"
