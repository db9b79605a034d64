import pytest

from mpistream.storage.verify import verify_dataset
from tests.system.datasets import same_bytes

PROGRAM = "tests.mpi.program_count_files"


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    from tests.mpi.launcher import run_mpi

    path = tmp_path_factory.mktemp("count") / "one.h5"
    run_mpi(1, PROGRAM, "sim:5x6?loss=0.05&first_frame=7&electrons=200", path)
    return path


def test_as_many_ranks_as_you_like(ranks, one_rank, tmp_path, run_mpi):
    path = tmp_path / "scan.h5"
    assert "counted 30" in run_mpi(ranks, PROGRAM, "sim:5x6?loss=0.05&first_frame=7&electrons=200", path)
    assert same_bytes(path, one_rank)
    assert verify_dataset(path).findings == ()


def test_more_ranks_than_blocks(tmp_path, run_mpi):
    assert "counted 6" in run_mpi(4, PROGRAM, "sim:2x3", tmp_path / "scan.h5")
    assert verify_dataset(tmp_path / "scan.h5").findings == ()


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_cannot_read_ends_the_job(tmp_path, run_mpi, failing):
    with pytest.raises(AssertionError, match="the disk does not answer"):
        run_mpi(3, PROGRAM, "sim:20x20", tmp_path / "scan.h5", failing, "fail", seconds=60)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_never_opens_its_files_ends_the_job(tmp_path, run_mpi):
    with pytest.raises(AssertionError, match="opening the source has taken longer than 5 s"):
        run_mpi(2, PROGRAM, "sim:4x4", tmp_path / "scan.h5", 1, "open", seconds=55)


def test_a_rank_that_stalls_ends_the_job(tmp_path, run_mpi):
    with pytest.raises(AssertionError, match="nothing was counted for 5 s, and rank 1 has not finished"):
        run_mpi(2, PROGRAM, "sim:16x16?electrons=20", tmp_path / "scan.h5", 1, "stall", seconds=55)
    assert list(tmp_path.iterdir()) == []
