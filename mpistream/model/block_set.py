"""Sets of block numbers of one scan: dense, small, and readable by every process as JSON."""

import base64
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


class BlockSet:
    """Some of the consecutive block numbers ``blocks``."""

    def __init__(self, blocks: range, present: npt.NDArray[np.bool_] | None = None) -> None:
        self.blocks = blocks
        self._present = np.zeros(len(blocks), bool) if present is None else present

    @classmethod
    def of(cls, blocks: range, numbers: Iterable[int]) -> "BlockSet":
        """Those of ``numbers`` that lie in ``blocks``."""
        chosen = cls(blocks)
        chosen.add(numbers)
        return chosen

    def add(self, numbers: Iterable[int]) -> None:
        """Numbers outside ``blocks`` are left out."""
        index = np.fromiter(numbers, np.int64) - self.blocks.start
        self._present[index[(index >= 0) & (index < len(self.blocks))]] = True

    def discard(self, numbers: Iterable[int]) -> None:
        index = np.fromiter(numbers, np.int64) - self.blocks.start
        self._present[index[(index >= 0) & (index < len(self.blocks))]] = False

    def update(self, other: "BlockSet") -> None:
        """Adds those of another set of the same scan."""
        self._present |= other._present

    def __contains__(self, block: int) -> bool:
        return block in self.blocks and bool(self._present[block - self.blocks.start])

    def __len__(self) -> int:
        return int(np.count_nonzero(self._present))

    def __iter__(self) -> Iterator[int]:
        """In ascending order."""
        return iter((np.flatnonzero(self._present) + self.blocks.start).tolist())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BlockSet)
            and self.blocks == other.blocks
            and bool(np.array_equal(self._present, other._present))
        )

    __hash__ = None  # type: ignore[assignment]  # a set that changes

    def __repr__(self) -> str:
        return f"<{len(self)} of the blocks {self.blocks.start} to {self.blocks.stop - 1}>"

    def __or__(self, other: "BlockSet") -> "BlockSet":
        return BlockSet(self.blocks, self._present | other._present)

    def __sub__(self, other: "BlockSet") -> "BlockSet":
        return BlockSet(self.blocks, self._present & ~other._present)

    @property
    def is_complete(self) -> bool:
        return bool(self._present.all())

    @property
    def missing(self) -> "BlockSet":
        return BlockSet(self.blocks, ~self._present)

    def copy(self) -> "BlockSet":
        return BlockSet(self.blocks, self._present.copy())

    def to_json(self) -> dict[str, Any]:
        """``bits`` is one bit per block, compressed by zlib, in base64: a few bytes for runs of blocks."""
        bits = base64.b64encode(zlib.compress(np.packbits(self._present).tobytes())).decode()
        return {"first": self.blocks.start, "blocks": len(self.blocks), "bits": bits}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "BlockSet":
        """Raises ValueError, KeyError or TypeError for what ``to_json`` did not make."""
        blocks = range(int(value["first"]), int(value["first"]) + int(value["blocks"]))
        try:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(value["bits"])), np.uint8)
        except zlib.error as error:
            raise ValueError(f"a set of blocks that cannot be unpacked: {error}") from error
        if len(packed) != -(-len(blocks) // 8):
            raise ValueError(f"{len(packed)} bytes for a set of {len(blocks)} blocks")
        return cls(blocks, np.unpackbits(packed, count=len(blocks)).astype(bool))
