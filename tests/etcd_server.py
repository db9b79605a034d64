"""A real etcd for tests, on free ports, that can be killed and started again."""

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from mpistream.control.coordination import Coordination
from mpistream.launch.local import etcd_command, free_port
from mpistream.launch.processes import Child, start_child

START_SECONDS = 20.0


class EtcdServer:
    """One member with its data under ``folder``; its ports stay the same over restarts. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client_port, self._peer_port = free_port(), free_port()
        self._child: Child | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._client_port}"

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def connect(self, prefix: str = "/test/", timeout_seconds: float = 5.0) -> Coordination:
        return Coordination([self.endpoint], prefix, timeout_seconds)

    def start(self) -> None:
        """Returns when it answers."""
        command = etcd_command(self._folder / "data", self._client_port, self._peer_port)
        self._child = start_child("etcd", "etcd", command, self._folder / "etcd.log")
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            self._child.check_running()
            assert time.monotonic() < deadline, f"etcd does not answer; its log: {self._folder / 'etcd.log'}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Asked over HTTP: a gRPC connection would pause longer and longer between its attempts."""
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1.0) as reply:
                return bool(json.load(reply)["health"] == "true")
        except (OSError, ValueError):
            return False

    def kill(self) -> None:
        """SIGKILL, as a crash would end it; ``start`` brings it back with its data."""
        assert self._child is not None
        self._child.check_running()
        self._child.end(patience_seconds=0)
        assert not self._child.is_running
        self._child = None

    def stop(self) -> None:
        """Ends it. Fails if it had ended by itself before."""
        if self._child is not None:
            self._child.check_running()
            self._child.ask_to_end()
            self._child.end(patience_seconds=10)
            assert not Path(f"/proc/{self._child.pid}").exists()
            self._child = None
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    def etcdctl(self, *arguments: str) -> str:
        """What a person sees with etcdctl."""
        command = ["etcdctl", "--endpoints", self.endpoint, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
