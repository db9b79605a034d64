"""The figures of ``mpistream bench counting`` as tables for people."""

from typing import Any

from mpistream.benchmarks.counting import COMPARED, NO_DARK, over_stempy
from mpistream.benchmarks.measurement import Spread, quotients
from mpistream.benchmarks.tables import table

_GIGABYTE = 1e9


def report(result: dict[str, Any]) -> str:
    """What ``counting.measure`` returned, as Markdown."""
    parts = [_conditions(result), _rates(result), _ratios(result), _sweep(result), _sizes(result), _bars(result)]
    return "\n\n".join(parts)


def _conditions(result: dict[str, Any]) -> str:
    machine, cache = result["machine"], result["machine"]["last_level_cache_bytes"]
    times = f", {result['raw_bytes'] / cache:.1f} times its last-level cache" if cache else ""
    return (
        f"One core of {machine['processor']}; {result['frames']} frames of 576 x 576 pixels with "
        f"{result['electrons_per_frame']:.0f} electrons counted in each,\n{result['raw_bytes'] / 1e6:.0f} MB{times}. "
        f"Medians of {result['rounds']} rounds; stempy {result['stempy_version']} found the same electrons."
    )


def _rates(result: dict[str, Any]) -> str:
    ours, stempy = result["frames_per_second"], result["stempy_frames_per_second"]
    head = ["frames/s", *ours, *(f"stempy {path}" for path in stempy)]
    columns = [*ours.values(), *stempy.values()]
    rows = [
        [path, *(f"{Spread.of(rates[path]).median:,.0f}" if path in rates else "" for rates in columns)]
        for path in next(iter(ours.values()))
    ]
    frame_bytes = result["raw_bytes"] / result["frames"]
    limit = Spread.of(result["limit_frames_per_second"])
    wide = result["machine"]["bytes_per_load"]
    loads = f"{wide}-byte loads" if wide else "vectors as the compiler chose them"
    return (
        f"{table(head, rows)}\n\n"
        f"Limit, reading and comparing only ({loads}): {limit.median:,.0f} frames/s, "
        f"{limit.median * frame_bytes / _GIGABYTE:.1f} GB/s."
    )


def _ratios(result: dict[str, Any]) -> str:
    ours, stempy, limit = (result[f"{name}frames_per_second"] for name in ("", "stempy_", "limit_"))
    head = ["within a round (lowest to highest)", *ours]
    rows = [
        [f"{name}, times stempy's faster path"]
        + [Spread.of(over_stempy(ours, stempy, level, name)).text(1) for level in ours]
        for name in COMPARED
    ]
    rows += [
        [f"{path}, share of the limit"] + [Spread.of(quotients(rates[path], limit)).text(2) for rates in ours.values()]
        for path in next(iter(ours.values()))
    ]
    return table(head, rows)


def _sweep(result: dict[str, Any]) -> str:
    costs = result["microseconds_per_frame_by_electrons"]
    head = [f"electrons per frame, {NO_DARK}", *(f"{level}, µs/frame" for level in costs)]
    rows = [
        [f"{int(electrons):,}", *(f"{Spread.of(of_level[electrons]).median:.1f}" for of_level in costs.values())]
        for electrons in next(iter(costs.values()))
    ]
    return table(head, rows)


def _sizes(result: dict[str, Any]) -> str:
    costs = result["microseconds_per_frame_by_frames"]
    rows = [[f"{int(frames):,}", f"{Spread.of(values).median:.1f}"] for frames, values in costs.items()]
    return table([f"frames of the scan, {NO_DARK}", "µs/frame"], rows)


def _bars(result: dict[str, Any]) -> str:
    rows = []
    for name, bar in result["bars"].items():
        should_be = f"{'at most' if bar['at_most'] else 'at least'} {bar['bar']:.2f}"
        rows.append([name, f"{bar['value']:.2f}", should_be, "yes" if bar["met"] else "no"])
    return table(["bar", "is", "should be", "met"], rows)
