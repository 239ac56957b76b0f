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
    # Forces of five combinations of dtypes and sums of two, each with a histogram too, seven kinds of
    # step, and what combines each.
    assert len(kernels) == len(set(kernels)) == (5 + 2) * 2 + 7 + 3


def test_nothing_spills(compiled: list[dict]) -> None:
    spilt = [fact for fact in compiled if fact["spilled_bytes"]]
    assert not spilt


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtypes", "loads"),  # of a thread that takes four entries at a time, or two of float64
    [("fp32", 3), ("bf16, fp32 moments", 2), ("fp64", 3), ("fp32 without moments", 1)],
)
@pytest.mark.parametrize("operation", ["forces", "forces and histogram"])
def test_whole_blocks_load_16_bytes(
    compiled: list[dict], target: str, dtypes: str, loads: int, operation: str
) -> None:
    # The histogram reads the weights a second time, an entry a thread, wherever they begin.
    assert fact_of(compiled, target, operation, dtypes)["loads_of_16_bytes"] == loads


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtypes", "loads", "stores"),  # of a thread that takes 16 bytes of the widest column at a time
    [
        ("fp32", 4, 3),
        ("fp32, no ledger", 4, 3),
        ("fp32, scaler", 4, 4),
        ("fp32, amsgrad", 5, 4),
        ("bf16, fp32 moments", 2, 2),  # the others take 8 bytes, as all do of bf16 alone
        ("bf16, scaler", 0, 0),
        ("fp64", 4, 3),
    ],
)
def test_a_step_streams_whole_blocks(
    compiled: list[dict], target: str, dtypes: str, loads: int, stores: int
) -> None:
    fact = fact_of(compiled, target, "step", dtypes)
    assert (fact["loads_of_16_bytes"], fact["stores_of_16_bytes"]) == (loads, stores)
    assert fact["rearrangements"] == 0  # in shared memory, with a barrier


@pytest.mark.parametrize("operation", ["forces", "step"])
def test_enough_blocks_share_a_multiprocessor(compiled: list[dict], operation: str) -> None:
    """Some compute as others wait: four blocks of 256 threads with 64 registers each."""
    columns = ("fp32", "bf16, fp32 moments", "bf16", "fp32 without moments", "bf16, scaler")
    kernels = [f for f in compiled if f["operation"] == operation and f["dtypes"] in columns]
    assert kernels
    assert max(fact["registers"] for fact in kernels if fact["target"].startswith("sm_")) <= 64
