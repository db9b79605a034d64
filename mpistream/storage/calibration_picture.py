"""A picture of a calibration: the pixel values of the sample, the fitted pedestal and both thresholds."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from mpistream.model.dataset_description import SampleHistogram
from mpistream.model.errors import StorageError
from mpistream.model.scan import Thresholds
from mpistream.storage.picture import FAINT_INK, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS = "#4a6fa5"
FIT = "#e07a1f"
BACKGROUND = "#b3261e"
XRAY = "#7b3fa0"
ELECTRONS = "#2e8b57"
#: Of the pedestal's panel, in fitted sigmas below and above the mean; the other panel has the whole range.
BELOW, ABOVE = 7.0, 18.0
#: Width of the bins of the whole range, of their distance from the background; at least 1 ADU.
WIDENING = 0.03


def draw_calibration(histogram: SampleHistogram, thresholds: Thresholds, title: str) -> "Figure":
    """1920 x 1080 pixels: the pedestal with its fit, and the whole range of values, both with the thresholds.

    ``thresholds`` must be calibrated ones. Raises StorageError where matplotlib cannot be imported.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StorageError(f"matplotlib cannot be imported: {error}", "install it: pip install matplotlib") from error
    figure = Figure(figsize=(19.2, 10.8), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.06, 0.935, title, fontsize=24, weight="bold", color=INK, va="center")
    figure.text(0.06, 0.885, _summary(histogram, thresholds), fontsize=16, color=FAINT_INK, va="center")
    per_frame = histogram.pixels / thresholds.sample_frames
    _draw_pedestal(figure.add_axes((0.06, 0.1, 0.41, 0.66)), histogram, per_frame, thresholds)
    _draw_everything(figure.add_axes((0.555, 0.1, 0.41, 0.66)), histogram, per_frame, thresholds)
    return figure


def _summary(histogram: SampleHistogram, thresholds: Thresholds) -> str:
    found = thresholds.statistics
    parts = [
        f"{thresholds.sample_frames:,} complete frames",
        f"{int(histogram.pixels.sum()):,} pixels",
        f"pedestal {found['optimized_mean']:.2f} ADU, sigma {found['optimized_std_dev']:.2f} ADU",
        f"all pixels: mean {found['mean']:.2f} ADU, standard deviation {found['std_dev']:.2f} ADU",
    ]
    return "   ·   ".join(parts)


def _draw_pedestal(
    axes: "Axes", histogram: SampleHistogram, per_frame: npt.NDArray[np.float64], thresholds: Thresholds
) -> None:
    found = thresholds.statistics
    mean, sigma = float(found["optimized_mean"]), float(found["optimized_std_dev"])
    left = mean - BELOW * sigma
    right = max(mean + ABOVE * sigma, thresholds.background + 4 * sigma)
    shown = (histogram.values >= left - 1) & (histogram.values <= right + 1)
    values, heights = histogram.values[shown], per_frame[shown]
    _draw_heights(axes, heights, np.append(values, values[-1] + 1) - 0.5)
    x = np.linspace(left, right, 1000)
    fit = _fitted_height(values, heights, mean, sigma) * _bell(x, mean, sigma)
    axes.plot(x, fit, color=FIT, linewidth=2.5, label=f"fit: {mean:.2f} ADU, sigma {sigma:.2f} ADU")
    sigmas = found["background_threshold_n_sigma"]
    _draw_threshold(axes, thresholds.background, "background", f"fit + {sigmas:g} sigma", BACKGROUND)
    axes.set_xlim(left, right)
    _finish(axes, "The pedestal", heights)
    axes.legend(loc="upper right", fontsize=14, framealpha=0.95)


def _draw_everything(
    axes: "Axes", histogram: SampleHistogram, per_frame: npt.NDArray[np.float64], thresholds: Thresholds
) -> None:
    edges = _widening_edges(histogram, thresholds.background)
    starts = np.searchsorted(histogram.values, edges[:-1])
    density = np.add.reduceat(per_frame, starts) / np.diff(edges)
    _draw_heights(axes, density, edges)
    left, right = float(edges[0]), max(float(edges[-1]), 4 * thresholds.xray)
    _draw_threshold(axes, thresholds.background, "background", "", BACKGROUND, align="right")
    sigmas = thresholds.statistics["x_ray_threshold_n_sigma"]
    _draw_threshold(axes, thresholds.xray, "x-ray", f"mean + {sigmas:g} std. dev.", XRAY)
    axes.axvspan(thresholds.background, thresholds.xray, color=ELECTRONS, alpha=0.09, linewidth=0)
    # linear up to the background, wherever the pedestal lies, logarithmic above
    linear = max(1.0, abs(thresholds.background))
    axes.set_xscale("symlog", linthresh=linear, linscale=1.2)
    axes.set_xlim(left, right)
    _set_ticks(axes, left, right, linear)
    _finish(axes, "All pixel values", density)
    to_screen, to_data = axes.transData, axes.transData.inverted()
    for begin, end, name, colour in (
        (left, thresholds.background, "noise", BACKGROUND),
        (thresholds.background, thresholds.xray, "electrons", ELECTRONS),
        (thresholds.xray, right, "x-rays", XRAY),
    ):
        middle = (to_screen.transform((begin, 1)) + to_screen.transform((end, 1))) / 2
        axes.text(
            to_data.transform(middle)[0],
            0.955,
            name,
            color=colour,
            fontsize=16,
            ha="center",
            transform=axes.get_xaxis_transform(),
        )


def _draw_heights(axes: "Axes", heights: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> None:
    axes.stairs(heights, edges, fill=True, color=PIXELS, alpha=0.35)
    axes.stairs(heights, edges, color=PIXELS, linewidth=1.2, label="pixels of the sample")


def _draw_threshold(
    axes: "Axes", value: float, name: str, origin: str, colour: str, align: Literal["center", "right"] = "center"
) -> None:
    """A line, and above the axes what it is."""
    axes.axvline(value, color=colour, linewidth=2, linestyle="--")
    text = f"{name} {value:.2f} ADU" + (f"\n{origin}" if origin else "")
    across = axes.get_xaxis_transform()
    axes.text(value, 1.015, text, color=colour, fontsize=14, ha=align, va="bottom", transform=across)


def _set_ticks(axes: "Axes", left: float, right: float, linear: float) -> None:
    """Round numbers along the linear part of the axis, powers of ten along the logarithmic one."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    near = [tick for tick in MaxNLocator(4).tick_values(max(left, -linear), linear) if left <= tick <= linear]
    powers = 10.0 ** np.arange(np.ceil(np.log10(linear * 1.5)), 7)
    far = [sign * power for sign in (-1, 1) for power in powers if left <= sign * power <= right]
    axes.set_xticks(near + far)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _finish(axes: "Axes", title: str, heights: npt.NDArray[np.float64]) -> None:
    lowest = heights[heights > 0].min()
    axes.set_yscale("log")
    axes.set_ylim(lowest / 2, heights.max() * 8)
    axes.set_title(title, fontsize=19, color=INK, pad=56, loc="left")
    axes.set_xlabel("pixel value after the references (ADU)", fontsize=15)
    axes.set_ylabel("pixels per frame and ADU", fontsize=15)
    axes.tick_params(labelsize=13)
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _widening_edges(histogram: SampleHistogram, background: float) -> npt.NDArray[np.float64]:
    """Edges between whole bins of 1 ADU: single ones up to the background, wider ones above, where pixels are few."""
    last = histogram.first_bin + len(histogram.pixels)
    edge, edges = histogram.first_bin, [histogram.first_bin]
    while edge < last:
        edge = min(last, edge + max(1, int(WIDENING * (edge - background))))
        edges.append(edge)
    return np.array(edges) - 0.5


def _fitted_height(values: npt.NDArray[np.int64], heights: npt.NDArray[np.float64], mean: float, sigma: float) -> float:
    """The height with which the Gaussian fits best, its mean and sigma being what they are."""
    bell = _bell(values.astype(float), mean, sigma)
    return float(heights @ bell / (bell @ bell))


def _bell(x: npt.NDArray[np.float64], mean: float, sigma: float) -> npt.NDArray[np.float64]:
    return np.exp(-0.5 * ((x - mean) / sigma) ** 2)
