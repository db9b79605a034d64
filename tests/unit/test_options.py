"""The counting parameters that options stand for."""

from pathlib import Path
from typing import Any

import pytest

from mpistream.cli.options import counting_parameters
from mpistream.model.errors import ConfigError
from mpistream.model.scan import CountingParameters


def test_options_become_parameters_and_paths_absolute() -> None:
    options: dict[str, Any] = {"background": None, "dark": None, "gain": Path("g.npy"), "pixel_mask": Path("/m.npy")}
    found = counting_parameters(**options, row_dark="mean", centroids=True, sample_frames=None)
    here = str(Path("g.npy").absolute())
    assert found == CountingParameters(gain=here, pixel_mask="/m.npy", row_dark="mean", centroids=True)
    assert "sample_frames" not in found.model_fields_set


def test_names_of_references_are_no_paths() -> None:
    found = counting_parameters(dark=Path("ref:night"), pixel_mask=Path("./ref/night"), centroids=None)
    assert found == CountingParameters(dark="ref:night", pixel_mask=str(Path("ref/night").absolute()))


@pytest.mark.parametrize(
    ("options", "message", "remedy"),
    [
        ({"background": 44.0}, "give both thresholds", "--background 44 --xray 1500"),
        ({"xray_sigmas": -1.0}, "--xray-sigmas: .* greater than 0", "--background"),
        ({"row_dark": "mean", "dark": Path("d.npy")}, "^--row-dark takes the place", "leave --dark or"),
        ({"row_dark": "mean", "background": 44.0, "xray": 90.0}, "--row-dark-level", "--row-dark-level 30"),
        ({"row_dark_level": 30.0}, "^--row-dark-level belongs to --row-dark with", "leave --row-dark-level out"),
        ({"row_dark_level": -3.0}, "^--row-dark-level: must be above 0", "--row-dark-level 30"),
        ({"background": 44.0, "xray": float("inf")}, "^--xray: .* finite", "--xray 65536"),
        ({"xray_sigmas": float("nan")}, "^--xray-sigmas: .* finite", "a number"),
    ],
)
def test_errors_speak_of_options(options: dict[str, Any], message: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        counting_parameters(**options)
    assert remedy in caught.value.remedy
    assert "_" not in caught.value.message
