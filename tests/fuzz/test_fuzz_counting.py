"""A short run of the counting kernel under AddressSanitizer and UndefinedBehaviorSanitizer; `make fuzz` runs longer."""

import subprocess
from pathlib import Path

from mpistream.reduction.electron_counting import simd_levels

ROOT = Path(__file__).parents[2]
FUZZER = "build/fuzz_counting"
SEED, ROUNDS, MOST_SECONDS = 1, 2000, 200


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_random_frames_in_memory_without_a_byte_to_spare() -> None:
    run("make", "--silent", FUZZER)
    printed = run(FUZZER, str(SEED), str(ROUNDS), str(MOST_SECONDS))
    assert printed.startswith(f"{ROUNDS} rounds")
    assert " ".join(simd_levels()) in printed
