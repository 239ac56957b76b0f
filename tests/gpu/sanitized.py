"""Runs every kernel of a backend once on small tensors: to be watched by compute-sanitizer, or compiled.

python3 tests/gpu/sanitized.py cuda        # all operations, every combination of dtypes of the tests
python3 tests/gpu/sanitized.py triton 2 8  # every eighth of the combinations, from the third
python3 tests/gpu/sanitized.py planted     # a read past the end of memory, which memcheck must see
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "python"))
from device import DTYPES, STEP_DTYPES, unaligned
from oracle import make_step

from weibull_kernels.dispatch import find_kernel
from weibull_kernels.kernels.interface import Rows, Step, SteppedTensors

SIZES = (0, 1, 7, 513, 40_001)


def column(dtype, scale, shift=0.0):
    """A tensor of each size with random entries, made on the host."""
    return [(scale * torch.randn(size) + shift).to(dtype) for size in SIZES]


def sent(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [sent(one, device) for one in value] if isinstance(value, list) else value


def about_to_step(device, weight, grad, exp_avg, exp_avg_sq, amsgrad, aligned=True):
    """Tensors of every size, and their step."""
    w, g, m = column(weight, 0.02), column(grad, 0.001), column(exp_avg, 0.01)
    v, largest = ([t.abs() for t in column(exp_avg_sq, 1e-3, 2e-3)] for _ in range(2))
    tensors, step = make_step(*zip(w, g, m, v, *([largest] if amsgrad else []), strict=True))
    there = {name: sent(one, device) for name, one in vars(tensors).items() if name != "prepared"}
    now = {name: sent(one, device) for name, one in vars(step).items()}
    if not aligned:
        for column_of in ("weights", "exp_avgs", "exp_avg_sqs"):
            there[column_of] = list(map(unaligned, there[column_of]))
        now["grads"] = list(map(unaligned, now["grads"]))
    return SteppedTensors(**there), Step(**now)


def measure(backend, device, dtypes):
    """Sums with and without moments, and forces, with and without the histogram."""
    for aligned in (True, False):
        measure_once(backend, device, *about_to_step(device, dtypes[0], *dtypes, aligned, aligned))


def measure_once(backend, device, tensors, step):
    ones, nothing = torch.ones(len(SIZES), dtype=torch.float64).to(device), [None] * len(SIZES)
    all_rows = (
        Rows(tensors.weights, tensors.exp_avgs, tensors.exp_avg_sqs, ones, ones, ones),
        Rows(tensors.weights, nothing, nothing, ones, ones, ones),
    )
    for with_histogram in (False, True):
        for rows in all_rows:
            find_kernel("sums", backend, device)(rows, with_histogram=with_histogram)
        find_kernel("forces", backend, device)(tensors, step.hyperparameters, with_histogram=with_histogram)


def step(backend, device, dtypes):
    """Steps with and without amsgrad, aligned memory, ledger and a gradient scaler."""
    number = torch.ones((), device=device)
    for amsgrad in (False, True):
        for aligned in (True, False):
            tensors, now = about_to_step(device, *dtypes, amsgrad=amsgrad, aligned=aligned)
            kernel = find_kernel("adamw", backend, device)
            kernel(tensors, now)
            kernel(tensors, Step(now.grads, now.hyperparameters))
            kernel(tensors, Step(now.grads, now.hyperparameters, now.ledger, 2 * number, 0 * number))


class TooLong:
    """Memory of 1,000 floats that says of itself to be twice as long."""

    def __init__(self):
        self.memory = torch.zeros(1000, device="cuda")
        place = self.memory.data_ptr(), False
        self.__cuda_array_interface__ = {"data": place, "shape": (2000,), "typestr": "<f4", "version": 3}


def read_too_far():
    weight = torch.as_tensor(TooLong(), device="cuda")
    one, device = torch.ones(1, dtype=torch.float64, device="cuda"), torch.device("cuda")
    find_kernel("sums", "cuda", device)(Rows([weight], [None], [None], one, one, one))
    torch.cuda.synchronize()


def main(backend, part="0", parts="1"):
    if backend == "planted":
        read_too_far()
        return
    device = torch.device("cuda" if backend in ("cuda", "triton") else "cpu")
    jobs = [(measure, dtypes) for dtypes in DTYPES.values()] + [(step, d) for d in STEP_DTYPES.values()]
    for job, dtypes in jobs[int(part) :: int(parts)]:
        job(backend, device, dtypes)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main(*sys.argv[1:])
