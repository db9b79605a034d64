"""What is taken of a detector before its scans are counted: dark references, pixel masks and thresholds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from mpistream.acquisition.source import files_of_source
from mpistream.cli.naming import Naming, named_references, naming_options
from mpistream.cli.options import calibration_options, config_option, counting_parameters, folder_option, load_config
from mpistream.launch.announcement import check_no_names
from mpistream.launch.references import resolve_counting
from mpistream.model.config import Config
from mpistream.model.dataset_description import SampleHistogram
from mpistream.model.errors import ConfigError
from mpistream.model.scan import CountingParameters, ScanRecord
from mpistream.model.session import ReferenceKind
from mpistream.pipeline.source_frames import record_of_source, sample_source, source_blocks
from mpistream.reduction.calibration import calibrated_thresholds
from mpistream.reduction.dark_reference import DarkReference, dark_reference
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.storage.calibration_picture import draw_calibration
from mpistream.storage.reader import open_dataset
from mpistream.storage.small_files import check_targets, save_files
from mpistream.storage.thresholds_file import SavedThresholds, thresholds_of

Output = Callable[[IO[bytes]], object]


def _output(option: str, metavar: str, help_text: str) -> Any:
    return click.option(option, type=click.Path(path_type=Path), metavar=metavar, help=help_text)


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.command()
@click.argument("source", metavar="SOURCE")
@_output("--output", "FILE.npy", "The dark reference to write.")
@_output("--noise", "FILE.npy", "Also write the noise (standard deviation) of every pixel.")
@_output("--mask", "FILE.npy", "Also write a mask of dead, hot and noisy pixels, for --pixel-mask.")
@click.option("--frames", type=click.IntRange(1), help="Use the first N frames only.", metavar="N")
@click.option(
    "--outlier-sigmas", type=float, default=5.0, show_default=True, help="Leave out what is further off than this."
)
@overwrite_option
@naming_options
@folder_option
@config_option
@json_option
def dark(
    source: str,
    output: Path | None,
    noise: Path | None,
    mask: Path | None,
    frames: int | None,
    outlier_sigmas: float,
    overwrite: bool,
    name: str | None,
    session: str,
    folder: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Make a dark reference from a dark scan: mpistream dark files:DIR --output dark.npy --mask mask.npy

    The mean of every pixel, without the outliers that x-rays and stray electrons leave. With --name scans of a running
    deployment use the dark reference, and the mask if there is one, as ref:NAME. With --session, too, both need no
    file name: they are written to the session's folder.
    """
    with named_references(name, session, folder, config) as naming:
        if naming is not None and output is None:
            output, mask = naming.path(ReferenceKind.DARK), mask or naming.path(ReferenceKind.MASK)
        if output is None:
            raise ConfigError("a dark reference needs a file", "give --output FILE.npy; or --name and --session")
        paths = [path.absolute() for path in (output, noise, mask) if path is not None]
        check_targets(paths, overwrite, files_of_source(source))
        record, notes = record_of_source(source, Config().stream.block_frames, CountingParameters())
        if frames is not None:
            record = record.model_copy(update={"last_frame": min(record.last_frame, record.first_frame + frames - 1)})
        reference = dark_reference(_with_progress(record), record.encoding.layout, outlier_sigmas)
        images = ((output, reference.mean), (noise, reference.noise), (mask, reference.mask))
        save_files({path.absolute(): _as_npy(image) for path, image in images if path is not None}, overwrite)
        numbers = _numbers(reference)
        if naming is not None:
            files = {ReferenceKind.DARK: output} | ({ReferenceKind.MASK: mask} if mask is not None else {})
            naming.store(files, {"source": record.source, **numbers})
    notes = (*notes, *reference.notes)
    if as_json:
        click.echo(json.dumps({**numbers, "files": [str(path) for path in paths], "notes": notes}))
        return
    _print_notes(notes)
    click.echo(f"frames       {reference.frames}")
    click.echo(f"pedestal     {numbers['pedestal']:.2f} ADU, noise {numbers['noise']:.2f} ADU (medians of the pixels)")
    click.echo(f"outliers     {reference.rejected:.4%} of the pixel values left out")
    click.echo(f"bad pixels   {numbers['dead']} dead, {numbers['hot']} hot, {numbers['noisy']} noisy")
    for path in paths:
        click.echo(f"written      {path}")
    if name is not None:
        click.echo(f"named        --dark ref:{name}" + (f", --pixel-mask ref:{name}" if mask is not None else ""))


def _with_progress(record: ScanRecord) -> Iterator[AssembledBlock]:
    """On stderr: stdout is for results."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(source_blocks(record), total=len(record.block_range), description="reading")


def _as_npy(image: "np.ndarray[Any, Any]") -> Output:
    return lambda file: np.save(file, image)


def _numbers(reference: DarkReference) -> dict[str, Any]:
    return {
        "frames": reference.frames,
        "rejected_fraction": reference.rejected,
        "pedestal": float(np.median(reference.mean)),
        "noise": float(np.median(reference.noise)),
        **{kind: int(np.count_nonzero(getattr(reference, kind))) for kind in ("dead", "hot", "noisy")},
    }


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(f"mpistream: note: {note}", err=True)


@click.command()
@click.argument("source", metavar="SOURCE|DATASET.h5")
@calibration_options
@_output("--output", "FILE.json", "Write the thresholds, for --thresholds of a scan.")
@_output("--plot", "FILE.png", "Draw the pixel values, the fit and both thresholds.")
@overwrite_option
@naming_options
@folder_option
@config_option
@json_option
def calibrate(
    source: str,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
    name: str | None,
    session: str,
    folder: Path | None,
    config: Path | None,
    as_json: bool,
    **counting: Any,
) -> None:
    """Find the thresholds that a scan of SOURCE would be counted with, or show those of a dataset.

    They are the same bits as the scan's, for the same block_frames in the configuration. With --name scans of a running
    deployment use them as ref:NAME; with --session, too, they need no file name. ref:NAME also stands for the dark
    reference and the mask of that name then.
    """
    with named_references(name, session, folder, config) as naming:
        if naming is not None and output is None:
            output = naming.path(ReferenceKind.THRESHOLDS)
        targets = [path.absolute() for path in (output, plot) if path is not None]
        saved, histogram = _find_thresholds(source, targets, overwrite, naming, config, counting)
        contents: dict[Path, Output] = {}
        if output is not None:
            contents[output.absolute()] = lambda file: file.write(saved.to_json().encode())
        if plot is not None:
            if histogram is None:
                raise ConfigError(f"{source} has no calibration to draw", "its thresholds were given; leave --plot out")
            figure = draw_calibration(histogram, saved.thresholds, f"Calibration of {saved.source}")
            contents[plot.absolute()] = lambda file: figure.savefig(file, format="png")
        save_files(contents, overwrite)
        if naming is not None and output is not None:
            found = saved.thresholds
            about: dict[str, str | int | float] = {
                "source": saved.source,
                "background": found.background,
                "xray": found.xray,
            }
            naming.store({ReferenceKind.THRESHOLDS: output}, about)
    if as_json:
        click.echo(json.dumps({**saved.model_dump(mode="json"), "files": [str(path) for path in targets]}))
        return
    _print_calibration(saved, histogram)
    for path in targets:
        click.echo(f"written      {path}")
    if name is not None:
        click.echo(f"named        --thresholds ref:{name}")


def _find_thresholds(
    source: str,
    targets: list[Path],
    overwrite: bool,
    naming: Naming | None,
    config: Path | None,
    counting: dict[str, Any],
) -> tuple[SavedThresholds, SampleHistogram | None]:
    is_dataset = not source.startswith(("files:", "sim:"))
    inputs = [value for value in counting.values() if isinstance(value, Path)]
    check_targets(targets, overwrite, inputs + ([Path(source)] if is_dataset else files_of_source(source)))
    if is_dataset:
        return _of_dataset(Path(source), {**counting, "config": None if naming else config})
    parameters = counting_parameters(**counting)
    if naming is not None:
        parameters, _ = resolve_counting(naming.running.sessions, parameters)
    check_no_names(parameters.dark, parameters.gain, parameters.pixel_mask)
    return _calibrate_source(source, naming.running.config if naming else load_config(config), parameters)


def _calibrate_source(
    source: str, config: Config, counting: CountingParameters
) -> tuple[SavedThresholds, SampleHistogram]:
    record, notes = record_of_source(source, config.stream.block_frames, counting)
    _print_notes(notes)
    sample = sample_source(record)
    thresholds = calibrated_thresholds(sample, counting)
    _print_notes(tuple(thresholds.notes(record)))
    saved = SavedThresholds(source=record.source, thresholds=thresholds, counting=counting)
    return saved, SampleHistogram(sample.first_bin, sample.histogram)


def _of_dataset(path: Path, options: dict[str, Any]) -> tuple[SavedThresholds, SampleHistogram | None]:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect on {path}, whose thresholds are fixed",
                "leave it out, or calibrate from the frames: mpistream calibrate files:DIR",
            )
    with open_dataset(path) as dataset:
        return thresholds_of(dataset), dataset.sample_histogram


def _print_calibration(saved: SavedThresholds, histogram: SampleHistogram | None) -> None:
    thresholds, counting, found = saved.thresholds, saved.counting, saved.thresholds.statistics
    references = [name for name in ("dark", "gain", "pixel_mask") if getattr(counting, name)]
    references += [f"row-dark by {counting.row_dark}"] if counting.row_dark else []
    click.echo(f"source       {saved.source}")
    click.echo(f"references   {', '.join(references).replace('_', ' ') or 'none'}")
    if thresholds.calibrated:
        mean, sigma = found["optimized_mean"], found["optimized_std_dev"]
        click.echo(f"sample       {thresholds.sample_frames} complete frames")
        click.echo(f"values       {found['min_sample']:g} to {found['max_sample']:g} ADU, ", nl=False)
        click.echo(f"mean {found['mean']:.4f}, standard deviation {found['std_dev']:.4f}")
        click.echo(f"pedestal     mean {mean:.4f} ADU, sigma {sigma:.4f} ADU (fitted)")
        background = f"fitted mean + {found['background_threshold_n_sigma']:g} sigma"
        xray = f"mean + {found['x_ray_threshold_n_sigma']:g} standard deviations"
    else:
        background = xray = f"from {counting.thresholds_from}" if counting.thresholds_from else "as given"
    click.echo(f"background   {thresholds.background:.4f} ADU: {background}")
    click.echo(f"x-ray        {thresholds.xray:.4f} ADU: {xray}")
    if thresholds.row_dark_level is not None:
        click.echo(f"row-dark     half rows are brought to {thresholds.row_dark_level:.4f} ADU")
    if histogram is not None:
        above = histogram.pixels[histogram.values > thresholds.background].sum() / thresholds.sample_frames
        xrays = histogram.pixels[histogram.values >= thresholds.xray].sum() / thresholds.sample_frames
        click.echo(
            f"per frame    {above - xrays:.1f} pixels between the thresholds, {xrays:.2f} above both, ", nl=False
        )
        click.echo(f"of {histogram.pixels.sum() / thresholds.sample_frames:.0f}")
