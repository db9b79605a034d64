"""How a scan is to be counted: what goes together."""

from typing import Any

import pytest
from pydantic import ValidationError

from mpistream.control.conductor import given_thresholds
from mpistream.model.scan import CountingParameters, Thresholds

GIVEN = {"background": 44.0, "xray": 1500.0}


@pytest.mark.parametrize(
    "values",
    [
        {},
        GIVEN,
        {"row_dark": "mean"},
        {**GIVEN, "row_dark": "median", "row_dark_level": 30.0},
        {**GIVEN, "thresholds_from": "earlier.h5", "dark": "dark.npy", "gain": "gain.npy"},
        {"pixel_mask": "mask.npy", "centroids": True},
    ],
)
def test_what_goes_together(values: dict[str, Any]) -> None:
    counting = CountingParameters(**values)
    assert CountingParameters.model_validate_json(counting.model_dump_json()) == counting
    assert counting.thresholds_are_given == ("background" in values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"background": 44.0}, "both thresholds"),
        ({"background": 1500.0, "xray": 44.0}, "must be below xray"),
        ({"background": float("nan"), "xray": 44.0}, "must be below xray"),
        ({"dark": "dark.npy", "row_dark": "mean"}, "row_dark takes the place of a dark reference"),
        ({"row_dark": "mode"}, "'mean' or 'median'"),
        ({**GIVEN, "row_dark": "mean"}, "needs row_dark_level"),
        ({**GIVEN, "row_dark": "mean", "row_dark_level": 0.0}, "greater than 0"),
        ({**GIVEN, "row_dark": "mean", "row_dark_level": float("inf")}, "finite"),
        ({**GIVEN, "row_dark_level": 30.0}, "belongs to row_dark"),
        ({"row_dark": "mean", "row_dark_level": 30.0}, "belongs to row_dark with given thresholds"),
        ({"thresholds_from": "earlier.h5"}, "give background and xray"),
    ],
)
def test_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CountingParameters(**values)


def test_given_thresholds() -> None:
    with_level = CountingParameters(**GIVEN, row_dark="mean", row_dark_level=30)
    assert given_thresholds(with_level) == Thresholds(background=44, xray=1500, row_dark_level=30, calibrated=False)
