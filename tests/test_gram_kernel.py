"""The Gram matrix and the moves of states by every backend against sums of extended precision."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from oracle import BACKENDS, assert_within, kernel, same_bits
from test_kernels import HALF, INPUTS, dtype_id

from weibull_kernels import _cpu
from weibull_kernels.kernels import cpu

OPERATIONS = (cpu.gram, cpu.moves)

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_operation = pytest.mark.parametrize("operation", OPERATIONS)

SIZES = (0, 1, 15, 16, 17, 300, 40_000)  # lanes of 16, blocks of 256 and chunks of 16384 entries

DTYPES = {
    **{dtype_id(dtype): (dtype,) for dtype in (torch.float32, torch.float64, *HALF)},
    "mixed": (torch.float32, torch.float64, *HALF, torch.float32),
    "mixed, narrow": (torch.bfloat16, torch.float32, torch.float16),
}


def states(count, n, dtypes=(torch.float32,), step=0.3):
    """K = `count` states [n] of a random walk from weights of order 1, the dtypes in turn."""
    walk = torch.randn(count, n, dtype=torch.float64)
    walk[1:] *= step
    return [state.to(dtypes[i % len(dtypes)]) for i, state in enumerate(walk.cumsum(0))]


def exact(columns):
    """H and Σ|rᵢ·rⱼ|, [K, K]."""
    w = np.stack([column.double().numpy() for column in columns])
    r = np.diff(w, axis=0, prepend=np.zeros_like(w[:1])).astype(np.longdouble)
    return [torch.from_numpy((x @ x.T).astype(np.float64)) for x in (r, np.abs(r))]


def assert_gram(found, columns):
    expected, magnitude = exact(columns)
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert same_bits(found, found.T)
    assert_within(found.flatten(), expected.flatten(), 1e-13 * magnitude.flatten(), "H")


def assert_moves(found, columns, tolerance=1e-13):
    """Every sum is of squares: held to its own size."""
    w = np.stack([column.double().numpy() for column in columns])
    step = np.diff(w, axis=0, prepend=w[:1])
    expected = np.stack([np.square(x.astype(np.longdouble)).sum(1) for x in (w, step)], axis=1)
    expected = torch.from_numpy(expected.astype(np.float64))
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert_within(found.flatten(), expected.flatten(), tolerance * expected.flatten(), "moves")


@every_backend
def test_a_case_by_hand(backend):
    # r = (1, 2), (2, 0), (0, 3).
    columns = [torch.tensor(w) for w in ([1.0, 2.0], [3.0, 2.0], [3.0, 5.0])]
    assert kernel("gram", backend)(columns).tolist() == [[5, 2, 6], [2, 4, 0], [6, 0, 9]]
    assert kernel("moves", backend)(columns).tolist() == [[5, 0], [13, 4], [34, 9]]


@every_backend
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("count", [1, 2, 5, 23])
def test_sizes_and_dtypes(backend, dtypes, count):
    for n in SIZES:
        columns = states(count, n, dtypes)
        assert_gram(kernel("gram", backend)(columns), columns)
        assert_moves(kernel("moves", backend)(columns), columns)


@every_backend
def test_hundreds_of_states(backend):
    columns = states(203, 1000)
    assert_gram(kernel("gram", backend)(columns), columns)
    assert_moves(kernel("moves", backend)(columns), columns)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_steps_of_a_millionth_keep_their_digits(backend, dtype):
    # Each product is held to 1e-13 of its own size; of the weights' it would be lost at 1e-12.
    columns = states(7, 40_000, (dtype,), step=1e-6)
    assert_gram(kernel("gram", backend)(columns), columns)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_moves_of_a_ten_millionth_keep_their_digits(backend, dtype):
    # Written out as ‖wᵢ‖² − 2⟨wᵢ,wᵢ₋₁⟩ + ‖wᵢ₋₁‖² they would keep two.
    columns = states(7, 40_000, (dtype,), step=1e-7)
    assert_moves(kernel("moves", backend)(columns), columns, tolerance=1e-12)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_inputs(backend, dtype):
    finite = [make(523).to(dtype) for make in INPUTS.values()]
    columns = [column.where(column.isfinite(), 1.0) for column in finite]
    assert_gram(kernel("gram", backend)(columns), columns)
    assert_moves(kernel("moves", backend)(columns), columns)


@every_backend
@pytest.mark.parametrize("spoilt", [0, 2, 5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("entry", [0, 299])
def test_what_is_not_finite_stays_in_its_rows(backend, spoilt, value, entry):
    columns = states(6, 300)
    clean = kernel("gram", backend)(columns)
    columns[spoilt][entry] = value
    found = kernel("gram", backend)(columns)
    touched = torch.zeros(6, dtype=torch.bool)
    touched[spoilt : spoilt + 2] = True  # the steps to it and from it
    touched = touched[:, None] | touched
    assert not found[touched].isfinite().any()
    assert same_bits(found[~touched], clean[~touched])
    assert found[spoilt, spoilt].isnan() == math.isnan(value)


@every_backend
@pytest.mark.parametrize("spoilt", [0, 2, 5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("entry", [0, 299])
def test_what_is_not_finite_stays_in_its_moves(backend, spoilt, value, entry):
    columns = states(6, 300)
    clean = kernel("moves", backend)(columns)
    columns[spoilt][entry] = value
    found = kernel("moves", backend)(columns)
    touched = torch.zeros(6, 2, dtype=torch.bool)
    touched[spoilt, 0] = True
    touched[max(spoilt, 1) : spoilt + 2, 1] = True  # the steps to it and from it
    same = found[touched].isnan() if math.isnan(value) else found[touched] == math.inf
    assert same.all()
    assert same_bits(found[~touched], clean[~touched])


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_instruction_sets(dtypes):
    for count, n in ((1, 17), (5, 300), (23, 40_000)):
        columns = states(count, n, dtypes)
        for operation, check in ((cpu.gram, assert_gram), (cpu.moves, assert_moves)):
            found = {name: operation(columns, instruction_set=name) for name in cpu.instruction_sets()}
            assert "portable" in found
            for result in found.values():
                check(result, columns)
            fused = [result for name, result in found.items() if name != "portable"]
            for other in fused[1:]:
                assert same_bits(fused[0], other)


@pytest.mark.parametrize("name", cpu.instruction_sets())
def test_a_pair_has_the_same_bits_beside_any_others(name):
    columns = states(11, 20_000)
    whole, moves = (operation(columns, instruction_set=name) for operation in OPERATIONS)
    for count in range(1, 11):
        assert same_bits(cpu.gram(columns[:count], instruction_set=name), whole[:count, :count])
        assert same_bits(cpu.moves(columns[:count], instruction_set=name), moves[:count])


@every_operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_same_bits_wherever_the_memory_begins(operation, dtype):
    columns = states(5, 600, (dtype,))
    expected = operation(columns)
    for offset in (1, 3, 7):
        moved = [torch.cat([column.new_full((offset,), math.nan), column])[offset:] for column in columns]
        assert same_bits(operation(moved), expected)


@every_operation
def test_same_bits_when_called_from_several_threads_at_once(operation):
    columns = states(9, 40_000)
    expected = operation(columns)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: operation(columns), range(8)):
            assert same_bits(found, expected)


@pytest.mark.parametrize(("operation", "check"), [(cpu.gram, assert_gram), (cpu.moves, assert_moves)])
def test_flushed_subnormals_change_nothing(operation, check):
    columns = [torch.full((300,), scale * 2.0**-149) for scale in (1, 3, 7)]
    expected = operation(columns)
    check(expected, columns)
    assert torch.set_flush_denormal(True)
    try:
        found = operation(columns)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(found, expected)


@every_backend
@pytest.mark.parametrize("operation", ["gram", "moves"])
def test_states_that_require_a_gradient_record_nothing(backend, operation):
    columns = [column.requires_grad_() for column in states(3, 20)]
    assert not kernel(operation, backend)(columns).requires_grad


@every_operation
def test_columns_that_do_not_fit_are_an_error(operation):
    for columns in ([torch.ones(3), torch.ones(4)], [torch.ones(3), torch.ones(3, 2)[:, 0]]):
        with pytest.raises(ValueError, match="contiguous and of one length"):
            operation(columns)


@pytest.mark.parametrize("operation", [_cpu.gram, _cpu.moves])
@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((3,), 0, r"columns must be \[K, 2\]"),
        ((3, 3), 0, r"columns must be \[K, 2\]"),
        ((0, 2), 0, "K of at least 1"),
        ((3, 2), -1, "not negative"),
        ((3, 2), 5, "has no memory"),
    ],
)
def test_bad_arguments_of_the_binding(operation, shape, count, message):
    with pytest.raises(ValueError, match=message):
        operation(np.zeros(shape, dtype=np.int64), count, instruction_set="portable")


@every_operation
def test_an_instruction_set_that_cannot_run_is_an_error(operation):
    with pytest.raises(ValueError, match=r"does not run instruction set .avx1024."):
        operation(states(2, 3), instruction_set="avx1024")
