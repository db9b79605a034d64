"""Site profiles: all that differs between machines, in one TOML file each. docs/cluster.md describes every key."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mpistream.model.config import check_external_name
from mpistream.model.errors import ConfigError

_DESCRIBED = "docs/cluster.md describes every key of a site profile"
_DAY_SECONDS = 86_400

#: What stands in a #SBATCH line without quotes.
_Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:=+@/&|*()\[\]-]*$")]
#: What the job's shell expands: a path that may hold variables, such as ``$SCRATCH/mpistream``.
_ShellPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./${}@%+=:,-]*$")]
_VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def parse_duration(text: str) -> int:
    """Seconds of ``HH:MM:SS`` or ``D-HH:MM:SS``. Raises ValueError; Slurm's shorter forms mean minutes or hours
    depending on the colons, and are refused.
    """
    match = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", text)
    if match is None:
        raise ValueError(f"{text!r} is no time such as 00:30:00 (HH:MM:SS) or 2-00:00:00 (D-HH:MM:SS)")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    if not (total := days * _DAY_SECONDS + hours * 3600 + minutes * 60 + seconds):
        raise ValueError("a time of 0 is no time limit")
    return total


def format_duration(seconds: int) -> str:
    """``HH:MM:SS``, with as many hours as it takes."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _as_seconds(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


_Duration = Annotated[int, BeforeValidator(_as_seconds), Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Scheduler(_Section):
    account: _Word = Field(default="", description="who pays, unless --account says so")
    account_required: bool = Field(default=False, description="whether jobs without an account are refused")
    qos: _Word = Field(default="", description="quality of service unless --qos says so; empty: none is asked for")
    partition: _Word = Field(default="", description="empty: the cluster's own choice")
    constraint: _Word = Field(default="", description="kind of node")
    reservation: _Word = Field(default="", description="unless --reservation says so")
    exclusive: bool = Field(default=True, description="whole nodes for the job alone")
    requeue: bool = Field(default=True, description="with work left, a job waits in the queue once more")
    time: _Duration = Field(default=1800, description="time limit unless --time says so")
    signal_seconds: int = Field(default=180, ge=60, le=65535, description="how long ahead of it the job is told")
    directives: list[_Word] = Field(default=[], description="further options of sbatch: --licenses=scratch")

    @field_validator("directives")
    @classmethod
    def _are_long_options(cls, directives: list[str]) -> list[str]:
        for directive in directives:
            if not directive.startswith("--"):
                raise ValueError(f"{directive!r} does not begin with --, as in --licenses=scratch")
        return directives


class Qos(_Section):
    """What a quality of service allows; None: no limit that is known here."""

    most_nodes: int | None = Field(default=None, gt=0)
    longest: _Duration | None = Field(default=None, description="time limit at most")


class Nodes(_Section):
    default: int = Field(default=1, gt=0, description="nodes of a job unless --nodes says so")
    most: int | None = Field(default=None, gt=0, description="as many as the site has")
    hardware_threads: int = Field(default=1, gt=0, description="of a node, as Slurm counts its CPUs")
    tasks_per_node: int = Field(default=1, gt=0, description="ranks of a node unless --tasks-per-node says so")

    @model_validator(mode="after")
    def _tasks_fit(self) -> "Nodes":
        if self.tasks_per_node > self.hardware_threads:
            raise ValueError(f"tasks_per_node is {self.tasks_per_node}, hardware_threads only {self.hardware_threads}")
        if self.most is not None and self.default > self.most:
            raise ValueError(f"default is {self.default}, but most only {self.most}")
        return self


class Launcher(_Section):
    """How srun starts the ranks."""

    mpi: _Word = Field(default="", description="srun --mpi: pmix, cray_shasta; empty: the site's own choice")
    cpu_bind: _Word = Field(default="", description="srun --cpu-bind: cores")
    memory_node: int | None = Field(default=None, ge=0, description="NUMA node beside the network card")
    interface: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.:-]*$",
        description="the ranks' network interface, as hsn0",
    )
    external_name: str = Field(default="", description="under which the ranks are reached from outside; {host}: a node")
    options: list[_Word] = Field(default=[], description="further options of srun")

    @field_validator("external_name")
    @classmethod
    def _is_a_name(cls, pattern: str) -> str:
        return check_external_name(pattern) if pattern else pattern


class Software(_Section):
    modules: list[_Word] = Field(default=[], description="loaded by `module load`")
    mpistream: _ShellPath = Field(default="", description="the command in the job; empty: the one that renders")
    container: Literal["none", "shifter", "podman-hpc"] = Field(default="none", description="what the ranks run in")
    image: _Word = Field(default="", description="the container's image")
    container_options: list[_Word] = Field(default=[], description="further options of shifter or podman-hpc")
    image_mpistream: _ShellPath = Field(default="mpistream", description="the command in the image")

    @model_validator(mode="after")
    def _container_has_image(self) -> "Software":
        if (self.container == "none") != (not self.image):
            raise ValueError("container and image belong together: give both, or neither")
        return self


class Storage(_Section):
    scratch: _ShellPath = Field(default="", description="folder for large files, for a time; may hold variables")
    stripe_datasets: _Word = Field(default="", description="command that stripes a folder of datasets")
    stripe_large: _Word = Field(default="", description="likewise one of raw recordings and copied sector files")


class Scan(_Section):
    least: _Duration = Field(default=60, description="what a typical scan takes, from the job's start to its dataset")


class Site(_Section):
    """A machine. ``name`` is that of the profile's file, and no key of it."""

    name: str
    about: str = Field(default="", pattern=r"^[^\r\n]*$", description="one line for people")
    scheduler: Scheduler = Scheduler()
    qos: dict[str, Qos] = {}
    nodes: Nodes = Nodes()
    launcher: Launcher = Launcher()
    software: Software = Software()
    storage: Storage = Storage()
    scan: Scan = Scan()
    environment: dict[_VariableName, str] = Field(default={}, description="variables of the job")

    @field_validator("environment")
    @classmethod
    def _one_line_each(cls, environment: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for name, value in environment.items():
            if "\n" in value or "\r" in value:
                raise ValueError(f"{name} has more than one line")
        return environment

    @model_validator(mode="after")
    def _default_qos_is_known(self) -> "Site":
        if self.scheduler.qos and self.scheduler.qos not in self.qos:
            raise ValueError(f"scheduler.qos is {self.scheduler.qos!r}, but there is no [qos.{self.scheduler.qos}]")
        return self

    def cpus_per_task(self, tasks_per_node: int) -> int:
        return self.nodes.hardware_threads // tasks_per_node


@cache
def jobs_folder() -> Path:
    """Templates and site profiles: in the repository, or beside the modules where the package is installed."""
    package = Path(__file__).parents[2]
    for folder in (package / "jobs", package.parent / "jobs"):
        if (folder / "templates").is_dir():
            return folder
    raise ConfigError(f"there are no job templates beside {package}", "install mpistream again")


def known_sites() -> list[str]:
    """The names of the profiles that come with mpistream."""
    return sorted(path.stem for path in (jobs_folder() / "sites").glob("*.toml"))


def load_site(name: str) -> Site:
    """The profile of this name, or the one in a file ``name`` that ends in .toml.

    Raises ConfigError naming the first wrong key or value.
    """
    path = Path(name) if name.endswith(".toml") else jobs_folder() / "sites" / f"{name}.toml"
    if not name.endswith(".toml") and name not in known_sites():
        raise ConfigError(
            f"there is no site {name!r}",
            f"take one of {', '.join(known_sites())}; or write a profile of your own and give it as --site FILE.toml",
        )
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the site profile {path}: {error.strerror}", "check --site") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", "mend the line named above") from error
    if "name" in values:
        raise ConfigError(f"{path}: unknown key 'name' in the top level", f"known there: {', '.join(_keys([]))}")
    try:
        return Site.model_validate({**values, "name": path.stem})
    except ValidationError as error:
        raise _site_error(path, error) from None


def _site_error(path: Path, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    *parents, key = [str(part) for part in first["loc"]] or [""]
    place = f"[{'.'.join(parents)}]" if parents else "the top level"
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{path}: unknown key {key!r} in {place}", f"known there: {', '.join(_keys(parents))}")
    where = ".".join([*parents, key]).removesuffix(".[key]")
    if first["type"] == "value_error":
        what = first["msg"].removeprefix("Value error, ")
    else:
        what = f"{first['msg']}, not {first['input']!r}"
    return ConfigError(f"{path}: {where}: {what}" if where else f"{path}: {what}", _DESCRIBED)


def _keys(parents: list[str]) -> list[str]:
    """Those that a profile may have in a section."""
    section: type[BaseModel] = Site
    if parents:
        annotation = Site.model_fields[parents[0]].annotation
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else Qos
    return sorted(section.model_fields.keys() - ({"name"} if section is Site else set()))
