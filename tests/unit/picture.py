"""What tests of watches share."""

import time
from collections.abc import Callable
from typing import Any

from mpistream.control.coordination import Change


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Picture:
    """What a watch has reported."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.values: dict[str, Any] = {}

    def __call__(self, change: Change) -> None:
        self.changes.append(change)
        key, value = change
        if value is None:
            del self.values[key]
        else:
            self.values[key] = value
