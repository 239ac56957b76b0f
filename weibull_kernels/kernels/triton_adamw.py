"""The device code of AdamW's step in the Triton backend. Imported only where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_language import (
    ALIGNMENT,
    BETA1,
    BETA2,
    CHANGE,
    CHUNK_COLUMNS,
    COLUMNS,
    COUNT_AT,
    COUPLING,
    DECAY,
    DECAY_FACTOR,
    EPS,
    EXP_AVG_AT,
    EXP_AVG_SQ_AT,
    FIRST_PARTIAL,
    INJECTION,
    LEDGER_WIDTH,
    LR,
    MAX_EXP_AVG_SQ_AT,
    NORM_SQ,
    NORM_SQ_START,
    NUMEL,
    PARTIALS,
    PLACE,
    POINTERS,
    ROW_COLUMNS,
    SIGN,
    STEP,
    STEPS,
    WEIGHT_AT,
    add_partials,
    add_squares,
    add_statistics,
    all_aligned,
    corrections_of,
    count_of,
    forces_of,
    group_of,
    no_sums,
    of_column,
    of_each_thread,
    quotient,
    raw_update,
    store_statistics,
    store_sums,
)

# Partial sums of a step: those of the pass, then the change of ‖w‖².
STEP_COLUMNS = tl.constexpr(9)
STEP_WIDTH = tl.constexpr(16)

LARGEST_FLOAT32 = tl.constexpr(float.fromhex("0x1.fffffep127"))
LARGEST_FLOAT64 = tl.constexpr(float.fromhex("0x1.fffffffffffffp1023"))

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def numbers_of(row_ptr, hyperparameters_ptr, ARITHMETIC: tl.constexpr):
    """What `step_block` steps a tensor with now, worked out in float64 from hyperparameters and count.

    Returns:
        The sign of the gradient, 1−β₁, whether m is nearer than g to its new value, 1−β₂, ε·√bc₂,
        η·√bc₂/bc₁, and 1−c.
    """
    group = group_of(row_ptr, hyperparameters_ptr)
    root, scale = corrections_of(group, count_of(row_ptr) + 1)
    gain1 = 1 - tl.load(group + BETA1)
    return (
        tl.load(group + SIGN).to(ARITHMETIC),
        gain1.to(ARITHMETIC),
        gain1 < 0.5,
        (1 - tl.load(group + BETA2)).to(ARITHMETIC),
        (tl.load(group + EPS) * root).to(ARITHMETIC),
        (tl.load(group + LR) * scale).to(ARITHMETIC),
        (1 - tl.load(group + DECAY_FACTOR)).to(ARITHMETIC),
    )


@triton.jit
def skipped(found_inf_ptr):
    """Whether a gradient scaler found an infinity; None: there is no scaler."""
    if found_inf_ptr is None:
        return False
    else:
        return tl.load(found_inf_ptr) != 0


@triton.jit
def lerp(mean, input, gain, near_mean):
    """The running mean m + gain·(g − m), taken from the end that is nearer, so that a gain of 1 gives g."""
    return tl.fma(tl.where(near_mean, gain, gain - 1), input - mean, tl.where(near_mean, mean, input))


@triton.jit
def without(loss, x):
    """(1−loss)·x: given as the loss, a factor near 1 keeps the digits that it would lose to the 1.

    From an infinite x a finite number is taken, so that it stays what it is.
    """
    if x.dtype == tl.float64:
        return tl.fma(-loss, within(x, LARGEST_FLOAT64), x)
    else:
        return tl.fma(-loss, within(x, LARGEST_FLOAT32), x)


@triton.jit
def within(x, bound: tl.constexpr):
    """The number of [−bound, bound] nearest to x. `tl.clamp` of float64 does not compile for sm_90."""
    return tl.maximum(tl.minimum(x, bound), -bound)


@triton.jit
def read(pointer, at, valid, other, WHOLE: tl.constexpr):
    """A block of a column; a whole one needs no mask."""
    if WHOLE:
        return tl.load(pointer + at)
    else:
        return tl.load(pointer + at, mask=valid, other=other)


@triton.jit
def write(pointer, at, values, valid, WHOLE: tl.constexpr):
    """The same the other way; returns the values as the column rounds them, to the nearest."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        values = to_nearest_bfloat16(values.to(tl.float32))  # the interpreter cuts off what does not fit
    stored = values.to(pointer.dtype.element_ty)
    if WHOLE:
        tl.store(pointer + at, stored)
    else:
        tl.store(pointer + at, stored, mask=valid)
    return stored


@triton.jit
def to_nearest_bfloat16(values):
    """Numbers of float32 rounded to those that bfloat16 has, ties to even; a NaN stays one."""
    bits = values.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(values == values, rounded, 0x7FC00000).to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def step_block(columns, max_exp_avg_sq_ptr, at, valid, grad_scale, numbers, WHOLE: tl.constexpr):
    """Steps a block in memory; without amsgrad and a gradient scaler their arguments are None.

    Every product that is added to something is an explicit fma: the compiler's own choice could
    differ between the kernel that books and the one that does not, and the weights with it.

    Returns:
        w before, the raw update, w⁺ as stored; all 0 where not `valid`.
    """
    weight_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr = columns
    sign, gain1, near_mean, gain2, scaled_eps, rate, lost = numbers
    g = read(grad_ptr, at, valid, 0.0, WHOLE).to(rate.dtype)
    if grad_scale is not None:
        g = quotient(g, grad_scale)
        write(grad_ptr, at, g, valid, WHOLE)
    g *= sign
    m = lerp(read(exp_avg_ptr, at, valid, 0.0, WHOLE).to(rate.dtype), g, gain1, near_mean)
    v = without(gain2, read(exp_avg_sq_ptr, at, valid, 1.0, WHOLE).to(rate.dtype))
    v = tl.fma(gain2 * g, g, v)
    write(exp_avg_ptr, at, m, valid, WHOLE)
    write(exp_avg_sq_ptr, at, v, valid, WHOLE)
    if max_exp_avg_sq_ptr is not None:
        largest = read(max_exp_avg_sq_ptr, at, valid, 1.0, WHOLE).to(rate.dtype)
        v = tl.maximum(largest, v, propagate_nan=tl.PropagateNan.ALL)
        write(max_exp_avg_sq_ptr, at, v, valid, WHOLE)
    if not WHOLE:
        v = tl.where(valid, v, 1.0)  # with β₂ = ε = 0 u would be 0/0
    u = raw_update(m, v, scaled_eps)
    w = read(weight_ptr, at, valid, 0.0, WHOLE).to(rate.dtype)
    stored = write(weight_ptr, at, tl.fma(-rate, u, without(lost, w)), valid, WHOLE)
    after = stored.to(rate.dtype)
    if not WHOLE:
        after = tl.where(valid, after, 0.0)  # NaN where the numbers are
    return w, u, after


@triton.jit
def add_step(sums, before, update, after, valid, VECTOR: tl.constexpr):
    """The running sums of a chunk with one block more: products before the step, statistics after it."""
    squares, statistics, change = sums
    squares = add_squares(squares, before, update, VECTOR)
    statistics = add_statistics(statistics, after, valid, VECTOR)
    from_, to = before.to(tl.float64), after.to(tl.float64)
    change += of_each_thread((to - from_) * (to + from_), VECTOR)
    return squares, statistics, change


@triton.jit(do_not_specialize_on_alignment=POINTERS)
def step_chunks(
    chunks_ptr,
    rows_ptr,
    grads_ptr,
    hyperparameters_ptr,
    grad_scale_ptr,
    found_inf_ptr,
    partials_ptr,
    WEIGHT: tl.constexpr,
    GRAD: tl.constexpr,
    EXP_AVG: tl.constexpr,
    EXP_AVG_SQ: tl.constexpr,
    MAX_EXP_AVG_SQ: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One chunk of one tensor stepped, and its partial sums [STEP_COLUMNS].

    `grad_scale_ptr` and `found_inf_ptr` are None without a gradient scaler, `partials_ptr` where
    nothing is booked, MAX_EXP_AVG_SQ without amsgrad.
    """
    if skipped(found_inf_ptr):
        return
    chunk = chunks_ptr + tl.program_id(0).to(tl.int64) * CHUNK_COLUMNS
    row = tl.load(chunk)
    begin = tl.load(chunk + 1)
    table = rows_ptr + row * ROW_COLUMNS
    weight = tl.load(table + WEIGHT_AT)
    grad = tl.load(grads_ptr + row)
    exp_avg = tl.load(table + EXP_AVG_AT)
    exp_avg_sq = tl.load(table + EXP_AVG_SQ_AT)
    max_exp_avg_sq = tl.load(table + MAX_EXP_AVG_SQ_AT)
    aligned = all_aligned(weight | grad | exp_avg | exp_avg_sq | max_exp_avg_sq)
    count = tl.minimum(tl.load(table + NUMEL) - begin, CHUNK).to(tl.int32)
    columns = (
        tl.multiple_of(weight.to(tl.pointer_type(WEIGHT)) + begin, 16),
        tl.multiple_of(grad.to(tl.pointer_type(GRAD)) + begin, 16),
        tl.multiple_of(exp_avg.to(tl.pointer_type(EXP_AVG)) + begin, 16),
        tl.multiple_of(exp_avg_sq.to(tl.pointer_type(EXP_AVG_SQ)) + begin, 16),
    )
    max_exp_avg_sq_ptr = None
    if MAX_EXP_AVG_SQ is not None:
        max_exp_avg_sq_ptr = tl.multiple_of(max_exp_avg_sq.to(tl.pointer_type(MAX_EXP_AVG_SQ)) + begin, 16)

    grad_scale = None
    if grad_scale_ptr is not None:
        grad_scale = tl.load(grad_scale_ptr).to(ARITHMETIC)
    numbers = numbers_of(table, hyperparameters_ptr, ARITHMETIC)

    offsets = tl.arange(0, BLOCK)
    squares, statistics = no_sums(BLOCK // VECTOR, ARITHMETIC)
    sums = (squares, statistics, tl.zeros([BLOCK // VECTOR], tl.float64))
    # Whole blocks of aligned memory in 128-bit loads and stores, as in `sum_chunks`.
    whole = count // BLOCK * BLOCK * aligned
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        valid = offsets < BLOCK
        before, update, after = step_block(
            columns, max_exp_avg_sq_ptr, start + offsets, valid, grad_scale, numbers, True
        )
        if partials_ptr is not None:
            sums = add_step(sums, before, update, after, valid, VECTOR)
    for start in range(whole, count, BLOCK):
        valid = start + offsets < count
        before, update, after = step_block(
            columns, max_exp_avg_sq_ptr, start + offsets, valid, grad_scale, numbers, False
        )
        if partials_ptr is not None:
            sums = add_step(sums, before, update, after, valid, VECTOR)

    if partials_ptr is not None:
        squares, statistics, change = sums
        partial_ptr = partials_ptr + (tl.load(table + FIRST_PARTIAL) + begin // CHUNK) * STEP_COLUMNS
        store_sums(partial_ptr, squares, statistics)
        tl.store(partial_ptr + COLUMNS, tl.sum(change))


@triton.jit
def add_to(pointer, value):
    """Adds to a number in memory that nobody else writes."""
    tl.store(pointer, tl.load(pointer) + value)


@triton.jit
def book(row_ptr, sums, lr, lost, scale, step):
    """The forces of one step, from the sums before it, into a tensor's row of the ledger."""
    weight_update = scale * of_column(sums, 0)
    update_sq = scale * scale * of_column(sums, 1)
    weight_sq = of_column(sums, 2)
    change = of_column(sums, COLUMNS)
    steps = tl.load(row_ptr + STEPS)
    alignment, injection, decay, coupling = forces_of(weight_update, update_sq, weight_sq, lr, lost)
    add_to(row_ptr + ALIGNMENT, alignment)
    add_to(row_ptr + INJECTION, injection)
    add_to(row_ptr + DECAY, decay)
    add_to(row_ptr + COUPLING, coupling)
    add_to(row_ptr + CHANGE, change)
    tl.store(row_ptr + STEPS, steps + 1)
    tl.store(row_ptr + NORM_SQ_START, tl.where(steps == 0, weight_sq, tl.load(row_ptr + NORM_SQ_START)))
    tl.store(row_ptr + NORM_SQ, weight_sq + change)
    store_statistics(row_ptr, sums)
    tl.store(row_ptr + STEP, step.to(tl.float64))


@triton.jit(do_not_specialize_on_alignment=POINTERS)
def finish_steps(rows_ptr, hyperparameters_ptr, found_inf_ptr, partials_ptr, ledger_ptr, BLOCK: tl.constexpr):
    """Counts the step of one tensor and books it, its partial sums added in the order of its chunks.

    `partials_ptr` and `ledger_ptr` are None where nothing is booked.
    """
    if skipped(found_inf_ptr):
        return
    row_ptr = rows_ptr + tl.program_id(0).to(tl.int64) * ROW_COLUMNS
    step = count_of(row_ptr) + 1
    if ledger_ptr is not None:
        group = group_of(row_ptr, hyperparameters_ptr)
        _, scale = corrections_of(group, step)
        first = partials_ptr + tl.load(row_ptr + FIRST_PARTIAL) * STEP_COLUMNS
        sums = add_partials(first, tl.load(row_ptr + PARTIALS), STEP_COLUMNS, STEP_WIDTH, BLOCK)
        lost = 1 - tl.load(group + DECAY_FACTOR)
        place = ledger_ptr + tl.load(row_ptr + PLACE) * LEDGER_WIDTH
        book(place, sums, tl.load(group + LR), lost, scale, step)
    tl.store(tl.load(row_ptr + COUNT_AT).to(tl.pointer_type(tl.float32)), step)
