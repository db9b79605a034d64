"""What a simulated scan is to be like."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mpistream.model.errors import SourceError
from mpistream.model.geometry import ScanShape, SectorLayout
from mpistream.model.protocol import Encoding

_MAX_FRAME_NUMBER = 0xFFFFFFFF  # the record header has 32 bits


class SimulationOptions(BaseModel):
    """The same options always give the same frames; frame n's pixels depend on seed, n - first_frame and sector only.

    electrons            mean number per frame that the beam carries; 0 gives dark frames
    frames_per_position  successive frames at one scan position
    flyback              the last scan column is taken while the beam moves back
    loss                 fraction of the sectors of frames that are lost
    duplicates           fraction of those present that occur twice
    xrays                mean number per frame
    version              of the raw format: sectors of 576 x 144 (4) or 144 x 576 pixels (5)

    Only for streams:
    live                 frames per second of a camera that does not wait for those who read it; 0: frames are made
                         when they are read
    ring                 frames after which a live camera writes over a frame

    Only for files:
    reorder              how far a record may be from its place in the order of frames, in records, or "all"
    files_per_sector     over which the records of a sector are spread
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=1, le=0xFFFF)
    columns: int = Field(ge=1, le=0xFFFF)
    seed: int = Field(default=1, ge=0)
    electrons: float = Field(default=2400.0, ge=0, le=200_000)
    frames_per_position: int = Field(default=1, ge=1)
    flyback: bool = False
    first_frame: int = Field(default=0, ge=0)
    scan_number: int = Field(default=1, ge=0, le=0xFFFFFFFF)
    version: Literal[4, 5] = 5
    loss: float = Field(default=0.0, ge=0, lt=1)
    duplicates: float = Field(default=0.0, ge=0, le=1)
    xrays: float = Field(default=0.05, ge=0, le=1000)
    dead_pixels: int = Field(default=20, ge=0, le=10_000)
    hot_pixels: int = Field(default=10, ge=0, le=10_000)
    live: float = Field(default=0.0, ge=0, le=1e6)
    ring: int = Field(default=256, ge=1)
    reorder: int | Literal["all"] = 0
    files_per_sector: int = Field(default=1, ge=1, le=1000)

    @field_validator("version", mode="before")
    @classmethod
    def _version_as_text(cls, version: object) -> object:
        return int(version) if isinstance(version, str) and version.isdecimal() else version

    @model_validator(mode="after")
    def _fits_the_header(self) -> Self:
        if self.last_frame > _MAX_FRAME_NUMBER:
            raise ValueError(f"the last frame would have the number {self.last_frame}, above {_MAX_FRAME_NUMBER}")
        if self.flyback and self.columns < 2:
            raise ValueError("with flyback a scan has at least 2 columns")
        if self.reorder != "all" and self.reorder < 0:
            raise ValueError("reorder is 0, a number of records, or all")
        return self

    @property
    def scan_shape(self) -> ScanShape:
        return ScanShape(self.rows, self.columns)

    @property
    def frames(self) -> int:
        return self.rows * self.columns * self.frames_per_position

    @property
    def last_frame(self) -> int:
        return self.first_frame + self.frames - 1

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.version)

    @property
    def layout(self) -> SectorLayout:
        return SectorLayout(self.version)

    @classmethod
    def parse(cls, scan_shape: str, options: dict[str, str]) -> "SimulationOptions":
        """Options from texts, as on a command line. Raises SourceError naming what is allowed."""
        allowed = sorted(set(cls.model_fields) - {"rows", "columns"})
        for name in options:
            if name not in allowed:
                raise SourceError(f"a simulated scan has no option {name!r}", f"its options are {', '.join(allowed)}")
        try:
            shape = ScanShape.parse(scan_shape)
        except ValueError as error:
            raise SourceError(str(error), "simulated scans are named like sim:64x65?seed=3") from error
        try:
            return cls.model_validate({"rows": shape.rows, "columns": shape.columns, **options})
        except ValidationError as error:
            raise SourceError(_first_fault(error), "correct the option of the simulated scan") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{name}={fault['input']}: {reason}" if name else reason
