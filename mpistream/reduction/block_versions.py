"""Each block once: where several ranks have had the same one, the fullest version of it goes into the dataset."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mpistream.model.agreement import Communicator
from mpistream.model.counted_block import JournaledBlock
from mpistream.model.errors import ScanFailed

_VERSION = np.dtype([("block", "<u8"), ("records", "<u4"), ("rank", "<u4"), ("index", "<u4")])


Block = TypeVar("Block", bound=JournaledBlock)


def choose_versions(comm: Communicator, blocks: Sequence[Block]) -> tuple[list[Block], list[Block]]:
    """Collective: those of this rank's blocks that count, and those of which there is a version as good or better.

    The version with the most good records wins. Versions of the same records must be equal to the bit: raises
    ScanFailed, the same on every rank, where they are not.
    """
    mine = np.array([(block.block, block.records, comm.rank, index) for index, block in enumerate(blocks)], _VERSION)
    versions = np.concatenate(comm.allgather(mine))
    order = np.lexsort((versions["index"], versions["rank"], -versions["records"].astype(np.int64), versions["block"]))
    versions = versions[order]
    first = np.ones(len(versions), bool)
    first[1:] = versions["block"][1:] != versions["block"][:-1]
    _check_equal(comm, blocks, versions, first)
    kept = set(versions[first & (versions["rank"] == comm.rank)]["index"].tolist())
    return (
        [block for index, block in enumerate(blocks) if index in kept],
        [block for index, block in enumerate(blocks) if index not in kept],
    )


def _check_equal(
    comm: Communicator,
    blocks: Sequence[JournaledBlock],
    versions: npt.NDArray[Any],
    first: npt.NDArray[np.bool_],
) -> None:
    """Only blocks with several versions are looked at; as a rule there are few, if any."""
    group = np.cumsum(first) - 1
    winners = versions[first][group]
    contenders = (np.bincount(group, minlength=1)[group] > 1) & (versions["records"] == winners["records"])
    mine = [blocks[index] for index in versions[contenders & (versions["rank"] == comm.rank)]["index"].tolist()]
    checksums = [
        ((block.block, block.sectors, block.frames_present, block.frames_rejected), block.checksum()) for block in mine
    ]
    seen: dict[Any, int] = {}
    for records, checksum in (pair for pairs in comm.allgather(checksums) for pair in pairs):
        if seen.setdefault(records, checksum) != checksum:
            raise ScanFailed(
                f"two ranks counted different electrons in the same frames of block {records[0]}",
                "a processor, its memory or a disk is faulty: the journals, which are kept, tell which node's",
            )
