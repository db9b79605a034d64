"""The rank that `mpistream bench durability` runs: where it is told to, it does not acknowledge.

    mpiexec -n 2 python -m mpistream.benchmarks.rank_without_acknowledgements CONFIG.toml

A scan whose record names no folder for journals is counted, and nothing of it is ever acknowledged or asked for again:
what is lost on its way stays lost, and producers need a window that holds their whole sector. All other scans are
received by the product's own code. The product has no such mode: it is there only to be compared with.
"""

import logging
import sys
from pathlib import Path

from mpistream.model.config import Config
from mpistream.model.protocol import BlockHeader
from mpistream.model.scan import ScanRecord
from mpistream.pipeline.ranks import receiver
from mpistream.pipeline.ranks.rank_scan import RankScan


def is_acknowledged(record: ScanRecord) -> bool:
    """Otherwise this scan is streamed as if there were no acknowledgements."""
    return bool(record.journals)


class UnacknowledgedScan(RankScan):
    """What has been counted of it is known to this job only."""

    def _owe_acknowledgement(self, header: BlockHeader) -> None:
        pass


class AcknowledgedOrNot(RankScan):
    """Prepares a scan of the one kind or of the other."""

    @classmethod
    def prepare(cls, record: ScanRecord, rank: int, incarnation: int) -> RankScan:
        kind = RankScan if is_acknowledged(record) else UnacknowledgedScan
        return kind.prepare(record, rank, incarnation)


class BenchmarkReceiver(receiver.RankReceiver):
    """Does not ask for what is lost of a scan without acknowledgements: all of it would be sent again."""

    def _ask_for_what_is_lost(self) -> None:
        if all(is_acknowledged(scan.record) for scan in self._scans.values()):
            super()._ask_for_what_is_lost()


def main() -> None:
    from mpistream.pipeline.ranks import rank  # loads MPI

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("mpistream").setLevel(logging.INFO)
    vars(receiver)["RankScan"] = AcknowledgedOrNot
    vars(rank)["RankReceiver"] = BenchmarkReceiver
    rank.run_rank(lambda: Config.load(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
