"""A batch job as it is asked for, checked against its site and rendered from the mode's template."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mpistream.launch.cluster.mode_options import ABOUT, GOING_ON, PRODUCERS_HERE, SESSION_FOLDER, WITHOUT_SESSION
from mpistream.launch.cluster.site import Site, format_duration, jobs_folder
from mpistream.model.errors import ConfigError
from mpistream.model.session import NAME_PATTERN, Mode

_DIRECTIVE_VALUE = re.compile(r"[A-Za-z0-9_.,:=+@/&|*()\[\]%?~-]+")

#: What ending the MPI job, and the batch job, takes of the time between the signal and the time limit.
_HANDOVER_SECONDS = 60


@dataclass(frozen=True)
class JobRequest:
    """What a user asks for; None and "": as the site profile says.

    options     the mode's own, as ``checked_options`` gives them
    folder      absolute: the job runs there, and leaves its log there
    datasets    the folder of the session's datasets, absolute; None: it is not known
    least_nodes with fewer the job does not go on
    mpistream   the command in the job
    """

    mode: Mode
    session: str
    config: Path | None
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    account: str = ""
    qos: str = ""
    reservation: str = ""
    dependency: str = ""
    email: str = ""
    nodes: int | None = None
    tasks_per_node: int | None = None
    time_seconds: int | None = None
    requeue: bool | None = None
    mpistream: str = ""
    datasets: Path | None = None
    least_nodes: int | None = None


@dataclass(frozen=True)
class JobPlan:
    """The same with every choice made. ``log`` holds ``%j`` where the scheduler's number of the job will stand."""

    request: JobRequest
    site: Site
    account: str
    qos: str
    reservation: str
    nodes: int
    tasks_per_node: int
    time_seconds: int
    requeue: bool
    mpistream: str

    @property
    def name(self) -> str:
        return f"mpistream-{self.request.mode}-{self.request.session}"

    @property
    def is_streaming(self) -> bool:
        """It has scans in hand, and starts its MPI job again."""
        return self.request.mode is not Mode.FILEBASED

    @property
    def datasets(self) -> Path | None:
        """The session's folder, where the script needs it: the job writes there, or a container is to see it."""
        in_session = self.request.mode in SESSION_FOLDER and "output" not in self.request.options
        is_shut = self.site.software.container == "podman-hpc" and self.request.mode not in WITHOUT_SESSION
        return self.request.datasets if in_session or is_shut else None

    @property
    def finish_seconds(self) -> int:
        """What a scan in hand may still take once the job is told that its time is nearly up."""
        return max(0, self.site.scheduler.signal_seconds - _HANDOVER_SECONDS)

    @property
    def log(self) -> Path:
        return self.request.folder / f"{self.name}-%j.log"

    def log_of(self, number: str) -> Path:
        return self.log.with_name(self.log.name.replace("%j", number))


def plan_job(request: JobRequest, site: Site) -> JobPlan:
    """Raises ConfigError for what the site does not have, or does not allow."""
    scheduler, nodes = site.scheduler, site.nodes
    plan = JobPlan(
        request,
        site,
        account=request.account or scheduler.account,
        qos=request.qos or scheduler.qos,
        reservation=request.reservation or scheduler.reservation,
        nodes=request.nodes or nodes.default,
        tasks_per_node=request.tasks_per_node or nodes.tasks_per_node,
        time_seconds=request.time_seconds or scheduler.time,
        requeue=scheduler.requeue and request.mode in GOING_ON if request.requeue is None else request.requeue,
        mpistream=request.mpistream or site.software.mpistream or _own_command(),
    )
    _check_names(request)
    _check_account_and_qos(plan)
    _check_size(plan)
    _check_time(plan)
    return plan


def _check_names(request: JobRequest) -> None:
    if not re.fullmatch(NAME_PATTERN, request.session):
        raise ConfigError(
            f"{request.session!r} is no name of a session", "names have letters, digits, '_', '.' and '-', 64 at most"
        )
    if request.config is None and request.mode is not Mode.FILEBASED:
        raise ConfigError(
            f"a {request.mode} job needs the deployment's configuration",
            "give --config FILE; only filebased does without",
        )
    words = (request.account, request.qos, request.reservation, request.dependency, request.email)
    for option, value in zip(("account", "qos", "reservation", "dependency", "email"), words, strict=True):
        if value and not _DIRECTIVE_VALUE.fullmatch(value):
            raise ConfigError(
                f"--{option} {value!r} cannot stand in a line of #SBATCH", "give it without spaces and quotes"
            )


def _check_account_and_qos(plan: JobPlan) -> None:
    site = plan.site
    if site.scheduler.account_required and not plan.account:
        raise ConfigError(
            f"{site.name} wants an account that pays for the job",
            "give --account NAME, or [scheduler] account in a site profile",
        )
    if plan.qos and plan.qos not in site.qos:
        known = f"take one of {', '.join(sorted(site.qos))}" if site.qos else "leave --qos out: this site has none"
        raise ConfigError(f"{site.name} has no qos {plan.qos!r}", f"{known}; or write it into a site profile")


def _check_size(plan: JobPlan) -> None:
    site, limit = plan.site, plan.site.qos.get(plan.qos)
    least = plan.request.least_nodes
    if least is not None and not plan.is_streaming:
        raise ConfigError(f"--least-nodes has no effect in mode {plan.request.mode}", "leave it out")
    if least is not None and least > plan.nodes:
        raise ConfigError(f"--least-nodes {least}, but the job has {plan.nodes}", f"give --nodes {least} or more")
    for most, where in (
        (limit.most_nodes if limit else None, f"qos {plan.qos} of {site.name}"),
        (site.nodes.most, site.name),
    ):
        if most is not None and plan.nodes > most:
            raise ConfigError(
                f"more rank groups than nodes: {plan.nodes} nodes asked for, {where} gives {most} at most",
                f"give --nodes {most} or less" + ("" if where == site.name else ", or another --qos"),
            )
    if plan.tasks_per_node > site.nodes.hardware_threads:
        raise ConfigError(
            f"{plan.tasks_per_node} ranks on a node with {site.nodes.hardware_threads} hardware threads",
            f"give --tasks-per-node {site.nodes.hardware_threads} or less",
        )


def _check_time(plan: JobPlan) -> None:
    site, limit = plan.site, plan.site.qos.get(plan.qos)
    asked = format_duration(plan.time_seconds)
    if limit is not None and limit.longest is not None and plan.time_seconds > limit.longest:
        longest = format_duration(limit.longest)
        raise ConfigError(
            f"a time limit of {asked}, but qos {plan.qos} of {site.name} gives {longest} at most",
            f"give --time {longest} or less, or another --qos",
        )
    least = site.scan.least + site.scheduler.signal_seconds
    if plan.time_seconds < least:
        raise ConfigError(
            f"a time limit of {asked} is too short for one scan: {site.scan.least} s for a typical one on {site.name}, "
            f"and {site.scheduler.signal_seconds} s ahead of the limit the job is told to end",
            f"give --time {format_duration(least)} or more; or change [scan] least in a site profile of your own",
        )


def _own_command() -> str:
    """The installed command of this very Python; what PATH has where there is none."""
    beside = Path(sys.executable).parent / "mpistream"
    return str(beside) if beside.exists() else shutil.which("mpistream") or "mpistream"


def render_script(plan: JobPlan, to_fill_in: str = "") -> str:
    """The complete sbatch script; ``to_fill_in`` names for its reader what only stands for something."""
    environment = Environment(
        loader=FileSystemLoader(jobs_folder() / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: every value goes through a filter below
    )
    filters: dict[str, Callable[..., str]] = {"sh": _shell_word, "path": _shell_path, "directive": _directive}
    environment.filters |= {**filters, "log": _log_pattern}
    text = environment.get_template(f"{plan.request.mode}.sbatch.j2").render(
        plan=plan,
        request=plan.request,
        site=plan.site,
        options=plan.request.options,
        about=ABOUT[plan.request.mode],
        time=format_duration(plan.time_seconds),
        here=plan.request.mode in PRODUCERS_HERE,
        has_session=plan.request.mode not in WITHOUT_SESSION,
        datasets=plan.datasets,
        plain=to_fill_in,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _shell_word(value: Any) -> str:
    """One word for the shell, taken literally."""
    is_whole = isinstance(value, float) and value.is_integer()
    return shlex.quote(str(int(value) if is_whole else value))


def _shell_path(value: str) -> str:
    """A path of a site profile, whose variables the shell expands; site.py lets nothing else through."""
    return f'"{value}"' if "$" in value else shlex.quote(value)


def _directive(value: Any) -> str:
    """The value of an option in a line of #SBATCH, which is no shell."""
    text = str(value)
    if _DIRECTIVE_VALUE.fullmatch(text):
        return text
    if '"' in text or "\\" in text or not text.isprintable():
        raise ConfigError(f"{text!r} cannot stand in a line of #SBATCH", "take a path without quotes and backslashes")
    return f'"{text}"'


def _log_pattern(path: Path) -> str:
    """A path in which Slurm replaces ``%j`` and nothing else."""
    return _directive(str(path.parent).replace("%", "%%") + f"/{path.name}")
