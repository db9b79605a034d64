"""The sources of a series of scans: one specification, in which the number or the tilt of each scan is filled in."""

from collections.abc import Sequence

from mpistream.acquisition.source import parse_specification
from mpistream.model.errors import ConfigError

#: As ``--source``: the scan that the camera begins next.
CAMERA = "camera"


def sources_of_times(source: str, scans: int) -> list[str]:
    """The source of each of ``scans`` scans, with {index} filled in, from 0 on; ``{index:03d}`` works as in Python.

    Raises ConfigError for other placeholders, and where all of several scans would be the same; SourceError for what
    is no source then.
    """
    return _filled_in(source, [{"index": index} for index in range(scans)])


def sources_of_tilts(source: str, tilts_degrees: Sequence[float]) -> list[str]:
    """Likewise, with {tilt} filled in, too, in degrees."""
    return _filled_in(source, [{"index": index, "tilt": _Degrees(tilt)} for index, tilt in enumerate(tilts_degrees)])


class _Degrees(float):
    """Written as people name folders: -60 and 0.3, not -60.0 and 0.30000000000000004."""

    def __format__(self, specification: str) -> str:
        return format(float(self), specification or "g")


def _filled_in(source: str, values: Sequence[dict[str, float]]) -> list[str]:
    if source == CAMERA:
        return [CAMERA] * len(values)
    names = " or ".join(f"{{{name}}}" for name in values[0])
    try:
        sources = [source.format(**of_scan) for of_scan in values]
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        why = f"there is no {{{error.args[0]}}}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"the source {source!r} cannot be filled in: {why}",
            f"it may hold {names}, as in files:/data/{{index}}; other braces are written twice",
        ) from None
    if len(sources) > 1 and len(set(sources)) == 1:
        raise ConfigError(
            f"the source {source!r} is the same for all scans",
            f"write {names} where the sources differ, as in files:/data/{{index}} or sim:64x64?seed={{index}}",
        )
    for filled in (sources[0], sources[-1]):
        parse_specification(filled)
    return sources
