"""The Triton kernels compile for GPUs that are not here, with the loads and registers we count on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """What tests/compile_triton.py says of every kernel, target and combination of dtypes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_triton.py")
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(compiled: list[dict], target: str) -> None:
    kernels = [(fact["dtypes"], fact["histogram"]) for fact in compiled if fact["target"] == target]
    assert len(kernels) == len(set(kernels)) == 11  # five combinations of dtypes, twice, and the combination


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtypes", "loads"),  # of a thread that takes 16 bytes of the narrowest column at a time
    [("fp32", 3), ("bf16, fp32 moments", 1 + 2 + 2), ("bf16", 3), ("fp32 without moments", 1)],
)
@pytest.mark.parametrize("histogram", [False, True])
def test_whole_blocks_load_16_bytes_and_spill_nothing(
    compiled: list[dict], target: str, dtypes: str, loads: int, histogram: bool
) -> None:
    (fact,) = (
        f for f in compiled if (f["target"], f["dtypes"], f["histogram"]) == (target, dtypes, histogram)
    )
    # The histogram reads the weights a second time, in its own blocks.
    assert fact["loads_of_16_bytes"] >= loads if histogram else fact["loads_of_16_bytes"] == loads
    assert fact["spilled_bytes"] == 0
