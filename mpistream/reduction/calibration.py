"""Calibration: the thresholds of a scan from the pixel values of its sample frames.

Everything summed over frames is an integer, so that the result does not depend on which rank sampled which frames,
nor on the order in which their statistics are added.
"""

import struct
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import takewhile

import numpy as np
import numpy.typing as npt

import mpistream._ext.pixel_statistics as _kernel
from mpistream.model.errors import CalibrationError, ProtocolError
from mpistream.model.geometry import FRAME_SHAPE, SECTORS, SectorLayout
from mpistream.model.scan import (
    HIGHEST_ROW_DARK_LEVEL,
    LEAST_ROW_DARK_LEVEL,
    CountingParameters,
    ScanRecord,
    Thresholds,
)
from mpistream.reduction.reference_images import check_dark, check_gain, check_pixel_mask, inverse

_STEPS_PER_UNIT: int = _kernel.steps_per_unit
_REMEDY = "give --background and --xray, or calibrate from more sample frames (--sample-frames)"

#: A peak narrower than this lies within one bin (its neighbours hold less than 1/2,000 of it): it has no width to fit.
_LEAST_SIGMA = 0.25

# format version, frames, minimum, maximum, sum, square sum (128-bit integers), first bin, bins; the histogram follows,
# then, if there is one, ``raw`` in the same format
_WIRE = struct.Struct("<HQff16s16siI")
_WIRE_VERSION = 2


@dataclass(frozen=True, eq=False)
class SampleStatistics:
    """The pixel values (ADU, after dark and gain) of complete frames; ``+`` adds frames, exactly and in any order.

    frames      number of frames
    minimum, maximum  smallest and largest value; infinities without frames
    sum, square_sum   exact sums over all pixels of s and s * s, where s = value * 32 rounded to an integer
    first_bin   the value at the middle of ``histogram[0]``
    histogram   uint64[n]: unit-width bins around integers; first and last are not 0
    raw         the same for the raw pixels, where there is a gain and no dark reference: row-dark works on those

    Raw pixel values are integers: nothing is rounded. Corrected values beyond -65536 and 131071 count as these.
    """

    frames: int
    minimum: float
    maximum: float
    sum: int
    square_sum: int
    first_bin: int
    histogram: npt.NDArray[np.uint64]
    raw: "SampleStatistics | None" = None

    @classmethod
    def empty(cls) -> "SampleStatistics":
        return cls(0, np.inf, -np.inf, 0, 0, 0, np.empty(0, np.uint64))

    def __add__(self, other: "SampleStatistics") -> "SampleStatistics":
        parts = [part for part in (self, other) if part.frames]
        if not parts:
            return SampleStatistics.empty()
        first_bin = min(part.first_bin for part in parts)
        histogram = np.zeros(max(part.first_bin + len(part.histogram) for part in parts) - first_bin, np.uint64)
        for part in parts:
            start = part.first_bin - first_bin
            histogram[start : start + len(part.histogram)] += part.histogram
        raw = [part.raw for part in parts if part.raw is not None]
        return SampleStatistics(
            self.frames + other.frames,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.sum + other.sum,
            self.square_sum + other.square_sum,
            first_bin,
            histogram,
            sum(raw, SampleStatistics.empty()) if raw else None,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SampleStatistics):
            return NotImplemented
        return all(np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    @property
    def pixels(self) -> int:
        return int(self.histogram.sum())

    @property
    def mean(self) -> float:
        """Mean of the pixel values, in ADU."""
        return self.sum / (self.pixels * _STEPS_PER_UNIT)

    @property
    def variance(self) -> float:
        """Sample variance of the pixel values, in ADU squared."""
        pixels = self.pixels
        return (pixels * self.square_sum - self.sum**2) / (pixels * (pixels - 1) * _STEPS_PER_UNIT**2)

    def to_bytes(self) -> bytes:
        """For the way to another rank; ``from_bytes`` reads it."""
        head = _WIRE.pack(
            _WIRE_VERSION,
            self.frames,
            self.minimum,
            self.maximum,
            self.sum.to_bytes(16, "little", signed=True),
            self.square_sum.to_bytes(16, "little", signed=True),
            self.first_bin,
            len(self.histogram),
        )
        raw = self.raw.to_bytes() if self.raw is not None else b""
        return head + self.histogram.astype("<u8").tobytes() + raw

    @classmethod
    def from_bytes(cls, data: bytes) -> "SampleStatistics":
        """Raises ProtocolError for what ``to_bytes`` did not write."""
        if len(data) < _WIRE.size:
            raise ProtocolError(f"{len(data)} bytes are no sample statistics")
        version, frames, minimum, maximum, total, squares, first_bin, bins = _WIRE.unpack_from(data)
        end = _WIRE.size + 8 * bins
        if version != _WIRE_VERSION or len(data) < end:
            raise ProtocolError(
                f"sample statistics of version {version} in {len(data)} bytes", "run the same release on every rank"
            )
        histogram = np.frombuffer(data, "<u8", count=bins, offset=_WIRE.size).astype(np.uint64)
        raw = cls.from_bytes(data[end:]) if data[end:] else None
        total, squares = (int.from_bytes(number, "little", signed=True) for number in (total, squares))
        return cls(frames, minimum, maximum, total, squares, first_bin, histogram, raw)


def sample_block(
    addresses: npt.NDArray[np.uint64],
    layout: SectorLayout,
    dark: npt.ArrayLike | None = None,
    gain: npt.ArrayLike | None = None,
    pixel_mask: npt.ArrayLike | None = None,
) -> SampleStatistics:
    """The statistics of the complete frames among uint64[n, 4] sector addresses (see ElectronCounter.count_block).

    ``dark``, ``gain`` and ``pixel_mask`` (not 0: a pixel to be left out) are (576, 576). Frames with a missing sector
    are left out.
    """
    complete = np.ascontiguousarray(addresses[(addresses != 0).all(axis=1)])
    if not len(complete):
        return SampleStatistics.empty()
    division = (*FRAME_SHAPE, SECTORS, layout is SectorLayout.COLUMNS)
    mask = None if pixel_mask is None else check_pixel_mask(pixel_mask, FRAME_SHAPE).view(np.uint8)
    if dark is None and gain is None:
        return _sample_raw(complete, division, mask)
    counts = np.zeros((_kernel.parts, _kernel.bins), np.uint32)
    moments = _kernel.sample_block(
        complete,
        *division,
        None if dark is None else check_dark(dark, FRAME_SHAPE),
        None if gain is None else inverse(check_gain(gain, FRAME_SHAPE)),
        mask,
        np.empty(FRAME_SHAPE[1], np.float32),
        np.empty(FRAME_SHAPE[1], np.int32),
        counts,
    )
    minima, maxima, sums, square_sums = zip(*moments, strict=True)
    first, histogram = _trimmed(counts)
    return SampleStatistics(
        len(complete),
        min(minima),
        max(maxima),
        sum(sums),
        sum(square_sums),
        _kernel.first_bin + first,
        histogram,
        _sample_raw(complete, division, mask) if dark is None else None,
    )


def _sample_raw(
    complete: npt.NDArray[np.uint64], division: tuple[int, int, int, bool], mask: npt.NDArray[np.uint8] | None
) -> SampleStatistics:
    """Of raw pixels, which are integers, the histogram holds everything."""
    counts = np.zeros((_kernel.parts, _kernel.raw_values), np.uint32)
    _kernel.sample_raw_block(complete, *division, mask, np.empty(FRAME_SHAPE[1], np.uint16), counts)
    minimum, histogram = _trimmed(counts)
    values = minimum + np.arange(len(histogram), dtype=np.uint64)
    return SampleStatistics(
        len(complete),
        float(minimum),
        float(values[-1]),
        _STEPS_PER_UNIT * int(values @ histogram),
        _STEPS_PER_UNIT**2 * int(values**2 @ histogram),
        minimum,
        histogram,
    )


def _trimmed(counts: npt.NDArray[np.uint32]) -> tuple[int, npt.NDArray[np.uint64]]:
    """The sum of uint32[parts, bins] histograms without the empty bins at its ends, and its first bin."""
    histogram = counts.sum(axis=0, dtype=np.uint64)
    used = np.flatnonzero(histogram)
    return int(used[0]), histogram[used[0] : used[-1] + 1]


def merge_sample(blocks: Iterable[SampleStatistics], sample_frames: int) -> SampleStatistics:
    """The sample, from the statistics of a scan's first blocks in ascending order: block by block, until there are
    ``sample_frames`` complete frames. No more blocks are taken than that needs.
    """
    total = SampleStatistics.empty()
    for statistics in blocks:
        total = total + statistics
        if total.frames >= sample_frames:
            break
    return total


def fit_sample(
    samples: Mapping[int, bytes], record: ScanRecord, with_less: bool = False
) -> tuple[Thresholds, bytes] | None:
    """The thresholds, and the packed sample that they come from; None while blocks of it are wanting.

    ``samples`` are packed statistics by block. Which ranks they come from, and in what order, makes no difference.
    ``with_less``: no further blocks will come. Raises CalibrationError.
    """
    wanted = [block for block in record.sample_blocks if block in samples] if with_less else record.sample_blocks
    there = list(takewhile(samples.__contains__, wanted))
    sample = merge_sample(
        (SampleStatistics.from_bytes(samples[block]) for block in there), record.counting.sample_frames
    )
    if sample.frames < record.counting.sample_frames and len(there) < len(wanted):
        return None
    return calibrated_thresholds(sample, record.counting), sample.to_bytes()


def calibrated_thresholds(sample: SampleStatistics, counting: CountingParameters) -> Thresholds:
    """The thresholds that a sample of raw pixels, or of pixels after dark and gain, gives. Raises CalibrationError.

    With row-dark the mean fitted to the raw pixels is the level to which half rows are brought: so the pedestal stays,
    after a gain too, where it is in the sample, which is taken before row-dark.
    """
    thresholds = fit_thresholds(sample, counting.background_sigmas, counting.xray_sigmas)
    if counting.row_dark is None:
        return thresholds
    level = float(thresholds.statistics["optimized_mean"]) if sample.raw is None else _fit_pedestal(sample.raw)[0]
    if not LEAST_ROW_DARK_LEVEL <= level <= HIGHEST_ROW_DARK_LEVEL:
        raise CalibrationError(
            f"row-dark needs a pedestal above 0 and no higher than {HIGHEST_ROW_DARK_LEVEL:g}; "
            f"the mean fitted to the raw sample frames is {level:.7g} ADU",
            "count these frames without --row-dark",
        )
    return thresholds.model_copy(update={"row_dark_level": level})


def fit_thresholds(statistics: SampleStatistics, background_sigmas: float, xray_sigmas: float) -> Thresholds:
    """background = fitted mean + background_sigmas * fitted sigma; xray = mean + xray_sigmas * standard deviation.

    The fit is of A exp(-(x - mu)^2 / 2 sigma^2) to the whole histogram, least squares without weights, so that the
    pedestal's peak decides and the electrons' long tail hardly matters. Raises CalibrationError.
    """
    if not statistics.frames:
        raise CalibrationError("not one sample frame has all its sectors", _REMEDY)
    if statistics.minimum == statistics.maximum:
        raise CalibrationError(f"all pixels of the sample frames have the value {statistics.minimum:g}", _REMEDY)
    mean, std_dev = statistics.mean, float(np.sqrt(statistics.variance))
    fitted_mean, fitted_sigma = _fit_pedestal(statistics)
    background = fitted_mean + background_sigmas * fitted_sigma
    xray = mean + xray_sigmas * std_dev
    if background < 0:
        raise CalibrationError(
            f"the calibrated background ({background:g} ADU) is below 0: the pedestal lies at {fitted_mean:g} ADU",
            "is the dark reference of this camera? Make another one with mpistream dark",
        )
    if not background < xray:
        raise CalibrationError(
            f"the calibrated background ({background:g}) is not below the x-ray threshold ({xray:g})", _REMEDY
        )
    if xray == np.inf:
        raise CalibrationError(f"with {xray_sigmas:g} standard deviations the x-ray threshold is infinite", _REMEDY)
    return Thresholds(
        background=background,
        xray=xray,
        calibrated=True,
        sample_frames=statistics.frames,
        statistics={
            "number_of_samples": statistics.frames,
            "min_sample": statistics.minimum,
            "max_sample": statistics.maximum,
            "mean": mean,
            "variance": statistics.variance,
            "std_dev": std_dev,
            "number_of_bins": len(statistics.histogram),
            "background_threshold_n_sigma": background_sigmas,
            "x_ray_threshold_n_sigma": xray_sigmas,
            "optimized_mean": fitted_mean,
            "optimized_std_dev": fitted_sigma,
        },
    )


def load_fitting() -> None:
    """Loads the library that fits, which takes half a second: for who will fit, while there is time for it."""
    import scipy.optimize  # noqa: F401


def _fit_pedestal(statistics: SampleStatistics) -> tuple[float, float]:
    """Mean and |sigma| of the Gaussian through the histogram."""
    from scipy.optimize import curve_fit  # see load_fitting

    # Few bins would leave the fit undetermined; those above the last one are truly empty.
    height = np.zeros(max(len(statistics.histogram), 8))
    height[: len(statistics.histogram)] = statistics.histogram / statistics.histogram.max()
    position = statistics.first_bin + np.arange(len(height), dtype=float)
    start = (1.0, position[height.argmax()], max(_lower_half_width(height), 0.5))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (_, fitted_mean, sigma), _ = curve_fit(_gaussian, position, height, p0=start, jac=_gaussian_slopes)
    except (RuntimeError, Warning, FloatingPointError) as error:
        raise CalibrationError(f"no Gaussian fits the pixel values of the sample frames: {error}", _REMEDY) from error
    sigma = abs(float(sigma))
    if not (np.isfinite([fitted_mean, sigma]).all() and position[0] - 1 <= fitted_mean <= position[-1] + 1):
        raise CalibrationError("the Gaussian that fits the sample frames lies outside their pixel values", _REMEDY)
    if not _LEAST_SIGMA <= sigma <= len(position):
        raise CalibrationError(f"the peak of the pixel values has a fitted width (sigma) of {sigma:g} ADU", _REMEDY)
    return float(fitted_mean), sigma


def _lower_half_width(height: npt.NDArray[np.float64]) -> float:
    """In bins, from the 16th percentile to the median: sigma for a Gaussian, whatever tail lies above it.

    Taken from the running total: a gain leaves gaps in the histogram, which would make a peak of a single bin.
    """
    total = np.cumsum(height)
    median, lower = np.searchsorted(total, np.array([0.5, 0.16]) * total[-1])
    return float(median - lower)


def _gaussian(x: npt.NDArray[np.float64], amplitude: float, mean: float, sigma: float) -> npt.NDArray[np.float64]:
    return amplitude * np.exp(-0.5 * ((x - mean) / sigma) ** 2)


def _gaussian_slopes(
    x: npt.NDArray[np.float64], amplitude: float, mean: float, sigma: float
) -> npt.NDArray[np.float64]:
    """Derivatives by amplitude, mean and sigma: [len(x), 3]."""
    z = (x - mean) / sigma
    bell = np.exp(-0.5 * z**2)
    return np.stack([bell, amplitude * bell * z / sigma, amplitude * bell * z**2 / sigma], axis=1)
