"""What the ranks of one MPI job tell each other while no MPI call is outstanding.

A message has three parts: its number on the way from its sender to its receiver, JSON, binary data.
"""

import json
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mpistream.model.errors import MpistreamError, ProtocolError

VERSION = 4

_NUMBER = struct.Struct("<Q")


class LostMessageError(MpistreamError):
    """Not every message between two ranks has come, or not in order."""


class JobMessageKind(StrEnum):
    # from a rank to the leader of the job
    HEARTBEAT = "heartbeat"  # {}; from the leader to the ranks, too
    READY = "ready"  # {"uid", "incarnation", "journal"}: prepared for the scan
    SAMPLE = "sample"  # {"uid", "block"}, binary: statistics of the block's complete frames
    COUNTED = "counted"  # {"uid", "bytes", "totals", "flushed", "problem"}, binary: u64 blocks newly journaled
    FAULT = "fault"  # {"uid", "message", "remedy", "fatal"}: fatal where no other rank could do better
    STOP = "stop"  # {}: from a rank, it is asked to end; from the leader, all ranks end
    # from the leader to every rank
    TABLE = "table"  # {"table"}: the latest routing table
    PREPARE = "prepare"  # {"record"}
    THRESHOLDS = "thresholds"  # {"uid", "thresholds"}, binary: statistics of the sample, where they were calibrated
    CUT = "cut"  # {"uid", "sectors"}: nothing more comes of these sectors
    FLUSH = "flush"  # {"uid"}: say when all that has come is journaled
    ASSEMBLE = "assemble"  # {"uid", "ends", "journals", "output", "attempt"}
    DISCARD = "discard"  # {"uid", "keep"}: the scan has ended; whether to keep the journals


@dataclass(frozen=True)
class JobMessage:
    kind: JobMessageKind
    rank: int
    fields: dict[str, Any] = field(default_factory=dict)
    binary: bytes = b""

    def pack(self) -> list[bytes]:
        text = json.dumps({"version": VERSION, "kind": str(self.kind), "rank": self.rank, "fields": self.fields})
        return [text.encode(), self.binary]

    @classmethod
    def unpack(cls, parts: list[bytes]) -> "JobMessage":
        try:
            text, binary = parts
            value = json.loads(text)
            if value["version"] != VERSION:
                raise ProtocolError(
                    f"a job message of version {value['version']}; this rank speaks {VERSION}",
                    "run the same mpistream release on every rank",
                )
            return cls(JobMessageKind(value["kind"]), int(value["rank"]), value["fields"], binary)
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"a malformed job message: {error}") from error


class Numbered:
    """The numbers of all messages between this rank and another one, in both directions: 1, 2, 3, ...

    None is ever sent again, and the state of a scan is the sum of them all. So a job in which one is lost cannot go on:
    it ends, and another one goes on from its journals.
    """

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._told = self._heard = 0

    def pack(self, message: list[bytes]) -> list[bytes]:
        """A packed JobMessage with its number: to be sent, and to nobody else."""
        self._told += 1
        return [_NUMBER.pack(self._told), *message]

    def unpack(self, parts: list[bytes]) -> JobMessage:
        """Raises LostMessageError where it is not the one after the message before it, and ProtocolError."""
        if not parts or len(parts[0]) != _NUMBER.size:
            raise ProtocolError("a job message without a number")
        (number,) = _NUMBER.unpack(parts[0])
        if number != self._heard + 1:
            raise LostMessageError(
                f"messages of {self._peer} are not in order: {number} came after {self._heard}; ending the MPI job",
                "look at the network between its node and this one: a connection broke; what is journaled is kept",
            )
        self._heard = number
        return JobMessage.unpack(parts[1:])
