"""Notices that this process itself was stopped: then what it has heard may be out of date."""

import threading
import time


class StopDetector:
    """A thread that looks at the clock. SIGSTOP and a starved machine stop it, a slow disk or a slow etcd do not."""

    def __init__(self, limit_seconds: float) -> None:
        """A pause longer than ``limit_seconds`` is a stop."""
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._stopped = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop detector", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(self._limit_seconds / 4):
            self._look()

    def _look(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._stopped |= now - self._looked > self._limit_seconds
            self._looked = now

    def was_stopped(self) -> bool:
        """Since it was last asked, until this moment."""
        self._look()
        with self._lock:
            stopped, self._stopped = self._stopped, False
        return stopped

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)
