"""What is added up of each frame while a scan is counted, and what becomes of it at the scan positions."""

import numpy as np
import pytest

from mpistream.model.frame_sums import FrameSums
from mpistream.model.virtual_images import sum_over_positions


def made_up(frames: int, annuli: int, first: int = 0) -> FrameSums:
    moments = np.arange(first, first + 2 * frames, dtype=np.uint32).reshape(frames, 2)
    return FrameSums(moments, np.full((frames, annuli), first, np.uint32))


@pytest.mark.parametrize("annuli", [0, 2])
def test_blocks_of_frames_follow_one_another(annuli: int) -> None:
    parts = [made_up(3, annuli), made_up(0, annuli), made_up(1, annuli, 2**32 - 2)]
    whole = FrameSums.concatenate(parts, annuli)
    assert len(whole) == 4
    assert whole.moments.tolist() == [[0, 1], [2, 3], [4, 5], [2**32 - 2, 2**32 - 1]]
    assert whole.annuli.tolist() == [[0] * annuli] * 3 + [[2**32 - 2] * annuli]
    assert whole.moments.dtype == whole.annuli.dtype == np.uint32


def test_without_frames_the_number_of_annuli_is_still_known() -> None:
    nothing = FrameSums.concatenate([], 2)
    assert (len(nothing), nothing.moments.shape, nothing.annuli.shape) == (0, (0, 2), (0, 2))
    with pytest.raises(ValueError, match="dimension"):
        FrameSums.concatenate([made_up(1, 1)], 2)


def test_sums_of_other_frames_are_refused() -> None:
    made_up(3, 2).validate(3)
    with pytest.raises(ValueError, match="4 frames with moments of 3, annuli of 3 frames"):
        made_up(3, 2).validate(4)
    with pytest.raises(ValueError, match="3 frames with moments of 3, annuli of 0 frames"):
        FrameSums(made_up(3, 2).moments, made_up(0, 2).annuli).validate(3)


def test_frames_of_one_position_add_up_beyond_32_bits() -> None:
    largest = np.full(3, 2**32 - 1, np.uint32)
    assert sum_over_positions(np.array([1, 1, 1], np.uint32), largest, 3).tolist() == [0, 3 * (2**32 - 1), 0]
    assert sum_over_positions(np.array([], np.uint32), largest[:0], 2).tolist() == [0, 0]
    with pytest.raises(IndexError):
        sum_over_positions(np.array([3], np.uint32), largest[:1], 3)
