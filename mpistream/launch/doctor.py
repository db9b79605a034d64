"""Checks an installation by using it: each part does for a moment what a scan will ask of it.

Whatever may hang, crash or be missing runs in a process of its own with a deadline; this one never loads MPI.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpistream.launch.local import MPI_ENVIRONMENT, etcd_command, free_port, mpiexec
from mpistream.launch.processes import last_words, start_child
from mpistream.model.errors import MpistreamError

if TYPE_CHECKING:
    from mpistream.model.config import Config

_OLDEST_PYTHON = (3, 11)
_SECONDS = 30.0
_ETCD_SECONDS = 15.0
_LEAST_FILES = 1024
_LEAST_SHARED_MEMORY = 64 * 10**6
_LEAST_TEMPORARY = 10**9
_LEAST_MEMORY = 2 * 10**9

_SETUP = "run `make setup` again"

_COUNT = """
import numpy
from mpistream.reduction.electron_counting import count_electrons, simd_levels
frame = numpy.zeros((1, 5, 5), numpy.uint16)
frame[0, 2, 2] = 100
for simd in simd_levels():
    indices, _ = count_electrons(frame, background=10, xray=1000, simd=simd)
    assert indices.tolist() == [12], f"counted {indices} in a frame with one electron, with {simd}"
print(", ".join(simd_levels()))
"""

_WORLD = """
import json
from mpi4py import MPI
library = MPI.Get_library_version().split(",")[0].splitlines()[0].strip("\\0 ")
if MPI.COMM_WORLD.rank == 0:
    print(json.dumps({"size": MPI.COMM_WORLD.size, "library": library}), flush=True)
"""

_WRITE = """
import json, sys
import h5py
from mpi4py import MPI
comm, parallel = MPI.COMM_WORLD, h5py.get_config().mpi
if parallel:
    with h5py.File(sys.argv[1], "w", driver="mpio", comm=comm) as file:
        numbers = file.create_dataset("numbers", (comm.size,), "i4")
        with numbers.collective:
            numbers[comm.rank] = comm.rank + 1
    with h5py.File(sys.argv[1], "r") as file:
        assert file["numbers"][:].tolist() == [1, 2], "the file does not hold what was written"
if comm.rank == 0:
    print(json.dumps({"parallel": parallel, "version": h5py.version.hdf5_version}), flush=True)
"""

_SEND = """
import json, sys
import zmq
from mpistream.transport.sockets import Sockets
sockets = Sockets()
inlet = sockets.data_inlet(sys.argv[1])
outlet = sockets.data_outlet(inlet.endpoint)
outlet.send(b"header", b"payload")
assert sockets.wait(10), "a message to this machine itself did not arrive"
assert [(header, bytes(payload)) for header, payload in inlet.receive()] == [(b"header", b"payload")]
sockets.close()
print(json.dumps({"version": zmq.zmq_version(), "endpoint": inlet.endpoint}))
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``remedy`` says how to mend what is not ok. Only a necessary part can fail a scan."""

    name: str
    ok: bool
    necessary: bool
    detail: str
    remedy: str


@dataclass(frozen=True)
class _Check:
    """``look`` returns what is worth knowing, or raises; its own remedy goes before the general one."""

    name: str
    look: Callable[[], str]
    remedy: str
    necessary: bool = True

    def find(self) -> Finding:
        try:
            return Finding(self.name, True, self.necessary, self.look(), "")
        except MpistreamError as error:
            return Finding(self.name, False, self.necessary, error.message, error.remedy or self.remedy)
        except Exception as error:  # a missing or broken package fails in its own way
            return Finding(self.name, False, self.necessary, f"{type(error).__name__}: {error}", self.remedy)


def examine(config_path: Path | None = None) -> Iterator[Finding]:
    """Every check's finding, as soon as it is known."""
    yield _Check("Python", _python_version, "install Python 3.11 or newer, then " + _SETUP).find()
    yield _Check("extension", _extension, f"{_SETUP}; it compiles the extension").find()
    mpi = _Check("MPI", _mpi, "install OpenMPI (apt-get install openmpi-bin libopenmpi-dev), then " + _SETUP).find()
    yield mpi
    if mpi.ok:
        yield _Check("parallel HDF5", _parallel_hdf5, f"{_SETUP}; it compiles h5py with HDF5_MPI=ON", False).find()
    else:
        yield Finding("parallel HDF5", False, False, "not tried without MPI", "mend MPI first")
    local = config_path is None
    yield _Check("etcd", _etcd_server, "apt-get install etcd-server", necessary=local).find()
    yield _Check("etcdctl", _etcdctl, "apt-get install etcd-client; it shows people what etcd holds", False).find()
    config: Config | None = None
    if config_path is not None:
        loaded: list[Config] = []
        yield _Check("configuration", partial(_configuration, config_path, loaded), "mend the file").find()
        if loaded:
            yield _Check("configured etcd", partial(_configured_etcd, loaded[0]), "start etcd there").find()
            for name, folder in _configured_folders(loaded[0]).items():
                yield _Check(name, partial(_writable_folder, Path(folder)), "make it, or name another one").find()
            config = loaded[0]
    yield _Check("ZeroMQ", partial(_zeromq, config), f"check [network] host and the firewall, or {_SETUP}").find()
    yield _Check("open files", _open_files, "raise the limit: ulimit -n 4096", False).find()
    yield _Check("shared memory", _shared_memory, "enlarge /dev/shm (a container: --shm-size=1g)", False).find()
    yield _Check("temporary folder", _temporary_folder, "set TMPDIR to a folder with more room").find()
    yield _Check("memory", _memory, "end other programs, or use a larger machine", False).find()
    yield _Check("cores", _cores, "use a machine with more cores", False).find()


def _python_version() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _OLDEST_PYTHON:
        raise MpistreamError(f"version {version} is too old")
    return f"{version}, {sys.executable}"


def _extension() -> str:
    best, *others = _run([sys.executable, "-c", _COUNT]).splitlines()[-1].split(", ")
    return f"counts electrons with {best} instructions" + (f" ({', '.join(others)} as well)" if others else "")


def _mpi() -> str:
    launcher, output = _run_mpi(_WORLD)
    world = _result(output)
    if world["size"] != 2:
        raise MpistreamError(
            f"mpi4py loads {world['library']}, which {launcher} does not belong to: "
            f"2 ranks started, each sees a world of {world['size']}",
            "put that MPI's own mpiexec first in PATH, or build mpi4py anew for this one: "
            "MPICC=mpicc pip install --force-reinstall --no-binary=mpi4py mpi4py",
        )
    return f"mpi4py loads {world['library']}; {launcher} started 2 ranks in one world"


def _parallel_hdf5() -> str:
    with tempfile.TemporaryDirectory(prefix="mpistream-doctor-") as folder:
        _, output = _run_mpi(_WRITE, str(Path(folder) / "numbers.h5"))
    result = _result(output)
    if not result["parallel"]:
        raise MpistreamError(f"h5py uses HDF5 {result['version']} without MPI: one rank will write for all")
    return f"2 ranks wrote a file together, HDF5 {result['version']}"


def _etcd_server() -> str:
    """Starts an etcd of its own, writes and reads."""
    from importlib.metadata import version

    from mpistream.control.coordination import Coordination
    from mpistream.model.errors import CoordinationError

    server = _run(["etcd", "--version"]).splitlines()[0].rpartition(" ")[2]
    client_port, peer_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="mpistream-doctor-") as folder:
        command = etcd_command(Path(folder) / "data", client_port, peer_port)
        child = start_child("etcd", "etcd", command, Path(folder) / "log")
        try:
            with Coordination([f"127.0.0.1:{client_port}"], "/doctor/", timeout_seconds=2.0) as coordination:
                deadline = time.monotonic() + _ETCD_SECONDS
                while True:
                    child.check_running()
                    try:
                        coordination.put("key", {"number": 1})
                        break
                    except CoordinationError:
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.1)
                if coordination.get("key") != {"number": 1}:
                    raise MpistreamError("etcd does not return what was written to it")
        finally:
            child.ask_to_end()
            child.end(patience_seconds=5.0)
    return f"version {server}; started, written and read with etcd3 {version('etcd3')}"


def _etcdctl() -> str:
    return "version " + _run(["etcdctl", "version"], {"ETCDCTL_API": "3"}).splitlines()[0].rpartition(" ")[2]


def _configuration(path: Path, loaded: "list[Config]") -> str:
    from mpistream.model.config import Config

    loaded.append(Config.load(path))
    return f"{path} is valid; deployment {loaded[0].deployment}"


def _configured_etcd(config: "Config") -> str:
    from mpistream.control.coordination import Coordination

    etcd = config.etcd
    with Coordination(etcd.endpoints, config.etcd_prefix, etcd.timeout_seconds) as coordination:
        return f"version {coordination.check()} answers at {', '.join(etcd.endpoints)}"


def _configured_folders(config: "Config") -> dict[str, str]:
    folders = {"journals": config.journal.directory, "spill": config.stream.spill_directory}
    return {name: folder for name, folder in folders.items() if folder}


def _writable_folder(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise MpistreamError(f"cannot write to {folder}: {error.strerror or error}") from error
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free in {folder}"


def _zeromq(config: "Config | None") -> str:
    from mpistream.transport.interface import own_address

    address = own_address(config.network) if config else "127.0.0.1"
    result = _result(_run([sys.executable, "-c", _SEND, address]))
    return f"version {result['version']}; sent and received at {result['endpoint']}"


def _open_files() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _LEAST_FILES:
        raise MpistreamError(f"a process may open {limit} files and sockets; a rank of a large job needs more")
    return "without limit" if limit == resource.RLIM_INFINITY else f"{limit} in a process"


def _shared_memory() -> str:
    return _free_space(Path("/dev/shm"), _LEAST_SHARED_MEMORY)


def _temporary_folder() -> str:
    with tempfile.TemporaryFile() as probe:
        probe.write(b"probe")
    return _free_space(Path(tempfile.gettempdir()), _LEAST_TEMPORARY)


def _free_space(folder: Path, least: int) -> str:
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    if free < least:
        raise MpistreamError(f"{text}; {least / 1e9:g} GB are wanted")
    return text


def _memory() -> str:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    text = f"{available / 1e9:.1f} GB available"
    if available < _LEAST_MEMORY:
        raise MpistreamError(f"{text}; {_LEAST_MEMORY / 1e9:g} GB are wanted")
    return text


def _cores() -> str:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise MpistreamError("only 1: every process of a testbed has to share it")
    return str(cores)


def _run_mpi(code: str, *arguments: str) -> tuple[str, str]:
    """The launcher's name, and what 2 ranks of a Python program printed."""
    launcher = mpiexec()
    # mpi4py's runner ends both ranks when one fails; the other would wait for it.
    command = [launcher, "-n", "2", sys.executable, "-m", "mpi4py", "-c", code, *arguments]
    return launcher, _run(command, MPI_ENVIRONMENT)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a program printed. Raises MpistreamError when it is missing, fails, or does not end in time."""
    if shutil.which(command[0]) is None:
        raise MpistreamError(f"{command[0]} is not installed, or not in PATH")
    with tempfile.TemporaryDirectory(prefix="mpistream-doctor-") as folder:
        log = Path(folder) / "log"
        child = start_child("probe", command[0], command, log, environment)
        try:
            status = child.popen.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise MpistreamError(f"{Path(command[0]).name} did not end within {_SECONDS:g} s") from None
        finally:
            child.ask_to_end()
            child.end(patience_seconds=5.0)
        output = log.read_text(errors="replace")
        if status:
            raise MpistreamError(_complaint(output) or f"{Path(command[0]).name}: {last_words(log)}")
        return output


def _complaint(output: str) -> str | None:
    """The last line of the last Python traceback in ``output``: launchers print much more behind it."""
    found = re.findall(r"^[\w.]+(?:Error|Exception|Warning): .*$", output, re.MULTILINE)
    return found[-1] if found else None


def _result(output: str) -> dict[str, Any]:
    """The JSON object that a probe printed, maybe between others' warnings."""
    for line in output.splitlines():
        if line.startswith("{"):
            result: dict[str, Any] = json.loads(line)
            return result
    raise MpistreamError(f"an unexpected answer: {output.strip()[-200:] or 'none'}")
