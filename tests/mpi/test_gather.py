def test_gathered_slabs_are_the_sorted_scan(ranks, run_mpi):
    assert "gathered" in run_mpi(ranks, "tests.mpi.program_gather", 10 * ranks)
