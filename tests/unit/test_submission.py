"""A job is submitted entirely, or not at all. Slurm is a few lines of shell here; tests/slurm has the real one."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpistream.cli.job import job
from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster import slurm as slurm_commands
from mpistream.launch.cluster import submission
from mpistream.launch.cluster.job_script import JobPlan, plan_job
from mpistream.launch.cluster.site import load_site
from mpistream.launch.cluster.slurm import QueuedJob, Slurm, fields_of, remedy_for
from mpistream.launch.cluster.submission import check_references, session_for, submit_job
from mpistream.model.errors import (
    ConfigError,
    CoordinationError,
    EtcdUnreachable,
    SchedulerAbsent,
    SchedulerError,
    StorageError,
)
from mpistream.model.session import (
    BatchJob,
    BatchJobState,
    Mode,
    Reference,
    ReferenceKind,
    Session,
    SessionStop,
)
from tests.etcd_server import EtcdServer
from tests.system.command_line import CommandLine
from tests.unit.batch_jobs import program, request

POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    "and/or time limits)"
)


class StandIn:
    """Commands of Slurm in a folder: what each does is a line of shell; what they are told stands in ``calls``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = f"{folder}:{os.environ['PATH']}"
        self.slurm = Slurm({"PATH": self.path})
        self.does("scontrol", "echo 'ClusterName             = beam'")
        self.does("sinfo", 'for node in 1 2 3 4; do echo "c$node|8|normal*"; echo "g$node|64|gpu"; done')
        self.does("sbatch", "echo 42")
        self.does("scancel", ":")
        self.does("squeue", f"cat {self.queue} 2>/dev/null || :")
        self.does("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")

    def does(self, command: str, body: str) -> None:
        program(self.folder, command, f'echo "{command} $*" >>{self.folder}/calls\n{body}')

    @property
    def queue(self) -> Path:
        """What squeue shows."""
        return self.folder / "queue"

    @property
    def takes(self) -> str:
        """For sbatch: the job stands in the queue, as number 42 with its comment."""
        return f'echo "42|${{2#--comment=}}" >>{self.queue}'

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "bin")


@pytest.fixture
def registry(etcd: Coordination) -> SessionRegistry:
    return SessionRegistry(etcd)


@pytest.fixture
def plan(tmp_path: Path) -> JobPlan:
    return plan_job(request(folder=tmp_path / "jobs", nodes=3), load_site("testbed"))


def start_session(registry: SessionRegistry, folder: Path, name: str = "tuesday") -> None:
    registry.start_session(Session(name=name, folder=str(folder), started_unix_seconds=time.time()))


def test_a_job_is_submitted_with_its_script_and_its_record(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan, tmp_path: Path
) -> None:
    done = submit_job(plan, stand_in.slurm, registry)
    assert (done.number, done.cluster) == ("42", "beam")
    assert done.script == tmp_path / "jobs" / "mpistream-live-tuesday.sh"
    assert f"--output={tmp_path}/jobs/mpistream-live-tuesday-%j.log" in done.script.read_text()
    assert done.log == tmp_path / "jobs" / "mpistream-live-tuesday-42.log"
    assert re.fullmatch(rf"sbatch --parsable --comment=mpistream-[0-9a-f]+ {done.script}", stand_in.calls[-1])
    record = registry.batch_job("beam", "42")
    assert record is not None
    assert record.submitted_unix_seconds is not None
    assert abs(record.submitted_unix_seconds - time.time()) < 60
    expected = BatchJob(
        scheduled="42",
        cluster="beam",
        mode=Mode.LIVE,
        session="tuesday",
        nodes=3,
        log=str(done.log),
        state=BatchJobState.SUBMITTED,
        submitted_unix_seconds=record.submitted_unix_seconds,
    )
    assert record == expected


def test_each_submission_keeps_its_own_script(stand_in: StandIn, registry: SessionRegistry, plan: JobPlan) -> None:
    scripts = [submit_job(plan, stand_in.slurm, registry).script.name for _ in range(3)]
    assert scripts == [f"mpistream-live-tuesday{suffix}.sh" for suffix in ("", "-2", "-3")]


def test_a_job_that_has_begun_already_keeps_its_own_record(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan
) -> None:
    own = BatchJob(
        scheduled="42", cluster="beam", mode=Mode.LIVE, session="tuesday", nodes=3, log="/a", state="running"
    )
    registry.write_batch_job(own)
    submit_job(plan, stand_in.slurm, registry)
    assert registry.batch_job("beam", "42") == own


@pytest.mark.parametrize(
    ("sbatch", "message", "remedy"),
    [
        (
            "echo 'sbatch: error: Batch job submission failed: Invalid account or account/partition' >&2; exit 1",
            "sbatch says: sbatch: error: Batch job submission failed: Invalid account",
            "--account",
        ),
        ("echo 'sbatch: error: Invalid qos specification' >&2; exit 1", "Invalid qos", "--qos"),
        ("echo 'sbatch: error: Unknown trouble' >&2; exit 1", "Unknown trouble", "sbatch --test-only"),
        ("exit 3", "nothing, exit status 3", "sbatch --test-only"),
    ],
)
def test_a_job_that_slurm_rejects_leaves_nothing(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan, sbatch: str, message: str, remedy: str
) -> None:
    stand_in.does("sbatch", sbatch)
    with pytest.raises(SchedulerError, match=message) as raised:
        submit_job(plan, stand_in.slurm, registry)
    assert remedy in raised.value.remedy
    assert list(plan.request.folder.iterdir()) == []
    assert registry.batch_jobs() == []


#: How sbatch may end without having said whether Slurm has the job; its message.
UNCLEAR = [
    ("exec sleep 60", "sbatch has not answered within 1 s"),
    (
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "Socket timed out",
    ),
    ("echo good day", "did not answer with a job's number: 'good day'"),
    ("kill -9 $$", "nothing, exit status -9"),
]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch has a second, a job that is looked for a fraction of one."""
    monkeypatch.setattr(slurm_commands, "_SUBMIT_SECONDS", 1.0)
    monkeypatch.setattr(submission, "_LOOK_SECONDS", 0.3)
    monkeypatch.setattr(submission, "_TURN_SECONDS", 0.05)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("sbatch", [end for end, _ in UNCLEAR])
def test_a_job_that_slurm_has_taken_is_submitted_whatever_sbatch_says(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan, sbatch: str
) -> None:
    stand_in.does("sbatch", f"{stand_in.takes}; {sbatch}")
    done = submit_job(plan, stand_in.slurm, registry)
    assert (done.number, done.cluster) == ("42", "beam")
    assert done.script.exists()
    assert registry.batch_job("beam", "42") is not None


@pytest.mark.usefixtures("hasty")
def test_a_job_that_comes_into_the_queue_late_is_found(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_LOOK_SECONDS", 30.0)
    stand_in.does("sbatch", f"(sleep 1; {stand_in.takes}) >/dev/null 2>&1 & exec sleep 60")
    assert submit_job(plan, stand_in.slurm, registry).number == "42"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("squeue", [":", "exit 1"])
def test_a_job_that_only_the_accounting_knows_is_found(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan, squeue: str
) -> None:
    stand_in.does("sbatch", f'echo "42|sbatch $*" >{stand_in.folder}/accounts; exec sleep 60')
    stand_in.does("squeue", squeue)
    stand_in.does("sacct", f"echo '7|sbatch another.sh'; cat {stand_in.folder}/accounts")
    assert submit_job(plan, stand_in.slurm, registry).number == "42"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("sbatch", "message"), UNCLEAR)
def test_a_job_that_slurm_has_not_taken_leaves_nothing(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan, sbatch: str, message: str
) -> None:
    stand_in.does("sbatch", sbatch)
    stand_in.queue.write_text("41|mpistream-000000000000\n43|(null)\n")  # others
    with pytest.raises(SchedulerError) as raised:
        submit_job(plan, stand_in.slurm, registry)
    assert message in raised.value.message
    assert raised.value.message.endswith("; Slurm has no such job")
    assert list(plan.request.folder.iterdir()) == []
    assert registry.batch_jobs() == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("sbatch", "message"), UNCLEAR)
def test_where_nobody_knows_it_is_said_how_to_look(
    stand_in: StandIn, registry: SessionRegistry, plan: JobPlan, sbatch: str, message: str
) -> None:
    stand_in.does("sbatch", sbatch)
    stand_in.does("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError) as raised:
        submit_job(plan, stand_in.slurm, registry)
    assert message in raised.value.message
    assert "the job mpistream-live-tuesday may have been submitted, or not: squeue says" in raised.value.message
    (called,) = [call for call in stand_in.calls if call.startswith("sbatch")]
    mark = called.split()[2].removeprefix("--comment=")
    (script,) = plan.request.folder.iterdir()
    for words in (f"look for its comment {mark}: squeue --me", str(script)):
        assert words in raised.value.remedy
    assert registry.batch_jobs() == []


@pytest.fixture
def patient_with_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an interruption comes first, however slow the machine."""
    monkeypatch.setattr(slurm_commands, "_SUBMIT_SECONDS", 30.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("sbatch_does", "squeue", "scancel", "cancels", "message"),
    [
        ("takes", None, ":", True, "interrupted"),
        ("nothing", None, ":", False, "interrupted"),
        (
            "takes",
            None,
            "echo no >&2; exit 1",
            True,
            "job 42 is submitted, and could not be cancelled: scancel says: no",
        ),
        ("takes", "exit 1", ":", False, "interrupted; the job mpistream-live-tuesday may have been submitted, or not"),
    ],
)
def test_an_interrupted_submission_leaves_no_job(
    patient_with_sbatch: None,
    stand_in: StandIn,
    registry: SessionRegistry,
    plan: JobPlan,
    sbatch_does: str,
    squeue: str | None,
    scancel: str,
    cancels: bool,
    message: str,
) -> None:
    """As Ctrl-C does it, here in the middle of sbatch; SIGTERM is made the same by the command line."""
    stand_in.does(
        "sbatch", f"{stand_in.takes if sbatch_does == 'takes' else ':'}; kill -INT {os.getpid()}; exec sleep 60"
    )
    stand_in.does("scancel", scancel)
    if squeue is not None:
        stand_in.does("squeue", squeue)
    with pytest.raises((KeyboardInterrupt, SchedulerError)) as raised:
        submit_job(plan, stand_in.slurm, registry)
    if message == "interrupted":
        assert isinstance(raised.value, KeyboardInterrupt)
        assert list(plan.request.folder.iterdir()) == []
    else:
        assert message in str(raised.value)
    assert ("scancel 42" in stand_in.calls) == cancels
    assert registry.batch_jobs() == []


def test_a_second_interruption_is_no_silence(
    patient_with_sbatch: None, stand_in: StandIn, registry: SessionRegistry, plan: JobPlan
) -> None:
    stand_in.does("sbatch", f"{stand_in.takes}; kill -INT {os.getpid()}; exec sleep 60")
    stand_in.does("squeue", f"kill -INT {os.getpid()}; exec sleep 60")
    with pytest.raises(SchedulerError, match="may have been submitted, or not: interrupted"):
        submit_job(plan, stand_in.slurm, registry)


def test_a_comment_of_the_site_is_kept(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[scheduler]\ndirectives = ['--comment=beamline']\n")
    plan = plan_job(request(folder=tmp_path / "jobs"), load_site(str(tmp_path / "mine.toml")))
    submit_job(plan, stand_in.slurm, None)
    assert "--comment=beamline mpistream-" in stand_in.calls[-1]


def test_without_a_controller_nothing_is_written(stand_in: StandIn, registry: SessionRegistry, plan: JobPlan) -> None:
    stand_in.does("scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Unable to contact") as raised:
        submit_job(plan, stand_in.slurm, registry)
    assert "scontrol ping" in raised.value.remedy
    assert not plan.request.folder.exists()


@pytest.mark.parametrize(
    ("profile", "nodes", "message"),
    [
        ("[nodes]\nhardware_threads = 8\n", 5, "more rank groups than nodes: 5 nodes asked for, Slurm has 4"),
        ("[nodes]\nhardware_threads = 9\n", 2, "2 nodes of 9 CPUs asked for, Slurm has 0: 8 is the most"),
        ("[nodes]\nhardware_threads = 65\n[scheduler]\npartition = 'gpu'\n", 1, "Slurm has 0: 64 is the most"),
    ],
)
def test_slurm_is_asked_for_its_nodes_where_the_profile_does_not_know(
    stand_in: StandIn, tmp_path: Path, profile: str, nodes: int, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(profile)
    plan = plan_job(request(folder=tmp_path / "jobs", nodes=nodes), load_site(str(path)))
    with pytest.raises(ConfigError, match=message) as raised:
        submit_job(plan, stand_in.slurm, None)
    assert raised.value.remedy
    assert not plan.request.folder.exists()


def test_a_folder_that_cannot_be_made_is_named(stand_in: StandIn, registry: SessionRegistry, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan = plan_job(request(folder=tmp_path / "file" / "jobs"), load_site("testbed"))
    with pytest.raises(StorageError, match=r"cannot make the folder .*/file/jobs"):
        submit_job(plan, stand_in.slurm, registry)
    assert not any(call.startswith("sbatch") for call in stand_in.calls)


@pytest.mark.parametrize(
    ("scancel", "message", "remedy"),
    [
        (":", "job 42 was submitted, and is cancelled again", "etcd"),
        ("echo no >&2; exit 1", r"job 42 was submitted, but could neither be recorded .* nor cancelled", "scancel 42"),
    ],
)
def test_a_job_that_cannot_be_recorded_is_cancelled(
    stand_in: StandIn, plan: JobPlan, tmp_path: Path, scancel: str, message: str, remedy: str
) -> None:
    stand_in.does("scancel", scancel)
    (tmp_path / "etcd").mkdir()
    with EtcdServer(tmp_path / "etcd") as server, server.connect(timeout_seconds=0.5) as etcd:
        stand_in.does("sbatch", f"kill -STOP {server.pid}; echo 42")
        try:
            with pytest.raises(CoordinationError, match=message) as raised:
                submit_job(plan, stand_in.slurm, SessionRegistry(etcd))
        finally:
            os.kill(server.pid, signal.SIGCONT)
    assert remedy in raised.value.remedy
    assert stand_in.calls[-1] == "scancel 42"


def test_a_session_must_be_there_and_not_be_stopped(registry: SessionRegistry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no session 'tuesday'") as raised:
        session_for(registry, "tuesday")
    assert raised.value.remedy == "start it: mpistream session start tuesday --datasets DIR"
    start_session(registry, tmp_path, "monday")
    start_session(registry, tmp_path, "wednesday")
    registry.stop_session("wednesday", SessionStop(since_unix_seconds=1.0, reason="the beam is gone"))
    with pytest.raises(ConfigError) as raised:
        session_for(registry, "tuesday")
    assert raised.value.remedy == "take one of monday; or start it: mpistream session start tuesday --datasets DIR"
    with pytest.raises(ConfigError, match="'wednesday' is stopped: the beam is gone"):
        session_for(registry, "wednesday")
    assert session_for(registry, "monday").folder == str(tmp_path)


def test_references_must_be_there(registry: SessionRegistry) -> None:
    options = {"source": "sim:8x8", "output": "a.h5", "dark": "ref:a", "thresholds": "/a/file"}
    asked = request(Mode.SINGLE, options)
    with pytest.raises(ConfigError, match="no dark reference has the name 'a'") as raised:
        check_references(registry, asked)
    assert "let a dark job make one" in raised.value.remedy
    made = Reference(kind=ReferenceKind.DARK, name="b", path="/b", sha256="0", made_unix_seconds=1.0)
    registry.write_reference(made)
    with pytest.raises(ConfigError) as raised:
        check_references(registry, asked)
    assert raised.value.remedy == "take one of b"
    registry.write_reference(made.model_copy(update={"name": "a"}))
    check_references(registry, asked)


# Slurm's answers


def test_what_scontrol_says_of_a_job(stand_in: StandIn) -> None:
    line = (
        "JobId=42 JobName=mpistream-live-a UserId=me(1) JobState=RUNNING Reason=None Restarts=1 Requeue=1 "
        "EndTime=1795284917 NumNodes=4 NtasksPerN:B:S:C=2:0:*:* TRES=cpu=8,node=4 Command=/a folder/job.sh WorkDir=/a"
    )
    stand_in.does("scontrol", f"echo '{line}'")
    job = stand_in.slurm.job("42")
    assert job is not None
    assert {name: job[name] for name in ("JobState", "Restarts", "EndTime", "TRES", "Command", "WorkDir")} == {
        "JobState": "RUNNING",
        "Restarts": "1",
        "EndTime": "1795284917",
        "TRES": "cpu=8,node=4",
        "Command": "/a folder/job.sh",
        "WorkDir": "/a",
    }
    stand_in.does("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert stand_in.slurm.job("43") is None


def test_what_squeue_and_scontrol_say_of_jobs_and_nodes(stand_in: StandIn) -> None:
    stand_in.does("squeue", "echo '42|mpistream-live-a|RUNNING|None|c[1-4]'; echo '43|b|PENDING|(Resources)|'")
    assert stand_in.slurm.queue() == [
        QueuedJob("42", "mpistream-live-a", "RUNNING", "None", "c[1-4]"),
        QueuedJob("43", "b", "PENDING", "(Resources)", ""),
    ]
    stand_in.does("scontrol", "echo 'NodeName=c1 State=IDLE'; echo 'NodeName=c2 State=DOWN* Reason=Not responding [x]'")
    nodes = stand_in.slurm.nodes("c[1-2]")
    assert nodes["c2"] == {"NodeName": "c2", "State": "DOWN*", "Reason": "Not responding [x]"}
    assert stand_in.calls[-1] == "scontrol show node c[1-2] --oneliner"


@pytest.mark.parametrize(
    ("command", "words", "remedy"),
    [
        ("sbatch", "Invalid account or account/partition combination specified", "--account"),
        ("sbatch", "Invalid qos specification", "another --qos"),
        ("sbatch", "Requested time limit is invalid (missing or exceeds some limit)", "shorter --time"),
        ("sbatch", "Requested reservation is invalid", "scontrol show reservation"),
        ("sbatch", "Node count specification invalid", "fewer --nodes"),
        ("sbatch", "Requested node configuration is not available", "sinfo -N -l"),
        ("sbatch", "Job dependency problem", "--dependency"),
        ("sbatch", "Invalid feature specification", "constraint"),
        ("sbatch", "User's group not permitted to use this partition", "not for you"),
        ("sbatch", "Unable to contact slurm controller (connect failure)", "scontrol ping"),
        ("sbatch", "Socket timed out on send/recv operation", "scontrol ping"),
        ("sbatch", f"{POLICY}", "a limit of the qos or the account: fewer jobs at once"),
        ("sbatch", f"sbatch: error: QOSMaxSubmitJobPerUserLimit {POLICY}", "wait until one of your jobs is over"),
        ("sbatch", f"sbatch: error: AssocMaxSubmitJobLimit {POLICY}", "wait until one of your jobs is over"),
        ("sbatch", f"sbatch: error: QOSMaxNodePerUserLimit {POLICY}", "fewer --nodes, wait until your other jobs"),
        ("sbatch", f"sbatch: error: AssocGrpCpuLimit {POLICY}", "fewer --nodes, wait until your other jobs"),
        ("sbatch", f"sbatch: error: QOSMaxWallDurationPerJobLimit {POLICY}", "shorter --time"),
        ("sbatch", f"sbatch: error: AssocGrpCPUMinutesLimit {POLICY}", "another --account"),
        ("sbatch", f"sbatch: error: QOSMinCpuNotSatisfied {POLICY}", "more --nodes"),
        ("sbatch", "Unknown trouble", "sbatch --test-only"),
        ("scancel 42", "Access/permission denied", "another user's"),
        ("scancel 42", "Invalid job id 42", "squeue --me"),
        ("scancel 42", "Unknown trouble", "by hand: scancel 42"),
    ],
)
def test_each_refusal_has_its_own_remedy(command: str, words: str, remedy: str) -> None:
    found = remedy_for(command, words)
    assert remedy in found
    assert ("sacctmgr show qos" in found) == (POLICY in words), "limits, and where they stand"


def test_a_line_without_fields_has_none() -> None:
    assert fields_of("") == fields_of("No jobs") == {}


def test_a_command_that_does_not_answer_is_given_up(stand_in: StandIn) -> None:
    stand_in.does("squeue", "exec sleep 60")
    with pytest.raises(SchedulerError, match=r"squeue has not answered within 0\.2 s"):
        stand_in.slurm.run("squeue", seconds=0.2)


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SchedulerAbsent, match="sbatch is not installed here") as raised:
        Slurm({"PATH": str(tmp_path)}).require("sbatch")
    assert "mpistream job render --script" in raised.value.remedy
    with pytest.raises(SchedulerAbsent, match="scancel is not installed here") as raised:
        Slurm({"PATH": str(tmp_path)}).cancel("42")
    assert "sbatch" not in raised.value.remedy
    assert "a login node" in raised.value.remedy


def test_variables_of_sbatch_do_not_go_before_the_script(
    stand_in: StandIn, plan: JobPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "another")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    stand_in.does("sbatch", f"env >{stand_in.folder}/environment; echo 42")
    submit_job(plan, Slurm({"PATH": stand_in.path}), None)
    seen = (stand_in.folder / "environment").read_text().splitlines()
    assert not any(line.startswith("SBATCH_") for line in seen)
    assert "LC_ALL=C" in seen


# the command


@pytest.fixture
def cli(tmp_path: Path, stand_in: StandIn) -> CommandLine:
    command_line = CommandLine(tmp_path / "cli")
    command_line.environment["PATH"] = stand_in.path
    return command_line


@pytest.fixture
def submit(
    cli: CommandLine, server: EtcdServer, etcd: Coordination, registry: SessionRegistry, tmp_path: Path
) -> Callable[..., list[object]]:
    """`mpistream job submit MODE` of a session that there is, as arguments; further ones go before."""
    config = tmp_path / "mpistream.toml"
    deployment = etcd.prefix.strip("/")
    config.write_text(f'deployment = "{deployment}"\n[etcd]\nendpoints = ["{server.endpoint}"]\n')
    start_session(registry, tmp_path / "session")

    def arguments(mode: str, *more: object) -> list[object]:
        usual = ["--site", "perlmutter", "--session", "tuesday", "--config", config, "--account", "m1"]
        return ["job", "submit", mode, *usual, *more]

    return arguments


def test_the_command_prints_the_number_and_where_the_log_will_be(
    cli: CommandLine, submit: Callable[..., list[object]], registry: SessionRegistry, tmp_path: Path
) -> None:
    jobs = tmp_path / "session" / "jobs"
    done = cli.run(*submit("live")).succeeded()
    assert done.stdout.splitlines() == [
        "submitted job 42 to beam",
        f"script       {jobs}/mpistream-live-tuesday.sh",
        f"log          {jobs}/mpistream-live-tuesday-42.log",
    ]
    assert registry.batch_job("beam", "42") is not None
    assert f"\ndatasets={tmp_path / 'session'}\n" in (jobs / "mpistream-live-tuesday.sh").read_text()
    assert cli.run(*submit("live", "--json", "--chdir", tmp_path / "other")).last_json == {
        "job": "42",
        "cluster": "beam",
        "script": f"{tmp_path}/other/mpistream-live-tuesday.sh",
        "log": f"{tmp_path}/other/mpistream-live-tuesday-42.log",
        "recorded": True,
    }


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("lvie", (), "there is no mode 'lvie'"),
        ("live", ("--site", "frontier"), "there is no site 'frontier'"),
        ("live", ("--account", ""), "wants an account"),
        ("live", ("--qos", "debug", "--nodes", "9"), "more rank groups than nodes"),
        ("live", ("--time", "00:01:00"), "too short for one scan"),
        ("live", ("--qos", "debug", "--time", "00:31:00"), "qos debug"),
        ("live", ("--session", "monday"), "there is no session 'monday'"),
        ("calibrate", ("--source", "sim:8x8", "--name", "a", "--dark", "ref:b"), "no dark reference has the name 'b'"),
        ("live", ("--config", "/nowhere.toml"), "cannot read the configuration /nowhere.toml"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_submitted(
    submit: Callable[..., list[object]],
    registry: SessionRegistry,
    stand_in: StandIn,
    tmp_path: Path,
    mode: str,
    more: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", stand_in.path)
    with pytest.raises(ConfigError, match=message) as raised:
        job([str(argument) for argument in submit(mode, *more)[1:]], standalone_mode=False)
    assert raised.value.remedy
    assert not any(call.startswith("sbatch") for call in stand_in.calls)
    assert not (tmp_path / "session").exists()
    assert registry.batch_jobs() == []


def test_without_etcd_nothing_is_submitted(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_in.path)
    config = tmp_path / "mpistream.toml"
    config.write_text('[etcd]\nendpoints = ["127.0.0.1:1"]\ntimeout_seconds = 0.5\n')
    usual = ("--site", "perlmutter", "--session", "tuesday", "--account", "m1")
    with pytest.raises(EtcdUnreachable, match="no etcd reachable"):
        job(["submit", "live", *usual, "--config", str(config)], standalone_mode=False)
    assert stand_in.calls == []


def test_a_benchmark_needs_neither_etcd_nor_a_session(
    cli: CommandLine, submit: Callable[..., list[object]], registry: SessionRegistry, tmp_path: Path
) -> None:
    options = ("--session", "try", "--scan", "64x64", "--chdir", tmp_path / "jobs")
    assert cli.run(*submit("benchmark", *options, "--json")).last_json["recorded"] is True
    assert [record.session for record in registry.batch_jobs()] == ["try"]
    config = tmp_path / "away.toml"
    config.write_text('[etcd]\nendpoints = ["127.0.0.1:1"]\ntimeout_seconds = 0.5\n')
    away = submit("benchmark", *options, "--config", config)
    done = cli.run(*away, "--json").last_json
    assert (done["job"], done["recorded"]) == ("42", False)
    assert f"config={config}" in Path(done["script"]).read_text()
    done = cli.run(*away).succeeded()
    assert "submitted job 42 to beam" in done.stdout
    assert "not in etcd  no etcd reachable at 127.0.0.1:1" in done.stdout
    assert len(registry.batch_jobs()) == 1
    cli.run(*submit("benchmark", *options, "--config", "/nowhere.toml")).failed_with("cannot read the configuration")


def test_a_benchmark_in_a_session_lies_in_its_folder(
    cli: CommandLine, submit: Callable[..., list[object]], tmp_path: Path
) -> None:
    done = cli.run(*submit("benchmark", "--scan", "64x64", "--json")).last_json
    assert done["script"] == f"{tmp_path}/session/jobs/mpistream-benchmark-tuesday.sh"


def test_filebased_needs_no_etcd(cli: CommandLine, stand_in: StandIn, tmp_path: Path) -> None:
    usual = ("--site", "perlmutter", "--session", "tuesday", "--account", "m1", "--chdir", tmp_path / "jobs")
    options = ("--source", "files:camera:/data", "--output", tmp_path / "a.h5", "--json")
    assert cli.run("job", "submit", "filebased", *usual, *options).last_json["recorded"] is False
    script = tmp_path / "jobs" / "mpistream-filebased-tuesday.sh"
    assert stand_in.calls[-1].endswith(str(script))
    assert "--config" not in script.read_text()


def test_without_sbatch_the_script_can_be_rendered(cli: CommandLine, submit: Callable[..., list[object]]) -> None:
    arguments = submit("live")
    cli.environment["PATH"] = "/nowhere"
    done = cli.run(*arguments).failed_with("sbatch is not installed here")
    assert "mpistream job render --script FILE.sh" in done.stderr
    render = [argument if argument != "submit" else "render" for argument in arguments]
    script = cli.folder / "live.sh"
    assert f"wrote {script}" in cli.run(*render, "--script", script, "--datasets", "here").succeeded().stdout
    assert f"\ndatasets={Path('here').absolute()}\n" in script.read_text()
    cli.run(*render, "--script", script).failed_with("is already there")


def test_sites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    job(["sites"], standalone_mode=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["perlmutter", "testbed"]
