"""Journals: what comes back, and what becomes of damage. `test_journal_failures` has disks that refuse."""

import zlib
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpistream.model.counted_block import CountedBlock, arrays_of
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.errors import StorageError
from mpistream.model.frame_sums import FrameSums
from mpistream.model.scan import Durability
from mpistream.storage import journal as journal_module
from mpistream.storage.journal import FILE_HEAD_BYTES, JournalWriter, examine_journal, read_journal
from mpistream.storage.journal_record import HEAD_BYTES, MAGIC

UID = UUID(int=0xABCD)
BIT_MAPS = st.tuples(*[st.integers(0, 2**64 - 1)] * 4)
IN_TMP_PATH = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_block(
    seed: int = 1, frames: int = 3, centroids: bool = False, annuli: int = 2, block: int = 5
) -> CountedBlock:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 6, frames).astype(np.uint32)
    events = int(counts.sum())
    return CountedBlock(
        block,
        0b1011,
        (7, 3, 0, 7),
        (1, 0, 0, 2),
        123_456 + seed,
        ElectronEvents.from_counts(
            random.integers(0, 2**32, frames, dtype=np.uint32),
            random.integers(0, 2**63, frames, dtype=np.uint64),
            random.integers(0, 16, frames, dtype=np.uint8),
            counts,
            random.integers(0, 576 * 576, events, dtype=np.uint32),
            random.integers(-128, 128, (events, 2), dtype=np.int8) if centroids else None,
        ),
        FrameSums(
            random.integers(0, 2**32, (frames, 2), dtype=np.uint32),
            random.integers(0, 2**32, (frames, annuli), dtype=np.uint32),
        ),
    )


@st.composite
def blocks(draw):
    plain = make_block(
        draw(st.integers(0, 2**32)), draw(st.integers(0, 64)), draw(st.booleans()), draw(st.integers(0, 3))
    )
    return CountedBlock(
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 15)),
        draw(BIT_MAPS),
        draw(BIT_MAPS),
        draw(st.integers(0, 2**64 - 1)),
        plain.events,
        plain.sums,
    )


def write(path, calls, durability=Durability.WRITE):
    """A journal of these calls of ``append``; how far it was good after each of them, before the first one too."""
    path.unlink(missing_ok=True)
    writer = JournalWriter.create(path, UID, 7, durability)
    ends = [writer.bytes]
    for call in calls:
        writer.append(call)
        ends.append(writer.bytes)
    writer.close()
    assert ends[-1] == path.stat().st_size
    return ends


def assert_equal(found, expected):
    found = list(found)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("block", "sectors", "frames_present", "frames_rejected", "raw_bytes"):
            assert getattr(one, name) == getattr(other, name)
        assert (one.events.centroids is None) == (other.events.centroids is None)
        for here, there in zip(arrays_of(one.events, one.sums), arrays_of(other.events, other.sums), strict=True):
            assert (here.dtype, here.shape) == (there.dtype, there.shape)
            assert here.flags.aligned
            np.testing.assert_array_equal(here, there)
        assert one.checksum() == other.checksum()


@IN_TMP_PATH
@given(calls=st.lists(st.lists(blocks(), max_size=4), max_size=4), durability=st.sampled_from(Durability))
def test_what_was_appended_comes_back(tmp_path, calls, durability):
    path = tmp_path / "some" / "folders" / "rank-0.journal"
    ends = write(path, calls, durability)
    every = [block for call in calls for block in call]
    assert_equal(read_journal(path), every)
    examined = examine_journal(path, scan_uid=UID)
    assert examined.bytes == ends[-1]
    assert examined.blocks == [block.block for block in every]
    assert examined.totals == {
        "frames": sum(len(block.events) for block in every),
        "electrons": sum(len(block.events.indices) for block in every),
        "raw_bytes": sum(block.raw_bytes for block in every),
        "frames_incomplete": sum(int((block.events.missing_sectors != 0).sum()) for block in every),
        "sectors_rejected": sum(block.records_rejected for block in every),
        "torn_bytes": 0,
    }
    for index, end in enumerate(ends):
        assert_equal(read_journal(path, end), [block for call in calls[:index] for block in call])


def test_truncated_at_every_byte(tmp_path):
    path = tmp_path / "rank.journal"
    calls = [[make_block(1, 2)], [make_block(2, 0)], [make_block(3, 2, centroids=True)]]
    ends = write(path, calls)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        good = max([end for end in ends if end <= size], default=0)
        kept = ends.index(good) if good else 0
        examined = examine_journal(path)
        assert (examined.bytes, len(examined.blocks)) == (good, kept)
        assert examined.totals["torn_bytes"] == size - good
        assert_equal(read_journal(path), [block for call in calls[:kept] for block in call])
        if good:
            assert_equal(read_journal(path, good), [block for call in calls[:kept] for block in call])
        with pytest.raises(StorageError, match="damaged at byte 0: it has"):
            list(read_journal(path, size + 1))
        # a limit that no append left
        if size and size not in ends:
            with pytest.raises(StorageError, match="damaged at byte"):
                list(read_journal(path, size))


@IN_TMP_PATH
@given(data=st.data())
def test_a_flipped_bit_ends_the_journal_there(tmp_path, data):
    path = tmp_path / "rank.journal"
    calls = [[make_block(1, 2)], [make_block(2, 3)], [make_block(3, 1, centroids=True)]]
    ends = write(path, calls)
    whole = bytearray(path.read_bytes())
    byte = data.draw(st.integers(0, len(whole) - 1))
    whole[byte] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    good = max([end for end in ends if end <= byte], default=0)
    kept = ends.index(good) if good else 0
    examined = examine_journal(path)
    assert (examined.bytes, len(examined.blocks)) == (good, kept)
    assert_equal(read_journal(path), [block for call in calls[:kept] for block in call])
    with pytest.raises(StorageError, match=f"damaged at byte {good}") as caught:
        list(read_journal(path, ends[-1]))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(4, 2**32 - 1, id="length"),
        pytest.param(88, 2**32 - 1, id="events"),
        pytest.param(96, 64, id="frames"),
        pytest.param(96, 2**32 - 1, id="very many frames"),
    ],
)
def test_absurd_sizes_allocate_nothing(tmp_path, offset, value, monkeypatch):
    """Even with a checksum that is right."""
    path = tmp_path / "rank.journal"
    write(path, [[make_block(1, 2)]])
    whole = bytearray(path.read_bytes())
    whole[FILE_HEAD_BYTES + offset : FILE_HEAD_BYTES + offset + 4] = value.to_bytes(4, "little")
    head, payload = whole[FILE_HEAD_BYTES : FILE_HEAD_BYTES + HEAD_BYTES], whole[FILE_HEAD_BYTES + HEAD_BYTES :]
    crc = zlib.crc32(payload, zlib.crc32(head[:-4]))
    whole[FILE_HEAD_BYTES + HEAD_BYTES - 4 : FILE_HEAD_BYTES + HEAD_BYTES] = crc.to_bytes(4, "little")
    path.write_bytes(whole)
    monkeypatch.setattr(np, "ndarray", None)
    assert examine_journal(path).bytes == FILE_HEAD_BYTES


def test_the_bytes_are_as_documented(tmp_path):
    path = tmp_path / "rank.journal"
    block = make_block(4, 2, centroids=True, annuli=1)
    write(path, [[block]])
    content = path.read_bytes()
    head = content[:40]
    assert head == b"MPISJRNL" + (1).to_bytes(4, "little") + UID.bytes + (7).to_bytes(8, "little") + head[36:]
    assert int.from_bytes(head[36:], "little") == zlib.crc32(head[:36])
    record = content[40:]
    events, sums = block.events, block.sums
    fields = [(len(record), 4), (5, 8), *[(bits, 8) for bits in (*block.frames_present, *block.frames_rejected)]]
    fields += [(block.raw_bytes, 8), (len(events.indices), 8), (2, 4), (1, 2), (0b1011, 1), (1, 1)]
    assert record[:104] == MAGIC + b"".join(value.to_bytes(size, "little") for value, size in fields)
    arrays = (events.scan_position, events.frame_number, events.missing_sectors, events.counts)
    arrays += (sums.moments, sums.annuli, events.indices, events.centroids)
    payload = b"".join(array.tobytes() for array in arrays)
    assert record[108:] == payload
    assert int.from_bytes(record[104:108], "little") == zlib.crc32(record[:104] + payload)


def test_arrays_that_are_not_contiguous_or_do_not_fit(tmp_path):
    block, other = make_block(1, 4), make_block(2, 5)
    events = block.events
    odd = ElectronEvents(
        np.repeat(events.scan_position, 2)[::2],
        events.frame_number,
        events.missing_sectors,
        events.offsets,
        np.repeat(events.indices, 3)[::3],
    )
    changed = CountedBlock(
        5, block.sectors, block.frames_present, block.frames_rejected, block.raw_bytes, odd, block.sums
    )
    write(tmp_path / "rank.journal", [[changed]])
    assert_equal(read_journal(tmp_path / "rank.journal"), [block])
    torn = CountedBlock(5, 15, (0,) * 4, (0,) * 4, 0, block.events, other.sums)
    writer = JournalWriter.create(tmp_path / "other.journal", UID, 7, Durability.WRITE)
    with pytest.raises(ValueError, match="block 5 do not fit"):
        writer.append([block, torn])
    writer.append([block])
    assert_equal(read_journal(writer.path, writer.bytes), [block])


def test_more_buffers_than_one_call_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "_IOV_MAX", 3)
    every = [make_block(seed, 2, centroids=True, block=seed) for seed in range(10)]
    write(tmp_path / "rank.journal", [every])
    assert_equal(read_journal(tmp_path / "rank.journal"), every)


def test_missing_and_foreign_files(tmp_path):
    path = tmp_path / "rank.journal"
    assert (examine_journal(path).bytes, examine_journal(path).blocks) == (0, [])
    assert list(read_journal(path)) == list(read_journal(path, 0)) == []
    with pytest.raises(StorageError, match="is not there") as caught:
        list(read_journal(path, 40))
    assert caught.value.remedy
    path.write_bytes(b"no journal" * 100)
    assert examine_journal(path).bytes == 0
    assert list(read_journal(path)) == []
    with pytest.raises(StorageError, match="does not begin as a journal"):
        list(read_journal(path, 500))
    for read in (lambda: list(read_journal(tmp_path)), lambda: examine_journal(tmp_path)):
        with pytest.raises(StorageError, match="cannot be read"):
            read()


def test_another_scan_and_another_version(tmp_path):
    path = tmp_path / "rank.journal"
    ends = write(path, [[make_block()]])
    other = UUID(int=1)
    for read in (
        lambda: list(read_journal(path, ends[-1], scan_uid=other)),
        lambda: examine_journal(path, scan_uid=other),
    ):
        with pytest.raises(StorageError, match=f"is of scan {UID}, not of {other}"):
            read()
    content = bytearray(path.read_bytes())
    content[8] = 2
    content[36:40] = zlib.crc32(content[:36]).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(StorageError, match="version 2; this release reads 1") as caught:
        examine_journal(path)
    assert "same mpistream release" in caught.value.remedy
