"""Assembly of frames from real buffers, and the events counted where they lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import ALL_SECTORS, FRAME_SHAPE, RECORD_BYTES, SECTORS
from mpistream.model.protocol import BlockHeader, Encoding
from mpistream.model.scan import ScanRecord
from mpistream.reduction.electron_counting import ElectronCounter
from mpistream.reduction.frame_assembly import AssembledBlock, FrameAssembly
from tests.unit.made_up_blocks import BACKGROUND, XRAY, block_message, camera_frame, scan_record
from tests.unit.slow_reference import count_frame

RECORD = scan_record()
BLOCK = 1  # frames 4 to 7


@pytest.fixture
def assembly() -> FrameAssembly:
    return FrameAssembly(RECORD)


def add_all(assembly: FrameAssembly, messages: list[tuple[BlockHeader, memoryview]]) -> AssembledBlock:
    """The block that the last of the messages completes."""
    blocks = [assembly.add(header, payload) for header, payload in messages]
    assert blocks[:-1] == [None] * (len(blocks) - 1)
    assert blocks[-1] is not None
    return blocks[-1]


def messages_of(present: tuple[int, ...] = (0b1111,) * SECTORS, **more) -> list[tuple[BlockHeader, memoryview]]:
    return [block_message(RECORD, BLOCK, sector, present[sector], **more) for sector in range(SECTORS)]


def check_counts(block: AssembledBlock, encoding: Encoding = RECORD.encoding) -> None:
    """The events are those that the slow reference finds in the camera's frames."""
    counter = ElectronCounter(encoding.layout, BACKGROUND, XRAY)
    counted = counter.count_block(block.sector_addresses)
    indices, counts = counted.indices, counted.counts
    expected = []
    for number, missing_sectors in zip(block.frame_number.tolist(), block.missing_sectors.tolist(), strict=True):
        missing = np.zeros(FRAME_SHAPE, bool)
        for sector in range(SECTORS):
            if missing_sectors >> sector & 1:
                missing[encoding.layout.sector_slices(sector)] = True
        expected.append(count_frame(camera_frame(number), BACKGROUND, XRAY, missing=missing))
    assert counts.tolist() == [len(events) for events in expected]
    np.testing.assert_array_equal(indices, np.concatenate([np.empty(0, np.uint32), *expected]))


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_complete_block_counts_as_its_frames_do(encoding: Encoding) -> None:
    record = scan_record(encoding=encoding)
    block = add_all(FrameAssembly(record), [block_message(record, BLOCK, sector) for sector in range(SECTORS)])
    assert block.block == BLOCK
    assert block.frame_number.tolist() == [4, 5, 6, 7]
    assert block.scan_position.tolist() == [0, 1, 2, 3]
    assert not block.missing_sectors.any()
    assert block.raw_bytes == 4 * SECTORS * RECORD_BYTES
    check_counts(block, encoding)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 3, 0, 2)])
def test_sectors_come_in_any_order(assembly: FrameAssembly, order: tuple[int, ...]) -> None:
    messages = messages_of((0b1111, 0b0111, 0b1110, 0b1111))
    block = add_all(assembly, [messages[sector] for sector in order])
    assert [header.sector for header in block.headers] == [0, 1, 2, 3]
    assert block.missing_sectors.tolist() == [0b0100, 0, 0, 0b0010]
    check_counts(block)


@settings(max_examples=8)
@given(st.tuples(*[st.integers(0, 15)] * SECTORS))
def test_whatever_is_there_is_counted(present: tuple[int, ...]) -> None:
    assembly = FrameAssembly(RECORD)
    block = add_all(assembly, messages_of(present))
    there = [bit for bit in range(4) if any(mask >> bit & 1 for mask in present)]
    assert block.frame_number.tolist() == [4 + bit for bit in there]
    assert block.scan_position.tolist() == there
    missing = [sum((~mask >> bit & 1) << sector for sector, mask in enumerate(present)) for bit in there]
    assert block.missing_sectors.tolist() == missing
    assert [header.frames_present for header in block.headers] == list(present)
    check_counts(block)


def test_a_block_of_empty_messages_is_complete_and_has_no_frames(assembly: FrameAssembly) -> None:
    block = add_all(assembly, messages_of((0, 0, 0, 0)))
    assert len(block.frame_number) == len(block.sector_addresses) == block.raw_bytes == 0
    assert [header.sector for header in block.headers] == list(range(SECTORS))
    check_counts(block)


def test_a_sector_that_comes_twice_counts_once(assembly: FrameAssembly) -> None:
    first, *others = messages_of((0b1111, 0b0011, 0b1111, 0b1111))
    assert assembly.add(*first) is None
    assert assembly.add(*first) is None
    assert (assembly.blocks_repeated, assembly.blocks_partial) == (1, 1)
    block = add_all(assembly, others)
    assert block.raw_bytes == 14 * RECORD_BYTES
    assert assembly.add(*others[0]) is None
    assert (assembly.blocks_repeated, assembly.blocks_partial) == (2, 0)
    check_counts(block)


@pytest.mark.parametrize("fuller_first", [True, False])
def test_of_two_messages_of_a_sector_the_fuller_one_counts(assembly: FrameAssembly, fuller_first: bool) -> None:
    """A live source that was restarted sends blocks again as empty ones."""
    _, *others = messages_of()
    full, empty = block_message(RECORD, BLOCK, 0), block_message(RECORD, BLOCK, 0, 0, producer_incarnation=2000)
    for message in (full, empty) if fuller_first else (empty, full):
        assert assembly.add(*message) is None
    block = add_all(assembly, others)
    assert assembly.blocks_repeated == 1
    assert block.headers[0] == full[0]
    assert not block.missing_sectors.any()
    check_counts(block)


def test_of_two_equally_full_messages_the_first_one_counts(assembly: FrameAssembly) -> None:
    _, *others = messages_of()
    for incarnation in (1, 2):
        assembly.add(*block_message(RECORD, BLOCK, 0, 0b0101, producer_incarnation=incarnation))
    block = add_all(assembly, others)
    assert block.headers[0].producer_incarnation == 1
    assert block.missing_sectors.tolist() == [0, 1, 0, 1]


def test_a_sector_that_is_cut_is_waited_for_no_more(assembly: FrameAssembly) -> None:
    """What has come of it is kept, and what still comes before the others."""
    one, two = ([block_message(RECORD, block, sector) for sector in range(SECTORS)] for block in (BLOCK, BLOCK + 1))
    for message in one[:3]:
        assert assembly.add(*message) is None
    assert assembly.add(*two[0]) is None
    (block,) = assembly.cut([3])
    assert block.block == BLOCK
    assert [header.sector for header in block.headers] == [0, 1, 2]
    assert block.missing_sectors.tolist() == [0b1000] * 4
    assert assembly.blocks_partial == 1
    check_counts(block)
    assert list(assembly.cut([3])) == []
    assert assembly.add(*two[3]) is None
    assert assembly.add(*two[1]) is None
    whole = assembly.add(*two[2])
    assert whole is not None
    assert not whole.missing_sectors.any()
    assert assembly.add(*one[3]) is None
    assert assembly.blocks_repeated == 1, "its block is complete without it"


def test_after_the_last_cut_every_block_is_there_as_it_is(assembly: FrameAssembly) -> None:
    assembly.add(*block_message(RECORD, BLOCK + 1, 2))
    assembly.add(*block_message(RECORD, BLOCK, 1, 0b0001))
    assert list(assembly.cut([0, 1])) == []
    blocks = [*assembly.cut([2]), *assembly.cut(range(SECTORS))]
    assert [block.block for block in blocks] == [BLOCK, BLOCK + 1]
    assert [block.missing_sectors.tolist() for block in blocks] == [[0b1101], [0b1011] * 4]
    assert assembly.blocks_partial == 0


def test_a_flush_gives_all_that_is_there(assembly: FrameAssembly) -> None:
    assert list(assembly.cut(range(SECTORS))) == []
    other = FrameAssembly(RECORD)
    other.add(*block_message(RECORD, BLOCK + 1, 0))
    assert [block.block for block in other.cut(range(SECTORS))] == [BLOCK + 1]
    assert list(other.cut(range(SECTORS))) == []


def test_blocks_of_other_ranks_are_forgotten_and_wanted_whole_should_they_come_back(assembly: FrameAssembly) -> None:
    for block in (BLOCK, BLOCK + 1):
        for sector in (0, 1):
            assembly.add(*block_message(RECORD, block, sector))
    assembly.forget_partial(lambda block: block == BLOCK)
    assert assembly.blocks_partial == 1
    messages = [block_message(RECORD, BLOCK + 1, sector) for sector in range(SECTORS)]
    check_counts(add_all(assembly, [*messages[2:], *messages[:2]]))
    assert assembly.blocks_repeated == 0
    check_counts(add_all(assembly, messages_of()[2:]))


def test_a_complete_block_is_not_forgotten(assembly: FrameAssembly) -> None:
    add_all(assembly, messages_of())
    assembly.forget_partial(lambda block: False)
    assert [assembly.add(*message) for message in messages_of()] == [None] * SECTORS
    assert assembly.blocks_repeated == SECTORS


@pytest.mark.parametrize(
    "wrong",
    [
        {"scan_number": 18},
        {"frame_number": 4},
        {"x": 4},
        {"x": 65535},
        {"y": 2},
        {"columns": 5},
        {"rows": 3},
        {"columns": 2, "rows": 4},
    ],
    ids=str,
)
def test_a_record_with_an_impossible_header_counts_as_missing(assembly: FrameAssembly, wrong: dict[str, int]) -> None:
    block = add_all(assembly, messages_of(bad={6: {2: wrong}}))
    assert block.frames_rejected == (0, 0, 0b0100, 0)
    assert block.frame_number.tolist() == [4, 5, 6, 7]
    assert block.scan_position.tolist() == [0, 1, 2, 3]
    assert block.missing_sectors.tolist() == [0, 0, 0b0100, 0]
    check_counts(block)


def test_a_frame_of_which_no_record_is_good_is_not_there(assembly: FrameAssembly) -> None:
    block = add_all(assembly, messages_of(bad={5: {sector: {"y": 7} for sector in range(SECTORS)}}))
    assert block.frames_rejected == (0b0010,) * SECTORS
    assert block.frame_number.tolist() == [4, 6, 7]
    check_counts(block)


def test_a_sector_that_disagrees_about_the_position_is_rejected(assembly: FrameAssembly) -> None:
    block = add_all(assembly, messages_of(bad={6: {2: {"x": 3, "y": 1}}}))
    assert block.frames_rejected == (0, 0, 0b0100, 0)
    assert block.scan_position.tolist() == [0, 1, 2, 3]
    assert block.missing_sectors.tolist() == [0, 0, 0b0100, 0]
    check_counts(block)


def test_a_position_is_compared_only_with_good_records(assembly: FrameAssembly) -> None:
    """A bad first sector does not decide where the frame lies."""
    block = add_all(assembly, messages_of(bad={4: {0: {"frame_number": 99, "x": 3, "y": 1}}}))
    assert block.frames_rejected == (0b0001, 0, 0, 0)
    assert block.scan_position.tolist() == [0, 1, 2, 3]
    assert block.missing_sectors.tolist() == [0b0001, 0, 0, 0]


def test_the_bit_maps_of_rejected_records_are_those_of_their_frames(assembly: FrameAssembly) -> None:
    """Not of their places among the records that came."""
    bad = {7: {1: {"rows": 9}}, 5: {1: {"y": 9}, 3: {"x": 9}}}
    block = add_all(assembly, messages_of((0b1111, 0b1010, 0, 0b0010), bad=bad))
    assert block.frames_rejected == (0, 0b1010, 0, 0b0010)
    assert block.missing_sectors.tolist() == [0b1110] * 4
    check_counts(block)


@pytest.mark.parametrize(
    "message",
    [
        block_message(RECORD, BLOCK, 0, 0b1111, payload_bytes=3 * RECORD_BYTES),
        block_message(RECORD, BLOCK, 0, 0b1111, payload_bytes=5 * RECORD_BYTES),
        block_message(RECORD, BLOCK, 0, 0b1111, encoding=Encoding.RECORDS_COLUMNS),
        block_message(RECORD, BLOCK, 0, 0b1111, block_frames=8),
        block_message(RECORD, 0, 0, 0),
        block_message(RECORD, 3, 0, 0),
    ],
    ids=["shorter", "longer", "encoding", "block frames", "block before", "block behind"],
)
def test_a_message_that_contradicts_the_scan_is_refused_and_leaves_no_trace(
    assembly: FrameAssembly, message: tuple[BlockHeader, memoryview]
) -> None:
    with pytest.raises(ProtocolError):
        assembly.add(*message)
    check_counts(add_all(assembly, messages_of()))
    assert assembly.blocks_repeated == 0


def test_frames_outside_the_scan_are_no_frames_of_it() -> None:
    """The first and the last block may reach beyond the scan's range of frames."""
    record: ScanRecord = scan_record(first_frame=5, last_frame=6)
    assembly = FrameAssembly(record)
    messages = [
        block_message(record, BLOCK, sector, bad={4: {sector: {"x": 0, "y": 0}}, 7: {sector: {"x": 2, "y": 0}}})
        for sector in range(SECTORS)
    ]
    block = add_all(assembly, messages)
    assert block.frame_number.tolist() == [5, 6]
    assert block.frames_rejected == (0b1001,) * SECTORS


def test_the_addresses_point_into_the_buffers_that_came(assembly: FrameAssembly) -> None:
    block = add_all(assembly, messages_of((0b1111, 0b1011, 0b1111, 0)))
    for sector, (header, payload) in enumerate(zip(block.headers, block.payloads, strict=True)):
        start = np.frombuffer(payload, np.uint8).ctypes.data if len(payload) else 0
        there = block.sector_addresses[:, sector][block.sector_addresses[:, sector] != 0]
        assert len(there) == header.frames_present.bit_count()
        assert ((there > start) & (there < start + max(1, len(payload)))).all()
    assert (((block.sector_addresses == 0) << np.arange(SECTORS)).sum(axis=1) == block.missing_sectors).all()
    assert (block.missing_sectors < ALL_SECTORS).all()
