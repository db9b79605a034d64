"""`mpistream job run` without a scheduler, with real processes: it serves, hands over, starts again."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from mpistream.model.session import BatchJob, BatchJobState, Mode
from tests.system.batch_jobs import RANKS, THRESHOLDS, Microscope, microscope
from tests.system.command_line import finish, wait_until
from tests.system.datasets import assert_frames_of, assert_same_events, same_bytes
from tests.system.sector_writer import MadeUpScan
from tests.unit.batch_jobs import program

#: Streams for several seconds, even on a fast machine.
LONG = "sim:40x40?electrons=50&seed=5"


@pytest.fixture(scope="module")
def scope(place: Path) -> Iterator[Microscope]:
    with microscope(place) as running:
        yield running


@pytest.fixture(scope="module")
def long_scan(scope: Microscope, place: Path) -> Path:
    """The dataset of the long scan, undisturbed."""
    path = place / "long.h5"
    finish(scope.job_run("single", "--source", LONG, *THRESHOLDS, "--output", path)).succeeded()
    return path


def test_live_serves_scan_after_scan_until_the_session_is_stopped(scope: Microscope, output: Path) -> None:
    scope.start_session("live-1", output.parent)
    job = scope.job_run("live", "--session", "live-1")
    scans = [MadeUpScan(3, 4, 1, 0, scan_number=7, seed=seed) for seed in (1, 2)]
    paths = [output.with_name(f"{scan.seed}.h5") for scan in scans]
    for scan, path in zip(scans, paths, strict=True):
        source = f"files:{scan.write(scope.cli.folder / f'live-{scan.seed}')}"
        scope.announce(source, path, session="live-1")
    scope.stop_session("live-1")  # what is announced by then is finished
    done = finish(job).succeeded()
    for scan, path in zip(scans, paths, strict=True):
        assert_same_events(path, scan.expected_events())
        assert_frames_of(path, scan)
    record = scope.job_of(job)
    assert (record.state, record.mode, record.session) == (BatchJobState.ENDED, Mode.LIVE, "live-1")
    assert record.ended_unix_seconds is not None
    (step,) = record.steps
    assert (step.exit_status, step.how) == (0, "the MPI job has ended, as asked")
    assert step.last_lines
    for word in ("is committed", "session live-1 is stopped: that was all", "the job is ended"):
        assert word in done.stdout, done.stdout


def test_a_scan_in_hand_is_handed_over_when_time_is_up(scope: Microscope, output: Path, long_scan: Path) -> None:
    scope.start_session("hand-over", output.parent)
    first = scope.job_run("live", "--session", "hand-over", "--finish-seconds", 0)
    uid = scope.announce(LONG, output, session="hand-over")
    wait_until(lambda: scope.registry.progress(UUID(uid)).get("frames", 0) > 100, 60, "progress")
    first.send_signal(signal.SIGUSR1)
    done = finish(first).succeeded()
    assert f"scan {uid} is left streaming" in done.stdout
    assert scope.states()[uid] == "streaming"
    record = scope.job_of(first)
    assert record.state is BatchJobState.ENDED
    assert uid in record.reason
    assert "another job of the deployment goes on" in record.remedy
    second = scope.job_run("live", "--session", "hand-over")
    scope.wait_for_state(uid, "committed")
    second.send_signal(signal.SIGTERM)
    finish(second).succeeded()
    assert scope.job_of(second).state is BatchJobState.ENDED
    assert same_bytes(output, long_scan)


def test_a_scan_in_hand_is_finished_when_there_is_time(scope: Microscope, output: Path, long_scan: Path) -> None:
    scope.start_session("finish", output.parent)
    job = scope.job_run("live", "--session", "finish", "--finish-seconds", 90)
    uid = scope.announce(LONG, output, session="finish")
    scope.wait_for_state(uid, "streaming")
    job.send_signal(signal.SIGUSR2)
    done = finish(job).succeeded()
    assert scope.states()[uid] == "committed"
    assert "it was asked to end after the scan in hand" in done.stdout
    assert same_bytes(output, long_scan)


def test_a_job_of_one_scan_that_ends_in_time_is_done(scope: Microscope, output: Path, long_scan: Path) -> None:
    """The scan in hand ends a moment before its program hears of that."""
    job = scope.job_run("single", "--source", LONG, *THRESHOLDS, "--output", output, "--finish-seconds", 90)

    def is_streaming() -> bool:
        return "streaming" in [state for uid, state in scope.states().items() if output_of(scope, uid) == str(output)]

    wait_until(is_streaming, 60, "the stream")
    job.send_signal(signal.SIGUSR1)
    done = finish(job).succeeded()
    assert "scans in hand: 1" in done.stdout
    record = scope.job_of(job)
    assert record.state is BatchJobState.ENDED
    assert str(output) in record.reason
    assert same_bytes(output, long_scan)


def output_of(scope: Microscope, uid: str) -> str:
    record = scope.registry.record(UUID(uid))
    return record.output if record else ""


def test_a_step_that_died_is_started_again(scope: Microscope, output: Path, long_scan: Path) -> None:
    job = scope.job_run("single", "--source", LONG, *THRESHOLDS, "--output", output)

    def progress() -> int:
        under_way = [uid for uid, state in scope.registry.scans().items() if not state.state.is_final]
        return max((scope.registry.progress(uid).get("frames", 0) for uid in under_way), default=0)

    wait_until(lambda: progress() > 100, 60, "progress")
    (group,) = scope.registry.groups()
    assert group.batch_job == f"local-{job.pid}"
    os.kill(group.ranks[1].pid, signal.SIGKILL)
    finish(job).succeeded()
    assert same_bytes(output, long_scan)
    record = scope.job_of(job)
    assert record.state is BatchJobState.ENDED
    died, ended = record.steps
    assert died.exit_status != 0
    assert "SIGKILL" in died.how or "signal 9" in died.how.lower(), died.how
    assert ended.exit_status == 0


def test_a_step_that_cannot_live(scope: Microscope) -> None:
    job = scope.job_run("single", "--source", LONG, "--output", scope.cli.folder / "no.h5", command=("false",))
    done = finish(job)
    assert done.status == 1, done
    record = scope.job_of(job)
    assert record.state is BatchJobState.FAILED
    assert "5 times in a row" in record.reason
    assert len(record.steps) == 5


def test_timeseries_leaves_one_dataset_each(scope: Microscope, output: Path) -> None:
    folder = output.parent
    job = scope.job_run(
        *("timeseries", "--source", "sim:3x4?electrons=50&seed={index}", "--scans", 3, "--each"),
        *("--output", folder, *THRESHOLDS),
    )
    finish(job).succeeded()
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == ["scan-0.h5", "scan-1.h5", "scan-2.h5"]
    records = [record for uid in scope.registry.scans() if (record := scope.registry.record(uid))]
    ours = [record for record in records if record.labels.get("batch_job") == f"local-{job.pid}"]
    indices = {Path(record.output).name: record.labels["time_index"] for record in ours}
    assert indices == {path.name: index for index, path in enumerate(paths)}
    assert not same_bytes(paths[0], paths[1])


def test_single_serves_the_next_scan_of_its_session(scope: Microscope, output: Path) -> None:
    scope.start_session("single-1", output.parent)
    job = scope.job_run("single", "--session", "single-1")
    scope.announce("sim:2x2?electrons=50", output, session="single-1")
    finish(job).succeeded()
    assert str(output) in scope.job_of(job).reason


def test_ranks_that_are_reached_under_another_name(scope: Microscope, output: Path) -> None:
    """They bind the interface's address; the aggregator connects to the name."""
    scan = MadeUpScan(3, 4, 1, 0, scan_number=7, seed=8)
    source = f"files:{scan.write(scope.cli.folder / 'named')}"
    job = scope.job_run(
        *("single", "--source", source, *THRESHOLDS, "--output", output),
        command=(*scope.consume, "--interface", "lo", "--external-name", "localhost"),
    )
    (group,) = wait_until(scope.registry.groups, 60, "an MPI job")
    endpoints = [endpoint for rank in group.ranks for endpoint in (rank.data_endpoint, rank.answer_endpoint)]
    assert len(endpoints) == 2 * RANKS
    assert all(endpoint.startswith("tcp://localhost:") for endpoint in endpoints)
    assert listening({int(endpoint.rpartition(":")[2]) for endpoint in endpoints}) == {"127.0.0.1"}
    finish(job).succeeded()
    assert_same_events(output, scan.expected_events())


def listening(ports: set[int]) -> set[str]:
    """The addresses at which somebody listens on them."""
    connections = psutil.net_connections("tcp")
    return {
        connection.laddr.ip
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in ports
    }


@pytest.fixture
def queue(scope: Microscope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody in the place of Slurm, for the job 77, who notes in this file what the job is requeued."""
    noted = tmp_path / "requeued"
    answers = f'"show job"*) echo JobId=77 Requeue=1;; requeue*) echo "$*" >> {noted};;'
    program(tmp_path, "scontrol", f'case "$*" in "show hostnames"*) hostname;; {answers} esac')
    surroundings = {"SLURM_JOB_ID": "77", "SLURM_CLUSTER_NAME": "made-up", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for name, value in surroundings.items():
        monkeypatch.setitem(scope.cli.environment, name, value)
    return noted


def record_of_77(scope: Microscope) -> BatchJob:
    (job,) = [job for job in scope.sessions.batch_jobs() if job.scheduled == "77"]
    return job


def test_a_live_job_without_any_scan_is_not_requeued(scope: Microscope, output: Path, queue: Path) -> None:
    """Its session may be forgotten, and it would come back for ever."""
    scope.start_session("forgotten", output.parent)
    job = scope.job_run("live", "--session", "forgotten")
    wait_until(scope.registry.groups, 60, "an MPI job")
    job.send_signal(signal.SIGUSR1)
    done = finish(job).succeeded()
    assert "Slurm says that the time limit is near" in done.stdout
    record = record_of_77(scope)
    assert record.state is BatchJobState.ENDED
    assert record.reason == "there was no scan to serve in the whole run"
    assert "mpistream job submit live --session forgotten" in record.remedy
    assert not queue.exists()


def test_a_live_job_that_has_served_a_scan_is_requeued(scope: Microscope, output: Path, queue: Path) -> None:
    scope.start_session("busy", output.parent)
    job = scope.job_run("live", "--session", "busy")
    uid = scope.announce("sim:2x2?electrons=50", output, session="busy")
    scope.wait_for_state(uid, "committed")
    job.send_signal(signal.SIGUSR1)
    wait_until(queue.exists, 60, "the requeue")
    job.send_signal(signal.SIGTERM)  # as Slurm does
    finish(job).succeeded()
    assert queue.read_text() == "requeue 77\n"
    record = record_of_77(scope)
    assert (record.state, record.reason) == (BatchJobState.REQUEUED, "nothing is in hand any more")


@pytest.mark.parametrize(("script", "state", "status"), [("echo counted", "ended", 0), ("exit 4", "failed", 1)])
def test_a_command_that_runs_once(scope: Microscope, script: str, state: str, status: int) -> None:
    job = scope.job_run("filebased", command=("sh", "-c", script))
    assert finish(job).status == status
    record = scope.job_of(job)
    assert record.state == state
    assert record.reason == ("counted" if status == 0 else record.steps[0].how)
    assert len(record.steps) == 1


def test_a_session_that_was_never_started(scope: Microscope) -> None:
    job = scope.job_run("live", "--session", "nobody")
    assert finish(job).status == 1
    record = scope.job_of(job)
    assert record.state is BatchJobState.FAILED
    assert "there is no session nobody" in record.reason
    assert record.remedy


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("live", ("--scans", 2), ("--scans", "no effect", "live")),
        ("live", ("--session", "x", "--interface", "lo"), ("--interface", "no effect", "live")),
        ("single", ("--source", "sim:2x2"), ("--source and --output",)),
        ("filebased", ("--output", "x.h5"), ("--output", "no effect", "filebased")),
        ("timeseries", ("--source", "sim:2x2"), ("needs", "--output", "--scans")),
        ("tomography", ("--source", "sim:2x2", "--output", "x", "--tilts", "0:9"), ("no angle lies on the way",)),
    ],
)
def test_wrong_options_start_nothing(
    scope: Microscope, mode: str, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    job = scope.job_run(mode, *options)
    finish(job).failed_with(*words)
    assert not [known for known in scope.sessions.batch_jobs() if known.scheduled == f"local-{job.pid}"]
