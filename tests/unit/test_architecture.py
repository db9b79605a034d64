"""The floors of the house: who may import what. See docs/architecture.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mpistream"
MOST_LINES = 400

#: Folder (or single module): what it may import of mpistream, beside itself. The longest entry that fits counts.
MAY_IMPORT: dict[str, set[str]] = {
    "": {"model", "reduction", "storage"},  # mpistream itself: for type checkers; loaded on first use
    "__main__": {"cli"},
    "_ext": set(),
    "model": set(),
    # stages: they meet in pipeline, not each other
    "control": {"model"},
    "acquisition": {"model", "_ext", "transport.sockets"},
    "transport": {"model"},
    "reduction": {"model", "_ext"},
    "storage": {"model"},
    # what joins them, and what stands on top
    "pipeline": {"acquisition", "control", "model", "reduction", "storage", "transport"},
    "pipeline.producing": {"acquisition", "control", "model", "transport", "pipeline.courier", "pipeline.process"},
    "pipeline.leading": {"control", "model", "reduction", "storage", "transport"},
    "pipeline.ranks": {
        "control",
        "model",
        "reduction",
        "storage",
        "transport",
        "pipeline.leading",
        "pipeline.process",
    },
    "launch": {"acquisition", "control", "model", "pipeline", "reduction", "storage", "transport"},
    "benchmarks": {"acquisition", "control", "launch", "model", "pipeline", "reduction", "storage", "_ext"},
    "cli": {
        "",
        "acquisition",
        "benchmarks",
        "control",
        "launch",
        "model",
        "pipeline",
        "reduction",
        "storage",
        "transport",
    },
}

#: Outside library: the only folders and modules that may import it.
ONLY_IN: dict[str, set[str]] = {
    "etcd3": {"control.etcd_client"},
    "grpc": {"control.etcd_client", "control.watch"},
    "zmq": {"transport.sockets"},
    "h5py": {"storage", "acquisition.recording_source", "acquisition.simulation_truth"},
    "msgpack": {"acquisition.camera_messages"},
    "mpi4py": {
        "reduction.gather",
        "reduction.rank_map",
        "storage.event_arrays",
        "storage.images",
        "storage.metadata",
        "storage.recording_writer",
        "storage.writer",
        "pipeline.counting_files",
        "pipeline.ranks.rank",
        "pipeline.ranks.arrivals",
        "pipeline.ranks.assembly",
        "pipeline.ranks.recording_assembly",
    },
    "scipy": {"reduction.calibration", "benchmarks.matching"},
    "matplotlib": {"storage.picture", "storage.calibration_picture", "benchmarks.quality_report"},
    "stempy": {"storage.reader", "benchmarks.stempy_peer"},
    "jinja2": {"launch.cluster.job_script"},
    "psutil": {"transport.interface", "launch.cluster.namespaces"},
    "click": {"cli"},
    "rich": {"cli"},
}

MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
NAMES = pytest.mark.parametrize("module", list(MODULES), ids=lambda module: module or "mpistream")


def is_in(module: str, place: str) -> bool:
    """Whether ``module`` is the module or lies in the folder ``place``; "" is the package itself, not all in it."""
    return module == place or (bool(place) and module.startswith(place + "."))


def imports(path: Path) -> Iterator[str]:
    """The full names of all modules that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if name.removeprefix("mpistream.") in MODULES]
            yield from modules or [node.module]


def own_imports(path: Path) -> set[str]:
    """The modules of mpistream that a module imports, below ``mpistream``."""
    return {name.removeprefix("mpistream").lstrip(".") for name in imports(path) if is_in(name, "mpistream")}


def folder_of(module: str) -> str:
    """The entry of MAY_IMPORT that holds for a module."""
    entries = [place for place in MAY_IMPORT if is_in(module, place)]
    assert entries, f"mpistream.{module} is on no floor: give it a line in MAY_IMPORT"
    return max(entries, key=len)


@NAMES
def test_a_module_imports_only_from_its_floor_and_below(module: str) -> None:
    place = folder_of(module)
    allowed = {place} - {""} | MAY_IMPORT[place]
    for found in own_imports(MODULES[module]):
        assert any(is_in(found, entry) for entry in allowed), f"mpistream.{module} imports mpistream.{found}"


@NAMES
def test_outside_libraries_are_known_to_their_adapters_only(module: str) -> None:
    for name in imports(MODULES[module]):
        library = name.partition(".")[0]
        assert library not in ONLY_IN or any(is_in(module, place) for place in ONLY_IN[library]), (
            f"mpistream.{module} imports {library}"
        )


@NAMES
def test_a_module_says_what_it_is_and_stays_short(module: str) -> None:
    text = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(text)), f"{MODULES[module]} has no docstring"
    assert len(text.splitlines()) < MOST_LINES


def test_every_rule_still_holds_for_something() -> None:
    for place in {*MAY_IMPORT, *(place for places in ONLY_IN.values() for place in places)}:
        assert any(is_in(module, place) for module in MODULES), f"there is no mpistream.{place} any more"
    for library, places in ONLY_IN.items():
        users = {module for module, path in MODULES.items() if any(is_in(name, library) for name in imports(path))}
        assert users, f"nothing imports {library} any more"
        for place in places:
            assert any(is_in(user, place) for user in users), f"mpistream.{place} does not import {library} any more"


def listed_modules() -> list[str]:
    """The names in docs/architecture.md, "Modules": a line per folder, below it the modules, before two spaces."""
    modules, _, _ = (ROOT / "docs" / "architecture.md").read_text().partition("## Modules")[2].partition("    ext/")
    folder, names = "", []
    for line in modules.splitlines():
        entry, _, _ = line.strip().partition("  ")
        if line.startswith(" " * 8):
            names += [f"{folder}.{name}" for name in entry.split(", ")]
        elif line.startswith(" " * 6):
            folder = entry.rstrip("/").replace("/", ".")
    return names


def test_the_list_of_modules_is_complete() -> None:
    """Each once."""
    assert sorted(listed_modules()) == sorted(
        module for module, path in MODULES.items() if "." in module and path.name != "__init__.py"
    )


def test_commands_and_launchers_never_load_mpi() -> None:
    """Importing mpi4py.MPI takes long and starts a daemon; only the ranks may."""
    on_top = ("benchmarks", "cli", "launch")
    modules = [f"mpistream.{module}" for module in MODULES if any(is_in(module, place) for place in on_top)]
    assert len(modules) > 10
    code = f"import sys, {', '.join(modules)}; print(*(name for name in sys.modules if name.startswith('mpi4py')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_importing_the_package_loads_nothing_large() -> None:
    large = {"numpy", *ONLY_IN}
    code = f"import sys, mpistream; print(*({large} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
