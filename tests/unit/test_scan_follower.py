"""Following a scan through whatever happens, in a real etcd."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.launch import scan_control, scan_follower
from mpistream.launch.scan_follower import ScanEnd, ScanFollower
from mpistream.model.block_set import BlockSet
from mpistream.model.config import Config
from mpistream.model.errors import ScanFailed
from mpistream.model.job_share import JobShare
from mpistream.model.scan import ScanRecord
from tests.etcd_server import EtcdServer
from tests.unit.registered import Deployment, deployment, scan_record, summary

STEP_SECONDS = 0.05


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_follower, "_TURN_SECONDS", STEP_SECONDS)
    monkeypatch.setattr(scan_follower, "_LOOK_SECONDS", STEP_SECONDS)
    monkeypatch.setattr(scan_control, "NOBODY_SECONDS", 0.2)


@pytest.fixture
def running(etcd: Coordination) -> Iterator[Deployment]:
    with deployment(etcd) as everything:
        yield everything


class Following:
    """Follows an announced scan while ``steps`` are done, one in each turn."""

    def __init__(self, registry: Registry, *steps: Callable[[], object], patience_seconds: float = 20.0) -> None:
        self.registry = registry
        self.record: ScanRecord = scan_record()
        self.said: list[str] = []
        self.seen: list[tuple[ScanState, dict[str, int]]] = []
        self.steps = list(steps)
        self._config = Config.load(None, {"stream.patience_seconds": patience_seconds, "etcd.lease_seconds": 2})
        registry.announce(self.record)

    @property
    def uid(self) -> UUID:
        return self.record.uid

    def become(self, *states: ScanState, reason: str = "", remedy: str = "") -> None:
        for state in states:
            error = ScanFailed(reason, remedy) if reason else None
            assert self.registry.set_state(self.uid, state, error)

    def stream(self) -> None:
        self.become(ScanState.STREAMING)

    def assemble(self) -> None:
        self.become(ScanState.DRAINING, ScanState.ASSEMBLING)

    def end(self, state: ScanState, reason: str = "") -> None:
        self.registry.write_summary(self.uid, summary(complete=state is ScanState.COMMITTED))
        self.become(state, reason=reason)

    def _turn(self) -> None:
        if self.steps:
            self.steps.pop(0)()

    def follow(self, begin: Callable[[], object] = lambda: None) -> ScanEnd:
        self.follower = ScanFollower(self.registry, self.record, self._config, self.said.append, self._turn)
        return self.follower.follow(lambda state, progress: self.seen.append((state, progress)), begin)


def test_to_the_end(running: Deployment) -> None:
    following = Following(running.registry)
    following.steps = [
        following.stream,
        lambda: running.registry.write_progress(following.uid, {"frames": 12}),
        following.assemble,
        lambda: following.end(ScanState.COMMITTED),
    ]
    end = following.follow()
    assert end.status.state is ScanState.COMMITTED
    assert end.summary == summary()
    assert {"frames": 12} in [progress for _, progress in following.seen]
    assert following.said == []


@pytest.mark.parametrize("state", [ScanState.INCOMPLETE, ScanState.ABORTED])
def test_a_dataset_that_is_not_whole(running: Deployment, state: ScanState) -> None:
    following = Following(running.registry)
    following.steps = [following.stream, following.assemble, lambda: following.end(state, "sector 2 was gone")]
    end = following.follow()
    assert (end.status.state, end.status.reason, end.summary.complete) == (state, "sector 2 was gone", False)


@pytest.mark.parametrize("state", [ScanState.FAILED, ScanState.ABORTED])
def test_no_dataset(running: Deployment, state: ScanState) -> None:
    following = Following(running.registry)
    following.steps = [following.stream, lambda: following.become(state, reason="no peak", remedy="give thresholds")]
    with pytest.raises(ScanFailed, match="no peak") as caught:
        following.follow()
    assert caught.value.remedy == "give thresholds"


def test_what_a_scan_waits_for_is_said_once(running: Deployment) -> None:
    following = Following(running.registry)

    def no_room() -> None:
        following.become(ScanState.ASSEMBLING, reason="no room", remedy="free some\n  now")

    following.steps = [following.stream, following.assemble, no_room, no_room]
    following.steps += [lambda: following.become(ScanState.ASSEMBLING), lambda: following.end(ScanState.COMMITTED)]
    assert following.follow().status.state is ScanState.COMMITTED
    assert following.said == ["waiting: no room; free some now"]


def test_why_a_job_cannot_go_on_is_said_once(running: Deployment) -> None:
    following = Following(running.registry, patience_seconds=0.6)
    share = JobShare("job", BlockSet(following.record.block_range), ready=True, problem="the journal is full")
    sealed = share.changed(problem="dead", sealed=True)
    before: list[JobShare | None] = [None]

    def write(share: JobShare) -> None:
        assert running.registry.write_share(following.uid, share, before[-1])
        before.append(share)

    steps = [share.changed(problem=""), share, share.changed(problem=""), sealed, share]
    following.steps = [following.stream, *(lambda share=share: write(share) for share in steps)]  # type: ignore[misc]
    with pytest.raises(ScanFailed, match=r"no progress for 0\.6 s: the journal is full"):
        following.follow()
    assert following.said == ["waiting: the journal is full"]


def test_what_is_gone_is_waited_for(etcd: Coordination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_follower, "_LOOK_SECONDS", STEP_SECONDS)
    with deployment(etcd) as running:
        following = Following(running.registry)

        def wait_for_note() -> None:
            if not following.said:
                following.steps.insert(0, wait_for_note)

        following.steps = [following.stream, lambda: running.end("producers/2"), wait_for_note]
        following.steps += [lambda: running.start(["producers/2"]), lambda: time.sleep(2 * STEP_SECONDS)]
        following.steps += [following.assemble, lambda: running.end("producers/1", "aggregators/first")]
        following.steps += [lambda: following.end(ScanState.COMMITTED)]
        assert following.follow().status.state is ScanState.COMMITTED
        assert following.said == [
            "waiting: no producer is registered for sector 2; start it again: mpistream produce --sector 2",
            "a producer of sector 2 is registered again",
        ]


def test_a_scan_that_has_begun_is_left_as_it_is_where_nothing_moves(running: Deployment) -> None:
    following = Following(running.registry, patience_seconds=0.4)
    following.steps = [following.stream]
    with pytest.raises(ScanFailed, match=r"no progress for 0\.4 s") as caught:
        following.follow()
    assert "it is streaming and goes on" in caught.value.remedy
    assert f"mpistream scan abort {following.uid}" in caught.value.remedy
    assert running.registry.status(following.uid).state is ScanState.STREAMING


def test_why_nothing_moves_is_said(etcd: Coordination) -> None:
    with deployment(etcd, ["groups/0", "aggregators/first"]) as running:
        following = Following(running.registry, patience_seconds=0.4)
        following.steps = [following.stream]
        with pytest.raises(ScanFailed, match="no producer is registered for sector 0; no producer"):
            following.follow()


def test_a_scan_that_never_began_is_ended_where_nothing_moves(etcd: Coordination) -> None:
    """There is no MPI job that could do it."""
    with deployment(etcd, []) as running:
        following = Following(running.registry, patience_seconds=0.4)
        with pytest.raises(ScanFailed, match="no rank group is registered"):
            following.follow()
        assert running.registry.status(following.uid).state is ScanState.ABORTED


def test_waiting_for_another_scan_that_moves_is_no_silence(running: Deployment) -> None:
    other = scan_record()
    running.registry.announce(other)
    running.registry.set_state(other.uid, ScanState.STREAMING)
    following = Following(running.registry, patience_seconds=0.4)

    def move(frames: int) -> None:
        running.registry.write_progress(other.uid, {"frames": frames})

    following.steps = [lambda frames=frames: move(frames) for frames in range(20)]  # type: ignore[misc]
    following.steps += [following.stream, following.assemble, lambda: following.end(ScanState.COMMITTED)]
    assert following.follow().status.state is ScanState.COMMITTED


def test_an_interrupt_ends_the_scan(running: Deployment, etcd: Coordination) -> None:
    following = Following(running.registry)

    def interrupt() -> None:
        following.steps = [lambda: following.become(ScanState.ABORTED, reason="interrupted by the user")]
        raise KeyboardInterrupt

    following.steps = [following.stream, interrupt]
    with pytest.raises(KeyboardInterrupt):
        following.follow()
    assert etcd.get(f"scans/{following.uid}/abort") == {"reason": "interrupted by the user", "keep": False}
    assert following.said == []


@pytest.mark.parametrize("when", ["announced", "watched"])
def test_an_interrupt_before_anything_is_followed_ends_the_scan(
    etcd: Coordination, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no MPI job that could do it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with deployment(etcd, []) as running:
        following = Following(running.registry)
        if when == "watched":
            monkeypatch.setattr(running.registry, "watch_scan", interrupt)
        with pytest.raises(KeyboardInterrupt):
            following.follow(begin=interrupt if when == "announced" else lambda: None)
        assert running.registry.status(following.uid).state is ScanState.ABORTED
        assert following.follower._news._is_closed


def test_an_interrupt_before_the_scan_is_announced_leaves_nothing(running: Deployment, etcd: Coordination) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        ScanFollower(running.registry, scan_record(), Config(), said.append).follow(lambda *_: None, interrupt)
    assert said == []
    assert etcd.get_prefix("scans/") == {}


def test_a_dataset_that_an_interrupt_comes_too_late_for_is_named(running: Deployment) -> None:
    """It need not be where it was to go at first."""
    following = Following(running.registry)

    def commit() -> None:
        running.registry.write_summary(following.uid, summary(dataset="/data/redirected.h5"))
        following.become(ScanState.COMMITTED)

    def interrupt() -> None:
        following.steps = [commit]
        raise KeyboardInterrupt

    following.steps = [following.stream, following.assemble, interrupt]
    with pytest.raises(KeyboardInterrupt):
        following.follow()
    assert following.said == ["the dataset was already there: /data/redirected.h5"]


def test_while_etcd_is_away_the_scan_goes_on(tmp_path: Path) -> None:
    """Killed and started again with the same data, as a testbed does."""
    with EtcdServer(tmp_path) as server, server.connect(timeout_seconds=1.0) as etcd, deployment(etcd) as running:
        following = Following(running.registry)

        def wait_for(note: str) -> Callable[[], None]:
            def wait() -> None:
                if not any(note in said for said in following.said):
                    following.steps.insert(0, wait)

            return wait

        following.steps = [following.stream, server.kill, wait_for("waiting: no etcd"), server.start]
        following.steps += [wait_for("etcd answers again"), following.assemble]
        following.steps += [lambda: following.end(ScanState.COMMITTED)]
        assert following.follow().status.state is ScanState.COMMITTED
        assert len([note for note in following.said if "no etcd reachable" in note]) == 1
