"""Thresholds that are to be used again: from a dataset, or from a JSON file that `mpistream calibrate` wrote."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mpistream.model.errors import StorageError
from mpistream.model.scan import CALIBRATION_STATISTICS, CountingParameters, Thresholds
from mpistream.storage.reader import Dataset, open_dataset

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_BYTES = 2**20
_REMEDY = "give a dataset of mpistream, or what `mpistream calibrate --output` has written"


class SavedThresholds(BaseModel):
    """Thresholds, what they were found with, and in which source's frames. As JSON it is the file's content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["mpistream-thresholds"] = "mpistream-thresholds"
    format_version: Literal[1] = 1
    source: str
    thresholds: Thresholds
    counting: CountingParameters

    @property
    def pedestal(self) -> float | None:
        """What row-dark brings half rows to with these thresholds, in ADU; None where that is not known."""
        if self.thresholds.row_dark_level is not None:
            return self.thresholds.row_dark_level
        fitted = self.thresholds.statistics.get("optimized_mean")
        is_of_raw_pixels = self.counting.dark is None and self.counting.gain is None
        return float(fitted) if fitted is not None and fitted > 0 and is_of_raw_pixels else None

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def read_thresholds(path: Path) -> SavedThresholds:
    """The thresholds in a dataset or a JSON file. Raises StorageError for any other file."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    if content.startswith(_HDF5_SIGNATURE):
        with open_dataset(path) as dataset:
            return thresholds_of(dataset)
    try:
        return SavedThresholds.model_validate_json(content)
    except ValidationError as error:
        raise StorageError(f"{path} holds no thresholds: {error.errors()[0]['msg']}", _REMEDY) from error


def thresholds_of(dataset: Dataset) -> SavedThresholds:
    """What a dataset was counted with. Raises StorageError where it does not say."""
    try:
        stored, record = dataset.thresholds, dataset.provenance["scan_record"]
        counting = record["counting"]
        # another release may have more, or fewer, parameters; none of them changes what is stored
        known = {name: counting[name] for name in CountingParameters.model_fields if name in counting}
        return SavedThresholds(
            source=record["source"],
            thresholds=Thresholds(
                background=stored["background_threshold"],
                xray=stored["x_ray_threshold"],
                row_dark_level=stored.get("row_dark_level"),
                calibrated=stored["threshold_calculated"],
                sample_frames=stored["number_of_samples"],
                statistics={name: stored[name] for name in CALIBRATION_STATISTICS if stored["threshold_calculated"]},
            ),
            counting=CountingParameters.model_validate(known),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{dataset.path} does not say how it was counted: {error}", _REMEDY) from error
