"""Every backend of every operation in the dispatch table against the float64 reference."""

import math
import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    BACKENDS,
    FAST,
    TOLERANCE,
    assert_agrees,
    assert_same_bits,
    kernel,
    make_rows,
    row_of,
)

from weibull_kernels.dispatch import KERNELS
from weibull_kernels.kernels import cpu, reference
from weibull_kernels.kernels.interface import BIN_BITS, BINS

# Triton's interpreter works in numpy, which warns of what a GPU does in silence.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning")
    for what in ("invalid value", "overflow")
]

every_backend = pytest.mark.parametrize("backend", BACKENDS)

# The compiled kernel works in lanes of 16, blocks of 256 and chunks of 16384 entries.
LAYOUTS = {
    "0-dim": lambda draw: draw(),
    "empty": lambda draw: draw(0),
    "empty matrix": lambda draw: draw(0, 5),
    **{str(n): lambda draw, n=n: draw(n) for n in (1, 15, 16, 17, 255, 256, 257, 16383, 16384, 16385)},
    "chunks and a rest": lambda draw: draw(3 * 16384 + 5),
    "matrix": lambda draw: draw(37, 53),
    "column": lambda draw: draw(257, 1),
    "channels last": lambda draw: draw(3, 5, 7, 9).to(memory_format=torch.channels_last),
    "channels last 3-D": lambda draw: draw(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
    "transposed": lambda draw: draw(41, 23).T,
    "permuted": lambda draw: draw(5, 7, 11).permute(2, 0, 1),
    "every other column": lambda draw: draw(33, 40)[:, ::2],
    "window": lambda draw: draw(33, 40)[3:20, 1:30],
    "from entry 1": lambda draw: draw(1001)[1:],
    "expanded": lambda draw: draw(1, 17).expand(9, 17),
}

HALF = (torch.bfloat16, torch.float16)
DTYPES = [
    (w, m, v)
    for w in (torch.float32, torch.float64, *HALF)
    for m, v in dict.fromkeys([(w, w), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
] + [(torch.float32, torch.float32, torch.float64), (torch.float16, torch.float64, torch.float32)]


def dtype_id(value):
    return str(value).removeprefix("torch.")


def weibull(n, k=1.2, scale=0.02):
    sign = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    return sign * scale * (-torch.rand(n, dtype=torch.float64).log()) ** (1 / k)


def moments_of(weight, exp_avg_dtype=torch.float32, exp_avg_sq_dtype=torch.float32):
    """Moments such that û is of order 0.3, in the weight's own layout."""
    m = 1e-3 * torch.randn(weight.shape, dtype=torch.float64)
    v = 1e-5 * torch.rand(weight.shape, dtype=torch.float64)
    like = [torch.empty_like(weight, dtype=dtype) for dtype in (exp_avg_dtype, exp_avg_sq_dtype)]
    return like[0].copy_(m), like[1].copy_(v)


def row(weight, *dtypes):
    return weight, *moments_of(weight, *dtypes)


def sums(backend, *columns, histogram=False, **options):
    return kernel("sums", backend)(make_rows(*columns, **options), with_histogram=histogram)


def test_every_operation_has_the_reference():
    for operation, backend in KERNELS:
        assert (operation, "reference") in KERNELS
        assert callable(kernel(operation, backend))


def test_the_reference_on_a_case_by_hand():
    # β₁ = 0.5, β₂ = 0.75, one step: m̂ = 2m, v̂ = 4v. With ε = 1:
    # u = (2·1)/(√(4·1)+1) = 2/3 and (2·−3)/(√(4·4)+1) = −6/5 for w = 1.5 and −2.
    found = sums(
        "reference",
        (torch.tensor([1.5, -2.0, 0.0]), torch.tensor([1.0, -3.0, 0.0]), torch.tensor([1.0, 4.0, 0.0])),
        beta1=0.5,
        beta2=0.75,
        eps=1.0,
        steps=1,
        histogram=True,
    )
    assert found.weight_update.item() == pytest.approx(1.5 * 2 / 3 + 2 * 6 / 5, rel=1e-15)
    assert found.update_sq.item() == pytest.approx(4 / 9 + 36 / 25, rel=1e-15)
    assert found.weight_sq.item() == 6.25
    assert found.log_sum.item() == pytest.approx(math.log(3), rel=1e-15)
    assert found.log_sq_sum.item() == pytest.approx(math.log(1.5) ** 2 + math.log(2) ** 2, rel=1e-15)
    assert (found.max_abs.item(), found.zero_count.item(), found.non_finite_count.item()) == (2.0, 1, 0)
    # 1.5 is the middle of the octave of 1, which is row 127; 2 begins the next.
    assert found.histogram[0].nonzero().flatten().tolist() == [127 * 64 + 32, 128 * 64]


@every_backend
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(map(dtype_id, d)))
def test_layouts(backend, dtypes):
    small = backend == "triton"  # its interpreter is slow

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtypes[0])

    columns = [
        row(build(draw), *dtypes[1:])
        for name, build in LAYOUTS.items()
        if not (small and name == "chunks and a rest")
    ]
    rows = make_rows(*columns)
    assert_agrees(kernel("sums", backend)(rows, with_histogram=True), rows, TOLERANCE[backend])


@every_backend
def test_weight_and_moments_in_different_orders_of_memory(backend):
    columns = []
    for weight_order in (torch.contiguous_format, torch.channels_last):
        for moment_order in (torch.contiguous_format, torch.channels_last):
            w, m, v = row(torch.randn(3, 5, 7, 9))
            columns.append((w.to(memory_format=weight_order), m.to(memory_format=moment_order), v))
    w, m, v = row(torch.randn(8, 30))
    columns += [(w[:, ::3], m[:, :10], v[:, 20:]), (w.T, m.T.contiguous(), v.T), (w, m.T.contiguous().T, v)]
    rows = make_rows(*columns)
    assert_agrees(kernel("sums", backend)(rows), rows, TOLERANCE[backend])


def spoilt(n, *entries):
    w = torch.randn(n, dtype=torch.float64)
    for position, entry in zip((0, n // 2, n - 1), entries, strict=False):
        w[position] = entry
    return w


# Of 523 entries: two blocks and a tail.
INPUTS = {
    "normal": lambda n: torch.randn(n, dtype=torch.float64),
    "Weibull": weibull,
    "equal": lambda n: torch.full((n,), 0.1, dtype=torch.float64),  # every rounding is the same one
    "equal, near 1": lambda n: torch.full((n,), 1 - 2.0**-24, dtype=torch.float64),
    "zeros": lambda n: torch.zeros(n, dtype=torch.float64),
    "negative zeros": lambda n: torch.full((n,), -0.0, dtype=torch.float64),
    "a zero": lambda n: spoilt(n, 0.0),
    "subnormal": lambda n: 1e-40 * torch.randn(n, dtype=torch.float64),
    "smallest": lambda n: torch.full((n,), 2.0**-149, dtype=torch.float64),
    "near 1e-24": lambda n: 1e-24 * torch.randn(n, dtype=torch.float64),
    "1e-300": lambda n: 1e-300 * torch.randn(n, dtype=torch.float64),
    "huge": lambda n: 1e38 * torch.rand(n, dtype=torch.float64),
    "huge, double": lambda n: 1e100 * torch.randn(n, dtype=torch.float64),
    "NaN": lambda n: spoilt(n, math.nan),
    "infinite": lambda n: spoilt(n, math.inf, -math.inf),
    "all kinds": lambda n: spoilt(n, math.nan, 0.0, math.inf),
    "only NaN": lambda n: torch.full((n,), math.nan, dtype=torch.float64),
    "wide": lambda n: 10 ** (80 * torch.rand(n, dtype=torch.float64) - 40),
}


def readable(weight, backend):
    """Triton's interpreter widens the subnormal numbers of bfloat16 wrongly; a GPU does not."""
    if backend == "triton" and weight.dtype == torch.bfloat16:
        return weight.where(weight.abs() >= 2.0**-126, 0.0)
    return weight


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_inputs(backend, dtype):
    columns = [row(readable(make(523).to(dtype), backend)) for make in INPUTS.values()]
    # Without moments, with moments of zero (u = 0), with a NaN in one moment, and all equal.
    w = torch.randn(523).to(dtype)
    zero, fixed = torch.zeros(523), torch.full((523,), 1e-3)
    columns += [(w,), (w, zero, zero), (w, fixed, 1.7 * fixed**2), (w, spoilt(523, math.nan).float(), fixed)]
    rows = make_rows(*columns)
    assert_agrees(kernel("sums", backend)(rows, with_histogram=True), rows, TOLERANCE[backend])


@every_backend
@pytest.mark.parametrize(("beta2", "step", "eps"), [(0.999, 1, 1e-8), (0.95, 100_000, 1e-4), (0.0, 5, 1e-15)])
def test_bias_corrections_and_eps(backend, beta2, step, eps):
    rows = make_rows(
        row(torch.randn(700)), row(torch.randn(300).bfloat16()), beta2=beta2, steps=step, eps=eps
    )
    assert_agrees(kernel("sums", backend)(rows), rows, TOLERANCE[backend])


@every_backend
def test_each_row_has_its_own_step(backend):
    w, m, v = row(torch.randn(50))
    rows = make_rows((w, m, v), (w, m, v), (w, m, v), steps=[1, 2, 1000])
    found = kernel("sums", backend)(rows)
    assert_agrees(found, rows, TOLERANCE[backend])
    assert len(set(found.update_sq.tolist())) == 3


@every_backend
def test_squares_of_1e_24_do_not_vanish(backend):
    # In float32 1e-48 is 0: the norm would be too.
    w = torch.full((1000,), 1e-24)
    found = sums(backend, (w, torch.full_like(w, 1e-24), torch.zeros_like(w)), eps=1e-2, steps=1, beta1=0.0)
    assert found.weight_sq.item() == pytest.approx(1000 * w[0].item() ** 2, rel=1e-6, abs=0)
    # u = m/ε = 1e-22, whose square float32 does not hold either.
    assert found.update_sq.item() == pytest.approx(1000 * (w[0].item() / 1e-2) ** 2, rel=1e-6, abs=0)
    assert found.weight_update.item() == pytest.approx(1000 * w[0].item() ** 2 / 1e-2, rel=1e-6, abs=0)


def bit_patterns(dtype):
    """All 65536 halves; of wider floats the edges of all bins and their neighbours, both signs."""
    if dtype in HALF:
        return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    edges = torch.arange(BINS + 2, dtype=torch.int32) << (23 - BIN_BITS)
    patterns = (edges[:, None] + torch.tensor([-1, 0, 1], dtype=torch.int32)).flatten()[1:]
    single = torch.cat([patterns, patterns | -(2**31)]).view(torch.float32)
    if dtype == torch.float32:
        return single
    around = single.double()
    finite = around[around.isfinite() & (around != 0)]
    beyond = torch.tensor([1e-310, 2.0**-150, 3.5e38, 1e300, -1e300], dtype=torch.float64)
    neighbours = [finite.nextafter(torch.full_like(finite, to)) for to in (-math.inf, math.inf)]
    return torch.cat([around, *neighbours, beyond])


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_no_bit_pattern_is_put_in_the_wrong_bin(backend, dtype):
    weight = readable(bit_patterns(dtype), backend)
    if backend == "triton":
        weight = weight[::7]
    found = sums(backend, (weight,), (weight[:100],), histogram=True)
    expected = sums("reference", (weight,), (weight[:100],), histogram=True)
    assert torch.equal(found.histogram, expected.histogram)
    counted = found.histogram.sum(1) + found.zero_count + found.non_finite_count
    assert counted.tolist() == [weight.numel(), 100]


def test_the_reference_bins_are_the_leading_bits():
    weight = bit_patterns(torch.float32)
    magnitude = weight[weight.isfinite() & (weight != 0)].abs()
    expected = torch.bincount(magnitude.view(torch.int32).long() >> (23 - BIN_BITS), minlength=BINS)
    assert torch.equal(reference.histogram(weight.double()), expected)


@every_backend
def test_empty_tensors_between_others_shift_nothing(backend):
    a, b, c = (row(torch.randn(n)) for n in (100, 17, 300))
    empty, empty_matrix = row(torch.empty(0)), row(torch.empty(4, 0).double())
    found = sums(backend, empty, a, empty, b, empty_matrix, c, empty, histogram=True)
    alone = sums(backend, a, b, c, histogram=True)
    for at, which in ((1, 0), (3, 1), (5, 2)):
        assert_same_bits(row_of(found, at), row_of(alone, which))
    for at in (0, 2, 4, 6):
        assert found.weight_sq[at] == found.max_abs[at] == found.histogram[at].sum() == 0


@every_backend
def test_no_rows(backend):
    found = sums(backend, histogram=True)
    assert found.weight_sq.shape == found.zero_count.shape == (0,)
    assert found.histogram.shape == (0, BINS)


def many_rows():
    """Enough entries for every thread, in tensors larger and smaller than a chunk."""
    sizes = [300_001, *[257] * 40, 70_000, 16384, 5, 90_001]
    return [row(weibull(n).to(dtype)) for n, dtype in zip(sizes, [torch.float32, *HALF] * 15, strict=True)]


@pytest.mark.usefixtures("restore_threads")
def test_same_bits_for_any_number_of_threads():
    columns, found = many_rows(), []
    for threads in (1, 2, 4, 4, 1):
        torch.set_num_threads(threads)
        found.append(sums("cpu", *columns, histogram=True))
    assert_agrees(found[0], make_rows(*columns), TOLERANCE["cpu"])
    for other in found[1:]:
        assert_same_bits(found[0], other)


@every_backend
def test_same_bits_when_called_again(backend):
    columns = [row(weibull(n)) for n in (5000, 17, 1)]
    assert_same_bits(*(sums(backend, *columns, histogram=True) for _ in range(2)))


def test_same_bits_when_called_from_several_threads_at_once():
    columns = many_rows()
    expected = sums("cpu", *columns, histogram=True)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: sums("cpu", *columns, histogram=True), range(8)):
            assert_same_bits(found, expected)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_same_bits_wherever_the_memory_begins(backend, dtype):
    w, m, v = row(torch.randn(600).to(dtype), dtype, dtype)

    def moved(tensor, offset):
        return torch.cat([tensor.new_full((offset,), math.nan), tensor])[offset:]

    found = [sums(backend, tuple(moved(t, offset) for t in (w, m, v))) for offset in (0, 1, 3, 7)]
    for other in found[1:]:
        assert_same_bits(found[0], other)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(map(dtype_id, d)))
def test_instruction_sets(dtypes):
    columns = [row(make(523).to(dtypes[0]), *dtypes[1:]) for make in INPUTS.values()]
    columns += [row(torch.randn(40_000).to(dtypes[0]), *dtypes[1:])]
    rows = make_rows(*columns)
    found = {
        name: cpu.sums(rows, with_histogram=True, instruction_set=name) for name in cpu.instruction_sets()
    }
    assert "portable" in found
    for result in found.values():
        assert_agrees(result, rows, TOLERANCE["cpu"])
    fused = [result for name, result in found.items() if name != "portable"]
    for other in fused[1:]:  # the same lanes, whatever the width of a register
        assert_same_bits(fused[0], other)


def test_an_instruction_set_that_cannot_run_is_an_error():
    with pytest.raises(ValueError, match=r"does not run instruction set .avx1024.; it runs: .*portable"):
        cpu.sums(make_rows(row(torch.randn(3))), instruction_set="avx1024")


def test_flushed_subnormals_change_nothing():
    columns = [row(make(523).to(dtype)) for make in INPUTS.values() for dtype in (torch.float32, *HALF)]
    columns.append((*row(torch.randn(523))[:2], torch.full((523,), 1e-42)))
    expected = sums("cpu", *columns, histogram=True)
    assert torch.set_flush_denormal(True)
    try:
        found = sums("cpu", *columns, histogram=True)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(found, expected)
    assert_same_bits(sums("cpu", *columns, histogram=True), expected)


def test_over_two_to_the_31_entries():
    # Untouched pages of a mapping read as zeros and take no memory. Positions past 2³¹ would wrap
    # around in 32 bits.
    weight = torch.frombuffer(mmap.mmap(-1, 2 * (2**31 + 20)), dtype=torch.bfloat16)
    weight[-1] = -3.0
    weight[2**31] = 2.0
    found = sums("cpu", (weight,))
    assert (found.weight_sq.item(), found.max_abs.item()) == (13.0, 3.0)
    assert found.zero_count.item() == 2**31 + 18


finite = st.floats(-1e3, 1e3, width=32)
entries = st.lists(st.tuples(finite, st.floats(-1, 1, width=32), st.floats(0, 1, width=32)), max_size=80)


def columns_from(entries):
    return torch.tensor(entries, dtype=torch.float32).reshape(-1, 3).unbind(1)


@every_backend
@settings(max_examples=15)
@given(entries=entries, random=st.randoms(use_true_random=False), data=st.data())
def test_order_and_division_into_tensors_change_nothing(backend, entries, random, data):
    columns = columns_from(entries)
    shuffled = columns_from(random.sample(entries, len(entries)))
    cut = data.draw(st.integers(0, len(entries)))
    parts = sums(backend, *(tuple(c[part] for c in columns) for part in (slice(cut), slice(cut, None))))
    summed = {
        name: value.amax(0, keepdim=True) if name == "max_abs" else value.sum(0, keepdim=True)
        for name, value in vars(parts).items()
        if value is not None
    }
    rows = make_rows(columns)
    assert_agrees(sums(backend, shuffled), rows, TOLERANCE[backend])
    assert_agrees(type(parts)(**summed, histogram=None), rows, TOLERANCE[backend])


@every_backend
@settings(max_examples=15)
@given(
    entries=st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=80),
    power=st.integers(-9, 9),
)
def test_a_power_of_two_scales_the_sums_exactly(backend, entries, power):
    weight = torch.tensor(entries)
    before, after = (sums(backend, row(w), histogram=True) for w in (weight, weight * 2.0**power))
    assert after.weight_sq.item() == before.weight_sq.item() * 4.0**power
    assert after.max_abs.item() == before.max_abs.item() * 2.0**power
    assert torch.equal(after.histogram, before.histogram.roll(power << BIN_BITS, 1))
    shift = len(entries) * power * math.log(2)
    assert after.log_sum.item() == pytest.approx(before.log_sum.item() + shift, abs=1e-5 * len(entries))


@pytest.mark.parametrize("backend", FAST)
def test_a_tensor_that_requires_a_gradient_records_nothing(backend):
    found = sums(backend, row(torch.randn(5).requires_grad_()))
    assert not found.weight_sq.requires_grad
