"""What every thread of the CUDA kernels does, on this processor, against float64. None of it needs a GPU.

The Python side is the `cuda` backend's own; tests/cuda_on_cpu.cpp stands in place of its extension. What that
leaves to tests/gpu: launches, how chunks are shared out, and sums over the lanes of a warp.
"""

import ctypes
import dataclasses
import subprocess
from pathlib import Path

import pytest
import torch
from compilers import find_nvcc, needs_nvcc
from oracle import TOLERANCE, assert_agrees, assert_steps, copy_of, make_rows, make_step, same_bits
from test_adamw_kernel import BAD
from test_forces_kernel import assert_forces, made
from test_kernels import DTYPES, HALF, INPUTS, bit_patterns, dtype_id, moments_of

from weibull_kernels.kernels import cuda
from weibull_kernels.kernels.interface import BINS

pytestmark = needs_nvcc

# Around packs of 2, 4 and 8 entries, what a block of 128 threads takes of them at once, and chunks of 32768.
COUNTS = (0, 1, 3, 4, 5, 7, 8, 9, 511, 512, 513, 1029, 32767, 32768, 2 * 32768 + 5)
FEW = tuple(count for count in COUNTS if count < 2000)
SINGLE, DOUBLE = torch.float32, torch.float64
# Of weight, gradient and moments.
STEPPED = [(w, w, m, v) for w, m, v in DTYPES] + [
    *((SINGLE, gradient, SINGLE, SINGLE) for gradient in (*HALF, DOUBLE)),
    *((weight, SINGLE, SINGLE, SINGLE) for weight in HALF),
    (DOUBLE, HALF[0], SINGLE, HALF[1]),
]
SPECIAL = (0.0, -0.0, 1e-24, -1e-40, 1e-45, 2.0**-26, -64.0, 1e4, 1.0)  # the histogram's window ends at 64
NOT_FINITE = BAD | {"max v": [torch.nan, torch.inf]}
each_dtypes = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(map(dtype_id, d)))
each_dtype = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE, *HALF], ids=dtype_id)


class Extension:
    """What kernels/cuda.py needs of `weibull_kernels._cuda`, on the CPU and without partial sums."""

    SUM_COLUMNS, SUMS_BYTES, STEP_SUMS_BYTES = 8, 0, 0

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self.CHUNK, self.ROW_COLUMNS = self._library.chunk(), self._library.row_columns()

    def _call(self, name, table, *addresses):
        function, (rows, _, size, *_) = getattr(self._library, name), table
        function.restype = ctypes.c_int64
        refused = function(ctypes.c_void_p(rows), size, *map(ctypes.c_void_p, addresses))
        assert refused == 0, f"{name}: {refused} accesses beside the entries, or at a wrong alignment"

    def sums(self, table, scaled_eps, scales, partials, sums, histograms, *place):
        self._call("sums", table, scaled_eps, scales, sums, histograms)

    def forces(self, table, sets, partials, ledger, histograms, *place):
        self._call("forces", table, sets, ledger, histograms)

    def adamw(self, table, grads, sets, grad_scale, found_inf, partials, ledger, *place):
        assert not found_inf, "the kernel returns before any thread begins"
        self._call("adamw", table, grads, sets, grad_scale, ledger)


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    library = tmp_path_factory.mktemp("cuda") / "cuda_on_cpu.so"
    # As plain C++: nvcc only knows where its headers are.
    flags = ["-x", "c++", "-std=c++17", "-O2", "-shared", "--cudart", "none"]
    flags += ["-Xcompiler=-fPIC,-ffp-contract=off,-Wall,-Wextra,-Werror,-Wno-unknown-pragmas"]
    source = Path(__file__).with_name("cuda_on_cpu.cpp")
    done = subprocess.run(
        [find_nvcc(), *flags, str(source), "-o", str(library)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Extension(library)


@pytest.fixture(autouse=True)
def _in_place_of_the_gpu(extension, monkeypatch):
    monkeypatch.setattr(cuda, "_cuda", extension, raising=False)
    monkeypatch.setattr(cuda, "_place", lambda device: (0, 0))
    monkeypatch.setattr(cuda, "current_stream", lambda device: 0)
    monkeypatch.setitem(TOLERANCE, "cuda", 1e-6)


def placed(tensor, entries):
    """A copy whose memory begins some entries past an address that is aligned."""
    flat = torch.empty(tensor.numel() + entries, dtype=tensor.dtype)
    assert flat.data_ptr() % 16 == 0
    return flat[entries:].copy_(tensor.flatten())


def half_a_pack(tensor):
    """The same 8 bytes past an address of 16."""
    return placed(tensor, 8 // tensor.element_size())


def placements(*columns):
    """All columns aligned, all one entry past it, all aligned to 8 bytes, and the last alone not aligned."""
    yield tuple(placed(column, 0) for column in columns)
    yield tuple(placed(column, 1) for column in columns)
    yield tuple(map(half_a_pack, columns))
    yield *(placed(column, 0) for column in columns[:-1]), placed(columns[-1], 1)


def weight_of(count, dtype):
    """Random entries, and where there is room some of every kind, one of them near the end."""
    w = 0.02 * torch.randn(count, dtype=DOUBLE)
    if count > 500:
        w[torch.arange(len(SPECIAL)) * 5] = torch.tensor(SPECIAL, dtype=DOUBLE)
        w[-2] = 1e4
    return w.to(dtype)


@each_dtypes
@pytest.mark.parametrize("histogram", [False, True])
def test_sums(dtypes, histogram):
    rows = []
    for count in COUNTS:
        w = weight_of(count, dtypes[0])
        columns = w, *moments_of(w, *dtypes[1:])
        rows += [*placements(*columns), *placements(w)][:: 1 if count < 2000 else 2]
    rows = make_rows(*rows, eps=1e-6)
    assert_agrees(cuda.sums(rows, with_histogram=histogram), rows, 1e-6)


@each_dtype
@pytest.mark.parametrize("histogram", [False, True])
def test_special_weights(dtype, histogram):
    weights = [make(1029).to(dtype) for make in INPUTS.values()]
    rows = make_rows(*(row for w in weights for row in placements(w, *moments_of(w))))
    assert_agrees(cuda.sums(rows, with_histogram=histogram), rows, 1e-6)


def test_special_moments():
    """Zero, below the normal numbers, and not finite."""
    w, m = torch.ones(3000), torch.full((3000,), 1e-3)
    v = torch.tensor([0.0, 1e-45, 1e-41, 1e-38, 1e-12, 1.0]).repeat(500)
    spoilt = m.clone()
    spoilt[7] = torch.nan
    rows = make_rows(*placements(w, m, v), (w, 0 * m, 0 * v), (w, spoilt, v), (w, m, v / 0))
    assert_agrees(cuda.sums(rows), rows, 1e-6)


@each_dtype
def test_every_bit_pattern_is_counted_in_its_bin(dtype):
    rows = make_rows(*((w,) for (w,) in placements(bit_patterns(dtype))))
    found = cuda.sums(rows, with_histogram=True)
    assert_agrees(found, rows, 1e-6)
    assert found.histogram.shape == (len(rows), BINS)
    counted = found.histogram.sum(1) + found.zero_count + found.non_finite_count
    assert counted.tolist() == [w.numel() for w in rows.weights]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("histogram", [False, True])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=dtype_id)
def test_roundings_of_equal_entries_do_not_add_up(dtype, histogram, offset):
    """A full chunk of one number: every logarithm that is added is rounded the same way."""
    values = torch.logspace(-30, 3, 300)
    for some in values.to(dtype).split(50):
        rows = make_rows(*((placed(value.expand(32768), offset),) for value in some))
        assert_agrees(cuda.sums(rows, with_histogram=histogram), rows, 1e-6)


@pytest.mark.parametrize("offset", [0, 1])
def test_nor_do_those_of_a_step(offset):
    values, zeros = torch.logspace(-30, 3, 100), torch.zeros(32768)
    rows = [
        tuple(placed(one, offset) for one in (value.repeat(32768), zeros, zeros, zeros)) for value in values
    ]
    assert_steps("cuda", *make_step(*rows, groups=[{"lr": 0.0, "decay_factor": 1.0}]))


@each_dtypes
def test_forces(dtypes):
    """With the largest second moments where there are any, and of tensors before their first step."""
    rows, group_of = [], []
    for count in FEW + ((32768,) if DOUBLE not in dtypes else ()):
        w = weight_of(count, dtypes[0])
        m, v = moments_of(w, *dtypes[1:])
        rows += [*placements(w, m, v), *placements(w, m, v, 2 * v), (w,)]
        group_of += [0] * 4 + [1] * 4 + [0]
    groups = {}, {"lr": 0.003, "decay_factor": 0.9, "beta1": 0.8, "beta2": 0.95, "eps": 1e-4}
    counts = [0.0 if len(row) == 1 else 1.0 + i for i, row in enumerate(rows)]
    assert_forces("cuda", *made(*rows, groups=groups, group_of=group_of, counts=counts), histogram=True)


def about_to_step(dtypes, counts, amsgrad, **more):
    """Random tensors of each size in all placements, and of two groups in turn; one of them maximizes."""
    rows = []
    for count in counts:
        w = weight_of(count, dtypes[0])
        g = (0.01 * torch.randn(count, dtype=DOUBLE)).to(dtypes[1])
        m, v = moments_of(w, *dtypes[2:])
        largest = [2 * v * (torch.rand(count) < 0.5)] if amsgrad else []
        rows += placements(w, g, m, v, *(one.to(v.dtype) for one in largest))
    groups = {"eps": 1e-4}, {"eps": 1e-4, "lr": 0.003, "decay_factor": 1.0, "sign": -1.0}
    return make_step(*rows, groups=groups, group_of=[i // 4 % 2 for i in range(len(rows))], **more)


@pytest.mark.parametrize("dtypes", STEPPED, ids=lambda d: "-".join(map(dtype_id, d)))
@pytest.mark.parametrize("amsgrad", [False, True])
def test_steps(dtypes, amsgrad):
    # The definition says nothing of the rounding of sums, which shows in float64 for many entries.
    wide = DOUBLE in dtypes
    tensors, step = about_to_step(dtypes, FEW if wide else COUNTS, amsgrad)
    gradients = [gradient.clone() for gradient in step.grads]
    assert_steps("cuda", tensors, step)
    assert all(map(same_bits, step.grads, gradients))
    if wide:
        assert_steps("cuda", *about_to_step(dtypes, (32767, 2 * 32768 + 5), amsgrad, booked=False))


@each_dtypes
@pytest.mark.parametrize("scale", [3.0, 1024.0])
def test_scaled_gradients_are_written_back(dtypes, scale):
    tensors, step = about_to_step((dtypes[0], *dtypes), FEW, amsgrad=True, grad_scale=scale)
    wide = DOUBLE if DOUBLE in dtypes else SINGLE
    divided = [(g.to(wide) / scale).to(g.dtype) for g in step.grads]
    assert_steps("cuda", tensors, step)
    assert all(map(same_bits, step.grads, divided))


@each_dtype
def test_neither_a_ledger_nor_the_place_in_memory_changes_a_step(dtype):
    tensors, step = about_to_step((dtype,) * 4, COUNTS, amsgrad=True)
    aligned, booked = copy_of(tensors, step)
    cuda.adamw(tensors, dataclasses.replace(step, ledger=None))
    cuda.adamw(aligned, booked)
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
        assert all(map(same_bits, getattr(tensors, name), getattr(aligned, name))), name


@each_dtype
@pytest.mark.parametrize("column", NOT_FINITE)
def test_a_non_finite_entry_stays_where_it_is(dtype, column):
    w, g = torch.randn(2, 300).to(dtype)
    m, v = moments_of(w, dtype, dtype)
    others = torch.arange(300) != 100
    for entry in NOT_FINITE[column]:
        for offset in (0, 1):
            plain, spoilt = ([placed(one, offset) for one in (w, g, m, v, 2 * v)] for _ in range(2))
            spoilt[list(NOT_FINITE).index(column)][100] = entry
            tensors, step = make_step(plain, spoilt)
            assert_steps("cuda", tensors, step)
            assert same_bits(tensors.weights[0][others], tensors.weights[1][others])


@each_dtype
def test_nothing_beside_the_entries_is_written(dtype):
    for offset in (0, 1, 5):
        for count in FEW:
            wide = [torch.rand(64 + count, dtype=DOUBLE).to(dtype) for _ in range(5)]
            before = [one.clone() for one in wide]
            columns = [one[16 + offset :][:count] for one in wide]
            cuda.adamw(*make_step(columns, grad_scale=3.0))
            for one, other in zip(wide, before, strict=True):
                changed = (one != other).nonzero().flatten()
                assert ((changed >= 16 + offset) & (changed < 16 + offset + count)).all()
            assert count == 0 or not torch.equal(wide[0], before[0])
