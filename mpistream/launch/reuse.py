"""Thresholds of an earlier scan for a new one."""

from pathlib import Path

from pydantic import ValidationError

from mpistream.model.errors import ConfigError, StorageError
from mpistream.model.scan import CountingParameters
from mpistream.storage.thresholds_file import SavedThresholds, read_thresholds

_CALIBRATION = {"sample_frames", "background_sigmas", "xray_sigmas"}


def with_saved_thresholds(counting: CountingParameters, path: Path) -> tuple[CountingParameters, tuple[str, ...]]:
    """``counting`` with the thresholds in a dataset or in a file of `mpistream calibrate`, and notes for the user.

    Thresholds are in ADU after the references, so a scan must use those kinds of references that they were found with.
    Raises ConfigError where it does not, or where ``counting`` has thresholds; StorageError for the file.
    """
    if counting.thresholds_are_given:
        raise ConfigError("--thresholds, and --background and --xray, too", "give the one or the others")
    if surplus := _CALIBRATION & counting.model_fields_set:
        option = "--" + min(surplus).replace("_", "-")
        raise ConfigError(f"{option} is for calibration, --thresholds does without", "give the one or the other")
    saved = read_thresholds(path)
    _check_references(saved, counting, path)
    values = counting.model_dump(exclude_unset=True) | {
        "background": saved.thresholds.background,
        "xray": saved.thresholds.xray,
        "thresholds_from": str(path.absolute()),
    }
    if counting.row_dark is not None:
        if saved.pedestal is None:
            raise ConfigError(
                f"{path} does not say to which level --row-dark is to bring the pedestal",
                f"give --background {saved.thresholds.background:g} --xray {saved.thresholds.xray:g} "
                "and --row-dark-level",
            )
        values["row_dark_level"] = saved.pedestal
    try:
        reused = CountingParameters.model_validate(values)
    except ValidationError as error:
        raise StorageError(
            f"the thresholds in {path} make no sense: {error.errors()[0]['msg']}", "calibrate anew: mpistream calibrate"
        ) from error
    return reused, tuple(_notes(saved, counting, path))


def _check_references(saved: SavedThresholds, counting: CountingParameters, path: Path) -> None:
    for kind in ("dark", "gain"):
        theirs, ours = getattr(saved.counting, kind), getattr(counting, kind)
        if theirs is not None and ours is None:
            raise ConfigError(
                f"the thresholds in {path} are for frames with a {kind} reference, this scan has none",
                f"give --{kind}, for instance {theirs}; or set thresholds with --background and --xray",
            )
        if theirs is None and ours is not None:
            raise ConfigError(
                f"the thresholds in {path} are for frames without a {kind} reference, this scan has one",
                f"leave --{kind} out; or calibrate with it: mpistream calibrate --{kind} {ours}",
            )


def _notes(saved: SavedThresholds, counting: CountingParameters, path: Path) -> list[str]:
    if saved.counting.row_dark == counting.row_dark:
        return []
    used, uses = (
        f"row-dark by {kind}" if kind else "no row-dark" for kind in (saved.counting.row_dark, counting.row_dark)
    )
    return [f"the thresholds in {path} were found for {used}, this scan has {uses}"]
