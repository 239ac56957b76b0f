"""The extension built from csrc/cuda/. Addresses are of memory on the device; a 0 is an absence."""

ARCHITECTURES: list[int]
RUNTIME_VERSION: int
BINS: int
CHUNK: int
ROW_COLUMNS: int
HYPERPARAMETERS: int
LEDGER_COLUMNS: int
SUM_COLUMNS: int
SUMS_BYTES: int
STEP_SUMS_BYTES: int

def driver_version() -> int: ...

_Table = tuple[int, int, int, int, bool, bool]
"""Address, rows, chunks; whether any row is computed in float64, and whether any is in float32."""

def sums(
    table: _Table,
    scaled_eps: int,
    scales: int,
    partials: int,
    sums: int,
    histograms: int,
    device: int,
    stream: int,
    blocks: int,
) -> None: ...
def forces(
    table: _Table,
    sets: int,
    partials: int,
    ledger: int,
    histograms: int,
    device: int,
    stream: int,
    blocks: int,
) -> None: ...
def adamw(
    table: _Table,
    grads: int,
    sets: int,
    grad_scale: int,
    found_inf: int,
    partials: int,
    ledger: int,
    device: int,
    stream: int,
    blocks: int,
) -> None: ...
