"""The benchmark of counting: what it compares is the same, its figures are what they are called. Nothing is timed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpistream._ext.memory_limit import sectors_above, vector_bytes

from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.benchmarks.counting import (
    COMPARED,
    NO_DARK,
    PATHS,
    EventsDiffer,
    Extent,
    compare_events,
    counter_of,
    read_and_compare,
    stempy_tasks,
)
from mpistream.benchmarks.measurement import Bar, Spread, in_rounds, median_seconds, one_core, quotients
from mpistream.benchmarks.recorded_frames import BLOCK_FRAMES, load, references_of, scan_of, simulate
from mpistream.benchmarks.stempy_peer import CLASSIC, CountingTask, StempyPeer
from mpistream.benchmarks.tables import table
from mpistream.model.errors import MpistreamError
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, RECORD_HEADER, SECTORS
from mpistream.reduction.electron_counting import simd_levels


@pytest.mark.parametrize("pixels", [1, 31, 32, 33, 127, 128, 1000])
@pytest.mark.parametrize("offset", [0, 1, 16])
def test_the_limit_reads_every_pixel(pixels: int, offset: int) -> None:
    memory = np.zeros(2 * pixels + offset, np.uint8)
    addresses = np.array([[memory.ctypes.data + offset, 0]], np.uint64)
    assert sectors_above(addresses, pixels, 44) == 0
    for pixel in range(pixels):
        memory[:] = 0
        memory[offset + 2 * pixel] = 45  # little-endian
        assert sectors_above(addresses, pixels, 44) == 1
        assert sectors_above(addresses, pixels, 45) == 0
    memory[:] = 255
    assert sectors_above(addresses, pixels, 65534) == 1
    assert sectors_above(addresses, pixels, 65535) == 0


def test_what_the_limit_reads_with() -> None:
    assert vector_bytes() == (64 if "avx512" in simd_levels() else 0)


def test_a_spread_and_quotients() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 50.0])
    assert (spread.median, spread.low, spread.high) == (2.5, 1.0, 50.0)
    assert Spread.of([1234.56, 1200]).text(1) == "1,217.3 (1,200.0 to 1,234.6)"
    assert quotients([6.0, 10.0], [2.0, 4.0]) == [3.0, 2.5]


@pytest.mark.parametrize(
    ("value", "at_most", "met"), [(1.0, False, True), (0.9, False, False), (1.0, True, True), (1.1, True, False)]
)
def test_a_bar_is_met_on_its_line(value: float, at_most: bool, met: bool) -> None:
    assert Bar(value, 1.0, at_most).as_json() == {"value": value, "bar": 1.0, "at_most": at_most, "met": met}


def test_rounds_alternate_in_order() -> None:
    called: list[str] = []

    def contender(name: str) -> float:
        called.append(name)
        return len(called)

    measured = in_rounds({name: lambda name=name: contender(name) for name in "abc"}, 3)
    assert "".join(called) == "abccbaabc"
    assert measured == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_passes_are_all_done() -> None:
    passes: list[int] = []
    assert median_seconds(lambda: passes.append(1), 5) >= 0
    assert len(passes) == 5


def test_one_core_is_given_back() -> None:
    before = os.sched_getaffinity(0)
    with one_core() as core:
        assert os.sched_getaffinity(0) == {core}
        seen = subprocess.run(
            [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"], capture_output=True, text=True
        )
        assert seen.stdout.split() == [str(core)]
    assert os.sched_getaffinity(0) == before


def test_a_table_is_aligned() -> None:
    lines = table(["what", "much"], [["a", "1"], ["longer", "12,345"]]).splitlines()
    assert lines == [
        "| what   |   much |",
        "| ------ | -----: |",
        "| a      |      1 |",
        "| longer | 12,345 |",
    ]


@pytest.mark.parametrize(("frames", "quick", "expected"), [(None, False, 1024), (None, True, 16), (9, True, 16)])
def test_extent_is_of_whole_blocks(frames: int | None, quick: bool, expected: int) -> None:
    extent = Extent.of(frames, quick)
    assert extent.frames == expected
    assert extent.sweep_frames % BLOCK_FRAMES == 0
    assert extent.sizes[-1] == expected
    assert all(size % BLOCK_FRAMES == 0 for size in extent.sizes)
    assert extent.rounds >= 3 or quick


def test_default_sizes_of_scans() -> None:
    assert Extent.of(None, False).sizes == [64, 256, 1024]


def test_frames_lie_in_memory_as_records() -> None:
    frames = simulate(scan_of(16, 20))
    assert frames.frames == 16
    assert frames.raw_bytes == 16 * SECTORS * RECORD_BYTES
    assert len(frames.first(8).blocks) == 1
    for block in range(2):
        for sector in range(SECTORS):
            buffer = frames.buffers[block * SECTORS + sector]
            headers = np.ndarray(BLOCK_FRAMES, RECORD_HEADER, buffer, strides=(RECORD_BYTES,))
            assert headers["frame_number"].tolist() == list(range(8 * block, 8 * block + 8))
            places = frames.blocks[block][:, sector] - np.uint64(buffer.ctypes.data)
            assert places.tolist() == [HEADER_BYTES + RECORD_BYTES * frame for frame in range(8)]
    assert read_and_compare(frames.blocks) == 16 * SECTORS


@pytest.mark.parametrize("path", PATHS)
def test_every_path_counts_electrons(path: str) -> None:
    options = scan_of(8, 400)
    frames, references = simulate(options), references_of(options)
    counted = {level: counter_of(path, references, level).count_block(frames.blocks[0]) for level in simd_levels()}
    for level, found in counted.items():
        assert 250 < found.counts.mean() < 600, level
        np.testing.assert_array_equal(found.indices, counted[simd_levels()[0]].indices)
    plain = counter_of(NO_DARK, references).count_block(frames.blocks[0])
    changes_events = path not in (NO_DARK, "centroids", "two annuli")
    assert np.array_equal(plain.indices, counted[simd_levels()[0]].indices) != changes_events
    assert (counted[simd_levels()[0]].centroids is not None) == (path == "centroids")
    assert counted[simd_levels()[0]].annuli.shape == (8, 2 if path == "two annuli" else 0)


def test_stempy_counts_the_same_and_a_difference_is_noticed(tmp_path: Path) -> None:
    options = scan_of(8, 300)
    simulate_to_files(options, tmp_path)
    frames, references = load(tmp_path, 8), references_of(options)
    tasks = stempy_tasks(tmp_path, (8, 1), references)
    assert tuple(tasks) == COMPARED
    with StempyPeer() as peer:
        assert peer.version == "3.6.0"
        events = compare_events(peer, tasks, frames, references)
        assert 8 * 200 < events < 8 * 400
        other = simulate(options.model_copy(update={"seed": 2}))
        with pytest.raises(EventsDiffer, match=f"{NO_DARK}, {simd_levels()[0]}"):
            compare_events(peer, tasks, other, references)
        counted = peer.count(CLASSIC, tasks[NO_DARK])
        assert counted.frames_per_second == 8 / counted.seconds > 0


def test_a_crash_of_stempy_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with StempyPeer() as peer, pytest.raises(MpistreamError, match="stempy's process ended with status 1"):
        peer.count(CLASSIC, CountingTask(tmp_path, (1, 1), 44.0, 1500.0))
    assert "No files provided" in capfd.readouterr().err


def test_stempy_is_loaded_only_where_it_counts() -> None:
    modules = "counting, counting_report, quality, quality_report, stempy_peer"
    code = f"import sys; from mpistream.benchmarks import {modules}; print('stempy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False"], done.stderr
