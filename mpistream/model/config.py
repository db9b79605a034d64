"""The configuration that all processes of a deployment share: one TOML file, overridable by flags."""

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from mpistream.model.errors import ConfigError
from mpistream.model.geometry import FRAME_SHAPE, RECORD_BYTES, SECTORS
from mpistream.model.protocol import MAX_BLOCK_FRAMES
from mpistream.model.virtual_images import VirtualDetectors, check_radii

#: An override that takes the place of another key of its section.
_INSTEAD_OF = {"network.host": "interface", "network.interface": "host"}

#: Part of a host name, between dots.
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_LONGEST_NAME = 253

_DESCRIBED = "docs/configuration.md describes every key"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EtcdConfig(_Section):
    endpoints: list[str] = Field(default=["127.0.0.1:2379"], min_length=1, description="host:port of each member")
    timeout_seconds: float = Field(default=5.0, gt=0, description="longest wait for one answer")
    lease_seconds: int = Field(default=5, ge=2, description="how long a dead process stays registered")

    @field_validator("endpoints")
    @classmethod
    def _host_and_port(cls, endpoints: list[str]) -> list[str]:
        for endpoint in endpoints:
            port = re.fullmatch(r"[^:/\s]+:(\d{1,5})", endpoint)
            if port is None or not 1 <= int(port[1]) <= 65535:
                raise ValueError(f"{endpoint!r} is not host:port")
        return endpoints


def check_external_name(pattern: str) -> str:
    """``pattern``, a host name or IPv4 address in which ``{host}`` stands for a node's own name. Raises ValueError."""
    name = pattern.replace("{host}", "host")
    if re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name) is None or len(name) > _LONGEST_NAME or name == "0.0.0.0":
        raise ValueError(
            f"{pattern!r} is no host name that others can connect to, as in '{{host}}.chn.example.org', where {{host}} "
            "stands for the node's own name"
        )
    return pattern


class NetworkConfig(_Section):
    host: str | None = Field(default=None, description="address that this host's sockets bind and publish")
    interface: str | None = Field(default=None, description="network interface whose address that is")
    external_name: str | None = Field(default=None, description="name that ranks publish in the address's place")

    @field_validator("external_name")
    @classmethod
    def _is_a_name(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else check_external_name(pattern)

    @field_validator("host")
    @classmethod
    def _others_can_connect(cls, host: str | None) -> str | None:
        if host in ("", "*", "0.0.0.0", "::"):
            raise ValueError(f"{host!r} is no address that others can connect to; name one of this host's addresses")
        return host

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.host is not None and self.interface is not None:
            raise ValueError("host and interface are two ways of saying the same; leave one out")
        return self


class StreamConfig(_Section):
    block_frames: int = Field(default=8, ge=1, le=MAX_BLOCK_FRAMES, description="frames per message")
    window_bytes: int = Field(
        default=256 * 2**20, description="most bytes of a scan between its source and the ranks, all sectors together"
    )
    patience_seconds: float = Field(default=120.0, gt=0, description="longest wait of a scan command without progress")
    absent_seconds: float = Field(
        default=30.0, gt=0, description="how long a sector's producer may be gone before its scan goes on without it"
    )
    spill_directory: str = Field(
        default="", description="folder on a local disk for blocks that a live source cannot keep; empty: none"
    )
    spill_bytes: int = Field(default=100 * 2**30, gt=0, description="most bytes spilled per sector")

    def producer_blocks(self, block_frames: int) -> int:
        """Blocks of ``block_frames`` frames that one sector's producer may have under way."""
        return self.window_bytes // SECTORS // (block_frames * RECORD_BYTES)

    @model_validator(mode="after")
    def _window_holds_blocks(self) -> Self:
        least = 2 * SECTORS * self.block_frames * RECORD_BYTES
        if self.window_bytes < least:
            raise ValueError(f"window_bytes must be at least {least}, two blocks of each sector")
        return self


class CameraConfig(_Section):
    layout: Literal[4, 5] = Field(default=5, description="version of the raw format that the sectors' pixels have")
    frames_per_position: int = Field(default=1, ge=1, le=0xFFFF, description="successive frames at one scan position")
    silence_seconds: float = Field(default=2.0, ge=0.1, description="after so long without a message a scan has ended")
    reorder_frames: int = Field(default=1024, ge=1, description="how far a frame may come behind the newest one")


class AggregatorConfig(_Section):
    name: str = "aggregator"
    data_port: int = Field(default=0, ge=0, le=65535, description="0 takes any free port")
    answer_port: int = Field(default=0, ge=0, le=65535, description="0 takes any free port")


class JournalConfig(_Section):
    directory: str = Field(default="", description="folder for journals, seen by all ranks; empty: beside the output")
    durability: Literal["none", "write", "fsync"] = Field(default="write", description="when a block is acknowledged")

    @field_validator("directory")
    @classmethod
    def _absolute(cls, directory: str) -> str:
        if directory and not Path(directory).is_absolute():
            raise ValueError(f"{directory!r} is not an absolute path")
        return directory


class RanksConfig(_Section):
    ranks_per_group: int = Field(default=0, ge=0, description="0: the ranks of a node make a group")
    gather_round_bytes: int = Field(default=256 * 2**20, ge=2**20, lt=2**31, description="sent per rank and round")
    parallel_hdf5: bool = Field(default=True, description="false: one rank writes the file for all")


def _as_pair(value: Any) -> Any:
    """TOML has lists only."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{value!r} is not two numbers, as in [80.0, 288.0]")
    return tuple(value)


_Pair = Annotated[tuple[FiniteFloat, FiniteFloat], BeforeValidator(_as_pair)]


class DetectorsConfig(_Section):
    bright_field: _Pair = Field(default=(0.0, 60.0), description="inner and outer radius in pixels")
    annular_dark_field: _Pair = Field(default=(80.0, 288.0), description="inner and outer radius in pixels")
    center: _Pair | None = Field(default=None, description="row, column; default: centre of mass of the summed pattern")

    @property
    def virtual(self) -> VirtualDetectors:
        return VirtualDetectors(self.bright_field, self.annular_dark_field, self.center)

    @field_validator("bright_field", "annular_dark_field")
    @classmethod
    def _outer_beyond_inner(cls, radii: tuple[float, float]) -> tuple[float, float]:
        check_radii(*radii)
        return radii

    @model_validator(mode="after")
    def _detectors_see_something(self) -> Self:
        if self.center is not None:
            masks = self.virtual.masks(FRAME_SHAPE, self.center)
            for mask, (inner, outer) in zip(masks, self.virtual.radii, strict=True):
                if not mask.any():
                    raise ValueError(f"no pixel of the frame is {inner:g} to {outer:g} pixels from the center")
        return self


class WatchdogConfig(_Section):
    stall_seconds: float = Field(default=10.0, ge=3, description="a rank silent for so long ends its MPI job")
    assembly_seconds: float = Field(default=900.0, gt=0, description="longest time for gathering and writing")


class Config(_Section):
    deployment: str = Field(default="mpistream", pattern=r"^[A-Za-z0-9_.-]+$", description="names the keys in etcd")
    etcd: EtcdConfig = EtcdConfig()
    network: NetworkConfig = NetworkConfig()
    stream: StreamConfig = StreamConfig()
    camera: CameraConfig = CameraConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    journal: JournalConfig = JournalConfig()
    ranks: RanksConfig = RanksConfig()
    detectors: DetectorsConfig = DetectorsConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @property
    def etcd_prefix(self) -> str:
        return f"/{self.deployment}/"

    @classmethod
    def load(cls, path: Path | None, overrides: dict[str, Any] | None = None) -> Self:
        """The file's values, then ``overrides`` (``{"etcd.lease_seconds": 3}``; None leaves a value as it is).

        A host takes the place of the file's interface, and an interface that of its host.

        Raises ConfigError naming the first wrong key or value.
        """
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = tomllib.loads(path.read_text())
            except OSError as error:
                raise ConfigError(
                    f"cannot read the configuration {path}: {error.strerror}", "check --config"
                ) from error
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path} is not valid TOML: {error}", "mend the line named above") from error
        overrides = overrides or {}
        for dotted, value in overrides.items():
            if value is not None:
                section, _, key = dotted.rpartition(".")
                target = values.setdefault(section, {}) if section else values
                if isinstance(target, dict):  # anything else is refused below
                    target[key] = value
                    other = _INSTEAD_OF.get(dotted, "")
                    if overrides.get(f"{section}.{other}") is None:
                        target.pop(other, None)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _config_error(cls, error, str(path or "the options")) from None

    def to_toml(self) -> str:
        """The configuration as a file that ``load`` reads."""
        lines = [f'deployment = "{self.deployment}"']
        for name, section in self:
            if isinstance(section, _Section):
                lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section if value is not None)]
        return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _config_error(config: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    *parents, key = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        if first["type"] == "value_error":
            return ConfigError(
                f"{where}: {'.'.join([*parents, key])}: {first['msg'].removeprefix('Value error, ')}", _DESCRIBED
            )
        return ConfigError(f"{where}: {'.'.join([*parents, key])}: {first['msg']}, not {first['input']!r}", _DESCRIBED)
    for parent in parents:
        annotation = config.model_fields[parent].annotation
        assert isinstance(annotation, type)
        config = annotation
    place = f"[{'.'.join(parents)}]" if parents else "the top level"
    return ConfigError(
        f"{where}: unknown key {key!r} in {place}", f"known there: {', '.join(sorted(config.model_fields))}"
    )
