"""The camera's wire format, and what its first messages tell of a scan."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.acquisition.camera_range import FirstFrame
from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import SECTOR_BYTES

EARLIER = [7, 1000, 9, 8, 3, 2, 5, 1]
LATER = [7, 1000, 400, 9, 8, 3, 2, 5, 1]
U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def test_both_versions_are_understood() -> None:
    earlier, later = (CameraHeader.unpack(msgpack.packb(array)) for array in (EARLIER, LATER))
    assert earlier == CameraHeader(7, 1000, columns=9, rows=8, x=3, y=2, thread_id=5, module=1)
    assert later == earlier._replace(frames_this_thread=400)
    assert earlier.position == 2 * 9 + 3
    assert earlier.scan_shape == (8, 9)
    assert earlier.record_header() == bytes([7, 0, 0, 0, 0xE8, 3, 0, 0, 9, 0, 8, 0, 3, 0, 2, 0])
    assert [msgpack.unpackb(header.pack()) for header in (earlier, later)] == [EARLIER, LATER]


@given(st.builds(CameraHeader, U32, U32, U16, U16, U16, U16, U16, U16, st.none() | U32))
def test_what_is_packed_is_unpacked(header: CameraHeader) -> None:
    assert CameraHeader.unpack(header.pack()) == header


@given(st.binary(max_size=80))
def test_no_bytes_do_harm(packed: bytes) -> None:
    try:
        header = CameraHeader.unpack(packed)
    except ProtocolError:
        return
    assert all(type(field) is int and field >= 0 for field in header if field is not None)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([], "0 numbers"),
        (EARLIER[:7], "7 numbers"),
        ([*LATER, 1], "10 numbers"),
        ({"scan": 1}, "no array, but dict"),
        (5, "no array, but int"),
        ([*EARLIER[:7], 0x10000], "65536 in the header"),
        ([2**32, *EARLIER[1:]], "4294967296"),
        ([7, -1, *EARLIER[2:]], "-1 in the header"),
        ([7, True, *EARLIER[2:]], "True in the header"),
        ([7, 1000, "", *EARLIER[2:]], "'' in the header"),
        ([7, 1000, None, *EARLIER[2:]], "None in the header"),
        ([*EARLIER[:7], 1.0], "1.0 in the header"),
        (["x" * 100], "a header of"),
    ],
)
def test_what_is_no_header_is_refused(array: object, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        CameraHeader.unpack(msgpack.packb(array))


@pytest.mark.parametrize(
    ("changes", "payload_bytes", "words"),
    [
        ({"module": 2}, SECTOR_BYTES, "of module 2"),
        ({"module": 4}, SECTOR_BYTES, "of module 4"),
        ({"x": 9}, SECTOR_BYTES, "outside"),
        ({"y": 8}, SECTOR_BYTES, "outside"),
        ({"rows": 0, "y": 0}, SECTOR_BYTES, "outside"),
        ({"rows": 0xFFFF, "columns": 0xFFFF}, SECTOR_BYTES, "more than"),
        ({}, SECTOR_BYTES - 2, "165886 bytes"),
        ({}, 0, "0 bytes"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, int], payload_bytes: int, words: str) -> None:
    header = CameraHeader(7, 1000, columns=9, rows=8, x=3, y=2, thread_id=5, module=1)
    header.check(1, 1, SECTOR_BYTES)
    with pytest.raises(ProtocolError, match=words):
        header._replace(**changes).check(1, 1, payload_bytes)


def header_of(frame: int, position: int, columns: int = 10) -> CameraHeader:
    return CameraHeader(1, frame, columns, 10, position % columns, position // columns, 0, 0)


@given(st.integers(0, 10**9), st.integers(0, 99))
def test_with_one_frame_at_a_position_any_message_tells_the_first_frame(first: int, position: int) -> None:
    found = FirstFrame(1)
    found.narrow(header_of(first + position, position))
    assert (found.is_exact, found.number) == (True, first)


@given(st.integers(0, 1000), st.integers(1, 7), st.lists(st.integers(0, 100), min_size=1, max_size=40))
def test_with_several_the_first_frame_is_never_missed_by_a_position(
    first: int, frames_per_position: int, seen: list[int]
) -> None:
    found = FirstFrame(frames_per_position)
    for index in seen:
        found.narrow(header_of(first + index, index // frames_per_position))
    assert first <= found.number < first + frames_per_position
    if found.is_exact or {index % frames_per_position for index in seen} == set(range(frames_per_position)):
        assert (found.is_exact, found.number) == (True, first)
    if any(index % frames_per_position == 0 for index in seen):
        assert found.number == first


def test_numbers_that_do_not_follow_the_positions_are_not_below_0() -> None:
    found = FirstFrame(1)
    found.narrow(header_of(5, 60))
    assert (found.is_settled, found.number) == (True, 0)
