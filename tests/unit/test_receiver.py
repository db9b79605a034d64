"""A rank's receiving thread, over its real sockets: what one scan's orders do to it and to the next scan."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from mpistream.model.config import Config
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import CountingParameters, ScanRecord, Thresholds
from mpistream.pipeline.receiver import Order, RankReceiver
from mpistream.pipeline.watchdog import Watchdog
from mpistream.transport.mailbox import Mailbox
from tests.unit.made_up_blocks import BACKGROUND, XRAY, scan_record

ROW_DARK = CountingParameters(background=BACKGROUND, xray=XRAY, row_dark="mean", row_dark_level=30)


class OneRank:
    """The receiver of a job of one rank, and what it tells its leader."""

    def __init__(self) -> None:
        orders: Mailbox[Order] = Mailbox()
        config, self.aborts = Config(), list[BaseException]()
        watchdog = Watchdog(config.watchdog, 0, peers=[0])
        self.receiver = RankReceiver(config, 0, 1, 1, orders, watchdog, self.aborts.append)
        self.told: Mailbox[JobMessage] = Mailbox()
        self.receiver.report_to(self.told.put)
        table = RoutingTable(1, "job", (self.receiver.endpoints(0, "node"),))
        self.receiver.start(table, self.receiver.hub_endpoint)
        self.receiver.wait_for_everybody(10)

    def order(self, kind: JobMessageKind, **fields: object) -> None:
        self.receiver.outbox.put(JobMessage(kind, 0, fields))

    def prepare(self, record: ScanRecord) -> None:
        self.order(JobMessageKind.PREPARE, record=record.model_dump(mode="json"))

    def says(self, uid: UUID) -> JobMessage:
        """The next news of a scan."""
        for _ in range(40):
            for message in self.told.wait(0.5):
                if message.fields.get("uid") == str(uid):
                    return message
        raise AssertionError(f"nothing about scan {uid}; aborted: {self.aborts}")


@pytest.fixture
def rank() -> Iterator[OneRank]:
    rank = OneRank()
    yield rank
    rank.receiver.stop()
    assert rank.aborts == []


def test_thresholds_that_cannot_be_counted_with_end_their_scan_only(rank: OneRank) -> None:
    record = scan_record(counting=ROW_DARK)
    rank.prepare(record)
    assert rank.says(record.uid).kind is JobMessageKind.READY
    without_level = Thresholds(background=BACKGROUND, xray=XRAY, calibrated=False)
    rank.order(JobMessageKind.THRESHOLDS, uid=str(record.uid), thresholds=without_level.model_dump(mode="json"))
    fault = rank.says(record.uid)
    assert fault.kind is JobMessageKind.FAULT
    assert "row-dark" in fault.fields["message"]
    assert fault.fields["remedy"]
    rank.order(JobMessageKind.DISCARD, uid=str(record.uid))
    following = scan_record(uid=uuid4())
    rank.prepare(following)
    assert rank.says(following.uid).kind is JobMessageKind.READY
