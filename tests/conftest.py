"""What holds for all tests."""

from hypothesis import settings

# Tests are not timed: machines are shared, and several tests run at once.
settings.register_profile("mpistream", deadline=None)
settings.load_profile("mpistream")
