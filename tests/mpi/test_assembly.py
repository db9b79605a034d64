def test_a_scan_is_assembled_from_memories_and_journals(ranks, tmp_path, run_mpi):
    assert "assembled" in run_mpi(ranks, "tests.mpi.program_assembly", tmp_path, 20 + ranks, seconds=240)
