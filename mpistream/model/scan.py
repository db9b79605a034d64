"""What is fixed when a scan is announced, and what is known when it has ended."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mpistream.model.geometry import ScanShape
from mpistream.model.protocol import MAX_BLOCK_FRAMES, Encoding
from mpistream.model.virtual_images import VirtualDetectors

#: ADU; the lower one is the smallest number above 0 that float32 holds, the upper one the highest value of a pixel.
LEAST_ROW_DARK_LEVEL, HIGHEST_ROW_DARK_LEVEL = 2.0**-149, 65535.0

#: What a calibration leaves in ``Thresholds.statistics``, named as stempy names it.
CALIBRATION_STATISTICS = (
    "number_of_samples",
    "min_sample",
    "max_sample",
    "mean",
    "variance",
    "std_dev",
    "number_of_bins",
    "background_threshold_n_sigma",
    "x_ray_threshold_n_sigma",
    "optimized_mean",
    "optimized_std_dev",
)


def _check_row_dark_level(level: float) -> float:
    if not LEAST_ROW_DARK_LEVEL <= level <= HIGHEST_ROW_DARK_LEVEL:
        raise ValueError(f"must be above 0 and no more than {HIGHEST_ROW_DARK_LEVEL:g} ADU, the values of pixels")
    return level


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_FiniteAbove0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_RowDarkLevel = Annotated[float, AfterValidator(_check_row_dark_level)]


#: A pedestal this many of its sigmas from 0 is not where a dark reference of the same detector leaves it.
_FAR_SIGMAS = 3.0


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Durability(StrEnum):
    """When a rank acknowledges a block that it has counted."""

    NONE = "none"  # at once: the scan fails if its MPI job dies
    WRITE = "write"  # once the journal is written: survives the death of any process
    FSYNC = "fsync"  # once the journal is on the disk: on shared storage survives the loss of a node


class CountingParameters(_Record):
    """How electrons are to be told from noise.

    With ``background`` and ``xray`` (ADU, after all corrections) the thresholds are given; without them they are
    calibrated from the first ``sample_frames`` complete frames: background = fitted mean + background_sigmas *
    fitted sigma, xray = mean + xray_sigmas * standard deviation.

    dark, gain, pixel_mask  paths of .npy files of 576 x 576 pixels; in the mask, bad pixels are not 0
    row_dark         bring every half row to ``row_dark_level`` by its own mean or median; not with a dark reference
    row_dark_level   ADU, above 0 and up to 65535: belongs to given thresholds; calibrated ones take the fitted mean
                     of the raw pixels
    centroids        also find where in its pixel each electron hit
    thresholds_from  the file that given thresholds were taken from
    """

    background: _Finite | None = None
    xray: _Finite | None = None
    sample_frames: int = Field(default=64, ge=1)
    background_sigmas: _FiniteAbove0 = 4.5
    xray_sigmas: _FiniteAbove0 = 175.0
    dark: str | None = None
    gain: str | None = None
    row_dark: Literal["mean", "median"] | None = None
    row_dark_level: _RowDarkLevel | None = None
    pixel_mask: str | None = None
    centroids: bool = False
    thresholds_from: str | None = None

    @model_validator(mode="after")
    def _thresholds_make_sense(self) -> Self:
        if (self.background is None) != (self.xray is None):
            raise ValueError("give both thresholds, background and xray, or neither (then they are calibrated)")
        if self.background is not None and self.xray is not None and not self.background < self.xray:
            raise ValueError(f"background ({self.background:g}) must be below xray ({self.xray:g})")
        if self.thresholds_from is not None and not self.thresholds_are_given:
            raise ValueError("thresholds_from names where given thresholds came from: give background and xray")
        return self

    @model_validator(mode="after")
    def _row_dark_makes_sense(self) -> Self:
        if self.row_dark is not None and self.dark is not None:
            raise ValueError("row_dark takes the place of a dark reference: give one of them")
        wanted = self.row_dark is not None and self.thresholds_are_given
        if wanted and self.row_dark_level is None:
            raise ValueError(
                "row_dark with given thresholds needs row_dark_level: the mean of the pedestal they were taken with"
            )
        if self.row_dark_level is not None and not wanted:
            raise ValueError("row_dark_level belongs to row_dark with given thresholds")
        return self

    @property
    def thresholds_are_given(self) -> bool:
        """Otherwise they are calibrated."""
        return self.background is not None and self.xray is not None


#: Those of a recording: nothing is counted, so that nothing waits for thresholds.
UNCOUNTED = CountingParameters(background=0.0, xray=65536.0)


class ScanRecord(_Record):
    """The immutable record of a scan, written once before its first block.

    ``recording``: its records are kept as they come, and not counted; then ``counting`` is UNCOUNTED.
    ``journals`` is the folder in which its ranks journal what they have counted; it is there only while the scan lasts.
    ``detectors`` stand here, since all jobs that count the scan must look at the same ones. ``session`` is the one that
    the scan belongs to, if any. ``labels`` are for those who use the dataset: a tilt angle, a point in time.
    ``references``: what was asked for by name: dark, pixel_mask, thresholds -> the reference's name.
    """

    uid: UUID
    scan_number: int
    rows: int
    columns: int
    source: str
    encoding: Encoding
    first_frame: int = Field(ge=0)
    last_frame: int = Field(ge=0)
    block_frames: int = Field(ge=1, le=MAX_BLOCK_FRAMES)
    direct: bool
    counting: CountingParameters
    detectors: VirtualDetectors = VirtualDetectors()
    output: str
    overwrite: bool
    journals: str = ""
    durability: Durability = Durability.WRITE
    announced_unix_seconds: float
    session: str = ""
    labels: dict[str, str | int | float] = Field(default_factory=dict)
    references: dict[str, str] = Field(default_factory=dict)
    recording: bool = False

    @model_validator(mode="after")
    def _recordings_are_not_counted(self) -> Self:
        if self.recording and self.counting != UNCOUNTED:
            raise ValueError("a recording is not counted: its counting parameters are UNCOUNTED")
        return self

    @model_validator(mode="after")
    def _first_before_last(self) -> Self:
        if self.last_frame < self.first_frame:
            raise ValueError(f"the last frame ({self.last_frame}) comes before the first ({self.first_frame})")
        return self

    @property
    def scan_shape(self) -> ScanShape:
        return ScanShape(self.rows, self.columns)

    @property
    def block_range(self) -> range:
        """The numbers of all blocks that are sent, empty ones included."""
        return range(self.first_frame // self.block_frames, self.last_frame // self.block_frames + 1)

    @property
    def sample_blocks(self) -> range:
        """The blocks among which calibration looks for its complete frames: four times as many as would just do."""
        wanted = -(-4 * self.counting.sample_frames // self.block_frames)
        return self.block_range[:wanted]

    @property
    def blocks_for_conductor(self) -> range:
        """The blocks that must go to the conducting job: those that it calibrates from, where it does; all of them
        where there are no journals from which it could read what others have counted.
        """
        if self.durability is Durability.NONE:
            return self.block_range
        return range(0) if self.counting.thresholds_are_given else self.sample_blocks


class SectorEnd(_Record):
    """What one sector's producer sent in all: written when its last block is on its way.

    Written by the job's leader in the producer's place where that one is gone for good or the scan is ended early: then
    ``cut`` says why, and the numbers are 0. ``digest`` is None where the producer cannot know what an earlier start of
    it sent (a live source that was restarted). What is lost of a live source (``is_live``) later on is lost for good.
    """

    sector: int
    cut: str = ""
    is_live: bool = False
    producer_id: int
    blocks: int
    records: int
    digest: int | None
    sectors_duplicate: int
    sectors_rejected: int
    seconds_reading: float
    seconds_sending: float

    @classmethod
    def cut_short(cls, sector: int, reason: str) -> Self:
        return cls(
            sector=sector,
            cut=reason,
            producer_id=sector,
            blocks=0,
            records=0,
            digest=None,
            sectors_duplicate=0,
            sectors_rejected=0,
            seconds_reading=0.0,
            seconds_sending=0.0,
        )


class Thresholds(_Record):
    """The thresholds that every rank counts with, in ADU, and where they came from.

    ``row_dark_level`` (ADU) is what row-dark brings the raw pedestal to; None without row-dark. ``statistics`` are
    those that CALIBRATION_STATISTICS names, none of thresholds that were given.
    """

    background: _Finite
    xray: _Finite
    row_dark_level: _RowDarkLevel | None = None
    calibrated: bool
    sample_frames: int = 0
    statistics: dict[str, int | float] = Field(default_factory=dict)

    @classmethod
    def given(cls, counting: CountingParameters) -> Self:
        """Those that a scan's record itself holds."""
        assert counting.background is not None
        assert counting.xray is not None
        return cls(
            background=counting.background,
            xray=counting.xray,
            row_dark_level=counting.row_dark_level,
            calibrated=False,
        )

    def notes(self, record: ScanRecord) -> Iterator[str]:
        """What a user should know of a calibration: too few frames, a dark reference that does not fit."""
        if not self.calibrated:
            return
        if self.sample_frames < record.counting.sample_frames:
            blocks = len(record.sample_blocks)
            yield (
                f"the thresholds were calibrated from {self.sample_frames} complete frames instead of "
                f"{record.counting.sample_frames}: there were no more among the first {blocks} "
                f"block{'s' if blocks > 1 else ''}"
            )
        if record.counting.dark is None:
            return
        mean, sigma = (self.statistics[f"optimized_{name}"] for name in ("mean", "std_dev"))
        if abs(mean) > _FAR_SIGMAS * sigma:
            yield (
                f"after the dark reference the pedestal lies at {mean:.4g} ADU, {abs(mean) / sigma:.2g} sigmas from 0: "
                "is it a dark reference of this detector?"
            )


class Counters(_Record):
    """Totals of a scan, as printed, as recorded in the dataset."""

    frames: int
    electrons: int
    frames_incomplete: int
    sectors_missing: int
    sectors_duplicate: int
    sectors_rejected: int
    frames_lost: int  # frame numbers between the first and the last of which no sector came
    raw_bytes: int
    blocks_repeated: int = 0  # messages that came again: sent once more after a loss


class ScanSummary(_Record):
    """The commit record of a finished scan. ``recording``: nothing was counted, and ``thresholds`` say nothing."""

    dataset: str
    recording: bool = False
    complete: bool = True  # False: the scan was cut short, or went on without a sector
    scan_shape: tuple[int, int]
    counters: Counters
    thresholds: Thresholds
    file_bytes: int
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
