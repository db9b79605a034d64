"""Named places at which a test can kill or stop a process, to prove that what follows repairs it.

Without the environment variable MPISTREAM_FAULT_POINTS, which names a folder, they do nothing. A file in that folder
with the name of a point arms it: the first process that reaches the point takes the file away and sends itself the
signal that the file names (KILL by default). docs/states.md lists the points.
"""

import os
import signal
from pathlib import Path

_FOLDER = os.environ.get("MPISTREAM_FAULT_POINTS")

#: Every point, in the order in which a scan comes by.
FAULT_POINTS = (
    "producer.before-send",  # a block is read, and not yet sent
    "aggregator.before-forward",  # a block has come in, and not yet gone out
    "rank.before-journal",  # blocks are counted, and not yet journaled
    "rank.torn-journal",  # half of a record has been written
    "rank.before-ack",  # blocks are journaled, and not yet acknowledged
    "rank.after-ack",  # blocks are acknowledged; the leader has not heard of them
    "producer.before-end",  # every block is sent; the end record is not written
    "producer.after-end",  # the end record is written; blocks wait for acknowledgement
    "leader.before-table",  # a job has come or gone; the new routing table is not written
    "leader.after-table",  # the new table is written; lost journals are not sealed
    "leader.before-seal",  # a lost job's journals are read; the seal is not written
    "leader.after-seal",  # the seal is written
    "leader.before-thresholds",  # the sample is complete; the thresholds are not pinned
    "leader.after-thresholds",  # they are in etcd; no rank has heard of them
    "leader.before-assembling",  # everything is journaled; the scan is still draining
    "leader.after-assembling",  # the scan is assembling; no rank has heard of it
    "rank.before-gather",  # the scan is assembling; no journal has been read
    "rank.before-write",  # the slabs are gathered; nothing of the file is there
    "rank.after-events",  # the events are in the partial file, nothing else is
    "rank.before-rename",  # the partial file is complete and on the disk
    "rank.between-names",  # the dataset has its final name and its partial one
    "rank.after-rename",  # the dataset has its name; the leader has not heard of it
    "leader.before-commit",  # the summary is written; the scan is still assembling
    "leader.after-commit",  # the scan is committed; its journals are still there
)


def is_active() -> bool:
    """Whether points can be armed at all: for code that comes by one only when it goes out of its way."""
    return _FOLDER is not None


def reach(point: str) -> None:
    """Ends or stops this process where ``point`` is armed."""
    if _FOLDER is not None:
        _fire(Path(_FOLDER), point)


def _fire(folder: Path, point: str) -> None:
    armed = folder / point
    taken = folder / f"{point}.taken-by-{os.getpid()}"
    try:
        armed.rename(taken)  # one process only
    except OSError:
        return
    name = taken.read_text().strip() or "KILL"
    os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
