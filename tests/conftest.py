"""What holds for all tests."""

import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

# Tests are not timed: machines are shared, and several tests run at once.
settings.register_profile("mpistream", deadline=None)
settings.load_profile("mpistream")

# Tests send Ctrl-C, which a shell has everything ignore that it runs in the background, and what that starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadFileScheduling":
    """Where tests run in several processes, a file's tests stay together, as do all that share the one Slurm."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)

    return Scheduling(config, log)
