"""The wire format: what is packed is unpacked as it was, and everything else is refused."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import RECORD_BYTES, SectorLayout
from mpistream.model.job_messages import JobMessage, JobMessageKind, LostMessageError, Numbered
from mpistream.model.protocol import (
    BLOCK_HEADER_BYTES,
    MAX_BLOCK_FRAMES,
    Ack,
    BlockHeader,
    Encoding,
    Hello,
    Want,
    blocks_digest,
    producer_of_answer,
    unpack_answer,
)

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
uids = st.binary(min_size=16, max_size=16)


@st.composite
def block_headers(draw: st.DrawFn) -> BlockHeader:
    frames = draw(st.integers(1, MAX_BLOCK_FRAMES))
    present = draw(st.integers(0, 2**frames - 1))
    return BlockHeader(
        draw(st.sampled_from(Encoding)),
        draw(st.integers(0, 3)),
        frames,
        draw(u32),
        draw(u32),
        draw(u32),
        draw(uids),
        draw(u64),
        draw(u64),
        present,
        present.bit_count() * RECORD_BYTES,
    )


HEADER = BlockHeader(Encoding.RECORDS_ROWS, 2, 8, 3, 7, 1, bytes(range(16)), 5, 1000, 0b10110001, 4 * RECORD_BYTES)
ACK = Ack(2, bytes(range(16)), 5, 6, (7, 8, 9))
WANT = Want(2, bytes(range(16)), 6)


@given(block_headers())
def test_a_block_header_arrives_as_it_was_sent(header: BlockHeader) -> None:
    packed = header.pack()
    assert len(packed) == BLOCK_HEADER_BYTES
    assert BlockHeader.unpack(packed) == header
    assert BlockHeader.unpack(memoryview(packed)) == header


@given(st.builds(Ack, u32, uids, u64, u64, st.lists(u64, max_size=100).map(tuple)))
def test_an_acknowledgement_arrives_as_it_was_sent(ack: Ack) -> None:
    assert Ack.unpack(ack.pack()) == unpack_answer(ack.pack()) == ack
    assert producer_of_answer(ack.pack()) == ack.producer_id


@given(st.builds(Want, u32, uids, u64))
def test_a_request_arrives_as_it_was_sent(want: Want) -> None:
    assert Want.unpack(want.pack()) == unpack_answer(want.pack()) == want
    assert producer_of_answer(want.pack()) == want.producer_id


@given(st.none() | st.integers(0, 2**32 - 2))
def test_a_greeting_arrives_as_it_was_sent(producer_id: int | None) -> None:
    assert Hello.unpack(Hello(producer_id).pack()) == Hello(producer_id)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=50)
@given(st.sampled_from(JobMessageKind), st.integers(0, 10_000), st.dictionaries(st.text(), json_values), st.binary())
def test_a_job_message_arrives_as_it_was_sent(kind: JobMessageKind, rank: int, fields: dict, binary: bytes) -> None:
    message = JobMessage(kind, rank, fields, binary)
    assert JobMessage.unpack(message.pack()) == message


def test_the_bytes_of_version_2_stay_as_they_are() -> None:
    """Recorded: other bytes need another version number."""
    assert HEADER.pack() == bytes.fromhex(
        "4d504953 0200 0100"  # MPIS, version, kind
        "05 02 0800 03000000 07000000 01000000"  # encoding, sector, block frames, table, destination, producer
        "000102030405060708090a0b0c0d0e0f"  # scan uid
        "0500000000000000 e803000000000000"  # producer incarnation, block
        "b100000000000000 40200a0000000000"  # frames present, payload bytes
    )
    assert ACK.pack() == bytes.fromhex(
        "4d504953 0200 0200"
        "02000000 000102030405060708090a0b0c0d0e0f"  # producer id, scan uid
        "0500000000000000 0600000000000000 03000000"  # incarnations of producer and rank, number of blocks
        "0700000000000000 0800000000000000 0900000000000000"
    )
    assert WANT.pack() == bytes.fromhex(
        "4d504953 0200 0400"
        "02000000 000102030405060708090a0b0c0d0e0f 0600000000000000"  # producer id, scan uid, incarnation of the rank
    )
    assert Hello(None).pack() == bytes.fromhex("4d504953 0200 0300 ffffffff")


def test_the_examples_in_the_documentation_are_messages_of_this_version() -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    dumps = re.findall(r"(?:^    (?:[0-9a-f]{2} {1,2})+[0-9a-f]{2}\n)+", text, re.MULTILINE)
    block, ack, want = (bytes.fromhex("".join(dump.split())) for dump in dumps)
    header = BlockHeader.unpack(block)
    assert (header.sector, header.block, header.frames_present, header.destination) == (2, 5, 0xFB, 3)
    assert Ack.unpack(ack).blocks == (5, 6)
    assert Ack.unpack(ack).scan_uid == Want.unpack(want).scan_uid == header.scan_uid
    assert Ack.unpack(ack).rank_incarnation == Want.unpack(want).rank_incarnation


def test_the_first_frame_and_the_layout_follow_from_the_header() -> None:
    assert HEADER.first_frame == 8000
    assert [encoding.layout for encoding in Encoding] == [SectorLayout.COLUMNS, SectorLayout.ROWS]


def changed(offset: int, format: str, value: object) -> bytes:
    packed = bytearray(HEADER.pack())
    struct.pack_into(format, packed, offset, value)
    return bytes(packed)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "0 bytes"),
        (b"MPIS\x01", "5 bytes"),
        (changed(0, "4s", b"HTTP"), "b'HTTP'"),
        (changed(4, "<H", 1), "protocol version 1"),
        (changed(6, "<H", 2), "kind 2 where BLOCK"),
        (changed(6, "<H", 99), "kind 99 where BLOCK"),
        (HEADER.pack()[:-1], "header of 71 bytes; it has 72"),
        (HEADER.pack() + b"\0", "header of 73 bytes; it has 72"),
        (changed(8, "B", 6), "encoding 6"),
        (changed(9, "B", 4), "sector 4"),
        (changed(10, "<H", 0), "0 frames"),
        (changed(10, "<H", MAX_BLOCK_FRAMES + 1), f"{MAX_BLOCK_FRAMES + 1} frames"),
        (changed(BLOCK_HEADER_BYTES - 16, "<Q", 1 << 8), "bit map 0x100"),
        (changed(BLOCK_HEADER_BYTES - 8, "<Q", 3 * RECORD_BYTES), "payload bytes for 4 records"),
        (changed(BLOCK_HEADER_BYTES - 8, "<Q", 2**64 - 1), "payload bytes for 4 records"),
    ],
)
def test_a_malformed_block_header_is_refused(message: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        BlockHeader.unpack(message)


def test_another_version_is_refused_with_a_remedy() -> None:
    with pytest.raises(ProtocolError) as caught:
        BlockHeader.unpack(changed(4, "<H", 1))
    assert "same mpistream release" in caught.value.remedy


@pytest.mark.parametrize("length", [0, 4, 8, 20, len(ACK.pack()) - 1])
def test_a_truncated_acknowledgement_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        Ack.unpack(ACK.pack()[:length])


def test_an_acknowledgement_with_bytes_left_over_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Ack.unpack(ACK.pack() + bytes(8))


@pytest.mark.parametrize("unpack", [Want.unpack, unpack_answer])
@pytest.mark.parametrize("message", [b"", WANT.pack()[:-1], WANT.pack() + b"\0", WANT.pack()[:8], HEADER.pack()])
def test_a_malformed_request_is_refused(unpack, message: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(message)


@pytest.mark.parametrize("message", [b"", ACK.pack()[:11], HEADER.pack(), Hello(1).pack(), b"HTTP" + ACK.pack()[4:]])
def test_what_is_no_answer_is_for_no_producer(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        producer_of_answer(message)


@pytest.mark.parametrize("message", [b"", Hello(1).pack()[:-1], Hello(1).pack() + b"\0", HEADER.pack(), ACK.pack()])
def test_a_malformed_greeting_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        Hello.unpack(message)


@pytest.mark.parametrize("unpack", [BlockHeader.unpack, Ack.unpack, Want.unpack, unpack_answer, Hello.unpack])
@given(message=st.binary(max_size=200) | st.binary(max_size=100).map(lambda rest: b"MPIS\x02\x00" + rest))
def test_garbage_is_refused_or_understood_but_never_breaks(unpack, message: bytes) -> None:
    try:
        understood = unpack(message)
    except ProtocolError:
        return
    assert understood.pack() == message


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"{}"],
        [b"{}", b"", b""],
        [b"not json", b""],
        [b"\xff\xfe", b""],
        [b"[]", b""],
        [b"null", b""],
        [b"{}", b""],
        [b'{"version": 4, "kind": "dance", "rank": 0, "fields": {}}', b""],
        [b'{"version": 4, "kind": "ready", "rank": null, "fields": {}}', b""],
        [b'{"version": 4, "kind": "ready", "rank": 0}', b""],
        [b'{"version": 3, "kind": "ready", "rank": 0, "fields": {}}', b""],
    ],
)
def test_a_malformed_job_message_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        JobMessage.unpack(parts)


def test_a_rank_of_another_release_is_named_with_a_remedy() -> None:
    with pytest.raises(ProtocolError, match="version 3; this rank speaks 4") as caught:
        JobMessage.unpack([b'{"version": 3, "kind": "ready", "rank": 0, "fields": {}}', b""])
    assert "same mpistream release" in caught.value.remedy


@pytest.mark.parametrize("before", [0, 1, 300])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_message_is_taken_only_after_all_before_it_and_once(before: int, lost: int) -> None:
    message, answer = JobMessage(JobMessageKind.COUNTED, 7, {"uid": "1"}), JobMessage(JobMessageKind.STOP, 0)
    leader, rank = Numbered("rank-7"), Numbered("rank-0")
    for _ in range(before):
        assert leader.unpack(rank.pack(message.pack())) == message
        assert rank.unpack(leader.pack(answer.pack())) == answer, "each way has numbers of its own"
    for _ in range(lost):
        rank.pack(message.pack())
    packed = rank.pack(message.pack())
    if not lost:
        assert leader.unpack(packed) == message
    with pytest.raises(LostMessageError, match=f"rank-7 .* {before + lost + 1} came after"):
        leader.unpack(packed)
    assert rank.unpack(leader.pack(answer.pack())) == answer


block_sets = st.dictionaries(st.integers(0, 2**40), u64, min_size=1, max_size=20)


@given(st.integers(0, 3), block_sets, st.randoms())
def test_the_digest_does_not_depend_on_the_order(sector: int, blocks: dict[int, int], random) -> None:
    shuffled = list(blocks.items())
    random.shuffle(shuffled)
    numbers, present = zip(*shuffled, strict=True)
    assert blocks_digest(sector, numbers, present) == blocks_digest(sector, blocks.keys(), blocks.values())


@given(st.integers(0, 3), block_sets, st.integers(0, 20))
def test_digests_of_disjoint_sets_add_up(sector: int, blocks: dict[int, int], cut: int) -> None:
    items = list(blocks.items())
    whole = blocks_digest(sector, blocks.keys(), blocks.values())
    parts = sum(
        blocks_digest(sector, [block for block, _ in part], [present for _, present in part])
        for part in (items[:cut], items[cut:])
    )
    assert parts % 2**64 == whole


@given(st.integers(0, 3), block_sets, st.data())
def test_the_digest_notices_any_single_change(sector: int, blocks: dict[int, int], data: st.DataObject) -> None:
    before = blocks_digest(sector, blocks.keys(), blocks.values())
    block = data.draw(st.sampled_from(sorted(blocks)))
    another_frame = {**blocks, block: blocks[block] ^ 1 << data.draw(st.integers(0, 63))}
    one_lost = {number: present for number, present in blocks.items() if number != block}
    twice = [*blocks.items(), (block, blocks[block])]
    assert before not in {
        blocks_digest(sector, another_frame.keys(), another_frame.values()),
        blocks_digest(sector, one_lost.keys(), one_lost.values()),
        blocks_digest(sector, [number for number, _ in twice], [present for _, present in twice]),
        blocks_digest((sector + 1) % 4, blocks.keys(), blocks.values()),
    }


def test_the_digest_tells_an_empty_block_from_none() -> None:
    assert blocks_digest(0, [], []) == 0
    assert blocks_digest(0, [5], [0]) != 0


def test_the_protocol_version_is_named_in_its_error() -> None:
    with pytest.raises(ProtocolError, match=re.escape("this process speaks version 2")):
        Ack.unpack(b"MPIS\x07\x00\x02\x00")
