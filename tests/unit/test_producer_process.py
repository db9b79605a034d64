"""What a producer process does with the scans that it finds in etcd."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from mpistream.control.coordination import Change
from mpistream.control.registry import ProducerEntry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.config import Config
from mpistream.pipeline.producer import _STOP, _Producer
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets
from tests.unit.made_up_registry import MadeUpRegistry


@pytest.fixture
def producer() -> Iterator[_Producer]:
    registry: Any = MadeUpRegistry()
    news: Mailbox[Change] = Mailbox()
    sockets = Sockets()
    yield _Producer(Config(), ProducerEntry(2, 2, "camera", 7, 5), registry, sockets, news)
    sockets.close()
    news.close()


def test_scans_that_were_streaming_before_it_started_are_given_up(producer: _Producer) -> None:
    scans = {state: UUID(int=number) for number, state in enumerate(ScanState)}
    for state, uid in scans.items():
        producer.news.put((f"{uid}/state", ScanStatus(state, 1.5e9).to_json()))
    for key, value in (("nonsense/state", {}), (f"{UUID(int=99)}/state", 5)):  # written by hand
        producer.news.put((key, value))
    producer.news.put(_STOP)
    producer.serve()
    registry: Any = producer.registry
    assert [(uid, who) for uid, who, _ in registry.faults] == [
        (scans[ScanState.STREAMING], "producer-2"),
        (scans[ScanState.DRAINING], "producer-2"),
    ]
    assert all("sector 2 was restarted" in message for _, _, message in registry.faults)
