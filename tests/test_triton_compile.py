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


def fact_of(compiled: list[dict], *kernel: str) -> dict:
    (fact,) = (f for f in compiled if (f["target"], f["operation"], f["dtypes"]) == kernel)
    return fact


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(compiled: list[dict], target: str) -> None:
    kernels = [(fact["operation"], fact["dtypes"]) for fact in compiled if fact["target"] == target]
    # Sums of five combinations of dtypes, twice, seven kinds of step, and what combines each.
    assert len(kernels) == len(set(kernels)) == 5 * 2 + 7 + 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtypes", "loads"),  # of a thread that takes 16 bytes of the narrowest column at a time
    [("fp32", 3), ("bf16, fp32 moments", 1 + 2 + 2), ("bf16", 3), ("fp32 without moments", 1)],
)
@pytest.mark.parametrize("operation", ["sums", "sums and histogram"])
def test_whole_blocks_load_16_bytes_and_spill_nothing(
    compiled: list[dict], target: str, dtypes: str, loads: int, operation: str
) -> None:
    fact = fact_of(compiled, target, operation, dtypes)
    # The histogram reads the weights a second time, in its own blocks.
    if operation == "sums":
        assert fact["loads_of_16_bytes"] == loads
    else:
        assert fact["loads_of_16_bytes"] >= loads
    assert fact["spilled_bytes"] == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtypes", "loads", "stores"),  # of a thread that takes 16 bytes of the widest column at a time
    [
        ("fp32", 4, 3),
        ("fp32, no ledger", 4, 3),
        ("fp32, scaler", 4, 4),
        ("fp32, amsgrad", 5, 4),
        ("bf16, fp32 moments", 2, 2),  # the others take 8 bytes
        ("bf16, scaler", 4, 4),
    ],
)
def test_a_step_streams_whole_blocks(
    compiled: list[dict], target: str, dtypes: str, loads: int, stores: int
) -> None:
    fact = fact_of(compiled, target, "step", dtypes)
    assert (fact["loads_of_16_bytes"], fact["stores_of_16_bytes"]) == (loads, stores)
    assert fact["spilled_bytes"] == 0
    assert fact["rearrangements"] == 0  # in shared memory, with a barrier
    assert fact["registers"] <= 128  # so that two blocks share a multiprocessor, one computes as one waits
