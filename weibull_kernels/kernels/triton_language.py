"""What the device code of the Triton backend shares: one entry, running sums, the numbers of a step.

Imported only where Triton is installed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .interface import HYPERPARAMETERS, LEDGER_COLUMNS

# What is compiled for one call is called with other pointers, which may lie anywhere.
POINTERS = [
    *("chunks_ptr", "rows_ptr", "grads_ptr", "hyperparameters_ptr", "grad_scale_ptr", "found_inf_ptr"),
    *("bias_correction1_ptr", "bias_correction2_ptr", "eps_ptr"),
    *("partials_ptr", "histograms_ptr", "counts_ptr", "sums_ptr", "forces_ptr", "ledger_ptr"),
]

# Bits of a float32.
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
SMALLEST_NORMAL = tl.constexpr(0x00800000)
INFINITY = tl.constexpr(0x7F800000)
THREE_QUARTERS = tl.constexpr(0x3F400000)
ONE = tl.constexpr(0x3F800000)
MANTISSA_BITS = tl.constexpr(23)
SUBNORMAL_EXPONENT = tl.constexpr(-149)
# Of a float64: where its bin stands in its bits, and how far its octaves lie from float32's.
WIDE_SHIFT = tl.constexpr(52 - 6)
WIDE_REBIAS = tl.constexpr((1023 - 127) << 6)
WIDE_SMALLEST_NORMAL = tl.constexpr(2.0**-126)
WIDE_SUBNORMAL_SCALE = tl.constexpr(2.0**126 * 64)
LN2 = tl.constexpr(0.693147180559945309417)

# Columns of the table of tensors and of that of chunks; see `triton_tables.py`.
WEIGHT_AT, EXP_AVG_AT, EXP_AVG_SQ_AT, MAX_EXP_AVG_SQ_AT, COUNT_AT = map(tl.constexpr, range(5))
NUMEL, FIRST_PARTIAL, PARTIALS, GROUP, PLACE = map(tl.constexpr, range(5, 10))
ROW_COLUMNS = tl.constexpr(10)
CHUNK_COLUMNS = tl.constexpr(2)
LR, DECAY_FACTOR, BETA1, BETA2, EPS, SIGN, FLOAT32_CORRECTIONS = map(
    tl.constexpr, range(len(HYPERPARAMETERS))
)
HYPERPARAMETER_COLUMNS = tl.constexpr(len(HYPERPARAMETERS))
ALIGNMENT, INJECTION, DECAY, COUPLING, CHANGE, STEPS, NORM_SQ_START, NORM_SQ, LOG_SUM, *_, STEP = map(
    tl.constexpr, range(len(LEDGER_COLUMNS))
)
LEDGER_WIDTH = tl.constexpr(len(LEDGER_COLUMNS))

# Partial sums: ⟨w,u⟩, ‖u‖², ‖w‖², then five statistics in the order of the ledger.
COLUMNS = tl.constexpr(8)
FIRST_STATISTIC = tl.constexpr(3)
MAX_COLUMN = tl.constexpr(5)

BIN_SHIFT = tl.constexpr(23 - 6)
BINS = tl.constexpr(255 << 6)


@triton.jit
def quotient(a, b):
    """a/b as IEEE rounds it; `/` of float32 is an approximation that flushes subnormal numbers to zero."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def root(a):
    """√a as IEEE rounds it; by `tl.sqrt`, such an approximation too, subnormal v would give u = m/ε."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def raw_update(exp_avg, exp_avg_sq, scaled_eps):
    """m/(√v + ε·√bc₂): AdamW's update without its bias corrections."""
    return quotient(exp_avg, root(exp_avg_sq) + scaled_eps)


@triton.jit
def log1p_polynomial(r):
    """ln(1+r) in float32 for r in [−0.25, 0.5), to 3.1e-8 and exactly 0 at 0; the polynomial of csrc/entry.h.

    `tl.log` takes its argument apart a second time and looks for zeros and infinities among mantissas.
    """
    p = tl.fma(r, -6.299255052e-02, 1.395170978e-01)
    p = tl.fma(p, r, -1.746329311e-01)
    p = tl.fma(p, r, 2.015715113e-01)
    p = tl.fma(p, r, -2.497139249e-01)
    p = tl.fma(p, r, 3.332665051e-01)
    p = tl.fma(p, r, -5.000031876e-01)
    p = tl.fma(p, r, 1.000000596e00)
    return p * r


@triton.jit
def log_magnitude(weight, has_log):
    """ln|w| in float64, 0 where there is none: e·ln 2 + ln(mantissa), mantissa in [0.75, 1.5).

    The two parts meet in float64: near ln|w| = −70 a float32 would round away 4e-6.
    """
    if weight.dtype == tl.float64:
        return tl.log(tl.where(has_log, tl.abs(weight), 1.0))
    else:
        bits = weight.to(tl.int32, bitcast=True) & MAGNITUDE
        subnormal = bits < SMALLEST_NORMAL
        # A subnormal is its bits, read as an integer, times 2^-149.
        normal = tl.where(subnormal, bits.to(tl.float32).to(tl.int32, bitcast=True), bits)
        normal = tl.where(has_log, normal, ONE)
        exponent = (normal - THREE_QUARTERS) >> MANTISSA_BITS
        mantissa = (normal - (exponent << MANTISSA_BITS)).to(tl.float32, bitcast=True)
        exponent += tl.where(has_log & subnormal, SUBNORMAL_EXPONENT, 0)
        return exponent.to(tl.float64) * LN2 + log1p_polynomial(mantissa - 1.0).to(tl.float64)


@triton.jit
def is_counted(weight):
    """Whether an entry is finite and not zero."""
    if weight.dtype == tl.float64:
        return (weight != 0) & (tl.abs(weight) < float("inf"))
    else:
        bits = weight.to(tl.int32, bitcast=True) & MAGNITUDE
        return (bits - 1).to(tl.uint32, bitcast=True) < INFINITY - 1


@triton.jit
def bin_of(weight):
    """The histogram's bin of a finite non-zero entry: the leading bits of |w| as a float32.

    A zero is put in bin 0, and what is not finite in one that does not exist.
    """
    if weight.dtype == tl.float64:
        magnitude = tl.abs(weight)
        leading = (magnitude.to(tl.int64, bitcast=True) >> WIDE_SHIFT) - WIDE_REBIAS
        # Rounded towards zero, so that no entry crosses the edge of a bin.
        subnormal = (magnitude * WIDE_SUBNORMAL_SCALE).to(tl.int64)
        return tl.minimum(tl.where(magnitude < WIDE_SMALLEST_NORMAL, subnormal, leading), BINS - 1).to(
            tl.int32
        )
    else:
        return (weight.to(tl.int32, bitcast=True) & MAGNITUDE) >> BIN_SHIFT


@triton.jit
def of_each_thread(values, VECTOR: tl.constexpr):
    """Sums of VECTOR neighbours, which one thread holds: the lanes of the running sums.

    A lane an entry would take VECTOR times the registers.
    """
    return tl.sum(tl.reshape(values, [values.shape[0] // VECTOR, VECTOR]), axis=1)


@triton.jit
def all_aligned(addresses):
    """1 where all of some addresses, or-ed together, are multiples of 16 bytes, else 0."""
    return ((addresses & 15) == 0).to(tl.int32)


@triton.jit
def add_squares(squares, weight, update, VECTOR: tl.constexpr):
    """The running ⟨w,u⟩, ‖u‖², ‖w‖² of a chunk with one block more; `update` is None without moments."""
    weight_update, update_sq, weight_sq = squares
    w = weight.to(tl.float64)
    weight_sq += of_each_thread(w * w, VECTOR)
    if update is not None:
        u = update.to(tl.float64)
        weight_update += of_each_thread(w * u, VECTOR)
        update_sq += of_each_thread(u * u, VECTOR)
    return weight_update, update_sq, weight_sq


@triton.jit
def add_statistics(statistics, weight, valid, VECTOR: tl.constexpr):
    """The running Σln|w|, Σln²|w|, max|w| and counts of a chunk with one block more.

    Entries that are not `valid` are 0, which leaves all but the count of zeros as it is.
    """
    log_sum, log_sq_sum, max_abs, zero_count, non_finite_count = statistics
    magnitude = tl.abs(weight)
    finite = magnitude < float("inf")
    log = log_magnitude(weight, finite & (magnitude > 0))
    log_sum += of_each_thread(log, VECTOR)
    log_sq_sum += of_each_thread(log * log, VECTOR)
    largest = tl.reshape(tl.where(finite, magnitude, 0.0), [magnitude.shape[0] // VECTOR, VECTOR])
    max_abs = tl.maximum(max_abs, tl.max(largest, axis=1))
    zero_count += of_each_thread((valid & (magnitude == 0)).to(tl.int32), VECTOR)
    non_finite_count += of_each_thread((finite == 0).to(tl.int32), VECTOR)
    return log_sum, log_sq_sum, max_abs, zero_count, non_finite_count


@triton.jit
def no_sums(LANES: tl.constexpr, ARITHMETIC: tl.constexpr):
    """Where `add_squares` and `add_statistics` begin."""
    zeros = tl.zeros([LANES], tl.float64)
    counts = tl.zeros([LANES], tl.int32)
    return (zeros, zeros, zeros), (zeros, zeros, tl.zeros([LANES], ARITHMETIC), counts, counts)


@triton.jit
def store_sums(partial_ptr, squares, statistics):
    """The partial sums of a chunk, in `COLUMNS` columns."""
    weight_update, update_sq, weight_sq = squares
    log_sum, log_sq_sum, max_abs, zero_count, non_finite_count = statistics
    tl.store(partial_ptr, tl.sum(weight_update))
    tl.store(partial_ptr + 1, tl.sum(update_sq))
    tl.store(partial_ptr + 2, tl.sum(weight_sq))
    tl.store(partial_ptr + 3, tl.sum(log_sum))
    tl.store(partial_ptr + 4, tl.sum(log_sq_sum))
    tl.store(partial_ptr + MAX_COLUMN, tl.max(max_abs).to(tl.float64))
    tl.store(partial_ptr + 6, tl.sum(zero_count).to(tl.float64))
    tl.store(partial_ptr + 7, tl.sum(non_finite_count).to(tl.float64))


@triton.jit
def add_partials(partials_ptr, chunks, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The partial sums of a tensor's `chunks` chunks as one [WIDTH], in an order that is always the same.

    WIDTH is STRIDE, rounded up to a power of two.
    """
    column = tl.arange(0, WIDTH)
    total = tl.zeros([BLOCK, WIDTH], tl.float64)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        cell = partials_ptr + chunk[:, None].to(tl.int64) * STRIDE + column[None, :]
        held = (chunk < chunks)[:, None] & (column < STRIDE)[None, :]
        partial = tl.load(cell, mask=held, other=0.0)
        total = tl.where((column == MAX_COLUMN)[None, :], tl.maximum(total, partial), total + partial)
    return tl.where(column == MAX_COLUMN, tl.max(total, axis=0), tl.sum(total, axis=0))


@triton.jit
def power(beta, exponent):
    """β^t in float64, for 0 ≤ β < 1 and t ≥ 0."""
    log = tl.log(tl.where(beta > 0, beta, 1.0))
    return tl.where((beta > 0) | (exponent == 0), tl.exp(exponent * log), 0.0)


@triton.jit
def bias_correction(beta, step, in_float32):
    """1 − β^t in float64; where torch took it in float32, so rounded."""
    if in_float32:
        rounded = power(beta.to(tl.float32).to(tl.float64), step).to(tl.float32)
        correction = (1 - rounded).to(tl.float64)
    else:
        correction = 1 - power(beta, step)
    return correction


@triton.jit
def group_of(row_ptr, hyperparameters_ptr):
    """Where the hyperparameters of a tensor lie."""
    return hyperparameters_ptr + tl.load(row_ptr + GROUP) * HYPERPARAMETER_COLUMNS


@triton.jit
def count_of(row_ptr):
    """The steps that a tensor has made, float32."""
    return tl.load(tl.load(row_ptr + COUNT_AT).to(tl.pointer_type(tl.float32)))


@triton.jit
def corrections_of(group_ptr, step):
    """√bc₂, by which ε is multiplied, and √bc₂/bc₁, by which the raw update becomes torch's."""
    in_float32 = tl.load(group_ptr + FLOAT32_CORRECTIONS) != 0
    t = step.to(tl.float64)
    root = tl.sqrt(bias_correction(tl.load(group_ptr + BETA2), t, in_float32))
    return root, root / bias_correction(tl.load(group_ptr + BETA1), t, in_float32)


@triton.jit
def of_column(sums, COLUMN: tl.constexpr):
    """One number of a row of sums."""
    return tl.sum(tl.where(tl.arange(0, sums.shape[0]) == COLUMN, sums, 0.0))


@triton.jit
def forces_of(weight_update, update_sq, weight_sq, lr, lost):
    """Alignment, injection, decay and coupling of w⁺ = (1−lost)·w − η·u, from the sums before the step."""
    return (
        -2 * lr * weight_update,
        lr * lr * update_sq,
        -2 * lost * weight_sq,
        lost * (2 * lr * weight_update + lost * weight_sq),
    )


@triton.jit
def store_statistics(row_ptr, sums):
    """The five statistics of the weights into a tensor's row of the ledger."""
    column = tl.arange(0, sums.shape[0])
    statistics = (column >= FIRST_STATISTIC) & (column < COLUMNS)
    tl.store(row_ptr + LOG_SUM - FIRST_STATISTIC + column, sums, mask=statistics)
