import numpy as np
import pytest
from mpistream._ext.event_scatter import copy_rows


def copied(source_begin, target_begin, counts, target_events=10, dtype=np.uint32):
    source, target = np.arange(100, 110, dtype=dtype), np.zeros(target_events, dtype)
    begins = np.array(source_begin, np.uint64), np.array(target_begin, np.uint64)
    copy_rows(source, begins[0], target, begins[1], np.array(counts, np.uint32))
    return target.tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_rows_go_where_they_belong(dtype):
    assert copied([4, 0, 10], [0, 7, 10], [2, 3, 0], dtype=dtype) == [104, 105, 0, 0, 0, 0, 0, 100, 101, 102]
    assert copied([], [], [], dtype=dtype) == [0] * 10
    assert copied([0], [0], [0], target_events=0, dtype=dtype) == []


@pytest.mark.parametrize(
    ("source_begin", "target_begin", "count"),
    [(9, 0, 2), (0, 9, 2), (11, 0, 0), (0, 11, 0), (2**64 - 1, 0, 2), (0, 2**64 - 1, 2), (0, 0, 2**32 - 1)],
)
def test_rows_outside_are_refused(source_begin, target_begin, count):
    with pytest.raises(IndexError, match="beyond the 10 source or 10 target events"):
        copied([0, source_begin], [0, target_begin], [1, count])


def test_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="2 counts for 1 and 2 beginnings"):
        copied([0], [0, 1], [1, 1])


def test_other_types_of_values_are_refused():
    ends, counts = np.zeros(1, np.uint64), np.ones(1, np.uint32)
    with pytest.raises(ValueError, match="mismatch"):
        copy_rows(np.zeros(1, np.uint32), ends, np.zeros(1, np.uint16), ends, counts)
    with pytest.raises(TypeError):
        copy_rows(np.zeros(1, np.int8), ends, np.zeros(1, np.int8), ends, counts)
