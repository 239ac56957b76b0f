"""Z = V·AᵀA by every backend against products of extended precision."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from oracle import FAST, kernel, same_bits
from test_kernels import HALF, dtype_id

from weibull_kernels import _cpu
from weibull_kernels.kernels import cpu

every_backend = pytest.mark.parametrize("backend", FAST)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)

# Lanes of 16, tiles of 3 or 4 rows, panels of 12, runs of 256 rows; wide ones in strips of 512 columns.
SHAPES = [(1, 1), (3, 5), (16, 16), (25, 64), (300, 17), (7, 513), (600, 48), (2, 1040), (9000, 16)]


def tolerance(backend, dtype):
    """Of ‖Z‖, relative to Σ|v||a||a|: float32 sums of n terms in 16 lanes, of 256 in turn over the rows."""
    return 1e-6 if backend == "cpu" and dtype != torch.float64 else 1e-14


def operands(shape, b, dtype):
    matrix = torch.randn(shape, dtype=torch.float64).to(dtype)
    return matrix, torch.randn(b, shape[-1], dtype=torch.float64)


def assert_product(found, matrix, vectors, allowed):
    a = matrix.double().flatten(0, -2).numpy().astype(np.longdouble)
    v = vectors.numpy().astype(np.longdouble)
    assert found.dtype == torch.float64
    assert found.shape == vectors.shape
    error = abs(found.numpy() - (v @ a.T) @ a)
    assert (error <= allowed * ((abs(v) @ abs(a).T) @ abs(a))).all(), error.max()


@every_backend
def test_a_case_by_hand(backend):
    # A·v = (5, 11), Aᵀ·(5, 11) = (38, 54).
    matrix, vector = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0]]).double()
    assert kernel("normal_product", backend)([matrix], [vector])[0].tolist() == [[38.0, 54.0]]


@every_backend
@every_dtype
def test_sizes(backend, dtype):
    pairs = [operands(shape, 4, dtype) for shape in SHAPES]
    found = kernel("normal_product", backend)([a for a, _ in pairs], [v for _, v in pairs])
    for product, (matrix, vectors) in zip(found, pairs, strict=True):
        assert_product(product, matrix, vectors, tolerance(backend, dtype))


@every_backend
@pytest.mark.parametrize("b", [1, 3, 4, 5, 16])
def test_numbers_of_vectors(backend, b):
    pairs = [operands((40, 50), b, torch.float32), operands((13, 600), max(b - 1, 1), torch.bfloat16)]
    found = kernel("normal_product", backend)([a for a, _ in pairs], [v for _, v in pairs])
    for product, (matrix, vectors) in zip(found, pairs, strict=True):
        assert_product(product, matrix, vectors, tolerance(backend, torch.float32))


VIEWS = {
    "rows apart": ((40, 96), lambda a: a[:, 16:64]),
    "every other row": ((80, 48), lambda a: a[::2]),
    "pieces": ((4, 30, 48), lambda a: a[:, 10:20]),
    "transposed": ((48, 40), lambda a: a.T),
    "one column of many": ((40, 9), lambda a: a[:, 3:4]),
    "a row again and again": ((1, 48), lambda a: a.expand(40, 48)),
}


@every_backend
@every_dtype
@pytest.mark.parametrize(("shape", "view"), VIEWS.values(), ids=VIEWS)
def test_views(backend, dtype, shape, view):
    matrix = view(torch.randn(shape).to(dtype))
    vectors = torch.randn(4, matrix.shape[-1], dtype=torch.float64)
    found = kernel("normal_product", backend)([matrix], [vectors])[0]
    assert_product(found, matrix, vectors, tolerance(backend, dtype))


@every_dtype
def test_instruction_sets(dtype):
    for shape in ((25, 64), (300, 17), (7, 1040)):
        matrix, vectors = operands(shape, 7, dtype)
        found = {
            name: cpu.normal_product([matrix], [vectors], instruction_set=name)[0]
            for name in cpu.instruction_sets()
        }
        assert "portable" in found
        for product in found.values():
            assert_product(product, matrix, vectors, tolerance("cpu", dtype))
        fused = [product for name, product in found.items() if name != "portable"]
        for other in fused[1:]:
            assert same_bits(fused[0], other)


def test_same_bits_for_any_number_of_threads(restore_threads):
    pairs = [operands(shape, 4, torch.float32) for shape in ((9000, 48), (300, 300), (20, 2000), (70, 70))]
    matrices, vectors = zip(*pairs, strict=True)
    torch.set_num_threads(1)
    expected = cpu.normal_product(matrices, vectors)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for found, once in zip(cpu.normal_product(matrices, vectors), expected, strict=True):
            assert same_bits(found, once)


def test_same_bits_beside_any_others_and_from_any_thread():
    pairs = [operands(shape, 4, torch.float32) for shape in ((900, 48), (30, 300), (20, 2000))]
    matrices, vectors = zip(*pairs, strict=True)
    expected = cpu.normal_product(matrices, vectors)
    with ThreadPoolExecutor(4) as pool:
        alone = pool.map(lambda pair: cpu.normal_product([pair[0]], [pair[1]])[0], pairs)
    for found, once in zip(alone, expected, strict=True):
        assert same_bits(found, once)


@every_dtype
def test_same_bits_wherever_the_memory_begins(dtype):
    matrix, vectors = operands((30, 48), 4, dtype)
    expected = cpu.normal_product([matrix], [vectors])[0]
    for offset in (1, 3, 7):
        beside = torch.cat([matrix.new_full((30, offset), math.nan), matrix], dim=1)[:, offset:]
        assert same_bits(cpu.normal_product([beside], [vectors])[0], expected)


@every_backend
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(0, 0), (299, 16), (12, 5)])
def test_what_is_not_finite_shows(backend, value, place):
    matrix, vectors = operands((300, 17), 3, torch.float32)
    matrix[place] = value
    found = kernel("normal_product", backend)([matrix, torch.ones(4, 17)], [vectors, vectors])
    assert not found[0].isfinite().all(dim=1).any()
    assert found[1].isfinite().all()


def test_flushed_subnormals_change_nothing():
    matrix, vectors = torch.full((20, 32), 3 * 2.0**-149), torch.full((1, 32), 2.0**100).double()
    expected = cpu.normal_product([matrix], [vectors * 2.0**40])[0]
    assert expected.all()
    assert torch.set_flush_denormal(True)
    try:
        found = cpu.normal_product([matrix], [vectors * 2.0**40])[0]
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(found, expected)


@every_backend
def test_matrices_that_require_a_gradient_record_nothing(backend):
    matrix, vectors = operands((5, 3), 2, torch.float32)
    assert not kernel("normal_product", backend)([matrix.requires_grad_()], [vectors])[0].requires_grad


@every_backend
def test_no_matrices(backend):
    assert kernel("normal_product", backend)([], []) == []


@pytest.mark.parametrize(
    ("table", "b", "message"),
    [
        (np.zeros((1, 7)), 1, r"matrices must be \[P, 8\]"),
        (np.ones((1, 8)), 0, "at least one vector"),
        (np.array([[1, 0, 1, 0, 3, 0, 3, 1]]), 1, "has rows and columns"),
        (np.array([[0, 0, 1, 2, 3, 0, 3, 1]]), 1, "no memory"),
        (np.array([[1, 0, 1, 2, 3, 0, 3, 0]]), 1, "no memory"),
    ],
)
def test_bad_arguments_of_the_binding(table, b, message):
    with pytest.raises(ValueError, match=message):
        _cpu.normal_product(table.astype(np.int64), b, instruction_set="portable", threads=1)


def test_an_instruction_set_that_cannot_run_is_an_error():
    matrix, vectors = operands((2, 3), 1, torch.float32)
    with pytest.raises(ValueError, match=r"does not run instruction set .avx1024."):
        cpu.normal_product([matrix], [vectors], instruction_set="avx1024")
