"""An aggregator that loses, doubles, delays and reorders what passes through it, by a seeded rule.

    MPISTREAM_CHAOS=FILE.json python -m tests.faults.chaos aggregate ...

is `mpistream aggregate ...` with it. The file holds a ``Rule``; while there is none, everything passes as it came.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mpistream.pipeline.aggregator
from mpistream.cli import main
from mpistream.transport.aggregator import Aggregator

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Rule:
    """Of the blocks and answers that pass, the share that is dropped, passed twice, and held back up to that long.

    What is held back comes after what was sent later.
    """

    seed: int
    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    delay_seconds: float = 1.0

    def write(self, path: Path) -> None:
        """At once as far as readers are concerned."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(path)


def counts_file(rule: Path, what: str) -> Path:
    """Where it is told how many of the ``what`` (blocks or answers) were dropped, doubled and delayed so far."""
    return rule.with_name(f"{rule.stem}-{what}.counts")


class _Mischief:
    """Decides what becomes of each message."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._counts_path = counts_file(path, what)
        self._counts = {"dropped": 0, "doubled": 0, "delayed": 0}
        self._rule: Rule | None = None
        self._random = random.Random(0)
        self._next_look = 0.0
        self._held: list[tuple[float, Any]] = []

    def passing(self, message: Any) -> list[Any]:
        """What is passed on now in its place: nothing, it, or it twice."""
        self._look()
        rule = self._rule
        if rule is None:
            return [message]
        chance = self._random.random()
        if chance < rule.drop:
            self._counts["dropped"] += 1
            return []
        if chance < rule.drop + rule.delay:
            self._counts["delayed"] += 1
            self._held.append((time.monotonic() + self._random.random() * rule.delay_seconds, message))
            return []
        if chance > 1 - rule.duplicate:
            self._counts["doubled"] += 1
            return [message, message]
        return [message]

    def due(self) -> list[Any]:
        """What was held back for long enough, the latest first."""
        now = time.monotonic()
        due = [message for moment, message in self._held if moment <= now]
        self._held = [held for held in self._held if held[0] > now]
        return due[::-1]

    def _look(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        try:
            rule = Rule(**json.loads(self._path.read_text()))
        except OSError:
            rule = None
        if rule != self._rule:
            self._rule = rule
            self._random = random.Random(rule.seed if rule else 0)
            self._counts = dict.fromkeys(self._counts, 0)
        if rule is not None:
            self._counts_path.write_text(json.dumps(self._counts))


class _Blocks:
    """A DataInlet, through the mischief."""

    def __init__(self, inlet: Any, mischief: _Mischief) -> None:
        self._inlet = inlet
        self._mischief = mischief

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inlet, name)

    def receive(self) -> Iterator[tuple[bytes, memoryview]]:
        for message in self._inlet.receive():
            yield from self._mischief.passing(message)
        yield from self._mischief.due()


class _Answers:
    """An AnswerInlet, likewise."""

    def __init__(self, inlet: Any, mischief: _Mischief) -> None:
        self._inlet = inlet
        self._mischief = mischief

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inlet, name)

    def receive(self) -> None:
        self._inlet.receive()
        for answer in self._mischief.due():
            self._inlet.send(*answer)

    def send(self, producer_id: int, message: bytes, keep: bool = True) -> None:
        for passing in self._mischief.passing((producer_id, message, keep)):
            self._inlet.send(*passing)


def chaotic(aggregator: Callable[..., Aggregator], path: Path) -> Callable[..., Aggregator]:
    """Makes aggregators whose inlets misbehave."""

    def make(sockets: Any, data_inlet: Any, answer_inlet: Any, *others: Any) -> Aggregator:
        blocks = _Blocks(data_inlet, _Mischief(path, "blocks"))
        answers = _Answers(answer_inlet, _Mischief(path, "answers"))
        return aggregator(sockets, blocks, answers, *others)

    return make


if __name__ == "__main__":
    mpistream.pipeline.aggregator.Aggregator = chaotic(Aggregator, Path(os.environ["MPISTREAM_CHAOS"]))  # type: ignore
    main()
