"""What a batch job runs besides its MPI job: the camera's side, where it brings that along, and an etcd of its own."""

import os
import socket
import sys
import time
from pathlib import Path

from mpistream.control.coordination import Coordination
from mpistream.launch.local import etcd_command, free_port
from mpistream.launch.processes import last_words
from mpistream.launch.supervision import Program, SupervisedProgram
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, CoordinationError, ScanFailed
from mpistream.model.geometry import SECTORS
from mpistream.transport.interface import own_address

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_TURN_SECONDS = 0.05

_NAME_INTERFACE = (
    "name the interface between the nodes: job run --interface NAME, or [launcher] interface in the site profile"
)


class Services:
    """Processes on this machine that are started again whenever they end. Their logs lie in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: list[SupervisedProgram] = []

    def start_etcd(self, host: str) -> str:
        """An etcd of one member, whose data go with the job; its endpoint, once it answers."""
        port = free_port()
        command = etcd_command(self._folder / "etcd", port, free_port(), host)
        self._start("etcd", "etcd", command)
        endpoint, deadline = f"{host}:{port}", time.monotonic() + _START_SECONDS
        while not _answers(endpoint):
            self.turn()
            if time.monotonic() > deadline:
                words = last_words(self._folder / "etcd.log")
                raise ScanFailed(f"etcd does not answer within {_START_SECONDS:g} s: {words}", "see its last words")
            time.sleep(_TURN_SECONDS)
        return endpoint

    def start_camera(self, config: Path, host: str) -> None:
        """Four producers and an aggregator."""
        mpistream = [sys.executable, "-m", "mpistream"]
        for sector in range(SECTORS):
            command = [*mpistream, "produce", "--config", str(config), "--sector", str(sector)]
            self._start("producer", f"producer-{sector}", command)
        self._start("aggregator", "aggregator", [*mpistream, "aggregate", "--config", str(config), "--host", host])

    def _start(self, role: str, name: str, command: list[str]) -> None:
        program = Program(role, name, tuple(command), self._folder / f"{name}.log", {})
        self._programs.append(SupervisedProgram(program))

    def turn(self) -> list[str]:
        """What has happened. Raises ScanFailed for a process that cannot live."""
        return [news for program in self._programs if (news := program.turn())]

    def close(self) -> None:
        """By request, then by force; etcd, which was started first, at last."""
        for program in self._programs[::-1]:
            if program.child.role != "etcd":
                program.child.ask_to_end()
        deadline = time.monotonic() + _STOP_SECONDS
        for program in self._programs[::-1]:
            program.child.ask_to_end()
            program.child.end(max(1.0, deadline - time.monotonic()))
        self._programs.clear()


def _answers(endpoint: str) -> bool:
    coordination = Coordination([endpoint], "/", timeout_seconds=1.0)
    try:
        coordination.check()
    except CoordinationError:
        return False
    finally:
        coordination.close()
    return True


def own_host(config: Config, nodes: int) -> str:
    """An address of this machine at which the other ones of the job's ``nodes`` reach it. Raises ConfigError."""
    if config.network.interface is not None or "SLURM_JOB_ID" not in os.environ:
        host = own_address(config.network)
    else:
        try:
            host = socket.gethostbyname(socket.gethostname())  # [network] host is another machine's
        except OSError as error:
            raise ConfigError(f"the address of this node is not known: {error}", _NAME_INTERFACE) from error
    if nodes > 1 and host.startswith("127."):
        raise ConfigError(
            f"the address of {socket.gethostname()} is {host}, which the other nodes do not reach", _NAME_INTERFACE
        )
    return host


def with_configuration(command: tuple[str, ...], given: Path, own: Path) -> tuple[str, ...]:
    """The MPI job's command with another configuration file. Raises ConfigError where it does not name ``given``.

    Only where it is a whole word, or an option's whole value: the program itself may lie in a folder of that name.
    """
    changed = tuple(_with_value(word, given, own) for word in command)
    if changed == command:
        raise ConfigError(
            f"the command behind -- does not name the configuration {given}",
            f"for instance: -- srun mpistream consume --config {given}",
        )
    return changed


def _with_value(word: str, given: Path, own: Path) -> str:
    option, equals, value = word.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={own}" if Path(value) == given else word
    return str(own) if Path(word) == given else word
