"""The figures of ``mpistream bench durability`` as tables for people."""

from typing import Any

from mpistream.benchmarks.durability import ALL, UNACKNOWLEDGED
from mpistream.benchmarks.durability_journal import LIMITS
from mpistream.benchmarks.durability_streams import ETCD, STREAMING
from mpistream.benchmarks.measurement import Spread, quotients
from mpistream.benchmarks.tables import table


def report(result: dict[str, Any]) -> str:
    """What ``durability.with_bars`` returned, as Markdown."""
    return "\n\n".join(part(result) for part in (_conditions, _streams, _roles, _journal, _bars))


def _conditions(result: dict[str, Any]) -> str:
    machine = result["machine"]
    idle = sum(result["idle_cores"][role] for role in STREAMING)
    return (
        f"{machine['cores']} cores of {machine['processor']}; {result['frames']} frames with "
        f"{result['electrons_per_frame']:.0f} electrons counted in each, {result['raw_bytes'] / 1e9:.2f} GB;\n"
        f"4 producers, an aggregator, {result['ranks']} ranks; journals and dataset on {result['file_system']}. "
        f"Medians of {result['rounds']} rounds.\n"
        f"What the processes use while nothing is streamed, {idle:.3f} cores, is left out."
    )


def _streams(result: dict[str, Any]) -> str:
    head = ["", "CPU seconds per 1,000 frames", f"times {UNACKNOWLEDGED}", "frames/s"]
    rows = [
        [
            _named(name),
            Spread.of(of_mode[ALL]).text(3),
            Spread.of(result["times_no_acknowledgements"][name]).text(3),
            Spread.of(result["frames_per_second"][name]).text(0),
        ]
        for name, of_mode in result["cpu_seconds_per_1000_frames"].items()
    ]
    return table(head, rows)


def _roles(result: dict[str, Any]) -> str:
    head = ["CPU seconds per 1,000 frames", *STREAMING, f"{ETCD}, apart"]
    rows = [
        [_named(name), *(f"{Spread.of(of_mode[role]).median:.3f}" for role in (*STREAMING, ETCD))]
        for name, of_mode in result["cpu_seconds_per_1000_frames"].items()
    ]
    return table(head, rows)


def _journal(result: dict[str, Any]) -> str:
    journal = result["journal"]
    measured = journal["microseconds_per_block"]
    rows = []
    for name, values in measured.items():
        limit = LIMITS.get(name)
        times = Spread.of(quotients(values, measured[limit])).text(2) if limit else ""
        rows.append([name, Spread.of(values).text(0), times])
    return (
        f"{table(['the journal alone', 'µs per block', 'times os.write of the same'], rows)}\n\n"
        f"A block of 8 frames has {journal['bytes'] / journal['blocks'] / 1000:.1f} kB in the journal: "
        f"{journal['bytes'] / journal['raw_bytes']:.2%} of its raw bytes."
    )


def _bars(result: dict[str, Any]) -> str:
    rows = [
        [name, f"{bar['value']:.3f}", f"at most {bar['bar']:.2f}", "yes" if bar["met"] else "no"]
        for name, bar in result["bars"].items()
    ]
    return table(["bar", "is", "should be", "met"], rows)


def _named(mode: str) -> str:
    return mode if mode == UNACKNOWLEDGED else f"durability {mode}"
