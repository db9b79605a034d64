"""What all measurements need: one core, rates over rounds with their spread, and bars to be met."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds: its median, and from where to where it goes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


@dataclass(frozen=True)
class Bar:
    """What a figure should be: at least, or at most, ``bar``."""

    value: float
    bar: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def as_json(self) -> dict[str, float | bool]:
        return {"value": self.value, "bar": self.bar, "at_most": self.at_most, "met": self.met}


def quotients(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Round by round: what was measured close to each other is compared with each other."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def median_seconds(work: Callable[[], object], passes: int) -> float:
    """The median of several passes, each timed for itself."""
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def in_rounds(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each contender measured, round by round; every other round goes through them in reverse order."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for name in order:
            measured[name].append(contenders[name]())
    return measured


@contextmanager
def one_core() -> Iterator[int]:
    """This process, and what it starts, on one core of those that it may use; yields its number."""
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, allowed)


def processor_name() -> str:
    for line in _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def last_level_cache_bytes() -> int:
    """The size of the largest cache that this core uses; 0 where the system does not say."""
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    factors = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(size[:-1]) * factors[size[-1]] for size in sizes if size[-1:] in factors), default=0)
