"""The extension built from csrc/cpu."""

import numpy as np
from numpy.typing import NDArray

BINS: int

def instruction_sets() -> list[str]: ...
def sums(
    tensors: NDArray[np.int64],
    scales: NDArray[np.float64],
    histograms: NDArray[np.int64] | None,
    instruction_set: str,
    threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]: ...
def adamw(
    tensors: NDArray[np.int64],
    hyperparameters: NDArray[np.float64],
    ledger: NDArray[np.float64] | None,
    grad_scale: int,
    found_inf: int,
    instruction_set: str,
    threads: int,
) -> None: ...
def forces(
    tensors: NDArray[np.int64],
    hyperparameters: NDArray[np.float64],
    histograms: NDArray[np.int64] | None,
    instruction_set: str,
    threads: int,
) -> NDArray[np.float64]: ...
def gram(columns: NDArray[np.int64], count: int, instruction_set: str) -> NDArray[np.float64]: ...
def moves(columns: NDArray[np.int64], count: int, instruction_set: str) -> NDArray[np.float64]: ...
def normal_product(
    matrices: NDArray[np.int64], b: int, instruction_set: str, threads: int
) -> NDArray[np.float64]: ...
