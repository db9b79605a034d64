"""Job scripts: what is asked for stands in them, what a site does not have is refused, and every one is good bash."""

import re
from pathlib import Path

import pytest

from mpistream.launch.cluster.job_script import plan_job
from mpistream.launch.cluster.mode_options import ABOUT, checked_options, named_references, tilts_degrees
from mpistream.launch.cluster.plain_scripts import plain_script
from mpistream.launch.cluster.site import jobs_folder, known_sites, load_site
from mpistream.model.errors import ConfigError, MpistreamError
from mpistream.model.session import Mode, ReferenceKind
from tests.unit.batch_jobs import OPTIONS, program, request, run_script, script, shellcheck

MODES = pytest.mark.parametrize("mode", list(Mode))
SERIES = {"source": "sim:8x8?seed={index}", "scans": 2, "output": "a.h5"}


def directives(text: str) -> dict[str, str]:
    """The options of sbatch in a script; "" for those without a value."""
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE)
    assert len(lines) == text.count("\n#SBATCH") == len(dict(lines))
    return dict(lines)


@MODES
@pytest.mark.parametrize("site", known_sites())
def test_every_script_passes_shellcheck_and_fits_on_a_line(mode: Mode, site: str, tmp_path: Path) -> None:
    text = script(request(mode), site)
    path = tmp_path / "job.sh"
    path.write_text(text)
    shellcheck(path)
    for line in text.splitlines():
        assert len(line) <= 120, line
        assert line == line.rstrip()


@pytest.mark.parametrize("container", ["shifter", "podman-hpc"])
def test_ranks_in_a_container(container: str, tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(
        f"[software]\ncontainer = '{container}'\nimage = 'registry/mpistream:1'\nmpistream = '$HOME/bin/mpistream'\n"
        "container_options = ['--env=A=b']\n[launcher]\ninterface = 'hsn0'\nmemory_node = 2\noptions = ['--label']\n"
    )
    text = script(request(Mode.SINGLE), str(profile))
    path = tmp_path / "job.sh"
    path.write_text(text)
    shellcheck(path)
    ranks = text.partition("ranks=(")[2].partition("\n)")[0]
    assert "--label" in ranks
    assert ranks.index("numactl --preferred=2") < ranks.index(container) < ranks.index("    mpistream consume")
    assert ranks.rstrip().endswith('consume --config "$config" --interface hsn0')
    assert 'mpistream="$HOME/bin/mpistream"' in text
    if container == "shifter":
        assert directives(text)["image"] == "registry/mpistream:1"
        assert directives(text)["module"] == "mpich"
    else:
        assert "registry/mpistream:1" in ranks


@MODES
def test_only_who_is_outside_needs_a_name_for_the_outside(mode: Mode, tmp_path: Path, runner: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text("[launcher]\ninterface = 'ib0'\nexternal_name = '{host}.out.example.org'\n")
    text = script(request(mode, mpistream=str(runner)), str(profile))
    path = tmp_path / "job.sh"
    path.write_text(text)
    shellcheck(path)
    named = "    --external-name '{host}.out.example.org'\n" in text
    assert named == (mode not in (Mode.REPLAY, Mode.BENCHMARK, Mode.FILEBASED))
    step = text.partition("ranks=(")[2].partition("\n)")[0]
    assert ("--interface ib0" in step) == (mode is not Mode.FILEBASED)
    runs = text.partition("job run ")[2]
    assert ("--producers-here --interface ib0" in runs) == (mode in (Mode.REPLAY, Mode.BENCHMARK))


@MODES
def test_plain_scripts_are_what_the_templates_give(mode: Mode) -> None:
    kept = jobs_folder() / f"{mode}.sh"
    assert kept.read_text() == plain_script(mode), "run `make jobs`"
    shellcheck(kept)
    assert kept.stat().st_mode & 0o100


def test_every_mode_has_a_template_and_a_sentence() -> None:
    assert {path.name for path in (jobs_folder() / "templates").glob("*.j2")} == {f"{mode}.sbatch.j2" for mode in Mode}
    assert set(ABOUT) == set(OPTIONS) == set(Mode)


def test_what_is_asked_for_stands_in_the_lines_of_sbatch() -> None:
    asked = request(
        qos="realtime",
        nodes=7,
        tasks_per_node=64,
        time_seconds=4 * 3600,
        reservation="beamtime",
        dependency="afterok:12",
        email="someone@example.org",
    )
    assert directives(script(asked)) == {
        "job-name": "mpistream-live-tuesday",
        "account": "m1234",
        "qos": "realtime",
        "constraint": "cpu",
        "reservation": "beamtime",
        "dependency": "afterok:12",
        "mail-user": "someone@example.org",
        "mail-type": "BEGIN,END,FAIL,REQUEUE",
        "nodes": "7",
        "ntasks-per-node": "64",
        "cpus-per-task": "4",
        "exclusive": "",
        "time": "04:00:00",
        "chdir": "/data/jobs",
        "output": "/data/jobs/mpistream-live-tuesday-%j.log",
        "open-mode": "append",
        "signal": "B:USR1@300",
        "no-kill": "",
        "requeue": "",
    }


def test_a_profile_says_what_the_request_leaves_open(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(
        "[scheduler]\naccount = 'theirs'\nqos = 'normal'\npartition = 'p'\nreservation = 'r'\nexclusive = false\n"
        "requeue = false\ntime = '02:00:00'\nsignal_seconds = 77\ndirectives = ['--licenses=scratch']\n[qos.normal]\n"
        "[nodes]\ndefault = 3\nhardware_threads = 12\ntasks_per_node = 5\n"
    )
    found = directives(script(request(account=""), str(profile)))
    expected = {"account": "theirs", "qos": "normal", "partition": "p", "reservation": "r", "licenses": "scratch"}
    expected |= {"nodes": "3", "ntasks-per-node": "5", "cpus-per-task": "2", "time": "02:00:00"}
    expected |= {"signal": "B:USR1@77", "no-requeue": ""}
    assert found.items() >= expected.items()
    assert "exclusive" not in found


@MODES
def test_jobs_that_go_on_where_they_were_wait_once_more(mode: Mode) -> None:
    goes_on = mode in (Mode.LIVE, Mode.SINGLE, Mode.TIMESERIES, Mode.TOMOGRAPHY)
    for asked, expected in ((None, goes_on), (True, True), (False, False)):
        text = script(request(mode, requeue=asked))
        assert ("requeue" in directives(text)) == expected
        assert ("no-requeue" in directives(text)) == (not expected)
        runner = text.partition("\nexec ")[2]  # knows it, too
        assert ("--requeue" if expected else "--no-requeue") in runner.split()


def test_a_folder_with_spaces_and_percent_signs_is_quoted_for_slurm() -> None:
    found = directives(script(request(folder=Path("/data/50% of it"))))
    assert found["chdir"] == '"/data/50% of it"'
    assert found["output"] == '"/data/50%% of it/mpistream-live-tuesday-%j.log"'
    with pytest.raises(ConfigError, match="cannot stand in a line of #SBATCH"):
        script(request(folder=Path('/data/"quoted"')))


@pytest.mark.parametrize(
    ("values", "message", "remedy"),
    [
        ({"account": ""}, "perlmutter wants an account", "--account NAME"),
        ({"account": "a b"}, "--account 'a b' cannot stand", "without spaces"),
        ({"dependency": "x\n#SBATCH --wrap=y"}, "--dependency .* cannot stand", "without spaces"),
        ({"qos": "fast"}, "perlmutter has no qos 'fast'", "debug, preempt, premium, realtime, regular"),
        ({"qos": "debug", "nodes": 9}, "more rank groups than nodes: 9 .* 8 at most", "--nodes 8 or less"),
        ({"nodes": 4000}, "more rank groups than nodes: 4000 nodes asked for, perlmutter gives 3072", "--nodes 3072"),
        ({"tasks_per_node": 257}, "257 ranks on a node with 256", "--tasks-per-node 256"),
        ({"qos": "debug", "time_seconds": 1801}, "00:30:01, but qos debug .* 00:30:00 at most", "another --qos"),
        ({"time_seconds": 599}, "00:09:59 is too short for one scan: 300 s .* 300 s", "--time 00:10:00 or more"),
        ({"config": None}, "a live job needs the deployment's configuration", "--config FILE"),
    ],
)
def test_what_the_site_does_not_allow_is_refused(values: dict[str, object], message: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        plan_job(request(**values), load_site("perlmutter"))
    assert remedy in raised.value.remedy


@pytest.mark.parametrize("session", ["", "a b", "../x", "x" * 65, "-x", "a\nb"])
def test_a_session_needs_a_name_that_can_be_a_files(session: str) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="is no name of a session"):
        plan_job(replace(request(), session=session), load_site("testbed"))


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (Mode.SINGLE, {"source": "sim:8x8"}, "--source and --output belong together"),
        (Mode.SINGLE, {"output": "a.h5"}, "--source and --output belong together"),
        (Mode.SINGLE, {"dark": "ref:a"}, "--dark is of a scan that the job announces"),
        (Mode.SINGLE, {"source": "sim:8x8", "output": "a.h5", "xray": 1.0}, "--background and --xray belong together"),
        (Mode.SINGLE, {"source": "sim:8x8", "output": "a.npy"}, "a.npy: that is no name of a dataset"),
        (Mode.SINGLE, {"source": "sim:8x8", "output": "a.h5", "dark": "ref:a/b"}, "--dark ref:a/b: that is no name"),
        (Mode.SINGLE, {"source": "sim:8x8", "output": "a\n.h5"}, "--output holds a character"),
        (Mode.DARK, {"source": "sim:8x8", "name": "a b"}, "--name a b: that is no name"),
        (Mode.TIMESERIES, {**SERIES, "each": True}, "--each writes one"),
        (Mode.TIMESERIES, {**SERIES, "output": "a", "join": True}, "no name of a dataset"),
        (
            Mode.TIMESERIES,
            {**SERIES, "source": "sim:4x4?{bla}"},
            r"'sim:4x4\?{bla}' cannot be filled in: there is no {bla}",
        ),
        (Mode.TIMESERIES, {**SERIES, "source": "files:/{tilt}"}, "'files:/{tilt}' cannot be filled in"),
        (Mode.TIMESERIES, {**SERIES, "source": "files:/{index.x}"}, "'files:/{index.x}' cannot be filled in"),
        (Mode.TIMESERIES, {**SERIES, "source": "files:/{0}/{index"}, "cannot be filled in"),
        (Mode.TIMESERIES, {**SERIES, "source": "files:/x"}, "the source 'files:/x' is the same for all scans"),
        (Mode.TIMESERIES, {**SERIES, "source": "raw:/x.h5"}, "the source 'raw:/x.h5' is the same for all scans"),
        (Mode.TIMESERIES, {**SERIES, "source": "sim:4x4?{index}"}, "'0' in 'sim:4x4.0' is no option"),
        (Mode.TOMOGRAPHY, {"source": "files:/x", "tilts": "0:9:1", "output": "t"}, "is the same for all scans"),
        (Mode.TOMOGRAPHY, {"source": "{tilt}", "tilts": "0:9:1", "output": "t"}, "'0' is no source"),
        (Mode.TOMOGRAPHY, {"source": "sim:8x8", "tilts": "a", "output": "t"}, "--tilts a: these are no angles"),
        (Mode.REPLAY, {"source": "sim:8x8", "output": "a.h5"}, "a replay of 'sim:8x8'"),
        (Mode.REPLAY, {"source": "files:/a?rate=5", "rate": 3.0, "output": "a.h5"}, "given twice"),
        (Mode.FILEBASED, {"source": ("sim:8x8",), "output": "a.h5"}, "cannot be copied from 'sim:8x8'"),
        (Mode.FILEBASED, {"source": ("files:/a",), "output": "a.h5", "dark": "ref:a"}, "asks no etcd for references"),
        (Mode.FILEBASED, {"source": ("files:/a",), "output": "a.h5", "xray": 1.0}, "--background and --xray belong"),
        (Mode.FILEBASED, {"source": ("files:/a",), "output": "a.h5", "gain": "ref:a"}, "a gain reference has no name"),
        (
            Mode.REPLAY,
            {"source": "files:/a", "output": "a.h5", "background": 9.0, "xray": 8.0},
            r"--background \(9\) must be below --xray \(8\)",
        ),
        (Mode.REPLAY, {"source": "files:/a", "output": "a.h5", "sample_frames": 0}, "--sample-frames: .* greater"),
        (
            Mode.CALIBRATE,
            {"source": "sim:8x8", "name": "a", "dark": "a", "row_dark": "mean"},
            "--row-dark takes the pl",
        ),
        (Mode.SINGLE, {"source": "sim:8x8", "output": "a.h5", "row_dark_level": 3.0}, "--row-dark-level belongs to"),
        (Mode.BENCHMARK, {"scan": "64"}, "--scan 64: '64' is no scan shape"),
        (Mode.REPLAY, {"source": "camera", "output": "a.h5"}, "mode replay has no --source camera"),
        (Mode.FILEBASED, {"source": ("camera",), "output": "a.h5"}, "mode filebased has no --source camera"),
        (Mode.SINGLE, {"source": "camera"}, "--source and --output belong together"),
        (
            Mode.TIMESERIES,
            {"source": "camera", "scans": 2, "interval": 1.0, "output": "a.h5"},
            "--interval has no effect with --source camera",
        ),
        (Mode.RAW, {"source": "camera:5", "output": "a.h5"}, "'camera:5' is no source"),
    ],
)
def test_options_that_make_no_sense_are_refused(mode: Mode, options: dict[str, object], message: str) -> None:
    with pytest.raises(MpistreamError, match=message) as raised:
        checked_options(mode, options)
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (Mode.SINGLE, {"output": "a.h5"}),
        (Mode.DARK, {"name": "a"}),
        (Mode.CALIBRATE, {"name": "a"}),
        (Mode.TIMESERIES, {"scans": 2, "output": "a.h5"}),
        (Mode.TOMOGRAPHY, {"tilts": "0,1", "output": "t"}),
        (Mode.RAW, {"output": "a.h5"}),
    ],
)
def test_the_camera_is_a_source_as_it_is(mode: Mode, options: dict[str, object]) -> None:
    assert checked_options(mode, {"source": "camera", **options})["source"] == "camera"


def test_references_by_name_are_known_by_their_kinds() -> None:
    options = {"source": "sim:8x8", "output": "a.h5", "dark": "ref:a", "thresholds": "ref:b", "pixel_mask": "c.npy"}
    checked = checked_options(Mode.SINGLE, options)
    assert named_references(checked) == {ReferenceKind.DARK: "a", ReferenceKind.THRESHOLDS: "b"}
    assert checked["pixel_mask"] == str(Path("c.npy").absolute())


def test_what_is_0_is_given() -> None:
    options = {"source": "sim:8x8", "output": "a.h5", "background": 0.0, "xray": 1.0, "centroids": False}
    options |= {"dark": None, "overwrite": False}
    assert checked_options(Mode.SINGLE, options).keys() == {"source", "output", "background", "xray", "centroids"}


@pytest.mark.parametrize(
    ("text", "angles"),
    [
        ("-60:60:30", [-60, -30, 0, 30, 60]),
        ("10:-10:-10", [10, 0, -10]),
        ("0:1:0.1", [index / 10 for index in range(11)]),
        ("0,-5,7.5", [0, -5, 7.5]),
        ("3", [3]),
    ],
)
def test_tilts(text: str, angles: list[float]) -> None:
    assert tilts_degrees(text) == pytest.approx(angles)


@pytest.mark.parametrize("text", ["0:10", "0:10:0", "10:0:2", "0,nan", "0,181", "", "a,b"])
def test_tilts_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--tilts"):
        tilts_degrees(text)


# the scripts as bash runs them: a stand-in for mpistream prints what it is told, a word a line


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    return program(tmp_path, "mpistream", 'for word in "$@"; do echo "$word"; done')


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mpi stream.toml"
    path.touch()
    return path


def test_a_script_becomes_the_runner_with_its_options_word_for_word(tmp_path: Path, runner: Path, config: Path) -> None:
    output = tmp_path / "it's a folder" / "$HOME.h5"
    options = {**OPTIONS[Mode.SINGLE], "output": str(output), "pixel_mask": None}
    asked = request(Mode.SINGLE, options, config=config, mpistream=str(runner))
    done = run_script(script(asked, "testbed"), tmp_path)
    assert done.stderr == ""
    own, _, step = done.stdout.partition("\n--\n")
    assert own.splitlines() == [
        *("job", "run", "single", "--session", "tuesday", "--config", str(config)),
        *("--finish-seconds", "30", "--requeue"),
        *("--source", "files:/data/a scan", "--output", str(output), "--dark", "ref:tuesday"),
        *("--background", "44.1234567", "--xray", "1500", "--centroids"),
    ]
    assert step.splitlines() == [
        *("srun", "--mpi=pmix", "--ntasks-per-node=2", "--cpus-per-task=4", "--kill-on-bad-exit=1"),
        *(str(runner), "consume", "--config", str(config), "--interface", "eth0"),
    ]
    assert output.parent.is_dir()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (Mode.LIVE, []),
        (Mode.DARK, ["--source", "sim:8x8?electrons=0", "--name", "tuesday"]),
        (Mode.CALIBRATE, ["--source", "sim:8x8", "--name", "tuesday", "--dark", "ref:tuesday"]),
        (Mode.BENCHMARK, ["--producers-here", "--interface", "eth0", "--scan", "64x64", "--repeat", "3"]),
    ],
)
def test_the_options_of_modes_without_files(
    tmp_path: Path, runner: Path, config: Path, mode: Mode, options: list[str]
) -> None:
    done = run_script(script(request(mode, config=config, mpistream=str(runner)), "testbed"), tmp_path)
    assert done.stderr == ""
    words = done.stdout.partition("\n--\n")[0].splitlines()
    assert words[:2] + words[2:3] == ["job", "run", mode]
    own = words[words.index("--config") + 2 :]
    assert own[:2] == ["--finish-seconds", "30"]
    assert own[3:] == options


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (
            Mode.TIMESERIES,
            ["--source", "sim:8x8?seed={{index}}", "--scans", "5", "--interval", "2.5", "--output", "{}", "--join"],
        ),
        (Mode.TOMOGRAPHY, ["--source", "files:/data/{{tilt}}", "--tilts", "-60:60:2", "--output", "{}"]),
        (Mode.RAW, ["--source", "files:/data/sectors", "--output", "{}"]),
        (
            Mode.REPLAY,
            [
                *("--producers-here", "--interface", "eth0"),
                *("--source", "raw:{}.raw.h5", "--rate", "1000", "--output", "{}"),
            ],
        ),
    ],
)
def test_the_options_of_modes_with_files(
    tmp_path: Path, runner: Path, config: Path, mode: Mode, options: list[str]
) -> None:
    output = tmp_path / "folder" / ("tomography" if mode is Mode.TOMOGRAPHY else "scan.h5")
    given = {**OPTIONS[mode], "output": str(output)}
    if mode is Mode.REPLAY:
        output.parent.mkdir()
        Path(f"{output}.raw.h5").touch()
        given["source"] = f"raw:{output}.raw.h5"
    asked = request(mode, given, config=config, mpistream=str(runner))
    done = run_script(script(asked, "testbed"), tmp_path)
    assert done.stderr == ""
    words = done.stdout.partition("\n--\n")[0].splitlines()
    own = words[words.index("--config") + 2 :]
    assert own[:2] == ["--finish-seconds", "30"]
    assert own[3:] == [word.format(output) for word in options]
    assert output.is_dir() if mode is Mode.TOMOGRAPHY else output.parent.is_dir()


def test_filebased_copies_the_sector_files_first(tmp_path: Path, runner: Path) -> None:
    first, second = tmp_path / "disk 0", tmp_path / "disk1"
    for number, folder in enumerate((first, second)):
        folder.mkdir()
        (folder / f"data_scan0000000001_module{number}.data").write_text("frames")
        (folder / "other.txt").touch()
    output = tmp_path / "out" / "scan.h5"
    options = {"source": (f"files:{first}", f"files:{second}"), "output": str(output), "overwrite": True}
    asked = request(Mode.FILEBASED, options, config=None, mpistream=str(runner))
    done = run_script(script(asked, "testbed"), tmp_path)
    assert done.stderr == ""
    copy = tmp_path / "out" / "scan-sectors"
    assert {path.name for path in copy.iterdir()} == {f"data_scan0000000001_module{number}.data" for number in (0, 1)}
    assert f"rm -r {copy}" in done.stdout
    told = done.stdout.partition("job\nrun\n")[2].splitlines()
    assert told[: told.index("--")] == ["filebased", "--session", "tuesday", "--no-requeue"]
    assert told[told.index("--") :][-7:] == [
        *(str(runner), "count", "--source", f"files:{copy}", "--output", str(output), "--overwrite")
    ]


def test_filebased_scans_of_the_same_file_name_are_copied_apart(tmp_path: Path, runner: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(f"[storage]\nscratch = '{tmp_path}/scratch'\n")
    source = tmp_path / "disk"
    source.mkdir()
    for day in ("monday", "tuesday"):
        options = {"source": (f"files:{source}",), "output": str(tmp_path / day / "scan.h5")}
        asked = request(Mode.FILEBASED, options, config=None, mpistream=str(runner))
        assert run_script(script(asked, str(profile)), tmp_path).returncode == 0
    found = sorted(path.relative_to(tmp_path / "scratch") for path in (tmp_path / "scratch").glob("**/scan-sectors"))
    below = Path("mpistream", *tmp_path.parts[1:])
    assert found == [below / day / "scan-sectors" for day in ("monday", "tuesday")]


def test_filebased_says_that_the_copy_failed(tmp_path: Path, runner: Path) -> None:
    options = {"source": (f"files:{tmp_path}/nowhere",), "output": str(tmp_path / "scan.h5")}
    asked = request(Mode.FILEBASED, options, config=None, mpistream=str(runner))
    done = run_script(script(asked, "testbed"), tmp_path)
    assert done.returncode == 1
    assert "nowhere" in done.stderr  # rsync's own words
    assert "mpistream-filebased-tuesday: error: the copy failed" in done.stderr
    assert "job\nrun" not in done.stdout


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("mpistream", "there is no command"),
        ("config", "cannot read the configuration"),
        ("output", "cannot write into"),
        ("dark", "cannot read .*dark.npy"),
    ],
)
def test_a_script_says_what_is_not_there(
    tmp_path: Path, runner: Path, config: Path, lacking: str, message: str
) -> None:
    dark = tmp_path / "dark.npy"
    dark.touch()
    file = tmp_path / "file"
    file.touch()
    output = file / "folder" / "scan.h5" if lacking == "output" else tmp_path / "scan.h5"
    gone = {"mpistream": runner, "config": config, "dark": dark}.get(lacking)
    if gone is not None:
        gone.unlink()
    options = {"source": "sim:8x8", "output": str(output), "dark": str(dark)}
    asked = request(Mode.SINGLE, options, config=config, mpistream=str(runner))
    done = run_script(script(asked, "testbed"), tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(f"mpistream-single-tuesday: error: {message}", done.stderr)
    assert "\n  mend the line" in done.stderr or "\n  install mpistream" in done.stderr
