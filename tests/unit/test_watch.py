"""Watches against a real etcd, which is killed and started again."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import etcd3.etcdrpc as etcdrpc
import pytest

from mpistream.control.coordination import Change, Coordination
from mpistream.control.etcd_client import WatchStream
from mpistream.model.errors import EtcdUnreachable
from tests.etcd_server import EtcdServer
from tests.unit.etcd_values import answers
from tests.unit.picture import Picture, until

LEASE_SECONDS = 2


def test_a_watch_reports_what_is_there_and_every_change(etcd: Coordination) -> None:
    etcd.put("scans/1/state", "announced")
    etcd.put("scanners/1", "not watched")
    picture = Picture()
    watch = etcd.watch("scans/", picture)
    assert picture.changes == [("1/state", "announced")]
    etcd.put("scans/1/state", "streaming")
    etcd.put("scans/2/state", "announced")
    etcd.delete("scans/1/state")
    until(lambda: len(picture.changes) == 4)
    assert picture.changes[1:] == [("1/state", "streaming"), ("2/state", "announced"), ("1/state", None)]
    watch.close()
    etcd.put("scans/3/state", "announced")
    time.sleep(0.2)
    assert len(picture.changes) == 4


def test_a_watch_skips_values_that_are_no_json(
    server: EtcdServer, etcd: Coordination, caplog: pytest.LogCaptureFixture
) -> None:
    server.etcdctl("put", etcd.prefix + "scans/1", "by hand")
    changes: list[Change] = []
    watch = etcd.watch("scans/", changes.append)
    server.etcdctl("put", etcd.prefix + "scans/2", "by hand")
    etcd.put("scans/3", "good")
    until(lambda: ("3", "good") in changes)
    assert [change for change in changes if change[1] is not None] == [("3", "good")]
    for number in (1, 2):
        assert f"ignored {etcd.prefix}scans/{number}" in caplog.text
    watch.close()


def test_a_watch_goes_on_after_a_change_that_its_listener_cannot_take(
    etcd: Coordination, caplog: pytest.LogCaptureFixture
) -> None:
    etcd.put("scans/1", "bad")
    heard: list[str] = []

    def listen(change: Change) -> None:
        if change[1] == "bad":
            raise KeyError(change[0])
        heard.append(change[0])

    watch = etcd.watch("scans/", listen)
    etcd.put("scans/2", "bad")
    etcd.put("scans/3", "good")
    until(lambda: heard == ["3"])
    assert caplog.text.count("ignored a change of scans/") == 2
    watch.close()


def test_a_watch_may_be_closed_as_soon_as_it_is_opened(etcd: Coordination) -> None:
    for _ in range(20):
        watch = etcd.watch("scans/", print)
        started = time.monotonic()
        watch.close()
        assert time.monotonic() - started < 2


def test_a_watch_that_etcd_refuses_from_the_start_is_over() -> None:
    class Stub:
        def Watch(self, *arguments: object, **more: object) -> Iterator[etcdrpc.WatchResponse]:
            yield etcdrpc.WatchResponse(created=True, canceled=True, cancel_reason="etcdserver: permission denied")
            pytest.fail("nothing more ever comes")

    assert list(WatchStream(Stub(), etcdrpc.WatchRequest(), 0)) == []


def test_a_watch_that_cannot_list_leaves_no_connection(etcd: Coordination, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Coordination] = []
    closed: list[Coordination] = []
    sibling, close = Coordination.sibling, Coordination.close

    def open_one(client: Coordination, *arguments: Any) -> Coordination:
        opened.append(sibling(client, *arguments))
        return opened[-1]

    def close_one(client: Coordination) -> None:
        closed.append(client)
        close(client)

    def fail(client: Coordination, key: str) -> None:
        raise EtcdUnreachable("no etcd reachable")

    monkeypatch.setattr(Coordination, "sibling", open_one)
    monkeypatch.setattr(Coordination, "close", close_one)
    monkeypatch.setattr(Coordination, "snapshot", fail)
    with pytest.raises(EtcdUnreachable):
        etcd.watch("scans/", print)
    assert len(opened) == 1
    assert closed == opened


BREAKS = """
import sys, threading, time
from mpistream.control.coordination import Coordination
def break_down(*arguments):
    if threading.current_thread() is not threading.main_thread():
        raise KeyError("a mistake")
with Coordination([sys.argv[1]], sys.argv[2], 5.0) as etcd:
    if sys.argv[3] == "watch":
        Coordination.open_watch_stream = break_down
        etcd.watch("scans/", print)
    else:
        etcd.register("producers/1", {"pid": 7}, 1)
        Coordination.refresh_lease = break_down
    time.sleep(20)
print("it went on without the thread")
"""


@pytest.mark.parametrize(("what", "thread"), [("watch", "watch scans/"), ("registration", "lease producers/1")])
def test_a_process_ends_when_such_a_thread_meets_what_it_did_not_expect(
    server: EtcdServer, etcd: Coordination, what: str, thread: str
) -> None:
    command = [sys.executable, "-c", BREAKS, server.endpoint, etcd.prefix, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" in done.stderr
    assert (
        f"mpistream: error: this process ends, since its thread '{thread}' failed: KeyError('a mistake')" in done.stderr
    )


def test_a_watch_sees_a_registration_end(etcd: Coordination) -> None:
    registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
    picture = Picture()
    watch = etcd.watch("producers/", picture)
    assert picture.values == {"1": {"pid": 7}}
    registration.close()
    until(lambda: picture.values == {})
    watch.close()


def test_a_watch_and_a_registration_survive_the_death_of_etcd(tmp_path: Path) -> None:
    """etcd is killed for seconds and comes back; changes made before the watch is back are not missed."""
    with EtcdServer(tmp_path) as server, server.connect() as etcd:
        for number in range(5):
            etcd.put(f"scans/{number}", "before")
        picture = Picture()
        watch = etcd.watch("scans/", picture)
        registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
        threads, cpu = threading.active_count(), time.process_time()
        server.kill()
        time.sleep(2.5)
        assert time.process_time() - cpu < 0.5, "waiting for etcd costs CPU"
        assert threading.active_count() <= threads + 2
        server.start()
        # Another client, so that this one's connection need not be back.
        for arguments in (("put", "/test/scans/1", '"after"'), ("del", "/test/scans/2"), ("put", "/test/scans/9", "9")):
            server.etcdctl(*arguments)
        expected = {"0": "before", "1": "after", "3": "before", "4": "before", "9": 9}
        until(lambda: picture.values == expected, seconds=15)
        assert [key for key, _ in picture.changes].count("0") == 1, "what did not change was reported again"
        until(lambda: answers(etcd), seconds=15)
        etcd.put("scans/1", "later")
        until(lambda: picture.values["1"] == "later")
        until(lambda: etcd.get("producers/1") == {"pid": 7})
        time.sleep(LEASE_SECONDS + 1)
        assert etcd.get("producers/1") == {"pid": 7}
        watch.close()
        registration.close()


def test_a_watch_is_closed_while_etcd_is_away(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server, server.connect(timeout_seconds=1.0) as etcd:
        watch = etcd.watch("scans/", print)
        registration = etcd.register("producers/1", {"pid": 7}, LEASE_SECONDS)
        server.kill()
        time.sleep(0.5)
        started = time.monotonic()
        watch.close()
        registration.close()
        assert time.monotonic() - started < 5


def test_the_client_of_a_parent_goes_on_after_a_fork(etcd: Coordination) -> None:
    etcd.put("key", 1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert etcd.get("key") == 1
