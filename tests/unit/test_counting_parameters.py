"""How a scan is to be counted: what goes together."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mpistream.model.scan import CountingParameters, Thresholds
from mpistream.reduction.electron_counting import count_electrons
from tests.unit.made_up_blocks import scan_record

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
        ({"background": float("nan"), "xray": 44.0}, "finite"),
        ({"background": float("-inf"), "xray": 44.0}, "finite"),
        ({"background": 44.0, "xray": float("inf")}, "finite"),
        ({"background_sigmas": float("inf")}, "finite"),
        ({"xray_sigmas": float("inf")}, "finite"),
        ({"xray_sigmas": float("nan")}, "finite"),
        ({"dark": "dark.npy", "row_dark": "mean"}, "row_dark takes the place of a dark reference"),
        ({"row_dark": "mode"}, "'mean' or 'median'"),
        ({**GIVEN, "row_dark": "mean"}, "needs row_dark_level"),
        ({**GIVEN, "row_dark": "mean", "row_dark_level": 0.0}, "above 0"),
        ({**GIVEN, "row_dark": "mean", "row_dark_level": 1e-50}, "above 0"),
        ({**GIVEN, "row_dark": "mean", "row_dark_level": 65535.5}, "no more than 65535"),
        ({**GIVEN, "row_dark": "mean", "row_dark_level": float("inf")}, "no more than 65535"),
        ({**GIVEN, "row_dark_level": 30.0}, "belongs to row_dark"),
        ({"row_dark": "mean", "row_dark_level": 30.0}, "belongs to row_dark with given thresholds"),
        ({"thresholds_from": "earlier.h5"}, "give background and xray"),
    ],
)
def test_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CountingParameters(**values)


def test_row_dark_brings_pixels_to_what_float32_and_pixels_can_hold() -> None:
    for level in (1.5e-45, 65535.0):
        counting = CountingParameters(**GIVEN, row_dark="mean", row_dark_level=level)
        frame = np.zeros((1, 8, 8), np.uint16)
        count_electrons(
            frame, background=44, xray=1500, row_dark=counting.row_dark, row_dark_level=counting.row_dark_level
        )


@pytest.mark.parametrize("values", [{"xray": float("inf")}, {"background": float("nan")}, {"row_dark_level": 1e5}])
def test_thresholds_are_numbers(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Thresholds(**({**GIVEN, "calibrated": False} | values))


def test_a_sample_that_is_too_small_is_said() -> None:
    record = scan_record(counting=CountingParameters(sample_frames=3), block_frames=2)
    enough, few = (Thresholds(**GIVEN, calibrated=True, sample_frames=frames) for frames in (3, 2))
    assert list(enough.notes(record)) == []
    assert list(few.notes(record)) == [
        "the thresholds were calibrated from 2 complete frames instead of 3: "
        "there were no more among the first 4 blocks"
    ]
    assert list(Thresholds.given(CountingParameters(**GIVEN)).notes(record)) == []


def test_a_dark_reference_that_does_not_fit_is_said() -> None:
    record = scan_record(counting=CountingParameters(dark="dark.npy"))
    for mean, notes in ((0.2, 0), (-8.9, 0), (9.5, 1), (-9.5, 1)):
        statistics = {"optimized_mean": mean, "optimized_std_dev": 3.0}
        thresholds = Thresholds(**GIVEN, calibrated=True, sample_frames=64, statistics=statistics)
        assert len(list(thresholds.notes(record))) == notes
        undarkened = record.model_copy(update={"counting": CountingParameters()})
        assert list(thresholds.notes(undarkened)) == []


def test_given_thresholds() -> None:
    with_level = CountingParameters(**GIVEN, row_dark="mean", row_dark_level=30)
    assert Thresholds.given(with_level) == Thresholds(background=44, xray=1500, row_dark_level=30, calibrated=False)
