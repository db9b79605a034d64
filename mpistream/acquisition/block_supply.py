"""Where a producer has the blocks that it sends: in a window of memory, in its source, or spilled to a file."""

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mpistream.acquisition.sector_source import SectorSource
from mpistream.acquisition.spill import Spill
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.scan import ScanRecord


@dataclass
class HeldBlock:
    """A block in memory. ``payload`` are the records of the frames in ``frames_present``; ``sends``: how often it went
    out, ``sent``: when it last did (monotonic seconds).
    """

    buffer: memoryview
    frames_present: int
    sends: int = 0
    sent: float = 0.0

    @property
    def payload(self) -> memoryview:
        return self.buffer[: self.frames_present.bit_count() * RECORD_BYTES]


class SendWindow:
    """The blocks in memory, ``blocks`` of them at most, and the buffers that they lie in.

    ``held_elsewhere``: how many blocks in the same room others hold. A buffer is used again once nobody reads it any
    more. Sends do not copy, so ZeroMQ may still hold one whose block was sent twice; such a buffer is left to it.
    """

    def __init__(self, blocks: int, block_bytes: int) -> None:
        self.blocks = blocks
        self.held_elsewhere: Callable[[], int] = lambda: 0
        self._block_bytes = block_bytes
        self._free: list[memoryview] = []
        self._held: dict[int, HeldBlock] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def has_room(self) -> bool:
        return len(self._held) + self.held_elsewhere() < self.blocks

    @property
    def limit_bytes(self) -> int:
        return self.blocks * self._block_bytes

    @property
    def payload_bytes(self) -> int:
        return sum(len(held.payload) for held in self._held.values())

    def buffer(self) -> memoryview:
        """One of ``block_bytes`` bytes to read a block into; it goes to ``hold`` or ``give_back``."""
        # pages of its own: what is let go of goes back to the system, and does not stay in the process's heap
        return self._free.pop() if self._free else memoryview(mmap.mmap(-1, self._block_bytes))

    def give_back(self, buffer: memoryview) -> None:
        """Nobody reads this buffer."""
        if len(self._free) + len(self._held) <= self.blocks:  # one more than the window: to spill from
            self._free.append(buffer)

    def hold(self, block: int, buffer: memoryview, frames_present: int) -> HeldBlock:
        self._held[block] = held = HeldBlock(buffer, frames_present)
        return held

    def get(self, block: int) -> HeldBlock | None:
        return self._held.get(block)

    def sent_since(self, monotonic_seconds: float) -> set[int]:
        """The blocks that went out after that."""
        return {block for block, held in self._held.items() if held.sent > monotonic_seconds}

    def release(self, block: int, came_with_own: bool) -> None:
        """``came_with_own``: the rank has it from a message of this process. Again for the same block does nothing."""
        held = self._held.pop(block, None)
        if held is not None and came_with_own and held.sends == 1:
            self.give_back(held.buffer)


class BlockSupply(Protocol):
    """Brings blocks to memory when they are to be sent. Raises SourceError."""

    window: SendWindow

    def take(self, block: int, is_lowest: bool) -> HeldBlock | None:
        """The block, in the window; None while it is not there yet, or has no room.

        There is always room for the lowest block of all that are not released: the ranks may need it to let go of
        those in the window.
        """
        ...

    def released(self, block: int, came_with_own: bool) -> None:
        """A rank has journaled it; ``came_with_own`` as in ``SendWindow.release``."""
        ...

    def capture(self, is_released: Callable[[int], bool]) -> bool:
        """Takes from a live source what would be overwritten soon: at most one block. False where there was none."""
        ...

    def seconds_until_capture(self) -> float:
        """When ``capture``, or ``take``, will have something to do; infinite where no time tells."""
        ...

    def frames_sent(self, block: int) -> int | None:
        """The bit map that a message of this block has carried or will carry; None where nobody knows any more."""
        ...

    @property
    def spilled_bytes(self) -> int: ...

    @property
    def blocks_dropped(self) -> int:
        """Of how many blocks there was nothing left to send."""
        ...

    def close(self, is_over: bool) -> None:
        """``is_over``: the scan has ended; otherwise only this process."""
        ...


class ReadableBlocks:
    """Blocks of a source that can be read again, once it has them: only the window holds any."""

    spilled_bytes = 0
    blocks_dropped = 0

    def __init__(self, record: ScanRecord, source: SectorSource, window: SendWindow) -> None:
        self.window = window
        self._block_frames = record.block_frames
        self._source = source
        self._frames_sent: dict[int, int] = {}
        self._awaited: int | None = None  # a block that the source does not have yet

    def take(self, block: int, is_lowest: bool) -> HeldBlock | None:
        held = self.window.get(block)
        if held is None and self._is_there(block) and (self.window.has_room or is_lowest):
            buffer = self.window.buffer()
            frames_present = self._source.read_block(block, self._block_frames, buffer)
            self._frames_sent[block] = frames_present
            held = self.window.hold(block, buffer, frames_present)
        return held

    def _is_there(self, block: int) -> bool:
        is_there = self._source.seconds_until(block, self._block_frames) <= 0
        self._awaited = None if is_there else block
        return is_there

    def released(self, block: int, came_with_own: bool) -> None:
        self.window.release(block, came_with_own)

    def capture(self, is_released: Callable[[int], bool]) -> bool:
        return False

    def seconds_until_capture(self) -> float:
        """Nothing is captured; but a paced source has the next block then. It is said once that it is there: where no
        rank is, nobody takes it.
        """
        if self._awaited is None:
            return math.inf
        seconds = self._source.seconds_until(self._awaited, self._block_frames)
        if seconds <= 0:
            self._awaited = None
        return seconds

    def frames_sent(self, block: int) -> int | None:
        known = self._frames_sent.get(block)
        return self._source.frames_present(block, self._block_frames) if known is None else known

    def close(self, is_over: bool) -> None:
        self._source.close()
        del is_over


class LiveBlocks:
    """Blocks of a source that does not wait: each is taken when it is there, and kept until a rank has it.

    A block for which the window has no room is spilled, while there is a file and it has room; otherwise it is dropped,
    and sent as an empty block when its turn comes. So is one that a rank loses after the window has let go of it.
    """

    def __init__(self, record: ScanRecord, source: SectorSource, window: SendWindow, spill: Spill | None) -> None:
        self.window = window
        self.blocks_dropped = 0
        self._block_frames = record.block_frames
        self._source = source
        self._spill = spill
        self._next = record.block_range.start
        self._stop = record.block_range.stop
        self._waiting: set[int] = set()  # spilled, and not in the window since
        self._frames_sent: dict[int, int | None] = {}
        if spill is not None:
            self._frames_sent |= dict(spill.frames_present)

    def take(self, block: int, is_lowest: bool) -> HeldBlock | None:
        held = self.window.get(block)
        if held is not None or block >= self._next or not (self.window.has_room or is_lowest):
            return held
        self._waiting.discard(block)
        buffer = self.window.buffer()
        frames_present = 0
        if self._spill is not None and block in self._spill.frames_present:
            frames_present = self._spill.read(block, buffer)
        if self._frames_sent.setdefault(block, 0) != frames_present:
            # what was sent once is gone: whether a rank still has it, nobody knows
            self._frames_sent[block] = None
            self.blocks_dropped += 1
        return self.window.hold(block, buffer, frames_present)

    def released(self, block: int, came_with_own: bool) -> None:
        self.window.release(block, came_with_own)
        self._waiting.discard(block)

    def capture(self, is_released: Callable[[int], bool]) -> bool:
        if self.seconds_until_capture() > 0:
            return False
        block, self._next = self._next, self._next + 1
        if self._spill is not None and block in self._spill.frames_present:
            if not is_released(block):
                self._waiting.add(block)
        elif not is_released(block):
            self._keep(block)
        else:
            self._frames_sent.setdefault(block, None)
        return True

    def _keep(self, block: int) -> None:
        spill = self._spill
        in_window = self.window.has_room and not self._waiting
        if not in_window and (spill is None or not spill.has_room(self._block_frames * RECORD_BYTES)):
            self._drop(block)
            return
        buffer = self.window.buffer()
        frames_present = self._source.read_block(block, self._block_frames, buffer)
        self._frames_sent[block] = frames_present
        if in_window and frames_present:
            self.window.hold(block, buffer, frames_present)
            return
        if frames_present and spill is not None:
            if spill.append(block, frames_present, buffer[: frames_present.bit_count() * RECORD_BYTES]):
                self._waiting.add(block)
            else:
                self._drop(block)
        self.window.give_back(buffer)

    def _drop(self, block: int) -> None:
        self._frames_sent[block] = 0
        self.blocks_dropped += 1

    def seconds_until_capture(self) -> float:
        return math.inf if self._next >= self._stop else self._source.seconds_until(self._next, self._block_frames)

    def frames_sent(self, block: int) -> int | None:
        return self._frames_sent.get(block)

    @property
    def spilled_bytes(self) -> int:
        return 0 if self._spill is None else self._spill.bytes

    def close(self, is_over: bool) -> None:
        self._source.close()
        if self._spill is not None:
            self._spill.close(remove=is_over)
