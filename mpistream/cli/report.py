"""What a user sees of a scan: a progress bar while it runs, a summary when it is done."""

import json
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mpistream.control.run_state import ScanState
from mpistream.launch.scan_follower import ScanEnd
from mpistream.model.scan import ScanRecord, ScanSummary

if TYPE_CHECKING:
    from mpistream.storage.reader import Dataset
    from mpistream.storage.recording_reader import Recording

_STAGES: dict[str, str] = {
    ScanState.ANNOUNCED: "preparing",
    ScanState.STREAMING: "streaming",
    ScanState.DRAINING: "counting",
    ScanState.ASSEMBLING: "writing",
}


class _ProgressBar:
    """A progress bar on stderr: stdout is for results."""

    def __init__(self, progress: Progress, description: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, rate="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


class SimulationProgress(_ProgressBar):
    """While sector files are written."""

    def __init__(self, frames: int) -> None:
        super().__init__(Progress(console=Console(stderr=True)), "simulating", frames)

    def update(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


class ScanProgress(_ProgressBar):
    """While a scan is streamed: with the rate and the time left."""

    def __init__(self, record: ScanRecord) -> None:
        columns = [
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} frames  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        ]
        frames = record.last_frame - record.first_frame + 1
        super().__init__(Progress(*columns, console=Console(stderr=True)), "preparing", frames)

    def update(self, state: str, progress: dict[str, int]) -> None:
        """``state`` is a scan's, or what is being done; ``progress`` holds the running totals ``frames`` and
        ``raw_bytes`` where they have changed.
        """
        self._progress.update(self._task, completed=progress.get("frames"), description=_STAGES.get(state, state))
        seconds = self._progress.tasks[0].elapsed
        if seconds and progress.get("raw_bytes"):
            self._progress.update(self._task, rate=f"{progress['raw_bytes'] / seconds / 1e9:.2f} GB/s")

    def finish(self) -> None:
        """The dataset is there; frames that were lost are counted as done."""
        self._progress.update(self._task, completed=self._progress.tasks[0].total, description="done")


def summary_numbers(end: ScanEnd) -> dict[str, object]:
    """The summary as one flat object."""
    summary = end.summary
    seconds = summary.seconds
    return {
        "dataset": summary.dataset,
        "state": str(end.status.state),
        "complete": summary.complete,
        "reason": end.status.reason,
        "scan_shape": list(summary.scan_shape),
        **summary.counters.model_dump(),
        "seconds_streaming": seconds.get("streaming"),
        "seconds_last_frame_to_dataset": seconds.get("last_frame_to_dataset"),
        "recording": summary.recording,
        **({} if summary.recording else _thresholds_of(summary)),
        "dataset_bytes": summary.file_bytes,
        "gigabytes_per_second": _rates(summary),
        "warnings": list(summary.warnings),
    }


def _thresholds_of(summary: ScanSummary) -> dict[str, object]:
    return {
        "background": summary.thresholds.background,
        "xray": summary.thresholds.xray,
        "thresholds_calibrated": summary.thresholds.calibrated,
    }


def _rates(summary: ScanSummary) -> dict[str, float]:
    """GB/s by stage. Reading and counting: per process while it does just that; the others: all together.

    A scan that a second job has finished does not know the times of the first one.
    """
    raw, seconds = summary.counters.raw_bytes, summary.seconds
    amounts = {
        "reading": raw,
        "streaming": raw,
        "counting": raw,
        "checksums": raw,
        "gather": summary.file_bytes,
        "write": summary.file_bytes,
    }
    known = {stage: amount for stage, amount in amounts.items() if seconds.get(stage, 0) > 0}
    return {stage: round(amount / seconds[stage] / 1e9, 3) for stage, amount in known.items()}


def print_dataset(dataset: "Dataset") -> None:
    """What a dataset says about itself."""
    counters, thresholds, provenance = dataset.counters, dataset.thresholds, dataset.provenance
    record, rows, columns = provenance["scan_record"], *dataset.scan_shape
    samples = thresholds["number_of_samples"]
    references = [name for name in ("dark", "gain", "pixel_mask") if getattr(dataset, name) is not None]
    print(f"dataset      {dataset.path}")
    print(
        f"scan         {rows} x {columns} positions, {dataset.n_frames} frames of {dataset.frame_shape[0]} x ", end=""
    )
    print(f"{dataset.frame_shape[1]} pixels, camera's number {dataset.scan_number}, uid {dataset.scan_uid}")
    print(f"electrons    {dataset.n_electrons}, centroids: {'in 1/128 pixel' if dataset.has_centroids else 'none'}")
    origin = f"calibrated from {samples} frames" if thresholds["threshold_calculated"] else "as given"
    if "thresholds_from" in thresholds:
        by_name = record.get("references", {}).get("thresholds")
        origin = f"from {thresholds['thresholds_from']}{f' ({by_name})' if by_name else ''}"
    print(
        f"thresholds   background {thresholds['background_threshold']:.2f}, "
        f"x-ray {thresholds['x_ray_threshold']:.2f} ADU, {origin}"
    )
    if "row_dark" in thresholds:
        print(f"row dark     {thresholds['row_dark']}, level {thresholds['row_dark_level']:.2f} ADU")
    named = record.get("references", {})
    words = [name.replace("_", " ") + (f" ({named[name]})" if name in named else "") for name in references]
    print(f"references   {', '.join(words) or 'none'}")
    print("counters     " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counters.items()))
    for name in ("bright_field", "annular_dark_field"):
        inner, outer = dataset.image_radii(name)
        label = "dark field" if "dark" in name else "bright field"
        print(f"{label:<13}{inner:g} to {outer:g} pixels around {dataset.center[0]:.1f}, ", end="")
        print(f"{dataset.center[1]:.1f} (row, column)")
    if dataset.session:
        print(f"session      {dataset.session}")
    if dataset.labels:
        print(f"labels       {', '.join(f'{name} {value}' for name, value in dataset.labels.items())}")
    print(f"source       {record['source']}")
    print(
        f"written      {provenance['written_utc']} by {provenance['writing_ranks']} ranks of job {provenance['job']}",
        end="",
    )
    print(", which read the source themselves" if provenance.get("ingest") == "read" else "")
    print("versions     " + ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()))


def print_recording(recording: "Recording") -> None:
    """What a raw recording says about itself."""
    provenance, (rows, columns) = recording.provenance, recording.scan_shape
    first, frames = provenance["scan_record"]["first_frame"], recording.counters["frames"]
    print(f"recording    {recording.path}")
    print(f"scan         {rows} x {columns} positions, {frames} frames, numbered {first} to ", end="")
    print(f"{first + recording.rows - 1}, camera's number {recording.scan_number}, uid {recording.scan_uid}")
    sector = " x ".join(map(str, recording.layout.sector_shape))
    print(f"sectors      {sector} pixels each (version {int(recording.layout)} of the raw format)")
    print(
        "counters     " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recording.counters.items())
    )
    print(f"complete     {'yes' if recording.complete else 'no: it has what had arrived'}")
    print(f"source       {provenance['scan_record']['source']}")
    print(f"written      {provenance['written_utc']} by {provenance['writing_ranks']} ranks of job {provenance['job']}")
    print("versions     " + ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()))


def print_json(end: ScanEnd) -> None:
    print(json.dumps(summary_numbers(end)), flush=True)


def print_summary(summary: ScanSummary) -> None:
    """A few lines for people."""
    counters, thresholds, rates = summary.counters, summary.thresholds, _rates(summary)
    origin = f"calibrated from {thresholds.sample_frames} frames" if thresholds.calibrated else "as given"
    per_frame = counters.electrons / counters.frames if counters.frames else 0.0
    size = f"{counters.raw_bytes / 1e9:.3f} GB raw"
    print(f"{'recording' if summary.recording else 'dataset':<13}{summary.dataset}")
    print(f"scan         {summary.scan_shape[0]} x {summary.scan_shape[1]} positions, {counters.frames} frames")
    if not summary.recording:
        size += f", {summary.file_bytes / 1e6:.1f} MB counted ({counters.raw_bytes / summary.file_bytes:.0f}x)"
        print(f"electrons    {counters.electrons} ({per_frame:.0f} per frame)")
        print(f"thresholds   background {thresholds.background:.2f}, x-ray {thresholds.xray:.2f} ADU, {origin}")
    print(
        f"incomplete   {counters.frames_incomplete} frames, {counters.sectors_missing} sectors missing, "
        f"{counters.sectors_duplicate} duplicate, {counters.sectors_rejected} rejected, "
        f"{counters.frames_lost} frames lost"
    )
    print(f"size         {size}")
    print(f"GB/s         {', '.join(f'{stage} {rate:.2f}' for stage, rate in rates.items()) or 'not known'}")
    names = ("streaming", "last_frame_to_dataset")
    times = [f"{name.replace('_', ' ')} {summary.seconds[name]:.2f}" for name in names if name in summary.seconds]
    print(f"seconds      {', '.join(times) or 'not known'}")
    if counters.blocks_repeated:
        print(f"repeated     {counters.blocks_repeated} blocks of a sector came more than once, and count once")
    for warning in summary.warnings:
        print(f"warning      {warning}")
