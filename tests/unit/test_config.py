"""The configuration file: every wrong line is refused with an error that names it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpistream.model.config import Config
from mpistream.model.errors import ConfigError
from mpistream.model.geometry import RECORD_BYTES, SECTORS
from mpistream.model.scan import Durability
from mpistream.model.virtual_images import VirtualDetectors


@pytest.fixture
def load(tmp_path: Path):
    def load_text(text: str, overrides: dict[str, Any] | None = None) -> Config:
        path = tmp_path / "mpistream.toml"
        path.write_text(text)
        return Config.load(path, overrides)

    return load_text


def test_without_a_file_the_defaults_hold() -> None:
    assert Config.load(None) == Config()


def test_the_defaults_load_from_the_file_that_they_make(load) -> None:
    assert load(Config().to_toml()) == Config()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.from_regex(r"[a-z][a-z0-9.-]{0,9}:[1-9][0-9]{0,3}", fullmatch=True), min_size=1, max_size=3),
    st.floats(0, exclude_min=True, allow_nan=False),
    st.booleans(),
)
def test_values_load_from_the_file_that_they_make(load, endpoints: list[str], seconds: float, yes: bool) -> None:
    config = Config.load(
        None, {"etcd.endpoints": endpoints, "etcd.timeout_seconds": seconds, "ranks.parallel_hdf5": yes}
    )
    assert load(config.to_toml()) == config


@pytest.mark.parametrize("name", ["", "agg 1", 'the "fast" one', "back\\slash", "two\nlines", "Grüße", "'quoted'"])
def test_any_text_loads_from_the_file_that_it_makes(load, name: str) -> None:
    config = Config.load(None, {"aggregator.name": name})
    assert load(config.to_toml()) == config


def test_a_file_changes_only_what_it_names(load) -> None:
    config = load('deployment = "ncem"\n[etcd]\nlease_seconds = 7\n')
    assert (config.deployment, config.etcd_prefix, config.etcd.lease_seconds) == ("ncem", "/ncem/", 7)
    assert config.etcd.endpoints == Config().etcd.endpoints
    assert config.stream == Config().stream


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[etcd]\nlease = 3", ["'lease'", "[etcd]", "lease_seconds"]),
        ("[stream]\nblockframes = 3", ["'blockframes'", "[stream]", "block_frames"]),
        ("[kafka]\nport = 3", ["'kafka'", "the top level", "etcd"]),
        ("deploiment = 'x'", ["'deploiment'", "deployment"]),
        ("[etcd]\nlease_seconds = '5'", ["etcd.lease_seconds", "'5'"]),
        ("[etcd]\nlease_seconds = 5.5", ["etcd.lease_seconds", "5.5"]),
        ("[etcd]\nlease_seconds = 1", ["etcd.lease_seconds", "2"]),
        ("[etcd]\nendpoints = 'a:1'", ["etcd.endpoints", "list"]),
        ("[etcd]\nendpoints = []", ["etcd.endpoints"]),
        ("[etcd]\nendpoints = [5]", ["etcd.endpoints", "5"]),
        ("[etcd]\nendpoints = ['somewhere']", ["etcd.endpoints", "'somewhere' is not host:port"]),
        ("[etcd]\nendpoints = ['a:1', 'http://b:2']", ["etcd.endpoints", "'http://b:2' is not host:port"]),
        ("[etcd]\nendpoints = ['host:99999']", ["etcd.endpoints", "99999"]),
        ("[network]\nhost = '10.0.0.1'\ninterface = 'hsn0'", ["network", "leave one out"]),
        ("[network]\nexternal_name = ''", ["network.external_name", "'' is no host name", "{host}"]),
        ("[network]\nexternal_name = '{host}.'", ["network.external_name", "'{host}.' is no host name"]),
        ("[network]\nexternal_name = '{host}..org'", ["network.external_name"]),
        ("[network]\nexternal_name = '{node}.org'", ["network.external_name", "'{node}.org'"]),
        ("[network]\nexternal_name = '{host}.-a.org'", ["network.external_name"]),
        ("[network]\nexternal_name = '{host}:5000'", ["network.external_name"]),
        ("[network]\nexternal_name = '*'", ["network.external_name"]),
        ("[network]\nexternal_name = '0.0.0.0'", ["network.external_name", "others can connect to"]),
        (f"[network]\nexternal_name = '{'a.' * 127}aa'", ["network.external_name"]),
        ("[etcd]\ntimeout_seconds = 0", ["etcd.timeout_seconds", "0"]),
        ("[ranks]\nparallel_hdf5 = 'no'", ["ranks.parallel_hdf5", "'no'"]),
        ("[ranks]\ngather_round_bytes = 2147483648", ["ranks.gather_round_bytes"]),
        ("[ranks]\ngather_round_bytes = 1048575", ["ranks.gather_round_bytes", "1048576"]),
        ("[aggregator]\ndata_port = 65536", ["aggregator.data_port"]),
        ("[stream]\nblock_frames = 65", ["stream.block_frames", "64"]),
        ("[detectors]\nbright_field = 60", ["detectors.bright_field", "60 is not two numbers"]),
        ("[detectors]\nbright_field = [60]", ["detectors.bright_field", "[60] is not two numbers"]),
        ("[detectors]\nbright_field = [60, 0]", ["detectors.bright_field", "radii 60 to 0"]),
        ("[detectors]\nannular_dark_field = [-1, 9]", ["detectors.annular_dark_field", "radii -1 to 9"]),
        ("[detectors]\nannular_dark_field = [80, inf]", ["detectors.annular_dark_field", "inf"]),
        ("[detectors]\ncenter = [280, '290']", ["detectors.center", "'290'"]),
        ("[detectors]\ncenter = [280, nan]", ["detectors.center", "nan"]),
        ("[detectors]\ncenter = [2800, 290]", ["detectors", "no pixel", "0 to 60 pixels"]),
        ("[journal]\ndurability = 'sync'", ["journal.durability", "'write'", "'sync'"]),
        ("[journal]\ndurability = true", ["journal.durability"]),
        ("[journal]\ndirectory = 'scratch/journals'", ["journal.directory", "'scratch/journals' is not an absolute"]),
        ("[journal]\nfolder = '/x'", ["'folder'", "[journal]", "directory, durability"]),
        ("[stream]\nabsent_seconds = 0", ["stream.absent_seconds", "0"]),
        ("[stream]\nspill_bytes = 0", ["stream.spill_bytes", "0"]),
        ("[stream]\nspill_directory = 5", ["stream.spill_directory", "5"]),
        ("etcd = 5", ["etcd"]),
        ("deployment = 'a/b'", ["deployment", "'a/b'"]),
    ],
)
def test_a_wrong_value_is_named(load, text: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    for word in ["mpistream.toml", *named]:
        assert word in str(caught.value)


def test_a_window_that_holds_less_than_two_blocks_is_too_small(load) -> None:
    least = 2 * SECTORS * 8 * RECORD_BYTES
    with pytest.raises(ConfigError, match=rf"stream: window_bytes must be at least {least}"):
        load(f"[stream]\nwindow_bytes = {least - 1}")
    assert load(f"[stream]\nwindow_bytes = {least}").stream.producer_blocks(block_frames=8) == 2


def test_journals(load) -> None:
    assert (Config().journal.directory, Config().journal.durability) == ("", "write")
    for durability in Durability:
        config = load(f'[journal]\ndirectory = "/scratch/journals"\ndurability = "{durability}"\n')
        assert (config.journal.directory, config.journal.durability) == ("/scratch/journals", durability)
        assert load(config.to_toml()) == config


def test_a_producer_that_is_gone_and_a_source_that_cannot_wait(load) -> None:
    text = '[stream]\nabsent_seconds = 2.5\nspill_directory = "/nvme"\nspill_bytes = 1000\n'
    stream = load(text).stream
    assert (stream.absent_seconds, stream.spill_directory, stream.spill_bytes) == (2.5, "/nvme", 1000)
    assert Config().stream.spill_directory == ""


def test_detectors(load) -> None:
    assert Config().detectors.virtual == VirtualDetectors((0, 60), (80, 288), None)
    text = "[detectors]\nbright_field = [0, 33.5]\nannular_dark_field = [40, 100]\ncenter = [280.25, 291]\n"
    config = load(text)
    assert config.detectors.virtual == VirtualDetectors((0, 33.5), (40, 100), (280.25, 291))
    assert load(config.to_toml()) == config


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.toml: No such file"):
        Config.load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="directory"):
        Config.load(tmp_path)


@pytest.mark.parametrize("text", ["[etcd", "deployment = x", "deployment = 'a'\ndeployment = 'b'"])
def test_bad_toml_is_refused(load, text: str) -> None:
    with pytest.raises(ConfigError, match=r"mpistream.toml is not valid TOML: .*\(at "):
        load(text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.toml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Config.load(tmp_path / "image.toml")


def test_options_go_before_the_file(load) -> None:
    text = "[etcd]\nlease_seconds = 7\ntimeout_seconds = 2.0\n"
    config = load(text, {"etcd.lease_seconds": 9, "etcd.timeout_seconds": None, "network.host": "10.0.0.1"})
    assert (config.etcd.lease_seconds, config.etcd.timeout_seconds) == (9, 2.0)
    assert config.network.host == "10.0.0.1"


@pytest.mark.parametrize("name", ["{host}.chn.example.org", "localhost", "n-{host}", "192.0.2.1"])
def test_a_name_for_the_outside_stands_beside_the_interface(load, name: str) -> None:
    config = load(f"[network]\ninterface = 'hsn0'\nexternal_name = '{name}'")
    assert (config.network.interface, config.network.external_name) == ("hsn0", name)
    assert load(config.to_toml()) == config
    assert load(config.to_toml(), {"network.host": "10.0.0.1"}).network.external_name == name


@pytest.mark.parametrize(("given", "other"), [("host", "interface"), ("interface", "host")])
def test_a_host_takes_the_place_of_an_interface_and_the_other_way_round(load, given: str, other: str) -> None:
    config = load(f"[network]\n{other} = 'from-the-file'", {f"network.{given}": "option", f"network.{other}": None})
    assert (getattr(config.network, given), getattr(config.network, other)) == ("option", None)
    assert load(config.to_toml(), {}) == config
    with pytest.raises(ConfigError, match="leave one out"):
        load("", {"network.host": "10.0.0.1", "network.interface": "hsn0"})


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the options: aggregator.data_port: .*not -1"):
        Config.load(None, {"aggregator.data_port": -1})


def test_an_option_for_what_the_file_gives_as_no_section_is_refused(load) -> None:
    with pytest.raises(ConfigError, match="etcd"):
        load("etcd = 5", {"etcd.lease_seconds": 9})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().etcd.lease_seconds = 3
