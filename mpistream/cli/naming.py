"""What `mpistream dark` and `mpistream calibrate` leave, under a name that scans of a running deployment use."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from mpistream.cli.deployments import RunningDeployment, running_deployment
from mpistream.cli.options import Command
from mpistream.launch.references import reference_path, store_reference
from mpistream.launch.sessions import find_session
from mpistream.model.errors import ConfigError
from mpistream.model.session import ReferenceKind, check_name


def naming_options(command: Command) -> Command:
    for option in (
        click.option(
            "--session", default="", metavar="SESSION", help="With --name: write to this session's folder, too."
        ),
        click.option(
            "--name", metavar="NAME", help="Let scans of the running deployment use what is written: as ref:NAME."
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Naming:
    """The name that is given to files, and the session that they belong to, if any."""

    running: RunningDeployment
    name: str
    session: str

    def path(self, kind: ReferenceKind) -> Path:
        """A file for it in the session's folder. Raises ConfigError where there is no session."""
        if not self.session:
            raise ConfigError("there is no file to be named", "give --output; or --session, whose folder then has it")
        return reference_path(self.running.sessions, kind, self.name, self.session)

    def store(self, files: Mapping[ReferenceKind, Path], about: Mapping[str, str | int | float]) -> None:
        for kind, path in files.items():
            store_reference(self.running.sessions, kind, self.name, path, self.session, about)


@contextmanager
def named_references(
    name: str | None, session: str, folder: Path | None, config: Path | None
) -> Iterator[Naming | None]:
    """None without a name. What is wrong with the names is found before any work is done. Raises ConfigError."""
    if name is None:
        if session:
            raise ConfigError("--session is where a reference with a name goes", "give --name, too; or --output alone")
        yield None
        return
    check_name("a reference", name)
    with running_deployment(folder, config) as running:
        if session:
            find_session(running.sessions, session)
        yield Naming(running, name, session)
