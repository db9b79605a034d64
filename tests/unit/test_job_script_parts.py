"""What scripts do with containers, the session's folder, modules, references and options, as bash runs them."""

from pathlib import Path

import click
import pytest

from mpistream.cli.job_options import OF_MODE
from mpistream.cli.options import counting_options
from mpistream.launch.cluster.job_script import plan_job
from mpistream.launch.cluster.site import load_site
from mpistream.model.errors import ConfigError
from mpistream.model.session import Mode
from tests.unit.batch_jobs import OPTIONS, program, request, run_script, script, shellcheck

MODES = pytest.mark.parametrize("mode", list(Mode))
COUNTING = (Mode.SINGLE, Mode.CALIBRATE, Mode.TIMESERIES, Mode.TOMOGRAPHY, Mode.REPLAY)


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    return program(tmp_path, "mpistream", 'for word in "$@"; do echo "$word"; done')


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mpi stream.toml"
    path.touch()
    return path


@click.command()
@counting_options
def counting_command(**_: object) -> None:
    pass


PODMAN = """\
[software]
container = 'podman-hpc'
image = 'registry/mpistream:1'
[environment]
HDF5_USE_FILE_LOCKING = 'FALSE'
"""


def container_words(mode: Mode, options: dict[str, object], folder: Path, **values: object) -> list[str]:
    """What podman-hpc is told, a word each, by the script as bash runs it in ``folder``."""
    profile = folder / "mine.toml"
    profile.write_text(PODMAN)
    runner = program(folder, "mpistream", 'for word in "$@"; do echo "$word"; done')
    text = script(request(mode, options, mpistream=str(runner), **values), str(profile))
    path = folder / "job.sh"
    path.write_text(text)
    shellcheck(path)
    done = run_script(text, folder)
    assert done.stderr == ""
    step = done.stdout.partition("\n--\n")[2].splitlines()
    return step[step.index("podman-hpc") : step.index("registry/mpistream:1")]


def test_a_container_is_told_variables_and_folders(tmp_path: Path, config: Path) -> None:
    """Podman passes no variable on by itself, shows no folder, and refuses one that is given twice."""
    (tmp_path / "beside").mkdir()
    gain = tmp_path / "beside" / "gain.npy"
    gain.touch()
    options = {
        "source": "files:/camera",
        "output": str(tmp_path / "out" / "a scan.h5"),
        "dark": "ref:tuesday",
        "gain": str(gain),
    }
    session = tmp_path / "session"
    words = container_words(Mode.SINGLE, options, tmp_path, config=config, datasets=session)
    folders = [config.parent, tmp_path / "beside", tmp_path / "out", session]
    assert words == [
        *("podman-hpc", "run", "--rm", "--mpi"),
        *(f"--volume={folder}:{folder}" for folder in sorted(folders)),
        *("--env=MPISTREAM_BATCH_JOB", "--env=HDF5_USE_FILE_LOCKING"),
    ]


def test_a_container_sees_the_copied_files_and_the_folder_of_many_datasets(tmp_path: Path, config: Path) -> None:
    source, output = tmp_path / "disk", tmp_path / "out" / "scan.h5"
    source.mkdir()
    copied = container_words(
        Mode.FILEBASED, {"source": (f"files:{source}",), "output": str(output)}, tmp_path, config=None
    )
    folders = [output.parent, output.parent / "scan-sectors"]
    assert [word for word in copied if "volume" in word] == [f"--volume={folder}:{folder}" for folder in folders]
    each = {**OPTIONS[Mode.TIMESERIES], "output": str(tmp_path / "each"), "join": None, "each": True}
    series = container_words(Mode.TIMESERIES, each, tmp_path, config=config)
    folders = sorted([config.parent, tmp_path / "each"])
    assert [word for word in series if "volume" in word] == [f"--volume={folder}:{folder}" for folder in folders]
    figures = container_words(Mode.BENCHMARK, OPTIONS[Mode.BENCHMARK], tmp_path, config=config)
    folders = sorted({config.parent, tmp_path})
    assert [word for word in figures if "volume" in word] == [f"--volume={folder}:{folder}" for folder in folders]


@pytest.mark.parametrize(
    ("mode", "striped"),
    [
        (Mode.LIVE, "medium {session}"),
        (Mode.SINGLE, "medium {session}"),
        (Mode.DARK, "large {session}/references"),
        (Mode.CALIBRATE, "medium {session}/references"),
    ],
)
def test_the_sessions_folder_is_striped_before_anything_is_written_there(
    tmp_path: Path, runner: Path, config: Path, mode: Mode, striped: str
) -> None:
    session = tmp_path / "a session"
    session.mkdir()
    profile = tmp_path / "mine.toml"
    stripe = program(tmp_path, "stripe", f'test -d "$2" && echo "$1 $2" >>{tmp_path}/calls')
    program(tmp_path, "stripe_medium", f'{stripe} medium "$1"')
    program(tmp_path, "stripe_large", f'{stripe} large "$1"')
    profile.write_text(
        f"[storage]\nstripe_datasets = '{tmp_path}/stripe_medium'\nstripe_large = '{tmp_path}/stripe_large'\n"
    )
    options = {} if mode is Mode.SINGLE else None
    asked = request(mode, options, config=config, mpistream=str(runner), datasets=session)
    text = script(asked, str(profile))
    path = tmp_path / "job.sh"
    path.write_text(text)
    shellcheck(path)
    done = run_script(text, tmp_path)
    assert done.stderr == ""
    assert (tmp_path / "calls").read_text() == striped.format(session=session) + "\n"
    session.rename(tmp_path / "gone")
    done = run_script(text, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: cannot write into {session}" in done.stderr
    assert not session.exists()


@MODES
def test_a_script_says_whether_a_session_must_be_there(mode: Mode) -> None:
    needs_none = mode in (Mode.FILEBASED, Mode.BENCHMARK)
    assert ("mpistream session start tuesday --config" in script(request(mode))) == (not needs_none)


@MODES
def test_scripts_and_the_runner_have_the_same_options_of_counting(mode: Mode) -> None:
    taken = {option.name for option in counting_command.params}
    found = {option.name for option in OF_MODE[mode]} & taken
    if mode is Mode.CALIBRATE:
        taken -= {"thresholds", "background", "xray", "row_dark_level"}
    assert found == (taken if mode in (*COUNTING, Mode.FILEBASED) else set())


@pytest.mark.parametrize("mode", [*COUNTING, Mode.FILEBASED])
def test_how_it_is_counted_is_said_to_the_runner(tmp_path: Path, runner: Path, config: Path, mode: Mode) -> None:
    source = tmp_path / "sectors"
    source.mkdir()
    gain = tmp_path / "gain.npy"
    gain.touch()
    counting = {"gain": str(gain), "row_dark": "median", "sample_frames": 9, "background_sigmas": 4.25}
    options = {**OPTIONS[mode], **counting, "centroids": False}
    for name in ("dark", "pixel_mask", "background", "xray"):
        options.pop(name, None)
    if mode not in (Mode.CALIBRATE, Mode.TIMESERIES, Mode.TOMOGRAPHY):
        options["source"] = (f"files:{source}",) if mode is Mode.FILEBASED else f"files:{source}"
    if mode is not Mode.CALIBRATE:
        options["output"] = str(tmp_path / "scan.h5")
    asked = request(mode, options, config=config, mpistream=str(runner))
    done = run_script(script(asked, "testbed"), tmp_path)
    assert done.stderr == ""
    told = done.stdout.partition("\n--\n")[2 if mode is Mode.FILEBASED else 0].splitlines()
    words = ["--gain", str(gain), "--row-dark", "median", "--sample-frames", "9", "--background-sigmas", "4.25"]
    assert told[-len(words) - 1 :] == [*words, "--no-centroids"]


@pytest.mark.parametrize(
    ("mode", "values", "message"),
    [
        (Mode.FILEBASED, {"least_nodes": 1}, "--least-nodes has no effect in mode filebased"),
        (Mode.LIVE, {"nodes": 2, "least_nodes": 3}, "--least-nodes 3, but the job has 2"),
    ],
)
def test_a_least_number_of_nodes_that_makes_no_sense(mode: Mode, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        plan_job(request(mode, **values), load_site("perlmutter"))
    assert raised.value.remedy


def test_the_least_number_of_nodes_is_said_to_the_runner(tmp_path: Path, runner: Path, config: Path) -> None:
    asked = request(config=config, mpistream=str(runner), nodes=4, least_nodes=3)
    done = run_script(script(asked, "testbed"), tmp_path)
    words = done.stdout.splitlines()
    assert words[words.index("--least-nodes") + 1] == "3"


def test_modules_that_cannot_be_loaded_end_the_job(tmp_path: Path, runner: Path, config: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text("[software]\nmodules = ['nowhere']\n")
    text = script(request(config=config, mpistream=str(runner)), str(profile))
    done = run_script(text.replace("\nmodule load", "\nmodule() { return 1; }\nmodule load"), tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: these modules cannot be loaded: nowhere" in done.stderr
    done = run_script(text, tmp_path)  # sbatch was called where there is no such command
    assert (done.returncode, done.stdout) == (1, "")


def test_filebased_refuses_the_name_of_a_reference_before_it_copies(tmp_path: Path, runner: Path) -> None:
    source, dark = tmp_path / "disk", tmp_path / "dark.npy"
    source.mkdir()
    dark.touch()
    output = tmp_path / "out" / "scan.h5"
    options = {"source": (f"files:{source}",), "output": str(output), "dark": str(dark)}
    text = script(request(Mode.FILEBASED, options, config=None, mpistream=str(runner)), "testbed")
    edited = text.replace(f"\ndark={dark}\n", "\ndark=ref:tuesday\n")
    assert edited != text
    (tmp_path / "ref:tuesday").touch()
    done = run_script(edited, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: dark is ref:tuesday, but no etcd is asked" in done.stderr
    assert not output.with_name("scan-sectors").exists()
    assert "finish_seconds" not in text
