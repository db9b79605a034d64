"""Short runs of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer; `make fuzz` runs longer."""

import subprocess
from pathlib import Path

from mpistream.reduction.electron_counting import simd_levels

ROOT = Path(__file__).parents[2]
SEED, MOST_SECONDS = 1, 200


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fuzz(name: str, rounds: int) -> str:
    """What the fuzzer says of frames in memory without a byte to spare."""
    program = f"build/fuzz_{name}"
    run("make", "--silent", program)
    printed = run(program, str(SEED), str(rounds), str(MOST_SECONDS))
    assert printed.startswith(f"{rounds} rounds")
    return printed


def test_counting() -> None:
    assert " ".join(simd_levels()) in fuzz("counting", 2000)


def test_statistics() -> None:
    fuzz("statistics", 200)
