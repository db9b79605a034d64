"""stempy counts the same frames: from sector files, in a process of its own, since it may crash the one it runs in.

Its classic path counts with given thresholds, the frames of one iterator one by one; it needs a dark reference, which
is zero for none. Its multi-pass path, here with one thread, cannot be given thresholds: it draws a few frames to
calibrate from, and what that takes is part of its time. Only the call that counts is timed: neither opening the files
nor the conversion of the result.
"""

import importlib.util
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mpistream.model.errors import ConfigError, MpistreamError
from mpistream.model.geometry import FRAME_SHAPE

CLASSIC, MULTI_PASS = "classic", "multi-pass"

_VERSION = 5
#: As few as make thresholds that are sound, so that they cost little: less than one frame in a hundred.
_SAMPLE_FRAMES = 8
_BACKGROUND_SIGMAS, _XRAY_SIGMAS = 4.5, 175.0
_SECONDS_TO_END = 10
#: Its multi-pass path waits for ever where its calibration fails.
_SECONDS_TO_ANSWER = 900


@dataclass(frozen=True)
class CountingTask:
    """What is to be counted: sector files of version 5, a scan of (rows, columns) with one frame at each position.

    dark, gain  float32[576, 576], or None
    """

    folder: Path
    scan_shape: tuple[int, int]
    background: float
    xray: float
    dark: npt.NDArray[np.float32] | None = None
    gain: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class CountedByStempy:
    """With the thresholds that stempy used. indices uint32[n_events], ascending in each frame; counts uint32[n]."""

    seconds: float
    background: float
    xray: float
    indices: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]

    @property
    def frames_per_second(self) -> float:
        return len(self.counts) / self.seconds


class StempyPeer:
    """A process that counts with stempy when asked. Raises ConfigError where stempy is not installed."""

    def __init__(self) -> None:
        if importlib.util.find_spec("stempy") is None:
            raise ConfigError("stempy, which counting is compared with, is not installed", "pip install stempy==3.6.0")
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="stempy", daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
        if kind is None:
            self._process.join(_SECONDS_TO_END)
        self._process.kill()

    @property
    def version(self) -> str:
        return str(self._ask(_version))

    def count(self, path: str, task: CountingTask) -> CountedByStempy:
        """All frames by the path CLASSIC or MULTI_PASS."""
        counted: CountedByStempy = self._ask(_count_classic if path == CLASSIC else _count_multi_pass, task)
        return counted

    def count_frames(
        self,
        frames: npt.NDArray[np.uint16],
        background: float,
        xray: float,
        dark: npt.NDArray[np.float32] | None,
    ) -> list[npt.NDArray[np.uint32]]:
        """The ascending indices of each of uint16[n, 576, 576] frames, with given thresholds."""
        events: list[npt.NDArray[np.uint32]] = self._ask(_count_frames, frames, background, xray, dark)
        return events

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(_SECONDS_TO_ANSWER):
                raise MpistreamError(
                    f"stempy has not answered within {_SECONDS_TO_ANSWER} s", "try fewer frames: --frames 64"
                )
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(_SECONDS_TO_END)
            raise MpistreamError(
                f"stempy's process ended with status {self._process.exitcode}",
                "see what it said above; a negative status is the signal that ended it",
            ) from error


def _serve(connection: Connection) -> None:
    """Until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while True:
            function, arguments = connection.recv()
            connection.send(function(*arguments))
    except (EOFError, ConnectionError):
        return


def _version() -> str:
    from importlib.metadata import version

    return version("stempy")


def _count_classic(task: CountingTask) -> CountedByStempy:
    from stempy import _image

    reader = _reader(task)
    options = _classic_options(task.background, task.xray, task.dark, task.gain)
    options.scan_dimensions = task.scan_shape[::-1]
    if task.dark is None:
        options.dark_reference = np.zeros(FRAME_SHAPE, np.float32)
    start = time.perf_counter()
    counted = _image.electron_count(reader.begin(), reader.end(), options)
    return _result(time.perf_counter() - start, counted, task.background, task.xray)


def _count_multi_pass(task: CountingTask) -> CountedByStempy:
    from stempy import _image

    reader = _reader(task, backend="multi-pass", threads=1)
    options = _image.ElectronCountOptions()
    options.dark_reference = task.dark
    options.gain = None if task.gain is None else np.float32(1) / task.gain
    options.threshold_number_of_blocks = 1
    options.number_of_samples = _SAMPLE_FRAMES
    options.background_threshold_n_sigma = _BACKGROUND_SIGMAS
    options.x_ray_threshold_n_sigma = _XRAY_SIGMAS
    options.scan_dimensions = task.scan_shape[::-1]
    options.verbose = False
    options.apply_row_dark_subtraction = False
    options.apply_row_dark_use_mean = True
    start = time.perf_counter()
    counted = _image.electron_count(reader, options)
    seconds = time.perf_counter() - start
    metadata = counted.metadata
    return _result(seconds, counted, metadata.background_threshold, metadata.x_ray_threshold)


def _count_frames(
    frames: npt.NDArray[np.uint16], background: float, xray: float, dark: npt.NDArray[np.float32] | None
) -> list[npt.NDArray[np.uint32]]:
    from stempy import _image

    options = _classic_options(background, xray, dark, None)
    found = [_image.electron_count_frame(frame, frame.shape[::-1], options) for frame in frames]
    return [np.sort(np.asarray(indices, np.uint32)) for indices in found]


def _classic_options(
    background: float, xray: float, dark: npt.NDArray[np.float32] | None, gain: npt.NDArray[np.float32] | None
) -> Any:
    from stempy import _image

    options = _image.ElectronCountOptionsClassic()
    options.dark_reference = dark
    options.background_threshold = background
    options.x_ray_threshold = xray
    options.gain = None if gain is None else np.float32(1) / gain
    options.apply_row_dark_subtraction = False
    options.optimized_mean = 0.0
    options.apply_row_dark_use_mean = False
    return options


def _reader(task: CountingTask, **options: object) -> Any:
    import stempy.io

    return stempy.io.reader(sorted(map(str, task.folder.glob("*.data"))), _VERSION, **options)


def _result(seconds: float, counted: Any, background: float, xray: float) -> CountedByStempy:
    of_frames = [np.sort(np.asarray(frame, np.uint32)) for position in counted.data for frame in position]
    counts = np.array([len(indices) for indices in of_frames], np.uint32)
    return CountedByStempy(seconds, background, xray, np.concatenate(of_frames), counts)
