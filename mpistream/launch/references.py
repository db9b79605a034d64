"""References by name: a dark reference, a pixel mask or thresholds that later scans use as ``ref:NAME``."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.announcement import ScanRequest
from mpistream.model.errors import ConfigError, StorageError
from mpistream.model.scan import CountingParameters
from mpistream.model.session import Reference, ReferenceKind, check_name, referred_name
from mpistream.storage.small_files import check_targets

#: Where in a session's folder its references lie.
FOLDER = "references"

#: What makes each kind, and how it is written where it is used.
_MADE_BY = {
    ReferenceKind.DARK: "mpistream dark SOURCE --output FILE.npy --name {name}",
    ReferenceKind.MASK: "mpistream dark SOURCE --output FILE.npy --mask MASK.npy --name {name}",
    ReferenceKind.THRESHOLDS: "mpistream calibrate SOURCE --output FILE.json --name {name}",
}
_IN_WORDS = {
    ReferenceKind.DARK: "dark reference",
    ReferenceKind.MASK: "pixel mask",
    ReferenceKind.THRESHOLDS: "set of thresholds",
}
_SUFFIXES = {ReferenceKind.DARK: ".npy", ReferenceKind.MASK: ".npy", ReferenceKind.THRESHOLDS: ".json"}


def store_reference(
    registry: SessionRegistry,
    kind: ReferenceKind,
    name: str,
    path: Path,
    session: str = "",
    about: Mapping[str, str | int | float] | None = None,
) -> Reference:
    """Lets scans use the file by ``name``, in the place of what had that name before.

    Raises ConfigError for the name, StorageError where the file cannot be read.
    """
    check_name("a reference", name)
    reference = Reference(
        kind=kind,
        name=name,
        path=str(path.absolute()),
        sha256=_sha256(path.absolute(), "check the path and its permissions"),
        session=session,
        made_unix_seconds=time.time(),
        about=dict(about or {}),
    )
    registry.write_reference(reference)
    return reference


def reference_path(registry: SessionRegistry, kind: ReferenceKind, name: str, session: str) -> Path:
    """Where a session's reference of this name can be written: each time another file, whose folder is made.

    Scans that were announced with what had the name before still find it. Raises ConfigError, StorageError.
    """
    check_name("a reference", name)
    found = registry.session(session)
    if found is None:
        raise ConfigError(f"there is no session {session}", known_sessions(registry))
    folder = Path(found.folder) / FOLDER
    path = folder / f"{name}_{kind}_{datetime.now(UTC):%Y%m%dT%H%M%S%f}{_SUFFIXES[kind]}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}", "check the session's folder") from error
    check_targets([path], overwrite=False)
    return path


def known_sessions(registry: SessionRegistry) -> str:
    """For remedies: which sessions there are."""
    names = ", ".join(registry.sessions())
    return f"there are: {names}" if names else "start one: mpistream session start NAME --datasets DIR"


def find_reference(registry: SessionRegistry, kind: ReferenceKind, name: str) -> Reference:
    """Raises ConfigError for a name that is not known."""
    check_name("a reference", name)
    reference = registry.reference(kind, name)
    if reference is None:
        names = ", ".join(found.name for found in registry.references(kind))
        others = f"there are: {names}; or make it: " if names else "make it: "
        raise ConfigError(f"there is no {_IN_WORDS[kind]} {name}", others + _MADE_BY[kind].format(name=name))
    return reference


def check_unchanged(reference: Reference) -> Path:
    """The file. Raises StorageError where it is not the one that was given the name."""
    what, path = f"{_IN_WORDS[reference.kind]} {reference.name}", Path(reference.path)
    renew = f"put it back; or make it anew under this name: {_MADE_BY[reference.kind].format(name=reference.name)}"
    if _sha256(path, renew) != reference.sha256:
        raise StorageError(f"{path} has changed since it became {what}", renew)
    return path


def resolve_references(registry: SessionRegistry, request: ScanRequest) -> ScanRequest:
    """``request`` with paths in the place of names. Raises ConfigError for a name that is not known, StorageError
    where a file is gone, or is not the one that was given the name.
    """
    counting, used = resolve_counting(registry, request.counting)
    thresholds = request.thresholds
    if thresholds is not None and (name := referred_name(str(thresholds))) is not None:
        thresholds = check_unchanged(find_reference(registry, ReferenceKind.THRESHOLDS, name))
        used["thresholds"] = name
    return replace(request, counting=counting, thresholds=thresholds, references={**request.references, **used})


def resolve_counting(
    registry: SessionRegistry, counting: CountingParameters
) -> tuple[CountingParameters, dict[str, str]]:
    """Likewise for what is counted with; and the names that were used: parameter -> name."""
    used = {}
    for parameter, kind in (("dark", ReferenceKind.DARK), ("pixel_mask", ReferenceKind.MASK)):
        name = referred_name(getattr(counting, parameter) or "")
        if name is not None:
            path = check_unchanged(find_reference(registry, kind, name))
            counting, used[parameter] = counting.model_copy(update={parameter: str(path)}), name
    return counting, used


def _sha256(path: Path, remedy: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", remedy) from error
