"""The mathematics that every compiled backend shares, as a thread of a GPU does it, on this processor.

Exact answers are fractions, so that "rounded once" can be said of a float64 too.
"""

import ctypes
import math
import os
import shlex
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from weibull_kernels.kernels.interface import HYPERPARAMETERS, LEDGER_COLUMNS

FORCES = ("alignment", "injection", "decay", "coupling")
STEP_SUMS = (
    *("weight_update", "update_sq", "weight_sq", "log_sum", "log_sq_sum", "max_abs"),
    *("zero_count", "non_finite_count", "change"),
)
C_TYPES = {np.float32: ctypes.c_float, np.float64: ctypes.c_double}
both_types = pytest.mark.parametrize("dtype", list(C_TYPES))


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    library = tmp_path_factory.mktemp("entry") / "entry_header.so"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = Path(__file__).with_name("entry_header.cpp")
    done = subprocess.run(
        [*compiler, *flags, str(source), "-o", str(library)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def called(function, *arguments):
    """Calls with arrays by their addresses, and numbers by their type."""

    def passed(argument):
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous
            return ctypes.c_void_p(argument.ctypes.data)
        if isinstance(argument, np.floating):
            return C_TYPES[type(argument)](argument)
        return argument

    function.restype = None
    function(*map(passed, arguments))


def on_entries(header, name, *arguments):
    """What a function of n entries writes, of the type of the first array."""
    first = arguments[0]
    out = np.full_like(first, np.nan)
    suffix = "float" if first.dtype == np.float32 else "double"
    called(getattr(header, f"{name}_{suffix}"), len(first), *arguments, out)
    return out


def rounded(exact: Fraction, dtype):
    return dtype(float(exact))


def uniform(dtype, low, high, count=2000, seed=0):
    return np.random.default_rng(seed).uniform(low, high, count).astype(dtype)


@both_types
def test_raw_update_by_hand(header, dtype):
    m, v = np.array([3, -3, 0, 1], dtype), np.array([16, 16, 0, np.inf], dtype)
    assert on_entries(header, "raw_update", m, v, dtype(2)).tolist() == [0.5, -0.5, 0, 0]
    # As torch has it: 0/0 where there is no ε either.
    assert np.isnan(on_entries(header, "raw_update", m[2:3], v[2:3], dtype(0)))


@both_types
def test_raw_update_takes_correctly_rounded_roots_and_quotients(header, dtype):
    m, eps = uniform(dtype, -1, 1), dtype(1e-8)
    v = np.exp2(uniform(dtype, -100, 10, seed=1))
    expected = m / (np.sqrt(v) + eps)  # NumPy's are IEEE's
    assert np.array_equal(on_entries(header, "raw_update", m, v, eps), expected)


@both_types
def test_a_subnormal_second_moment_is_not_flushed_to_zero(header, dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    v = np.array([1, 3, 1000], dtype) * smallest
    m = np.sqrt(v.astype(np.float64)).astype(dtype)
    found = on_entries(header, "raw_update", m, v, dtype(0))
    assert np.all(np.abs(found - 1) <= 2 * np.finfo(dtype).eps)
    # And a subnormal first moment gives a subnormal update.
    tiny = np.array([smallest * 4], dtype)
    assert on_entries(header, "raw_update", tiny, np.array([4], dtype), dtype(0))[0] == smallest * 2


@both_types
@pytest.mark.parametrize("gain", [0.1, 0.4999, 0.5, 0.9])
def test_lerp_rounds_the_difference_and_then_once(header, dtype, gain):
    mean, new, gain = uniform(dtype, -1, 1), uniform(dtype, -1, 1, seed=1), dtype(gain)
    near_mean = bool(gain < 0.5)
    weight, start = (gain, mean) if near_mean else (dtype(gain - dtype(1)), new)
    expected = [
        rounded(Fraction(float(weight)) * Fraction(float(d)) + Fraction(float(s)), dtype)
        for d, s in zip(new - mean, start, strict=True)
    ]
    found = on_entries(header, "lerp", mean, new, gain, near_mean)
    assert np.array_equal(found, np.array(expected))


@both_types
def test_lerp_arrives_at_both_ends(header, dtype):
    mean, new = uniform(dtype, -1, 1), uniform(dtype, -1, 1, seed=1)
    assert np.array_equal(on_entries(header, "lerp", mean, new, dtype(0), True), mean)
    assert np.array_equal(on_entries(header, "lerp", mean, new, dtype(1), False), new)


def step(header, dtype, numbers, near_mean, eps, *entries):
    """m, v, w after a step; the entries are g, m, v, w."""
    g, *state = (np.array(values, dtype) for values in entries)
    suffix = "float" if dtype is np.float32 else "double"
    function = getattr(header, f"step_{suffix}")
    called(function, len(g), np.array(numbers, dtype), near_mean, dtype(eps), g, *state)
    return state


@both_types
def test_a_step_by_hand(header, dtype):
    # g = 2: m⁺ = 1 + ½(2−1) = 3/2, v⁺ = ¾·4 + ¼·4 = 4, u = (3/2)/(2+1) = ½, w⁺ = ½·3 − ½·½ = 5/4.
    m, v, w = step(header, dtype, [0.5, 0.25, 0.75, 0.5, 0.5], True, 1, [2, -2], [1, -1], [4, 4], [3, -3])
    assert (m.tolist(), v.tolist(), w.tolist()) == ([1.5, -1.5], [4, 4], [1.25, -1.25])


@both_types
def test_a_step_rounds_each_number_once_after_its_decay(header, dtype):
    count = 500
    g, w = uniform(dtype, -1, 1, count), uniform(dtype, -1, 1, count, seed=1)
    m, v = uniform(dtype, -0.1, 0.1, count, seed=2), uniform(dtype, 0, 0.1, count, seed=3)
    gain1, gain2, beta2, rate, kept = (dtype(x) for x in (0.1, 0.05, 0.95, 1e-3, 0.9999))
    eps = dtype(1e-8)
    new_m, new_v, new_w = step(header, dtype, [gain1, gain2, beta2, rate, kept], True, eps, g, m, v, w)
    fused = np.vectorize(
        lambda a, b, c: rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)), dtype)
    )
    assert np.array_equal(new_m, fused(gain1, g - m, m))
    assert np.array_equal(new_v, fused(gain2 * g, g, beta2 * v))
    u = new_m / (np.sqrt(new_v) + eps)
    assert np.array_equal(new_w, fused(-rate, u, kept * w))


@both_types
def test_the_logarithm_of_a_mantissa(header, dtype):
    r = np.linspace(-0.25, 0.5, 300_000, endpoint=False).astype(dtype)
    found = on_entries(header, "log1p", r).astype(np.float64)
    error = np.abs(found - np.log1p(r.astype(np.float64))).max()
    # The best coefficients of this degree are within 3.1e-8; rounded to float32 they are within this. In
    # float32 the last two roundings, each of half a unit, come on top.
    polynomial = 3.65e-8
    assert 0.99 * polynomial < error <= polynomial + (2.0**-24 if dtype is np.float32 else 0)
    assert on_entries(header, "log1p", np.zeros(1, dtype))[0] == 0


def logs(header, dtype, w):
    sums, suffix = np.empty(2), "float" if dtype is np.float32 else "double"
    called(getattr(header, f"logs_{suffix}"), len(w), np.array(w, dtype), sums)
    return sums


@both_types
def test_logarithms_of_every_magnitude(header, dtype):
    facts = np.finfo(dtype)
    exponents = np.linspace(math.log2(float(facts.smallest_subnormal)), math.log2(float(facts.max)), 3001)
    w = np.exp2(exponents[:-1]).astype(dtype)
    w = np.concatenate([w, [facts.smallest_subnormal, facts.smallest_normal, facts.max]]).astype(dtype)
    for entry in w:
        log = math.log(float(entry))
        found = logs(header, dtype, [entry])
        assert abs(found[0] - log) <= 1e-7
        assert abs(found[1] - log**2) <= 2e-7 * abs(log) + 1e-14


@both_types
def test_logarithms_of_powers_of_two_are_exact(header, dtype):
    facts = np.finfo(dtype)
    # From the smallest subnormal number up; sums of whole numbers below 2²⁴ are exact in float32.
    w = np.exp2(np.arange(facts.minexp - facts.nmant, facts.maxexp, 7, dtype=dtype))
    exponents = np.log2(w.astype(np.float64))
    assert logs(header, dtype, w) == pytest.approx(
        [math.log(2) * exponents.sum(), math.log(2) ** 2 * (exponents**2).sum()], rel=1e-15
    )
    assert logs(header, dtype, [1, 1, 1]).tolist() == [0, 0]


@both_types
def test_logarithms_add_up(header, dtype):
    w = np.abs(np.random.default_rng(0).standard_normal(256) * 0.02).astype(dtype)
    log = np.log(w.astype(np.float64))
    assert logs(header, dtype, w) == pytest.approx([log.sum(), (log**2).sum()], rel=1e-7)


def hyperparameters(**values):
    usual = {"lr": 1e-3, "decay_factor": 0.9999, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "sign": 1}
    return np.array([(usual | {"float32_corrections": 0} | values)[name] for name in HYPERPARAMETERS], float)


def corrections(header, count, **values):
    found = np.empty(2)
    called(header.corrections, hyperparameters(**values), np.float64(count), found)
    return found.tolist()


def test_corrections_by_hand(header):
    # 1 − ½ and 1 − ¾ at the first step: √¼ = ½, by ½.
    assert corrections(header, 1, beta1=0.5, beta2=0.75) == [0.5, 1]
    assert corrections(header, 3, beta1=0.0, beta2=0.0) == [1, 1]


@pytest.mark.parametrize("count", [1, 2, 10, 1000, 1_000_000])
def test_corrections(header, count):
    root = math.sqrt(1 - 0.999**count)
    expected = [root, root / (1 - 0.9**count)]
    assert corrections(header, count, beta2=0.999) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_corrections_that_torch_rounded_to_float32(header, count):
    one = np.float32(1)
    first, second = (float(one - np.float32(beta) ** np.float32(count)) for beta in (0.9, 0.999))
    # Powers of one library and of the other may differ in the last bit.
    allowed = 2.0**-24 / second
    found = corrections(header, count, beta2=0.999, float32_corrections=1)
    assert found == pytest.approx([math.sqrt(second), math.sqrt(second) / first], rel=allowed)
    exact = corrections(header, count, beta2=0.999)
    assert found != exact
    assert found == pytest.approx(exact, rel=1e-4)


def sums_of(w, u=None, after=None):
    """STEP_SUMS in float64: of weights and the raw update, or without one."""
    u = np.zeros_like(w) if u is None else u
    now = w if after is None else after
    log = np.log(np.abs(now[now != 0]))
    change = 0.0 if after is None else ((after - w) * (after + w)).sum()
    found = [w @ u, u @ u, w @ w, log.sum(), log @ log, np.abs(now).max(), (now == 0).sum(), 0, change]
    return np.array(found, float)


def book(header, row, sums, set_, scale, count):
    called(header.book_step, row, sums, set_, np.float64(scale), np.float64(count))


def named(row):
    return dict(zip(LEDGER_COLUMNS, row.tolist(), strict=True))


def test_an_interval_of_two_steps_by_hand(header):
    row, set_ = np.zeros(len(LEDGER_COLUMNS)), hyperparameters(lr=0.5, decay_factor=0.75)
    # ⟨w,u⟩ = 2·3, ‖u‖² = 4·5, ‖w‖² = 8, with a scale of 2: η = ½ and what decay takes is ¼.
    book(header, row, np.array([3, 5, 8, -1, 2, 1.5, 0, 0, -4], float), set_, 2, 1)
    first = {"alignment": -6, "injection": 5, "decay": -4, "coupling": 2, "change": -4, "steps": 1}
    first |= {"norm_sq_start": 8, "norm_sq": 4, "log_sum": -1, "log_sq_sum": 2, "max_abs": 1.5}
    assert named(row) == first | {"zero_count": 0, "non_finite_count": 0, "step": 1}
    # ⟨w,u⟩ = 1, ‖u‖² = 1, ‖w‖² = 4.
    book(header, row, np.array([1, 1, 4, -3, 4, 1.25, 2, 1, 1], float), set_, 1, 2)
    second = {"alignment": -7, "injection": 5.25, "decay": -6, "coupling": 2.5, "change": -3, "steps": 2}
    second |= {"norm_sq_start": 8, "norm_sq": 5, "log_sum": -3, "log_sq_sum": 4, "max_abs": 1.25}
    assert named(row) == second | {"zero_count": 2, "non_finite_count": 1, "step": 2}


@pytest.fixture
def stepped():
    """Weights, raw update and weights after a step at count 3; the decay is strong, so that it shows."""
    generator = np.random.default_rng(0)
    w, raw = generator.standard_normal((2, 1000))
    w[:3] = raw[:3] = 0
    set_ = hyperparameters(lr=0.01, decay_factor=0.9)
    scale = math.sqrt(1 - 0.95**3) / (1 - 0.9**3)
    return w, raw, 0.9 * w - 0.01 * scale * raw, set_, scale


def test_the_booked_forces_balance(header, stepped):
    w, raw, after, set_, scale = stepped
    row = np.zeros(len(LEDGER_COLUMNS))
    book(header, row, sums_of(w, raw, after), set_, scale, 3)
    found = named(row)
    assert sum(found[force] for force in FORCES) == pytest.approx(after @ after - w @ w, rel=1e-12)
    assert found["norm_sq"] == pytest.approx(after @ after, rel=1e-14)
    u, eta, lost = scale * raw, 0.01, 0.1
    assert [found[force] for force in FORCES] == pytest.approx(
        [-2 * eta * w @ u, eta**2 * u @ u, -2 * lost * w @ w, 2 * eta * lost * w @ u + lost**2 * w @ w],
        rel=1e-12,
    )


def test_a_step_is_told_from_the_weights_after_it(header, stepped):
    w, raw, after, set_, scale = stepped
    expected, found = np.zeros((2, len(LEDGER_COLUMNS)))
    book(header, expected, sums_of(w, raw, after), set_, scale, 3)
    called(header.after_step, found, sums_of(after, raw), set_, np.float64(3))
    known = [column for column in LEDGER_COLUMNS if column != "change"]  # nothing measured that one
    assert [named(found)[column] for column in known] == pytest.approx(
        [named(expected)[column] for column in known], rel=1e-11
    )
    assert named(found)["change"] == 0


def test_a_step_with_float32_corrections_is_told_by_them(header, stepped):
    _, raw, after, set_, scale = stepped
    found = np.zeros(len(LEDGER_COLUMNS))
    set_[HYPERPARAMETERS.index("float32_corrections")] = 1
    scale32 = corrections(header, 3, float32_corrections=1)[1]
    called(header.after_step, found, sums_of(after, raw), set_, np.float64(3))
    assert named(found)["injection"] == pytest.approx((0.01 * scale32) ** 2 * raw @ raw, rel=1e-14)
    assert 0 < abs(scale32 / scale - 1) < 1e-5


def test_a_tensor_without_a_step_has_no_forces(header):
    row, w = np.full(len(LEDGER_COLUMNS), np.nan), np.array([3.0, -4, 0])
    # Without moments every update is 0, whatever the settings; eight of the sums are read.
    called(header.after_step, row, sums_of(w), hyperparameters(), np.float64(0))
    expected = dict.fromkeys(LEDGER_COLUMNS, 0.0) | {"norm_sq_start": 25, "norm_sq": 25, "max_abs": 4}
    logs = np.log([3, 4])
    expected |= {"log_sum": logs.sum(), "log_sq_sum": logs @ logs, "zero_count": 1}
    assert named(row) == pytest.approx(expected, rel=1e-15)


def test_parts_add_up(header):
    total = np.array([1, 2, 3, -4, 5, 0.5, 6, 7, -8], float)
    called(header.add_up, total, np.array([10, 20, 30, -40, 50, 0.25, 60, 70, -80], float))
    assert dict(zip(STEP_SUMS, total.tolist(), strict=True)) == {
        "weight_update": 11,
        "update_sq": 22,
        "weight_sq": 33,
        "log_sum": -44,
        "log_sq_sum": 55,
        "max_abs": 0.5,
        "zero_count": 66,
        "non_finite_count": 77,
        "change": -88,
    }
