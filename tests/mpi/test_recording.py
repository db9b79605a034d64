import tempfile
from pathlib import Path


def test_recordings_of_several_ranks_and_jobs(ranks, tmp_path, run_mpi):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert Path(elsewhere).stat().st_dev != tmp_path.stat().st_dev
        output = run_mpi(ranks, "tests.mpi.program_recording", tmp_path, 7 + ranks, elsewhere, seconds=240)
    assert "recorded" in output
