"""What each mode's jobs are told: its own options, checked before a script is written."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpistream.acquisition.source import absolute_specification
from mpistream.launch.cluster.series_sources import CAMERA, sources_of_tilts, sources_of_times
from mpistream.model.errors import ConfigError, SourceError
from mpistream.model.geometry import ScanShape
from mpistream.model.scan import CountingParameters
from mpistream.model.session import NAME_PATTERN, Mode, ReferenceKind

#: One sentence about each mode; docs/modes.md has the rest.
ABOUT = {
    Mode.LIVE: "Serves scan after scan of a session, until the session is stopped or the time limit nears.",
    Mode.SINGLE: "One scan, one dataset; then the job ends.",
    Mode.DARK: "A dark scan becomes a dark reference and a pixel mask, which later scans use by name.",
    Mode.CALIBRATE: "One scan is counted; its thresholds are kept, for later scans to use by name.",
    Mode.TIMESERIES: "Many short scans one after the other: one dataset with a time axis, or one each.",
    Mode.TOMOGRAPHY: "A scan at each tilt angle, and an index of them all.",
    Mode.RAW: "Sectors as they come into one parallel HDF5 file, uncounted; replay counts them later.",
    Mode.REPLAY: "Counts recorded sectors once more, through the same pipeline, at a chosen rate.",
    Mode.FILEBASED: "The conventional workflow: sector files are copied, then counted from files by an MPI job.",
    Mode.BENCHMARK: "Simulated scans through the whole pipeline, and how fast it was.",
}

#: Modes whose producers and aggregator run in the job's own allocation.
PRODUCERS_HERE = frozenset({Mode.REPLAY, Mode.BENCHMARK})

#: Modes whose jobs, begun once more, go on where they were: the scans that they have announced are found again.
GOING_ON = frozenset({Mode.LIVE, Mode.SINGLE, Mode.TIMESERIES, Mode.TOMOGRAPHY})

#: Modes whose jobs write into the session's folder, unless they have an output of their own.
SESSION_FOLDER = frozenset({Mode.LIVE, Mode.SINGLE, Mode.DARK, Mode.CALIBRATE})

#: Modes that have a session's name, and need no session.
WITHOUT_SESSION = frozenset({Mode.FILEBASED, Mode.BENCHMARK})

#: Modes that take the scan which the camera begins next.
FROM_CAMERA = frozenset({Mode.SINGLE, Mode.DARK, Mode.CALIBRATE, Mode.TIMESERIES, Mode.TOMOGRAPHY, Mode.RAW})

#: Options that take a reference by its name, and what kind it must be of.
REFERENCE_OPTIONS = {
    "dark": ReferenceKind.DARK,
    "pixel_mask": ReferenceKind.MASK,
    "thresholds": ReferenceKind.THRESHOLDS,
}

#: Modes of many scans, whose source holds a placeholder.
SERIES = frozenset({Mode.TIMESERIES, Mode.TOMOGRAPHY})

_REFERENCE_FILES = REFERENCE_OPTIONS.keys() | {"gain"}
_REFERENCE = "ref:"
_NAMES = "names have letters, digits, '_', '.' and '-', 64 at most, the first a letter or a digit"
_REMOTE_FILES = re.compile(r"files:([A-Za-z0-9_.@-]+):(/.*)")


def checked_options(mode: Mode, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, with absolute paths. Raises ConfigError or SourceError with the remedy."""
    given = {name: value for name, value in options.items() if _is_given(name, value)}
    for name, value in given.items():
        _check_text(name, value)
    for name in _REFERENCE_FILES & given.keys():
        given[name] = _reference(name, str(given[name]))
    if "name" in given and not re.fullmatch(NAME_PATTERN, given["name"]):
        raise ConfigError(f"--name {given['name']}: that is no name", _NAMES)
    if "scan" in given:
        _check_shape(given["scan"])
    if "output" in given:
        given["output"] = str(Path(given["output"]).absolute())
    check_camera(mode, given)
    if mode is Mode.FILEBASED:
        given["source"] = tuple(_files_to_copy(source) for source in given["source"])
    elif "source" in given:
        given["source"] = _absolute_source(mode, given["source"])
    check = {
        Mode.SINGLE: _check_single,
        Mode.TIMESERIES: _check_timeseries,
        Mode.TOMOGRAPHY: _check_tomography,
        Mode.REPLAY: _check_replay,
        Mode.FILEBASED: _check_filebased,
    }.get(mode)
    if check is not None:
        check(given)
    _check_counting(given)
    if mode is not Mode.TOMOGRAPHY and "each" not in given:
        _check_suffix(given.get("output"))
    return given


def check_camera(mode: Mode, given: Mapping[str, Any], producers_here: bool = False) -> None:
    """Raises ConfigError where the camera cannot be the source, or for what then has no effect."""
    if given.get("source") not in (CAMERA, (CAMERA,)):
        return
    if mode not in FROM_CAMERA:
        modes = ", ".join(sorted(FROM_CAMERA))
        raise ConfigError(
            f"mode {mode} has no --source {CAMERA}", f"record the scan first: mode raw; these modes have it: {modes}"
        )
    if "interval" in given:
        raise ConfigError(f"--interval has no effect with --source {CAMERA}", "leave it out: the camera sets the pace")
    if producers_here:
        raise ConfigError(
            f"--producers-here has no effect with --source {CAMERA}",
            "leave it out: the camera pushes to producers that run already (mpistream produce --camera)",
        )


def named_references(options: Mapping[str, Any]) -> dict[ReferenceKind, str]:
    """The names behind ``ref:`` among checked options, by their kinds."""
    return {
        kind: str(options[option]).removeprefix(_REFERENCE)
        for option, kind in REFERENCE_OPTIONS.items()
        if str(options.get(option, "")).startswith(_REFERENCE)
    }


def _is_given(name: str, value: Any) -> bool:
    """--no-centroids is said to a session whose scans have them; other flags that are not set say nothing."""
    return value is not None and (value is not False or name == "centroids")


def _check_text(name: str, value: Any) -> None:
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not text.isprintable():
            raise ConfigError(f"{_flag(name)} holds a character that cannot be printed", "write it without")


def _reference(option: str, value: str) -> str:
    if not value.startswith(_REFERENCE):
        return str(Path(value).absolute())
    if option not in REFERENCE_OPTIONS:
        raise ConfigError(f"{_flag(option)} {value}: a {option} reference has no name", "give its file")
    if not re.fullmatch(NAME_PATTERN, value.removeprefix(_REFERENCE)):
        raise ConfigError(f"{_flag(option)} {value}: that is no name", _NAMES)
    return value


def _absolute_source(mode: Mode, source: str) -> str:
    if source == CAMERA:
        return source
    scheme, _, place = source.partition(":")
    if scheme == "raw" and place:
        path, question, options = place.partition("?")
        return f"raw:{Path(path).absolute()}{question}{options}"
    if mode is Mode.REPLAY and scheme != "files":
        raise SourceError(f"a replay of {source!r}", "give what was recorded: files:DIR, or raw:FILE.h5")
    if mode in SERIES and scheme != "files":  # {tilt} and {index} may make a source of it; that is checked later
        return source
    return absolute_specification(source)


def _files_to_copy(source: str) -> str:
    """What rsync reads: DIR or HOST:DIR."""
    if remote := _REMOTE_FILES.fullmatch(source):
        return f"{remote[1]}:{remote[2].rstrip('/') or '/'}"
    if not source.startswith("files:") or "?" in source:
        raise SourceError(
            f"sector files cannot be copied from {source!r}", "give files:DIR, or files:HOST:/DIR for another host's"
        )
    return str(Path(source.removeprefix("files:")).absolute())


def _check_shape(text: str) -> None:
    try:
        ScanShape.parse(text)
    except ValueError as error:
        raise ConfigError(f"--scan {text}: {error}", "for instance --scan 256x256") from None


def _check_single(given: Mapping[str, Any]) -> None:
    if ("source" in given) != ("output" in given):
        raise ConfigError(
            "--source and --output belong together",
            "give both; or neither, then the job serves the next scan that is announced in the session",
        )
    if "source" not in given and given:
        raise ConfigError(
            f"{_flag(next(iter(given)))} is of a scan that the job announces itself",
            "give --source and --output, too; or leave it out: whoever announces the scan says how it is counted",
        )


def _check_filebased(given: Mapping[str, Any]) -> None:
    for kind, name in named_references(given).items():
        raise ConfigError(
            f"ref:{name} ({kind}): a filebased job asks no etcd for references",
            "give the file; mpistream reference list shows where it lies",
        )


def _check_counting(given: Mapping[str, Any]) -> None:
    if ("background" in given) != ("xray" in given):
        raise ConfigError("--background and --xray belong together", "for instance --background 44 --xray 1500")
    if "background" in given and "thresholds" in given:
        raise ConfigError("--thresholds takes the place of --background and --xray", "leave one of them out")
    parameters = given.keys() & CountingParameters.model_fields.keys()
    try:
        CountingParameters(**{name: given[name] for name in parameters})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{_flag(str(part))}: " for part in first["loc"])
        names = sorted(parameters | {"row_dark_level"}, key=len, reverse=True)
        what = re.sub("|".join(names), lambda name: _flag(name[0]), first["msg"].removeprefix("Value error, "))
        raise ConfigError(
            f"{where}{what}",
            "docs/counting.md says what goes together; mpistream job submit MODE --help has the options",
        ) from None


def _check_timeseries(given: Mapping[str, Any]) -> None:
    if given.get("each") and str(given["output"]).endswith(".h5"):
        raise ConfigError("--each writes one dataset per scan", "give a folder as --output; or --join")
    sources_of_times(given["source"], given["scans"])


def _check_tomography(given: Mapping[str, Any]) -> None:
    sources_of_tilts(given["source"], tilts_degrees(given["tilts"]))


def _check_replay(given: Mapping[str, Any]) -> None:
    if "rate" in given and "?rate=" in given["source"].replace("&", "?"):
        raise ConfigError("the rate is given twice", "leave ?rate= out of --source")


def _check_suffix(output: str | None) -> None:
    if output is not None and not output.endswith(".h5"):
        raise ConfigError(f"--output {output}: that is no name of a dataset", "give a file that ends in .h5")


def tilts_degrees(text: str) -> list[float]:
    """The angles of ``START:STOP:STEP`` (STOP included) or of a list with commas. Raises ConfigError."""
    remedy = "give START:STOP:STEP, as in --tilts -60:60:2, or a list, as in --tilts 0,10,20"
    is_range = ":" in text
    try:
        numbers = [float(part) for part in text.split(":" if is_range else ",")]
    except ValueError:
        raise ConfigError(f"--tilts {text}: these are no angles", remedy) from None
    if not all(math.isfinite(number) and abs(number) <= 180 for number in numbers):
        raise ConfigError(f"--tilts {text}: angles are -180 to 180 degrees", remedy)
    if not is_range:
        return numbers
    if len(numbers) != 3 or numbers[2] == 0 or (numbers[1] - numbers[0]) * numbers[2] < 0:
        raise ConfigError(f"--tilts {text}: no angle lies on the way", remedy)
    start, stop, step = numbers
    return [start + step * index for index in range(math.floor((stop - start) / step + 1e-9) + 1)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
