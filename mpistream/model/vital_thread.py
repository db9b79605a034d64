"""Threads whose process is of no use without them."""

import logging
import os
import sys
import threading
from collections.abc import Callable

from mpistream.model.errors import MpistreamError

_log = logging.getLogger(__name__)


def vital_thread(run: Callable[[], None], name: str, closed: threading.Event) -> threading.Thread:
    """A thread, not started yet, in which an error of ``run`` ends the process like a crash.

    The other processes are made for crashes; one that goes on without the thread they would not notice. Once ``closed``
    nobody needs the thread any more.
    """

    def run_or_end() -> None:
        try:
            run()
        except BaseException as error:
            _log.critical("the thread %r failed", name, exc_info=error)
            if closed.is_set():
                return
            end = MpistreamError(
                f"this process ends, since its thread {name!r} failed: {error!r}", "the traceback stands above"
            )
            print(f"mpistream: error: {end}", file=sys.stderr, flush=True)
            os._exit(1)

    return threading.Thread(target=run_or_end, name=name, daemon=True)
