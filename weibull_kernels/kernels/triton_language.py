"""The device code of the Triton backend. Imported only where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl

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

# Columns of the tables; see `triton.py`.
ROW_COLUMNS = tl.constexpr(5)
CHUNK_COLUMNS = tl.constexpr(2)
COLUMNS = tl.constexpr(8)
MAX_COLUMN = tl.constexpr(5)

# Histogram: 32 octaves, 2^-26 ≤ |w| < 2^6, are counted on the chip; the rare entry beyond them
# goes straight to memory.
BIN_SHIFT = tl.constexpr(23 - 6)
BINS = tl.constexpr(255 << 6)
WINDOW = tl.constexpr(2048)
FIRST_BIN = tl.constexpr((127 - 26) << 6)


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
        return exponent.to(tl.float64) * LN2 + tl.log(mantissa).to(tl.float64)


@triton.jit
def bin_of(weight):
    """The histogram's bin of a finite non-zero entry: the leading bits of |w| as a float32."""
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
def count_block(bins, weight, histogram_ptr):
    """The on-chip window with one block more; its last bin takes what is not counted there."""
    counted = (weight != 0) & (tl.abs(weight) < float("inf"))
    bin = tl.where(counted, bin_of(weight), 0)
    inside = counted & (bin >= FIRST_BIN) & (bin < FIRST_BIN + WINDOW - 1)
    tl.atomic_add(histogram_ptr + bin, 1, mask=counted & (inside == 0), sem="relaxed")
    return bins + tl.histogram(tl.where(inside, bin - FIRST_BIN, WINDOW - 1), WINDOW)


@triton.jit
def count_chunk(weight_ptr, count, aligned, histogram_ptr, ARITHMETIC: tl.constexpr, BLOCK: tl.constexpr):
    """Adds a chunk to its tensor's histogram. The chunk has just been read, so it lies in the cache."""
    offsets = tl.arange(0, BLOCK)
    bins = tl.zeros([WINDOW], tl.int32)
    whole = count // BLOCK * BLOCK * aligned
    for start in range(0, whole, BLOCK):
        weight = tl.load(tl.multiple_of(weight_ptr, 16) + start + offsets)
        bins = count_block(bins, weight.to(ARITHMETIC), histogram_ptr)
    for start in range(whole, count, BLOCK):
        weight = tl.load(weight_ptr + start + offsets, mask=start + offsets < count, other=0.0)
        bins = count_block(bins, weight.to(ARITHMETIC), histogram_ptr)
    window = tl.arange(0, WINDOW)
    flushed = (bins > 0) & (window < WINDOW - 1)
    tl.atomic_add(histogram_ptr + FIRST_BIN + window, bins.to(tl.int64), mask=flushed, sem="relaxed")


@triton.jit
def sum_chunks(
    chunks_ptr,
    rows_ptr,
    bias_correction2_ptr,
    eps_ptr,
    partials_ptr,
    histograms_ptr,
    WEIGHT: tl.constexpr,
    EXP_AVG: tl.constexpr,
    EXP_AVG_SQ: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    HAS_MOMENTS: tl.constexpr,
    HAS_HISTOGRAM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    COUNT_BLOCK: tl.constexpr,
):
    """One chunk of one tensor: its partial sums [COLUMNS] and its part of the histogram."""
    chunk = chunks_ptr + tl.program_id(0).to(tl.int64) * CHUNK_COLUMNS
    row = tl.load(chunk)
    begin = tl.load(chunk + 1)
    table = rows_ptr + row * ROW_COLUMNS
    aligned = all_aligned(tl.load(table) | tl.load(table + 1) | tl.load(table + 2))
    weight_ptr = tl.load(table).to(tl.pointer_type(WEIGHT)) + begin
    exp_avg_ptr = tl.load(table + 1).to(tl.pointer_type(EXP_AVG)) + begin
    exp_avg_sq_ptr = tl.load(table + 2).to(tl.pointer_type(EXP_AVG_SQ)) + begin
    count = tl.minimum(tl.load(table + 3) - begin, CHUNK).to(tl.int32)
    partial = tl.load(table + 4) + begin // CHUNK
    scaled_eps = (tl.load(eps_ptr + row) * tl.sqrt(tl.load(bias_correction2_ptr + row))).to(ARITHMETIC)

    offsets = tl.arange(0, BLOCK)
    squares, statistics = no_sums(BLOCK // VECTOR, ARITHMETIC)

    # Whole blocks of aligned memory: no mask and a promise of 16 bytes, so 128-bit loads. Where
    # the promise would be false `whole` is 0.
    whole = count // BLOCK * BLOCK * aligned
    for start in range(0, whole, BLOCK):
        w = tl.load(tl.multiple_of(weight_ptr, 16) + start + offsets).to(ARITHMETIC)
        u = None
        if HAS_MOMENTS:
            m = tl.load(tl.multiple_of(exp_avg_ptr, 16) + start + offsets).to(ARITHMETIC)
            v = tl.load(tl.multiple_of(exp_avg_sq_ptr, 16) + start + offsets).to(ARITHMETIC)
            u = raw_update(m, v, scaled_eps)
        squares = add_squares(squares, w, u, VECTOR)
        statistics = add_statistics(statistics, w, offsets < BLOCK, VECTOR)
    # Entries beyond the end come as w = m = 0, v = 1.
    for start in range(whole, count, BLOCK):
        valid = start + offsets < count
        w = tl.load(weight_ptr + start + offsets, mask=valid, other=0.0).to(ARITHMETIC)
        u = None
        if HAS_MOMENTS:
            m = tl.load(exp_avg_ptr + start + offsets, mask=valid, other=0.0).to(ARITHMETIC)
            v = tl.load(exp_avg_sq_ptr + start + offsets, mask=valid, other=1.0).to(ARITHMETIC)
            u = raw_update(m, v, scaled_eps)
        squares = add_squares(squares, w, u, VECTOR)
        statistics = add_statistics(statistics, w, valid, VECTOR)

    store_sums(partials_ptr + partial * COLUMNS, squares, statistics)
    if HAS_HISTOGRAM:
        count_chunk(weight_ptr, count, aligned, histograms_ptr + row * BINS, ARITHMETIC, COUNT_BLOCK)


@triton.jit
def combine_chunks(
    rows_ptr,
    bias_correction1_ptr,
    bias_correction2_ptr,
    partials_ptr,
    sums_ptr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The partial sums of one tensor added in the order of its chunks, with the bias corrections."""
    row = tl.program_id(0).to(tl.int64)
    numel = tl.load(rows_ptr + row * ROW_COLUMNS + 3)
    first = tl.load(rows_ptr + row * ROW_COLUMNS + 4)
    chunks = (numel + CHUNK - 1) // CHUNK
    combined = add_partials(partials_ptr + first * COLUMNS, chunks, COLUMNS, COLUMNS, BLOCK)
    column = tl.arange(0, COLUMNS)
    # u = (√bc₂/bc₁) · raw_update.
    scale = tl.sqrt(tl.load(bias_correction2_ptr + row)) / tl.load(bias_correction1_ptr + row)
    combined *= tl.where(column == 0, scale, tl.where(column == 1, scale * scale, 1.0))
    tl.store(sums_ptr + row * COLUMNS + column, combined)
