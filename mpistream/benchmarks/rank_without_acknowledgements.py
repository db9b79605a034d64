"""A rank that tells the producers nothing. For `mpistream bench durability` only: the product has no such mode.

    mpiexec -n 2 python -m mpistream.benchmarks.rank_without_acknowledgements CONFIG.toml

It is the product's rank but for two methods: blocks are counted, and neither acknowledged nor ever asked for again.
What is lost on its way stays lost, so producers need a window that holds their whole sector of a scan. Whether there
is a journal is in a scan's record, as always.
"""

import logging
import sys
from pathlib import Path

from mpistream.model.config import Config
from mpistream.model.protocol import BlockHeader
from mpistream.pipeline import receiver
from mpistream.pipeline.rank_scan import RankScan


class UnacknowledgedScan(RankScan):
    """What it has counted is known to this job only."""

    def _owe_acknowledgement(self, header: BlockHeader) -> None:
        pass


class SilentReceiver(receiver.RankReceiver):
    """Never asks the producers for anything: without acknowledgements they would send everything again."""

    def _ask_for_what_is_lost(self) -> None:
        pass


def main() -> None:
    from mpistream.pipeline import rank  # loads MPI

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("mpistream").setLevel(logging.INFO)
    vars(receiver)["RankScan"] = UnacknowledgedScan
    vars(rank)["RankReceiver"] = SilentReceiver
    rank.run_rank(lambda: Config.load(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
