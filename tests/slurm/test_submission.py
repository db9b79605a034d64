"""Job scripts and the real sbatch: what is asked for is what Slurm has, and what it refuses leaves nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpistream.launch.cluster.slurm import Slurm, fields_of
from tests.slurm.cluster import NODES, Cluster
from tests.system.command_line import endpoint_in, etcdctl, wait_until

Submit = Callable[..., Any]


@pytest.fixture
def session(cluster: Cluster, tmp_path: Path) -> str:
    """A session of its own, whose folder is the test's."""
    name = tmp_path.name.replace("_", "-")
    cluster.cli.run(
        *("session", "start", name, "--folder", cluster.folder, "--datasets", tmp_path),
        *("--background", 60, "--xray", 2000),
    ).succeeded()
    return name


@pytest.fixture
def submit(cluster: Cluster, session: str) -> Submit:
    """`mpistream job submit MODE` in that session: how it ended."""

    def run(mode: str, *more: object, site: object = "testbed") -> Any:
        return cluster.cli.run(
            *("job", "submit", mode, "--site", site, "--folder", cluster.folder, "--session", session, *more)
        )

    return run


@pytest.fixture
def slurm(cluster: Cluster) -> Slurm:
    return Slurm(cluster.environment)


def record(cluster: Cluster, number: str) -> dict[str, Any]:
    """What stands in etcd of a batch job; empty where there is nothing."""
    text = etcdctl(endpoint_in(cluster.config), "get", "--print-value-only", f"/testbed/batch/testbed/{number}")
    return dict(json.loads(text)) if text.strip() else {}


def test_slurm_has_what_was_asked_for(
    cluster: Cluster, submit: Submit, session: str, slurm: Slurm, tmp_path: Path
) -> None:
    other = cluster.run("sbatch", "--parsable", "--nodes=1", "--output=/dev/null", "--wrap=sleep 100").succeeded()
    number = other.stdout.strip()
    options = ("--nodes", 3, "--tasks-per-node", 4, "--time", "00:12:00", "--dependency", f"afterany:{number}")
    done = submit("live", *options, "--json").last_json
    job = slurm.job(done["job"])
    assert job is not None
    expected = {
        "JobName": f"mpistream-live-{session}",
        "JobState": "PENDING",
        "NumNodes": "3-3",
        "NumTasks": "12",
        "CPUs/Task": "2",
        "NtasksPerN:B:S:C": "4:0:*:*",
        "TimeLimit": "00:12:00",
        "Requeue": "1",
        "OverSubscribe": "NO",
        "Dependency": f"afterany:{number}(unfulfilled)",
        "Command": done["script"],
        "WorkDir": str(tmp_path / "jobs"),
        "StdOut": done["log"],
        "StdErr": done["log"],
    }
    assert job.items() >= expected.items()
    assert [queued.name for queued in slurm.queue() if queued.number == done["job"]] == [f"mpistream-live-{session}"]
    assert done["cluster"] == slurm.cluster() == "testbed"
    written = record(cluster, done["job"])
    assert (written["state"], written["session"], written["nodes"]) == ("submitted", session, 3)
    assert written["log"] == done["log"]


@pytest.mark.parametrize(
    ("profile", "more", "words"),
    [
        ("", ("--nodes", 1 + len(NODES)), "more rank groups than nodes: 5 nodes asked for, Slurm has 4"),
        ("", ("--tasks-per-node", 9), "9 ranks on a node with 8 hardware threads"),
        ("", ("--dependency", "nonsense"), "Job dependency problem"),
        ("", ("--reservation", "nobodys"), "Requested reservation is invalid"),
        ("[scheduler]\npartition = 'nowhere'\n", (), "Invalid partition name"),
        ("[scheduler]\nconstraint = 'gpu'\n", (), "Invalid feature specification"),
        ("[nodes]\nhardware_threads = 64\n", (), "1 nodes of 64 CPUs asked for, Slurm has 0: 8 is the most"),
    ],
)
def test_what_slurm_does_not_have_is_refused(
    cluster: Cluster, submit: Submit, tmp_path: Path, profile: str, more: tuple[object, ...], words: str
) -> None:
    site: object = "testbed"
    if profile:
        site = tmp_path / "mine.toml"
        site.write_text(profile)
    submit("live", *more, site=site).failed_with(words)
    assert cluster.jobs() == []
    assert list(tmp_path.glob("jobs/*")) == []


def test_without_slurmctld_nothing_is_submitted(
    cluster: Cluster, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Slurm of which there is only the configuration: nobody listens at its port."""
    nobody = tmp_path / "slurm.conf"
    lines = (cluster.folder / "slurm" / "slurm.conf").read_text().splitlines()
    nobody.write_text("\n".join("SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in lines))
    from mpistream.model.errors import SchedulerError

    with pytest.raises(SchedulerError, match="Unable to contact slurm controller") as raised:
        Slurm({**cluster.environment, "SLURM_CONF": str(nobody)}).cluster()
    assert "scontrol ping" in raised.value.remedy


def test_a_single_scan_from_sbatch_to_its_dataset(
    cluster: Cluster, submit: Submit, slurm: Slurm, tmp_path: Path
) -> None:
    output = tmp_path / "scan.h5"
    options = ("--source", "sim:8x8?electrons=50", "--output", output, "--background", 60, "--xray", 2000)
    done = submit("single", *options, "--nodes", 2, "--json").last_json
    wait_until(lambda: record(cluster, done["job"])["state"] in ("ended", "failed"), 120, "the end of the job")
    log = Path(done["log"]).read_text()
    assert record(cluster, done["job"])["state"] == "ended", log
    cluster.cli.run("verify", output).succeeded()
    wait_until(lambda: cluster.jobs() == [], 30, "an empty queue")
    job = slurm.job(done["job"])
    assert job is not None
    assert job["JobState"] == "COMPLETED"


def test_the_script_itself_says_what_is_not_there(cluster: Cluster, submit: Submit, slurm: Slurm) -> None:
    """The dark reference was there when the job was submitted, so to say: only the script looks at files."""
    options = ("--source", "sim:8x8", "--output", "a.h5", "--dark", "/nowhere/dark.npy")
    done = submit("single", *options, "--json").last_json
    wait_until(lambda: cluster.jobs() == [], 60, "the end of the job")
    assert "error: cannot read /nowhere/dark.npy" in Path(done["log"]).read_text()
    job = slurm.job(done["job"])
    assert job is not None
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")


def test_nodes_are_known_with_their_sizes(cluster: Cluster, slurm: Slurm) -> None:
    assert slurm.node_sizes() == slurm.node_sizes("testbed") == dict.fromkeys(NODES, 8)
    assert slurm.node_sizes("nowhere") == {}
    assert slurm.nodes("c[1-2]").keys() == {"c1", "c2"}
    shown = fields_of(slurm.run("scontrol", "show", "node", "c1", "--oneliner"))
    assert shown["NodeName"] == "c1"
