"""``mpistream bench`` as a user runs it, on data so small that its figures mean nothing."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpistream.reduction.electron_counting import simd_levels
from tests.system.command_line import CommandLine, Finished


@pytest.fixture(scope="module")
def counting(cli: CommandLine) -> Finished:
    return cli.run("bench", "counting", "--quick", "--json").succeeded()


def numbers(value: Any) -> Iterator[float]:
    """All numbers in what came out of JSON, but not what is true or false."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_counting_gives_figures_for_every_path(counting: Finished) -> None:
    result = counting.last_json
    assert result["same_events_as_stempy"] is True
    assert result["stempy_version"] == "3.6.0"
    assert result["frames"] == 16
    assert 1000 < result["electrons_per_frame"] < 2400
    assert set(result["frames_per_second"]) == set(simd_levels())
    paths = {"no dark", "dark", "dark and gain", "row-dark mean", "row-dark median", "pixel mask", "centroids"}
    for rates in result["frames_per_second"].values():
        assert paths < set(rates)
        assert all(len(of_rounds) == result["rounds"] for of_rounds in rates.values())
    assert set(result["stempy_frames_per_second"]) == {"classic", "multi-pass"}
    for costs in result["microseconds_per_frame_by_electrons"].values():
        assert list(costs) == ["0", "500", "2400", "8000", "20000"]
    measured = [value for name, part in result.items() if name not in ("machine", "bars") for value in numbers(part)]
    assert all(math.isfinite(value) and value > 0 for value in measured)


def test_counting_says_which_bars_are_met(counting: Finished) -> None:
    bars = counting.last_json["bars"]
    assert "no dark, share of the limit" in bars
    for level in {"avx512", "avx2"} & set(simd_levels()):
        assert f"{level}, dark and gain, times stempy" in bars
    for bar in bars.values():
        assert math.isfinite(bar["value"])
        assert bar["bar"] > 0
        assert bar["met"] is (bar["value"] <= bar["bar"] if bar["at_most"] else bar["value"] >= bar["bar"])


def test_counting_prints_tables(counting: Finished) -> None:
    lines = counting.stdout.splitlines()
    assert any(line.startswith("| frames/s") for line in lines)
    assert any(line.startswith("| bar") for line in lines)
    assert not any("nan" in line for line in lines)


def test_quality_beside_stempy(cli: CommandLine, output: Path) -> None:
    plot = output.with_suffix(".png")
    finished = cli.run("bench", "quality", "--frames", 1, "--plot", plot, "--json").succeeded()
    result = finished.last_json
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {point["electrons"] for point in result["sweep"]} == {500, 2500, 8000}
    for point in result["sweep"]:
        for program in ("mpistream", "stempy"):
            assert 0 < point[program]["precision"] <= 1
            assert 0 < point[program]["recall"] <= 1
            assert 0 <= point[program]["double_counting"] < 0.2
        if point["references"] == "none":
            assert point["mpistream"] == point["stempy"]
    for errors in result["centroid_rms_pixels"].values():
        assert all(0 < error < 1 for error in errors.values())
    assert "| sigmas" in finished.stdout


def test_durability_beside_a_stream_without_acknowledgements(cli: CommandLine, tmp_path: Path) -> None:
    finished = cli.run("bench", "durability", "--quick", "--folder", tmp_path, "--json", seconds=300).succeeded()
    result = finished.last_json
    modes = ["no acknowledgements", "none", "write", "fsync"]
    assert list(result["cpu_seconds_per_1000_frames"]) == list(result["frames_per_second"]) == modes
    for name in modes:
        of_mode = result["cpu_seconds_per_1000_frames"][name]
        assert set(of_mode) == {"all", "producers", "aggregator", "ranks", "etcd"}
        assert all(value > 0 for value in (*of_mode["all"], *result["frames_per_second"][name]))
        assert len(of_mode["all"]) == len(result["times_no_acknowledgements"][name]) == result["rounds"] == 2
    assert result["frames"] == 64
    assert 1000 < result["electrons_per_frame"] < 2400
    journal = result["journal"]
    assert 0.005 < journal["bytes"] / journal["raw_bytes"] < 0.02
    assert all(value > 0 for of_rounds in journal["microseconds_per_block"].values() for value in of_rounds)
    (bar,) = result["bars"].values()
    assert bar["bar"] == 1.1
    assert bar["met"] is (bar["value"] <= bar["bar"])
    assert "durability fsync" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(cli: CommandLine, output: Path) -> None:
    cli.run("bench", "quality", "--plot", output.parent / "nowhere" / "plot.png").failed_with("nowhere")
    cli.run("bench", "quality", "--plot", output).failed_with("scan.h5")
    assert cli.run("bench", "counting", "--frames", 0).status == 2
    cli.run("bench", "durability", "--quick", "--folder", output.parent / "nowhere").failed_with("nowhere")
