"""Threads whose process is of no use without them."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def vital_thread(closed: threading.Event) -> Iterator[None]:
    """Around all that a thread does, where its process is of no use without it: an error ends the process like a crash.

    The other processes are made for crashes; one that goes on without the thread they would not notice. Once ``closed``
    nobody needs the thread any more.
    """
    try:
        yield
    except BaseException as error:
        name = threading.current_thread().name
        _log.critical("the thread %r failed", name, exc_info=error)
        if closed.is_set():
            return
        print(
            f"mpistream: error: this process ends, since its thread {name!r} failed: {error!r}\n"
            "  the traceback stands above",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
