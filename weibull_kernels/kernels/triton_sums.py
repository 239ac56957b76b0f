"""The device code of the diagnostics pass in the Triton backend. Imported only where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_language import (
    ALIGNMENT,
    BIN_SHIFT,
    BINS,
    CHANGE,
    CHUNK_COLUMNS,
    COLUMNS,
    COUPLING,
    DECAY,
    DECAY_FACTOR,
    EPS,
    EXP_AVG_AT,
    EXP_AVG_SQ_AT,
    FIRST_PARTIAL,
    GROUP,
    INJECTION,
    LEDGER_WIDTH,
    LR,
    NORM_SQ,
    NORM_SQ_START,
    NUMEL,
    PARTIALS,
    POINTERS,
    ROW_COLUMNS,
    STEP,
    STEPS,
    WEIGHT_AT,
    add_partials,
    add_squares,
    add_statistics,
    all_aligned,
    bin_of,
    corrections_of,
    count_of,
    forces_of,
    group_of,
    is_counted,
    no_sums,
    of_column,
    raw_update,
    store_statistics,
    store_sums,
)


@triton.jit
def scaled_eps_of(row_ptr, hyperparameters_ptr, bias_correction2_ptr, eps_ptr):
    """ε·√bc₂ of a tensor: of the step that was just made, or as it was given (hyperparameters None)."""
    if hyperparameters_ptr is not None:
        group = group_of(row_ptr, hyperparameters_ptr)
        root, _ = corrections_of(group, count_of(row_ptr))
        return tl.load(group + EPS) * root
    else:
        row = tl.load(row_ptr + GROUP)
        return tl.load(eps_ptr + row) * tl.sqrt(tl.load(bias_correction2_ptr + row))


@triton.jit
def middle_bin(statistics, count):
    """The histogram's bin of exp(mean ln|w|) of a chunk: most entries lie within a few octaves of it."""
    log_sum, _, _, zero_count, non_finite_count = statistics
    logs = tl.maximum(count - tl.sum(zero_count) - tl.sum(non_finite_count), 1)
    mean = tl.minimum(tl.maximum(tl.sum(log_sum) / logs, -87.0), 88.0)
    return tl.exp(mean).to(tl.float32).to(tl.int32, bitcast=True) >> BIN_SHIFT


@triton.jit
def count_block(bins, weight, first_bin, counts_ptr, histogram_ptr, WINDOW: tl.constexpr):
    """The window [WINDOW] with one block more, on the chip or, where `counts_ptr` is not None, there.

    Its last bin takes what is not counted in it; an entry outside the window goes straight to the histogram.
    """
    bin = bin_of(weight)
    # Below the window is far above it for an unsigned number: one comparison. No window holds bin 0,
    # where zeros would be, nor those of infinities and NaN, which come after the last.
    place = tl.minimum((bin - first_bin).to(tl.uint32, bitcast=True), WINDOW - 1).to(tl.int32, bitcast=True)
    inside = place < WINDOW - 1
    outside = (inside == 0) & is_counted(weight)
    tl.atomic_add(histogram_ptr + bin, 1, mask=outside, sem="relaxed")
    if counts_ptr is not None:
        tl.atomic_add(counts_ptr + place, 1, mask=inside, sem="relaxed")
    else:
        bins += tl.histogram(place, WINDOW)
    return bins


@triton.jit
def count_chunk(
    weight_ptr,
    count,
    first_bin,
    counts_ptr,
    histogram_ptr,
    ARITHMETIC: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    """Adds a chunk to its tensor's histogram. The chunk has just been read, so it lies in a cache.

    What is left over by whole blocks is counted in blocks of REST. Loads of 16 bytes would gain nothing:
    the atomics take an entry a thread, and all would be rearranged in shared memory.
    """
    offsets = tl.arange(0, BLOCK)
    bins = tl.zeros([WINDOW], tl.int32)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        weight = tl.load(weight_ptr + start + offsets).to(ARITHMETIC)
        bins = count_block(bins, weight, first_bin, counts_ptr, histogram_ptr, WINDOW)
    rest = tl.arange(0, REST)
    for start in range(whole, count, REST):
        weight = tl.load(weight_ptr + start + rest, mask=start + rest < count, other=0.0).to(ARITHMETIC)
        bins = count_block(bins, weight, first_bin, counts_ptr, histogram_ptr, WINDOW)
    window = tl.arange(0, WINDOW)
    if counts_ptr is not None:
        tl.debug_barrier()  # all threads have counted
        bins = tl.load(counts_ptr + window, cache_modifier=".cg")  # from where atomics are done
    flushed = (bins > 0) & (window < WINDOW - 1)
    tl.atomic_add(histogram_ptr + first_bin + window, bins.to(tl.int64), mask=flushed, sem="relaxed")


@triton.jit(do_not_specialize_on_alignment=POINTERS)
def sum_chunks(
    chunks_ptr,
    rows_ptr,
    hyperparameters_ptr,
    bias_correction2_ptr,
    eps_ptr,
    partials_ptr,
    histograms_ptr,
    counts_ptr,
    WEIGHT: tl.constexpr,
    EXP_AVG: tl.constexpr,
    EXP_AVG_SQ: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
    WINDOW: tl.constexpr,
    COUNT_BLOCK: tl.constexpr,
):
    """One chunk of one tensor: its partial sums [COLUMNS] and its part of the histogram.

    Bias correction and ε come from hyperparameters and count, or else (None) from their arrays.
    EXP_AVG is None without moments, `histograms_ptr` where none is wanted; `counts_ptr` is where the
    windows lie, a row of zeros [WINDOW] for each partial sum, or None with a window on the chip.
    """
    chunk = chunks_ptr + tl.program_id(0).to(tl.int64) * CHUNK_COLUMNS
    row = tl.load(chunk)
    begin = tl.load(chunk + 1)
    row_ptr = rows_ptr + row * ROW_COLUMNS
    weight_at = tl.load(row_ptr + WEIGHT_AT)
    weight_ptr = weight_at.to(tl.pointer_type(WEIGHT)) + begin
    count = tl.minimum(tl.load(row_ptr + NUMEL) - begin, CHUNK).to(tl.int32)
    aligned = all_aligned(weight_at)
    if EXP_AVG is not None:
        exp_avg_at = tl.load(row_ptr + EXP_AVG_AT)
        exp_avg_sq_at = tl.load(row_ptr + EXP_AVG_SQ_AT)
        aligned = all_aligned(weight_at | exp_avg_at | exp_avg_sq_at)
        exp_avg_ptr = exp_avg_at.to(tl.pointer_type(EXP_AVG)) + begin
        exp_avg_sq_ptr = exp_avg_sq_at.to(tl.pointer_type(EXP_AVG_SQ)) + begin
        scaled_eps = scaled_eps_of(row_ptr, hyperparameters_ptr, bias_correction2_ptr, eps_ptr).to(ARITHMETIC)

    offsets = tl.arange(0, BLOCK)
    squares, statistics = no_sums(BLOCK // VECTOR, ARITHMETIC)

    # Whole blocks of aligned memory: no mask and a promise of 16 bytes, so 128-bit loads. Where
    # the promise would be false `whole` is 0.
    whole = count // BLOCK * BLOCK * aligned
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        w = tl.load(tl.multiple_of(weight_ptr, 16) + start + offsets).to(ARITHMETIC)
        u = None
        if EXP_AVG is not None:
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
        if EXP_AVG is not None:
            m = tl.load(exp_avg_ptr + start + offsets, mask=valid, other=0.0).to(ARITHMETIC)
            v = tl.load(exp_avg_sq_ptr + start + offsets, mask=valid, other=1.0).to(ARITHMETIC)
            u = raw_update(m, v, scaled_eps)
        squares = add_squares(squares, w, u, VECTOR)
        statistics = add_statistics(statistics, w, valid, VECTOR)

    partial = tl.load(row_ptr + FIRST_PARTIAL) + begin // CHUNK
    store_sums(partials_ptr + partial * COLUMNS, squares, statistics)
    if histograms_ptr is not None:
        first_bin = tl.minimum(tl.maximum(middle_bin(statistics, count) - WINDOW // 2, 1), BINS - WINDOW)
        window_ptr = None
        if counts_ptr is not None:
            window_ptr = counts_ptr + partial * WINDOW
        count_chunk(
            weight_at.to(tl.pointer_type(WEIGHT)) + begin,  # without the promise made above
            count,
            first_bin,
            window_ptr,
            histograms_ptr + row * BINS,
            ARITHMETIC,
            WINDOW,
            COUNT_BLOCK,
            BLOCK,
        )


@triton.jit(do_not_specialize_on_alignment=POINTERS)
def combine_chunks(
    rows_ptr, bias_correction1_ptr, bias_correction2_ptr, partials_ptr, sums_ptr, BLOCK: tl.constexpr
):
    """The partial sums of one tensor added in the order of its chunks, with the bias corrections."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = rows_ptr + row * ROW_COLUMNS
    first = partials_ptr + tl.load(row_ptr + FIRST_PARTIAL) * COLUMNS
    combined = add_partials(first, tl.load(row_ptr + PARTIALS), COLUMNS, COLUMNS, BLOCK)
    column = tl.arange(0, COLUMNS)
    # u = (√bc₂/bc₁) · raw_update.
    scale = tl.sqrt(tl.load(bias_correction2_ptr + row)) / tl.load(bias_correction1_ptr + row)
    combined *= tl.where(column == 0, scale, tl.where(column == 1, scale * scale, 1.0))
    tl.store(sums_ptr + row * COLUMNS + column, combined)


@triton.jit(do_not_specialize_on_alignment=POINTERS)
def combine_forces(rows_ptr, hyperparameters_ptr, partials_ptr, forces_ptr, BLOCK: tl.constexpr):
    """The forces of one tensor's latest step, from partial sums that were taken after it.

    The sums before it follow by algebra:
    ⟨w,u⟩ = (⟨w⁺,u⟩ + η‖u‖²)/c and ‖w‖² = (‖w⁺‖² + 2η⟨w⁺,u⟩ + η²‖u‖²)/c².
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = rows_ptr + row * ROW_COLUMNS
    first = partials_ptr + tl.load(row_ptr + FIRST_PARTIAL) * COLUMNS
    sums = add_partials(first, tl.load(row_ptr + PARTIALS), COLUMNS, COLUMNS, BLOCK)
    group = group_of(row_ptr, hyperparameters_ptr)
    count = count_of(row_ptr)
    # A tensor that made no step has no update, nor a bias correction to divide by: no force.
    moved = count > 0
    lr = tl.load(group + LR)
    kept = tl.load(group + DECAY_FACTOR)
    _, scale = corrections_of(group, tl.maximum(count, 1.0))
    weight_update = scale * of_column(sums, 0)
    update_sq = scale * scale * of_column(sums, 1)
    after = of_column(sums, 2)
    before = (after + 2 * lr * weight_update + lr * lr * update_sq) / (kept * kept)
    weight_update = (weight_update + lr * update_sq) / kept
    alignment, injection, decay, coupling = forces_of(weight_update, update_sq, before, lr, 1 - kept)
    ledger_ptr = forces_ptr + row * LEDGER_WIDTH
    tl.store(ledger_ptr + ALIGNMENT, tl.where(moved, alignment, 0.0))
    tl.store(ledger_ptr + INJECTION, tl.where(moved, injection, 0.0))
    tl.store(ledger_ptr + DECAY, tl.where(moved, decay, 0.0))
    tl.store(ledger_ptr + COUPLING, tl.where(moved, coupling, 0.0))
    tl.store(ledger_ptr + CHANGE, 0.0)
    tl.store(ledger_ptr + STEPS, moved.to(tl.float64))
    tl.store(ledger_ptr + NORM_SQ_START, tl.where(moved, before, after))
    tl.store(ledger_ptr + NORM_SQ, after)
    store_statistics(ledger_ptr, sums)
    tl.store(ledger_ptr + STEP, count.to(tl.float64))
