"""What the ranks of one MPI job tell each other while no MPI call is outstanding: one JSON part, one binary part."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mpistream.model.errors import ProtocolError

VERSION = 3


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
                raise ProtocolError(f"a job message of version {value['version']}; this rank speaks {VERSION}")
            return cls(JobMessageKind(value["kind"]), int(value["rank"]), value["fields"], binary)
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"a malformed job message: {error}") from error
