"""Every module has a folder of its own; when it is done, no process that it started may be left."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.command_line import CommandLine, nothing_is_left

TIDYING_SECONDS = 10  # journals go once the scan is committed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("system")
    with nothing_is_left(str(folder)):
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cli(place: Path) -> CommandLine:
    return CommandLine(place)


@pytest.fixture(scope="module")
def testbed(cli: CommandLine) -> Iterator[CommandLine]:
    """A testbed of 2 groups of 2 ranks that all tests of a module share."""
    cli.run("testbed", "up").succeeded()
    yield cli
    cli.run("testbed", "down").succeeded()


@pytest.fixture
def output(place: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where a test lets its dataset be written; nothing beside it may remain."""
    folder = place / "output"
    folder.mkdir()
    yield folder / "scan.h5"
    deadline = time.monotonic() + TIDYING_SECONDS
    while (left := unfinished_files(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    shutil.rmtree(folder)
    assert not left, f"unfinished files are left: {left}"


@pytest.fixture
def no_process_is_left(cli: CommandLine) -> Iterator[None]:
    """Beside those of the module's testbed."""
    running = cli.processes()
    yield
    with nothing_is_left(str(cli.folder), spared=running):
        pass


def unfinished_files(folder: Path) -> list[str]:
    """Partial datasets, and journals."""
    return [path.name for path in folder.iterdir() if ".partial" in path.name or ".journal" in path.name]
