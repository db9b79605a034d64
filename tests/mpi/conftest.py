import pytest

from tests.mpi import launcher

RANKS = (1, 2, 3, 4)


@pytest.fixture(params=RANKS, ids=lambda ranks: f"{ranks}-ranks")
def ranks(request):
    return request.param


@pytest.fixture
def run_mpi():
    return launcher.run_mpi
