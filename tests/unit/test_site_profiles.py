"""Site profiles: those that come with mpistream, those of users, and what is wrong with them."""

from pathlib import Path

import pytest

from mpistream.launch.cluster.site import format_duration, known_sites, load_site, parse_duration
from mpistream.model.errors import ConfigError


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def test_the_profiles_that_come_along_are_valid() -> None:
    assert known_sites() == ["perlmutter", "testbed"]
    for name in known_sites():
        site = load_site(name)
        assert site.name == name
        assert site.about


def test_perlmutter_gives_each_rank_its_part_of_a_node() -> None:
    site = load_site("perlmutter")
    assert site.nodes.hardware_threads == 256
    assert site.cpus_per_task(64) == 4
    assert site.scheduler.account_required
    assert (site.launcher.interface, site.launcher.external_name) == ("hsn0", "{host}.chn.perlmutter.nersc.gov")
    assert (site.qos["debug"].most_nodes, site.qos["debug"].longest) == (8, 1800)


def test_a_profile_of_ones_own_is_named_by_its_file(profile: Path) -> None:
    profile.write_text('[scheduler]\npartition = "short"\ntime = "1-02:00:00"\n[environment]\nA_B = "c d"\n')
    site = load_site(str(profile))
    assert (site.name, site.scheduler.partition, site.scheduler.time) == ("mine", "short", 26 * 3600)
    assert site.environment == {"A_B": "c d"}


def test_an_unknown_site_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no site 'frontier'") as raised:
        load_site("frontier")
    assert "perlmutter, testbed" in raised.value.remedy


def test_a_profile_that_is_not_there_is_named(profile: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the site profile .*mine\.toml: No such file"):
        load_site(str(profile))


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("[scheduler]\naccuont = 'a'", r"unknown key 'accuont' in \[scheduler\]", "account, account_required"),
        ("[schedular]", "unknown key 'schedular' in the top level", "environment, launcher, nodes"),
        ("name = 'a'", "unknown key 'name'", "about"),
        ("[qos.fast]\nnodes = 3", r"unknown key 'nodes' in \[qos.fast\]", "longest, most_nodes"),
        ("[scheduler]\ntime = '30'", "scheduler.time: '30' is no time such as 00:30:00", "docs/cluster.md"),
        ("[scheduler]\ntime = '00:00:00'", "scheduler.time: a time of 0", "docs/cluster.md"),
        ("[scheduler]\nqos = 'fast'", r"scheduler.qos is 'fast', but there is no \[qos.fast\]", "docs/cluster.md"),
        ("[scheduler]\naccount = 'a b'", "scheduler.account: .*not 'a b'", "docs/cluster.md"),
        ("[scheduler]\ndirectives = ['licenses=a']", "'licenses=a' does not begin with --", "docs/cluster.md"),
        ("[nodes]\ndefault = 3\nmost = 2", "nodes: default is 3, but most only 2", "docs/cluster.md"),
        ("[nodes]\ntasks_per_node = 4", "tasks_per_node is 4, hardware_threads only 1", "docs/cluster.md"),
        ("[nodes]\ndefault = '2'", "nodes.default: .*not '2'", "docs/cluster.md"),
        ("[software]\ncontainer = 'shifter'", "container and image belong together", "docs/cluster.md"),
        ("[software]\ncontainer = 'docker'", "software.container: .*not 'docker'", "docs/cluster.md"),
        ("[launcher]\nexternal_name = '{host}. org'", "launcher.external_name: '{host}. org' is no host name", "docs/"),
        ("[storage]\nscratch = '$(rm x)'", "storage.scratch", "docs/cluster.md"),
        ("[environment]\n'A B' = 'c'", "environment.A B", "docs/cluster.md"),
        ('[environment]\nA = "c\\nd"', "A has more than one line", "docs/cluster.md"),
        ("[scheduler", "not valid TOML", "mend the line"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(profile: Path, text: str, message: str, remedy: str) -> None:
    profile.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_site(str(profile))
    assert remedy in raised.value.remedy
    assert str(profile) in raised.value.message


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:30:00", 1800), ("100:00:00", 360_000), ("2-00:00:01", 172_801), ("0:00:05", 5)]
)
def test_times_are_read_and_written(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["30", "30:00", "1-12", "00:60:00", "00:00:00", "-1:00:00", "1:2:3", "abc", ""])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_duration(text)
