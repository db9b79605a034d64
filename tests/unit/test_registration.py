"""Leased keys and roles against a real etcd, and the processes that hold them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mpistream.control.coordination import Coordination, Registration
from mpistream.model.errors import CoordinationError, EtcdUnreachable
from tests.etcd_server import EtcdServer
from tests.unit.etcd_values import answers, mine, revoke_lease
from tests.unit.picture import until

LEASE_SECONDS = 2


# leases


def test_a_registration_outlives_its_lease_and_ends_at_once_when_it_is_closed(etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    assert etcd.get("producers/1") == {"pid": 7}
    time.sleep(1.5 * LEASE_SECONDS)
    assert etcd.get("producers/1") == {"pid": 7}
    registration.close()
    assert etcd.get("producers/1") is None


def test_a_registration_disappears_with_its_process_for_the_next_one(server: EtcdServer, etcd: Coordination) -> None:
    code = (
        "import sys, time\n"
        "from mpistream.control.coordination import Coordination\n"
        "etcd = Coordination([sys.argv[1]], sys.argv[2], 5.0)\n"
        f"registration = etcd.register('producers/1', {{'pid': 7}}, {LEASE_SECONDS})\n"
        "print('registered', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, server.endpoint, etcd.prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "registered\n"
        assert etcd.get("producers/1") == {"pid": 7}
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)
        started = time.monotonic()
        successor = etcd.register("producers/1", {"pid": 8}, LEASE_SECONDS)
        assert time.monotonic() - started < LEASE_SECONDS + 2
        assert etcd.get("producers/1") == {"pid": 8}
        successor.close()


def test_a_key_that_a_living_process_holds_is_refused(etcd: Coordination) -> None:
    registration = etcd.register("aggregators/a", {"pid": 7, "host": "edge"}, LEASE_SECONDS)
    with pytest.raises(CoordinationError, match="aggregators/a is already there, served by pid 7 on edge"):
        etcd.register("aggregators/a", {"pid": 8, "host": "edge"}, LEASE_SECONDS)
    assert etcd.get("aggregators/a") == {"pid": 7, "host": "edge"}
    registration.close()


def test_a_registration_whose_lease_was_revoked_is_written_again(server: EtcdServer, etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    revoke_lease(server, etcd, "producers/1")
    assert etcd.get("producers/1") is None
    until(lambda: etcd.get("producers/1") == {"pid": 7}, seconds=LEASE_SECONDS + 3)
    registration.close()
    assert etcd.get("producers/1") is None


def test_a_registration_is_tried_again_until_the_key_is_there(server: EtcdServer, etcd: Coordination) -> None:
    """etcd may be lost again between the new lease and the key."""
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    create, failures = registration._client.create_leased, []

    def fail_twice(*arguments: Any) -> bool:
        if len(failures) < 2:
            failures.append(1)
            raise EtcdUnreachable("no etcd reachable")
        return create(*arguments)

    registration._client.create_leased = fail_twice  # type: ignore[method-assign]
    revoke_lease(server, etcd, "producers/1")
    until(lambda: etcd.get("producers/1") == {"pid": 7}, seconds=3 * LEASE_SECONDS + 3)
    assert len(failures) == 2
    registration.close()


def test_a_registration_whose_answer_was_lost_is_its_own(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was written, though nobody said so: it must not take itself for another process."""
    registration = etcd.register("producers/1", {"pid": 7, "host": "edge"}, LEASE_SECONDS)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    create, failures = registration._client.create_leased, []

    def answer_the_second_time(*arguments: Any) -> bool:
        written = create(*arguments)
        if not failures:
            failures.append(1)
            raise EtcdUnreachable("no etcd reachable")
        return written

    registration._client.create_leased = answer_the_second_time  # type: ignore[method-assign]
    revoke_lease(server, etcd, "producers/1")
    until(lambda: failures, seconds=LEASE_SECONDS + 3)
    time.sleep(2 * LEASE_SECONDS + 2.5)
    assert etcd.get("producers/1") == {"pid": 7, "host": "edge"}
    assert killed == []
    registration.close()
    assert etcd.get("producers/1") is None


def test_a_process_whose_key_another_one_has_taken_ends(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    registration = etcd.register("producers/1", {"pid": 7, "host": "edge"}, LEASE_SECONDS)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    revoke_lease(server, etcd, "producers/1")
    etcd.put("producers/1", {"pid": 8, "host": "edge"})
    until(lambda: killed, seconds=2 * LEASE_SECONDS + 5)
    assert killed == [(os.getpid(), signal.SIGTERM)]
    registration.close()
    assert etcd.get("producers/1") == {"pid": 8, "host": "edge"}


def test_a_key_that_another_process_takes_meanwhile_is_not_overwritten(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own old key runs out, and another process has it, just after it was seen."""
    other = {"pid": 8, "host": "edge", "process": "another machine's"}
    etcd.put("producers/1", mine())
    get = Coordination.get

    def see_the_old_one(client: Coordination, key: str) -> Any:
        seen = get(client, key)
        etcd.put(key, other)
        return seen

    monkeypatch.setattr(Coordination, "get", see_the_old_one)
    assert etcd.take_role("producers/1", mine(), LEASE_SECONDS, on_lost=list) is None
    monkeypatch.undo()
    assert etcd.get("producers/1") == other


# registrations of processes that are known to be dead, or that change


def test_the_key_of_a_process_that_was_killed_is_taken_over_at_once(server: EtcdServer, etcd: Coordination) -> None:
    with holder(server, etcd.prefix, "register('producers/1', value, 30)") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)
        started = time.monotonic()
        successor = etcd.register("producers/1", mine(), LEASE_SECONDS)
        assert time.monotonic() - started < 1
        assert etcd.get("producers/1") == mine()
        time.sleep(1.5 * LEASE_SECONDS)
        assert etcd.get("producers/1") == mine(), "the old lease no longer holds the key"
        successor.close()


def test_a_registration_is_updated(etcd: Coordination) -> None:
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    registration.update(mine(table=3))
    assert etcd.get("producers/1") == mine(table=3) == registration.value
    time.sleep(1.5 * LEASE_SECONDS)
    assert etcd.get("producers/1") == mine(table=3)
    registration.close()
    assert etcd.get("producers/1") is None


def test_an_update_outlives_a_lost_lease(server: EtcdServer, etcd: Coordination) -> None:
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    registration.update(mine(table=3))
    revoke_lease(server, etcd, "producers/1")
    until(lambda: etcd.get("producers/1") == mine(table=3), seconds=LEASE_SECONDS + 3)
    registration.update(mine(table=4))
    assert etcd.get("producers/1") == mine(table=4)
    registration.close()


def test_an_update_outlives_etcd_and_its_data(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server, server.connect(timeout_seconds=1.0) as etcd:
        registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
        server.kill()
        with pytest.raises(EtcdUnreachable):
            registration.update(mine(table=3))
        shutil.rmtree(tmp_path / "data")
        server.start()
        until(lambda: answers(etcd) and etcd.get("producers/1") == mine(table=3), seconds=20)
        registration.close()


def test_an_update_that_etcd_did_not_take_is_written_later(etcd: Coordination) -> None:
    """Though the lease has never run out."""
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    replace = registration._client.replace

    def refuse(*arguments: Any) -> None:
        registration._client.replace = replace  # type: ignore[method-assign]
        raise EtcdUnreachable("no etcd reachable")

    registration._client.replace = refuse  # type: ignore[method-assign]
    with pytest.raises(EtcdUnreachable):
        registration.update(mine(table=3))
    with closing(registration):
        until(lambda: etcd.get("producers/1") == mine(table=3), seconds=LEASE_SECONDS + 2)


def test_an_update_does_not_take_the_key_from_another_process(
    server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was stopped for longer than its lease, and goes on."""
    monkeypatch.setattr(os, "kill", lambda *arguments: None)
    registration = etcd.register("producers/1", mine(table=0), LEASE_SECONDS)
    revoke_lease(server, etcd, "producers/1")
    other = {"pid": 8, "host": "edge", "process": "another machine's", "table": 9}
    etcd.put("producers/1", other)
    deadline = time.monotonic() + LEASE_SECONDS + 1
    with closing(registration):
        while time.monotonic() < deadline:
            with suppress(EtcdUnreachable):
                registration.update(mine(table=5))
            assert etcd.get("producers/1") == other
            time.sleep(0.05)
    assert etcd.get("producers/1") == other


# roles


@contextmanager
def holder(server: EtcdServer, prefix: str, action: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which does ``action`` in etcd and then waits."""
    code = (
        "import sys, time\n"
        "from mpistream.control.coordination import Coordination\n"
        "from mpistream.control.process_identity import this_process\n"
        "etcd = Coordination([sys.argv[1]], sys.argv[2], 5.0)\n"
        "value = {'pid': 7, 'host': 'edge', 'process': this_process()}\n"
        f"held = etcd.{action}\n"
        "print('held' if held else 'refused', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, server.endpoint, prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


TAKE_CONDUCTOR = "take_role('conductor', value, 30, on_lost=list)"


def test_a_role_is_taken_by_one(server: EtcdServer, etcd: Coordination) -> None:
    with holder(server, etcd.prefix, TAKE_CONDUCTOR):
        started = time.monotonic()
        assert etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list) is None
        assert time.monotonic() - started < 1, "nobody waits for a role"
        assert etcd.get("conductor")["pid"] == 7


def test_a_role_that_nobody_takes_leaves_no_thread(etcd: Coordination) -> None:
    etcd.put("conductor", "somebody")
    threads = threading.active_count()
    for _ in range(5):
        assert etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list) is None
    until(lambda: threading.active_count() <= threads + 1)


def test_the_role_of_a_process_that_was_killed_is_taken_over_at_once(server: EtcdServer, etcd: Coordination) -> None:
    """Long before its lease runs out."""
    with holder(server, etcd.prefix, TAKE_CONDUCTOR) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)
        started = time.monotonic()
        role = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list)
        assert time.monotonic() - started < 1
        assert role is not None
        assert etcd.get("conductor") == mine() == role.value
        role.close()
        assert etcd.get("conductor") is None


def test_the_role_of_a_process_that_was_stopped_is_taken_when_its_lease_has_run_out(
    server: EtcdServer, etcd: Coordination
) -> None:
    action = f"take_role('conductor', value, {LEASE_SECONDS}, on_lost=lambda: print('lost', flush=True))"
    with holder(server, etcd.prefix, action) as process:
        process.send_signal(signal.SIGSTOP)
        assert etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list) is None
        roles: list[Registration] = []

        def take() -> bool:
            role = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=list)
            roles.extend([role] if role else [])
            return bool(roles)

        until(take, seconds=LEASE_SECONDS + 3)
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert process.stdout.readline() == "lost\n", "it notices when it goes on"
        assert etcd.get("conductor") == mine()
        roles[0].close()


def test_a_role_that_was_lost_to_another_process_is_told_once(server: EtcdServer, etcd: Coordination) -> None:
    lost: list[str] = []
    role = etcd.take_role(
        "conductor", mine(), LEASE_SECONDS, on_lost=lambda: lost.append(threading.current_thread().name)
    )
    assert role is not None
    revoke_lease(server, etcd, "conductor")
    etcd.put("conductor", {"pid": 8, "process": "another machine's"})
    until(lambda: lost, seconds=LEASE_SECONDS + 3)
    time.sleep(LEASE_SECONDS)
    assert lost == ["lease conductor"]
    role.close()
    assert etcd.get("conductor") == {"pid": 8, "process": "another machine's"}


def test_a_role_whose_lease_ran_out_is_lost_though_nobody_took_it(server: EtcdServer, etcd: Coordination) -> None:
    """Somebody may have had it meanwhile."""
    lost: list[int] = []
    role = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=lambda: lost.append(1))
    assert role is not None
    revoke_lease(server, etcd, "conductor")
    until(lambda: lost, seconds=LEASE_SECONDS + 3)
    assert etcd.get("conductor") is None
    role.close()
    again = etcd.take_role("conductor", mine(), LEASE_SECONDS, on_lost=lambda: lost.append(2))
    assert again is not None
    again.close()
    assert lost == [1]
