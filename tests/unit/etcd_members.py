"""Several members of one etcd, of which tests stop some: the others then have no leader."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mpistream.launch.local import free_port
from mpistream.launch.processes import Child, start_child
from tests.etcd_server import START_SECONDS


class EtcdMembers:
    """On free ports of this machine, with their data under ``folder``."""

    def __init__(self, folder: Path, count: int, options: tuple[str, ...] = ()) -> None:
        ports = [(free_port(), free_port()) for _ in range(count)]
        cluster = ",".join(f"m{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(ports))
        self.endpoints = [f"127.0.0.1:{client}" for client, _ in ports]
        self._folder = folder
        self._children: list[Child] = []
        self._commands = []
        for number, (client_port, peer_port) in enumerate(ports):
            client, peer = (f"http://127.0.0.1:{port}" for port in (client_port, peer_port))
            self._commands.append(
                [
                    "etcd",
                    *("--name", f"m{number}", "--data-dir", str(folder / f"m{number}"), "--log-level", "warn"),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", cluster),
                    *options,
                ]
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """From when all of them answer."""
        with ExitStack() as stack:
            for number, command in enumerate(self._commands):
                child = start_child("etcd", f"m{number}", command, self._folder / f"m{number}.log")
                stack.callback(child.end, patience_seconds=0)
                self._children.append(child)
            deadline = time.monotonic() + START_SECONDS
            while not all(map(_is_healthy, self.endpoints)):
                assert time.monotonic() < deadline, f"no healthy etcd; its logs: {self._folder}"
                time.sleep(0.1)
            yield

    def stop(self, number: int) -> None:
        os.kill(self._children[number].pid, signal.SIGSTOP)

    def etcdctl(self, *words: str) -> str:
        """The answer of the first member."""
        command = ["etcdctl", "--endpoints", self.endpoints[0], *words]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20, env=environment).stdout

    def go_on(self, number: int) -> None:
        os.kill(self._children[number].pid, signal.SIGCONT)


def _is_healthy(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{endpoint}/health", timeout=1.0) as reply:
            return bool(json.load(reply)["health"] == "true")
    except (OSError, ValueError):
        return False
