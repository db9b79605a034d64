"""Hosts on one machine: Linux namespaces with addresses of their own on one bridge. Needs root.

this machine   ADDRESS.1 ---- bridge, in a namespace of its own ---- eth0, ADDRESS.10   first host
                                                                ---- eth0, ADDRESS.11   second host ...

A process of ours stands in every namespace, and the kernel removes the namespace with all its links when the last
process there has ended. So nothing is left, however this process ends.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mpistream.launch.processes import Child, start_child
from mpistream.model.errors import MpistreamError

#: The network card of every host.
INTERFACE = "eth0"

_SUBNETS = range(1, 250)
_TOOLS = ("ip", "nsenter", "unshare", "setpriv")
_START_SECONDS = 10.0
_END_SECONDS = 20.0
_TURN_SECONDS = 0.01


def lacking(*tools: str) -> str:
    """Why there can be no such hosts here; "" where there can. ``tools`` are needed besides."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in (*_TOOLS, *tools) if shutil.which(tool) is None]
    return f"{', '.join(missing)} not installed: see `make setup`" if missing else ""


def can_mount() -> bool:
    """Whether hosts can have mounts of their own, and with them processes and shared memory."""
    probe = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return subprocess.run(probe, capture_output=True, timeout=_START_SECONDS).returncode == 0


class Network:
    """One network namespace per name, with an address of its own. This machine has ``address`` there.

    ``whole``: each is a host of its own also in its name, its processes, its shared memory and its mounts, the last
    three as far as this machine permits (``own_mounts``). Otherwise processes keep their pids.

    A context manager: leaving ends what runs in the namespaces, and removes them.
    """

    def __init__(self, *names: str, whole: bool = False, preferred: str = "") -> None:
        """``preferred``: an address of an earlier network, which this machine gets again if it is free."""
        self._numbers = {name: number for number, name in enumerate(names)}
        self._reservation, number = _reserve(preferred)
        self._subnet = f"10.213.{number}"
        self.address = f"{self._subnet}.1"
        self._link = f"mpistream{number}"
        self._whole = whole
        self.own_mounts = whole and can_mount()
        self._holders: dict[str, Child] = {}
        self._switch: Child | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._numbers)

    def address_of(self, name: str) -> str:
        return f"{self._subnet}.{self._numbers[name] + 10}"

    def __enter__(self) -> Self:
        try:
            self._switch = _hold(["--net"])
            switch = _inside(self._switch, "net")
            _run(*switch, "ip", "link", "add", "switch", "type", "bridge")
            _run(*switch, "ip", "link", "set", "switch", "up")
            _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "out", "netns", str(self._switch.pid))
            _run(*switch, "ip", "link", "set", "out", "master", "switch", "up")
            _run("ip", "addr", "add", f"{self.address}/24", "dev", self._link)
            _run("ip", "link", "set", self._link, "up")
            for name in self._numbers:
                self.add(name)
        except BaseException:
            self.remove()
            raise
        return self

    def add(self, name: str) -> None:
        """Makes the host, which is not there or was killed. Raises MpistreamError; then it is not there."""
        kinds = ["--net"]
        if self._whole:
            kinds += ["--uts", "--ipc"]
        if self.own_mounts:
            kinds += ["--mount", "--pid", "--fork", "--kill-child"]
        self._holders[name] = _hold(kinds)
        try:
            self._connect(name)
        except BaseException:
            self.kill(name)
            raise

    def _connect(self, name: str) -> None:
        assert self._switch is not None, "the network is not there"
        switch, inside, port = _inside(self._switch, "net"), self.entering(name), self._port(name)
        with contextlib.suppress(MpistreamError):
            _run(*switch, "ip", "link", "del", port)  # the kernel may still be removing that of a killed host
        peer = ["peer", "name", INTERFACE, "netns", str(self._holders[name].pid)]
        _run(*switch, "ip", "link", "add", port, "type", "veth", *peer)
        _run(*switch, "ip", "link", "set", port, "master", "switch", "up")
        if self._whole:
            _run(*inside, "hostname", name)
        if self.own_mounts:
            _run(*inside, "mount", "-t", "proc", "proc", "/proc")
            _run(*inside, "mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
        _run(*inside, "ip", "addr", "add", f"{self.address_of(name)}/24", "dev", INTERFACE)
        for interface in ("lo", INTERFACE):
            _run(*inside, "ip", "link", "set", interface, "up")

    def _port(self, name: str) -> str:
        """The bridge's end of the link."""
        return f"port{self._numbers[name]}"

    def entering(self, name: str) -> list[str]:
        """What a command begins with to run there."""
        kinds = ["net"]
        if self._whole:
            kinds += ["uts", "ipc"]
        if self.own_mounts:
            kinds += ["mnt", "pid"]
        return _inside(self._holders[name], *kinds)

    def is_there(self, name: str) -> bool:
        return name in self._holders and self._holders[name].is_running

    def kill(self, *names: str) -> None:
        """Kills every process of these hosts. Raises MpistreamError where one does not end."""
        _end([holder for name in names if (holder := self._holders.pop(name, None))])

    def cut(self, name: str) -> None:
        assert self._switch is not None
        _run(*_inside(self._switch, "net"), "ip", "link", "set", self._port(name), "down")

    def mend(self, name: str) -> None:
        assert self._switch is not None
        _run(*_inside(self._switch, "net"), "ip", "link", "set", self._port(name), "up")

    def remove(self) -> None:
        self.kill(*self._holders)
        if self._switch is not None:
            with contextlib.suppress(MpistreamError):
                _run("ip", "link", "del", self._link)
            _end([self._switch])
            self._switch = None
        self._reservation.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _reserve(preferred: str) -> tuple[socket.socket, int]:
    """A subnet 10.213.NUMBER.0/24 that nobody uses, as long as the socket is open."""
    used = {address.address for found in psutil.net_if_addrs().values() for address in found}
    numbers = random.sample(_SUBNETS, len(_SUBNETS))
    if preferred.startswith("10.213."):
        numbers.insert(0, int(preferred.split(".")[2]))
    for number in numbers:
        if any(address.startswith(f"10.213.{number}.") for address in used):
            continue
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0mpistream-10.213.{number}")
        except OSError:
            reservation.close()
            continue
        return reservation, number
    raise MpistreamError("all subnets below 10.213.0.0/16 are in use", "end testbeds that nobody needs")


def _hold(kinds: list[str]) -> Child:
    """A process that does nothing in namespaces of its own.

    As the first process of a namespace of pids it reaps those whose parents have ended. Elsewhere it has no children:
    they would outlive it.
    """
    reaps = ["sh", "-c", "sleep infinity & while :; do wait; done"]
    nothing = reaps if "--pid" in kinds else ["sleep", "infinity"]
    command = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", *kinds, "--", *nothing]
    holder = start_child("host", "namespace", command, Path(os.devnull))
    link = "pid_for_children" if "--pid" in kinds else "net"
    deadline = time.monotonic() + _START_SECONDS
    while _namespace(holder.pid, link) in ("", _namespace(os.getpid(), link)):
        if not holder.is_running or time.monotonic() > deadline:
            holder.end(0)
            raise MpistreamError("namespaces cannot be made here", "unshare(1) needs root and a kernel that permits it")
        time.sleep(_TURN_SECONDS)
    return holder


def _namespace(pid: int, kind: str) -> str:
    """Which one a process is in; empty where that is not known."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _inside(holder: Child, *kinds: str) -> list[str]:
    """Entered one by one, not by `ip netns exec`: that hides control groups, without which slurmd does not live."""
    options = {"net": "--net", "uts": "--uts", "ipc": "--ipc", "mnt": "--mount", "pid": "--pid"}
    links = {"pid": "pid_for_children"}
    return ["nsenter", *(f"{options[kind]}=/proc/{holder.pid}/ns/{links.get(kind, kind)}" for kind in kinds)]


def _end(holders: Sequence[Child]) -> None:
    """Kills everything in the holders' network namespaces, the holders included."""
    namespaces = {_namespace(holder.pid, "net") for holder in holders} - {"", _namespace(os.getpid(), "net")}
    deadline = time.monotonic() + _END_SECONDS
    while members := _members(namespaces):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise MpistreamError(f"processes {members} do not end", "look at them with ps; they may wait for a disk")
        time.sleep(_TURN_SECONDS)
    for holder in holders:
        holder.end(0)


def _members(namespaces: set[str]) -> list[int]:
    """The processes of these network namespaces that have not ended."""
    if not namespaces:
        return []
    return [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _namespace(int(pid), "net") in namespaces]


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_START_SECONDS)
    except subprocess.CalledProcessError as error:
        raise MpistreamError(
            f"{' '.join(command)}: {error.stderr.strip()}", "see whether root may do that here"
        ) from None
    except subprocess.TimeoutExpired:
        raise MpistreamError(f"{' '.join(command)} did not end within {_START_SECONDS:g} s") from None
