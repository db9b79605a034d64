"""The picture of a calibration shows what it should, wherever the pedestal lies."""

import io
import struct

import numpy as np
import pytest

from mpistream.model.dataset_description import SampleHistogram
from mpistream.model.scan import Thresholds
from mpistream.reduction.calibration import SampleStatistics, fit_thresholds
from mpistream.storage.calibration_picture import draw_calibration


def calibrated(mean: float, sigma: float) -> tuple[SampleHistogram, Thresholds]:
    """A pedestal and electrons of up to 300 ADU above it, in 4 frames."""
    random = np.random.default_rng(1)
    values = np.concatenate([random.normal(mean, sigma, 400_000), mean + random.gamma(2, 40, 4000)])
    values = np.rint(values).astype(int)
    first = int(values.min())
    histogram = np.bincount(values - first).astype(np.uint64)
    total, squares = 32 * int(values.sum()), 1024 * int((values.astype(object) ** 2).sum())
    statistics = SampleStatistics(4, float(first), float(values.max()), total, squares, first, histogram)
    return SampleHistogram(first, histogram), fit_thresholds(statistics, 4.5, 175)


@pytest.mark.parametrize(("mean", "sigma"), [(30, 3), (0, 3), (-4, 2), (2000, 40), (5, 0.4)])
def test_both_thresholds_lie_in_the_picture(mean: float, sigma: float) -> None:
    histogram, thresholds = calibrated(mean, sigma)
    figure = draw_calibration(histogram, thresholds, "Calibration of a pedestal")
    pedestal, everything = figure.axes
    for axes, values in ((pedestal, [thresholds.background]), (everything, [thresholds.background, thresholds.xray])):
        left, right = axes.get_xlim()
        assert left < thresholds.background < right
        lines = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert lines == values
        assert axes.get_yscale() == "log"
        assert "ADU" in axes.get_xlabel()
    assert pedestal.get_xlim()[1] < everything.get_xlim()[1]
    fit = next(line for line in pedestal.lines if len(line.get_xdata()) > 2)
    height = float(histogram.pixels.max()) / 4
    assert fit.get_ydata().max() == pytest.approx(height, rel=0.1)
    assert fit.get_xdata()[fit.get_ydata().argmax()] == pytest.approx(mean, abs=0.3 * sigma + 0.1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert struct.unpack(">II", buffer.getvalue()[16:24]) == (1920, 1080)


def test_all_pixels_are_in_both_panels_scale() -> None:
    """Wide bins hold as many pixels as the single ones that they are made of."""
    histogram, thresholds = calibrated(30, 3)
    _, everything = draw_calibration(histogram, thresholds, "").axes
    steps = everything.patches[0].get_data()
    assert (steps.values * np.diff(steps.edges)).sum() * 4 == pytest.approx(histogram.pixels.sum())
    assert (np.diff(steps.edges)[steps.edges[:-1] < thresholds.background] == 1).all()
