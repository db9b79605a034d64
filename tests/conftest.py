"""What holds for all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

SLURM = Path(__file__).parent / "slurm"

# Tests are not timed: machines are shared, and several tests run at once.
settings.register_profile("mpistream", deadline=None)
settings.load_profile("mpistream")


@pytest.hookimpl(tryfirst=True)  # the plugin reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` a file's tests stay together, as do all that share the one Slurm."""
    for item in items:
        name = "slurm" if SLURM in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(name))
