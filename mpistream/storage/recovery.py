"""What a file says of a scan whose job died between giving the dataset its name and committing the scan."""

from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from mpistream.model.errors import StorageError
from mpistream.model.scan import UNCOUNTED, Counters, ScanRecord, ScanSummary, Thresholds
from mpistream.storage.reader import open_dataset
from mpistream.storage.recording_reader import is_recording, open_recording
from mpistream.storage.thresholds_file import thresholds_of


def dataset_of(path: Path) -> UUID | None:
    """The scan whose complete dataset or recording ``path`` is; None for any other file, or none that can be read."""
    try:
        with open_recording(path) if is_recording(path) else open_dataset(path) as dataset:
            return UUID(dataset.scan_uid)
    except (StorageError, OSError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def read_summary(path: Path) -> ScanSummary:
    """The summary of the scan whose dataset ``path`` is, as far as the file knows it: of ``seconds`` those that came
    before the last of the writing. Raises StorageError.
    """
    if is_recording(path):
        return _summary_of_recording(path)
    with open_dataset(path) as dataset:
        thresholds = thresholds_of(dataset).thresholds
        try:
            provenance, counters = dataset.provenance, dataset.counters
            record = ScanRecord.model_validate(provenance["scan_record"])
            return ScanSummary(
                dataset=str(path.absolute()),
                complete=dataset.delivery is None or dataset.delivery.complete,
                scan_shape=dataset.scan_shape,
                counters=Counters.model_validate(counters),
                thresholds=thresholds,
                file_bytes=path.stat().st_size,
                seconds=provenance["seconds"],
                warnings=tuple(thresholds.notes(record)),
            )
        except (OSError, KeyError, TypeError, ValidationError) as error:
            raise StorageError(
                f"{path} does not say how its scan went: {error}", "commit the scan with the release that wrote it"
            ) from error


def _summary_of_recording(path: Path) -> ScanSummary:
    with open_recording(path) as recording:
        return ScanSummary(
            dataset=str(path.absolute()),
            recording=True,
            complete=recording.complete,
            scan_shape=recording.scan_shape,
            counters=Counters.model_validate({"electrons": 0, **recording.counters}),
            thresholds=Thresholds.given(UNCOUNTED),
            file_bytes=path.stat().st_size,
            seconds=recording.provenance["seconds"],
        )
