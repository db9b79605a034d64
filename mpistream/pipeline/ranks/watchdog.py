"""Notices that a rank, or a thread of this one, makes no progress: then the MPI job ends instead of hanging."""

import time
from collections.abc import Iterable

from mpistream.model.config import WatchdogConfig
from mpistream.model.errors import MpistreamError


class StalledError(MpistreamError):
    """Part of the job has stopped."""


class Watchdog:
    """One rank's view of the others and of its own main thread, checked by its receiving thread.

    The leader expects every rank to speak, a rank expects the leader (rank 0) to: whoever is silent for
    ``stall_seconds`` is taken for dead.
    """

    def __init__(self, config: WatchdogConfig, rank: int, peers: Iterable[int]) -> None:
        self._config = config
        self._rank = rank
        now = time.monotonic()
        self._heard = dict.fromkeys(peers, now)
        self._checked = now
        self._assembling_since: float | None = None

    def heard_from(self, rank: int) -> None:
        if rank in self._heard:
            self._heard[rank] = time.monotonic()

    def assembly_begins(self) -> None:
        """The main thread is about to make MPI and HDF5 calls."""
        self._assembling_since = time.monotonic()

    def assembly_ends(self) -> None:
        self._assembling_since = None

    def receiver_is_stalled(self) -> bool:
        """For the main thread: the receiving thread has not come round for too long."""
        return time.monotonic() - self._checked > self._config.stall_seconds

    def check(self) -> None:
        """Raises StalledError naming who is silent. To be called at every turn of the receiving thread."""
        now = time.monotonic()
        if now - self._checked > self._config.stall_seconds / 2:
            # This process itself was stopped or starved: its clock says nothing about the others.
            self._heard = dict.fromkeys(self._heard, now)
        self._checked = now
        for rank, heard in self._heard.items():
            if now - heard > self._config.stall_seconds:
                raise StalledError(
                    f"rank {rank} has been silent for {now - heard:.0f} s; ending the MPI job",
                    "look at that rank's node; [watchdog] stall_seconds sets the limit",
                )
        since = self._assembling_since
        if since is not None and now - since > self._config.assembly_seconds:
            raise StalledError(
                f"rank {self._rank} has been writing the dataset for {now - since:.0f} s; ending the MPI job",
                "look at the file system; [watchdog] assembly_seconds sets the limit",
            )
