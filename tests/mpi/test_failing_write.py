import os
import subprocess

import pytest


@pytest.fixture
def mount(tmp_path):
    """Mounts a tmpfs with the options given; ``-`` where this user may not."""
    mounted = []

    def mount_tmpfs(name, options):
        folder = tmp_path / name
        folder.mkdir()
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
            return "-"
        mounted.append(folder)
        return folder

    yield mount_tmpfs
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_failing_writes_raise_alike_and_leave_nothing(ranks, tmp_path, run_mpi, mount):
    unwritable = mount("unwritable", "ro,size=64m")
    if unwritable == "-":
        unwritable = tmp_path / "unwritable"
        unwritable.chmod(0o555)
    small = mount("small", "size=16m")
    work = tmp_path / "work"
    work.mkdir()
    output = run_mpi(ranks, "tests.mpi.program_failing_write", work, unwritable, small)
    assert "failed as they should" in output
