"""What every backend reads of a step just made, against the definition: the step undone in float64."""

import math

import pytest
import torch
from oracle import (
    BACKENDS,
    GROUP,
    LOG_TOLERANCE,
    TOLERANCE,
    assert_within,
    kernel,
    make_step,
    same_bits,
)
from test_kernels import DTYPES, HALF, INPUTS, LAYOUTS, dtype_id, moments_of, readable

from weibull_kernels.dispatch import KERNELS
from weibull_kernels.kernels import reference
from weibull_kernels.kernels.interface import BINS, HYPERPARAMETERS, LEDGER_COLUMNS, SteppedTensors
from weibull_kernels.kernels.triton_tuning import Tuning, tuned_as

# Triton's interpreter works in numpy, which warns of what a GPU does in silence.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning")
    for what in ("invalid value", "overflow", "divide by zero")
]

every_backend = pytest.mark.parametrize("backend", [name for name in BACKENDS if ("forces", name) in KERNELS])
FORCES = LEDGER_COLUMNS[:4]


def made(*rows, groups=({},), group_of=None, counts=3):
    """Tensors after a step, from rows (w,), (w, m, v) or (w, m, v, max v), and their hyperparameters."""
    rows = [(*row, *[None] * (4 - len(row))) for row in rows]
    count = torch.as_tensor(counts, dtype=torch.float32).expand(len(rows))
    settings = [[{**GROUP, **group}[name] for name in HYPERPARAMETERS] for group in groups]
    tensors = SteppedTensors(
        weights=[row[0] for row in rows],
        exp_avgs=[row[1] for row in rows],
        exp_avg_sqs=[row[2] for row in rows],
        max_exp_avg_sqs=[row[3] for row in rows],
        counts=[c.clone() for c in count],
        groups=[0] * len(rows) if group_of is None else group_of,
        places=[7] * len(rows),  # nobody looks at them
    )
    return tensors, torch.tensor(settings, dtype=torch.float64)


def row(weight, *dtypes):
    return weight, *moments_of(weight, *(dtypes or (weight.dtype, weight.dtype)))


def forces(backend, *args, histogram=False):
    return kernel("forces", backend)(*args, with_histogram=histogram)


def correction(beta, count, in_float32):
    if in_float32:
        return (
            1 - (torch.tensor(beta, dtype=torch.float32) ** torch.tensor(count, dtype=torch.float32)).item()
        )
    return 1 - beta**count


def expected(tensors, hyperparameters, i, tolerance):
    """Of row `i` each column by name, and how far from it a result may be."""
    group = dict(zip(HYPERPARAMETERS, hyperparameters[tensors.groups[i]].tolist(), strict=True))
    lr, c, count = group["lr"], group["decay_factor"], tensors.counts[i].item()
    after = tensors.weights[i].detach().double()
    u = torch.zeros_like(after)
    if count and tensors.exp_avgs[i] is not None:
        bc1, bc2 = (correction(group[b], count, group["float32_corrections"]) for b in ("beta1", "beta2"))
        largest = tensors.max_exp_avg_sqs[i]
        v = (tensors.exp_avg_sqs[i] if largest is None else largest).double()
        u = (tensors.exp_avgs[i].double() / bc1) / ((v / bc2).sqrt() + group["eps"])
    w = (after + lr * u) / c if count else after
    wu, uu, ww, lost = (w * u).sum(), (u * u).sum(), (w * w).sum(), 1 - c
    # Of sums taken after the step, in units of the norm before it.
    wu_error = tolerance * ((after * u).abs().sum() + lr * uu) / abs(c)
    ww_error = tolerance * (ww + (2 * lr * (after * u).abs().sum() + lr**2 * uu) / c**2)
    moved = float(count > 0)
    sums = reference.sums(reference_rows(after))
    logs = LOG_TOLERANCE * (1 + reference.log_magnitudes(after).abs()).sum()
    exact = 0 * logs
    return {
        "alignment": (moved * (-2 * lr * wu), 2 * lr * wu_error),
        "injection": (moved * lr**2 * uu, lr**2 * tolerance * uu),
        "decay": (moved * (-2 * lost * ww), 2 * abs(lost) * ww_error),
        "coupling": (
            moved * lost * (2 * lr * wu + lost * ww),
            abs(lost) * (2 * lr * wu_error + abs(lost) * ww_error),
        ),
        "change": (exact, exact),
        "steps": (exact + moved, exact),
        "norm_sq_start": (ww, ww_error),
        "norm_sq": ((after * after).sum(), tolerance * (after * after).sum()),
        "log_sum": (sums.log_sum[0], logs),
        "log_sq_sum": (sums.log_sq_sum[0], logs),
        "max_abs": (sums.max_abs[0], exact),
        "zero_count": (sums.zero_count[0].double(), exact),
        "non_finite_count": (sums.non_finite_count[0].double(), exact),
        "step": (exact + count, exact),
    }


def reference_rows(weight):
    ones = torch.ones(1, dtype=torch.float64)
    return reference.Rows([weight], [None], [None], ones, ones, ones)


def assert_forces(backend, tensors, hyperparameters, histogram=False):
    """Every row against its definition, and that reading changed nothing; returns the rows."""
    columns = (
        tensors.weights,
        tensors.exp_avgs,
        tensors.exp_avg_sqs,
        tensors.max_exp_avg_sqs,
        tensors.counts,
    )
    before = [None if t is None else t.detach().clone() for column in columns for t in column]
    found, bins = forces(backend, tensors, hyperparameters, histogram=histogram)
    for copy, tensor in zip(before, [t for column in columns for t in column], strict=True):
        assert copy is None or same_bits(copy, tensor)
    assert (found.shape, found.dtype) == ((len(tensors), len(LEDGER_COLUMNS)), torch.float64)
    for i in range(len(tensors)):
        booked = dict(zip(LEDGER_COLUMNS, found[i], strict=True))
        for name, (value, allowed) in expected(tensors, hyperparameters, i, TOLERANCE[backend]).items():
            if value.isfinite():
                assert_within(booked[name][None], value[None], allowed[None], f"{name} of tensor {i},")
            else:  # whether ∞ or NaN depends on what was subtracted
                assert not booked[name].isfinite(), (name, i)
    if histogram:
        counts = [reference.histogram(w.detach().double()) for w in tensors.weights]
        assert torch.equal(bins, torch.stack(counts) if counts else torch.zeros(0, BINS, dtype=torch.int64))
    else:
        assert bins is None
    return found


@every_backend
def test_a_case_by_hand(backend):
    # The step of test_adamw_kernel's case by hand, seen from behind: w⁺ = 5/4, −3/8, 0 after the first step.
    w, m, v = torch.tensor([1.25, -0.375, 0]), torch.tensor([0.5, -1.5, 0]), torch.tensor([0.25, 2.25, 0])
    group = {"lr": 0.5, "decay_factor": 0.75, "beta1": 0.5, "beta2": 0.75, "eps": 1.0}
    found, bins = forces(backend, *made((w, m, v), groups=[group], counts=1), histogram=True)
    booked = dict(zip(LEDGER_COLUMNS, found[0].tolist(), strict=True))
    logs = [math.log(1.25), math.log(0.375)]
    assert booked == pytest.approx(
        {
            "alignment": -2 * 0.5 * 7 / 4,
            "injection": 0.25 * 13 / 16,
            "decay": -2 * 0.25 * 5,
            "coupling": 0.25 * (2 * 0.5 * 7 / 4 + 0.25 * 5),
            "change": 0,
            "steps": 1,
            "norm_sq_start": 5,
            "norm_sq": 25 / 16 + 9 / 64,
            "log_sum": sum(logs),
            "log_sq_sum": sum(log**2 for log in logs),
            "max_abs": 1.25,
            "zero_count": 1,
            "non_finite_count": 0,
            "step": 1,
        },
        rel=1e-6,
        abs=1e-15,
    )
    assert bins[0].nonzero().flatten().tolist() == [125 * 64 + 32, 127 * 64 + 16]


# Triton's interpreter is slow: it gets some of them.
SOME = [
    "0-dim",
    "empty",
    "empty matrix",
    "17",
    "257",
    "16385",
    "channels last",
    "transposed",
    "from entry 1",
    "expanded",
]


@every_backend
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(map(dtype_id, d)))
def test_layouts(backend, dtypes):
    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtypes[0])

    rows = []
    for i, name in enumerate(SOME if backend == "triton" else LAYOUTS):
        w, m, v = row(LAYOUTS[name](draw), *dtypes[1:])
        rows.append((w, m, v, 2 * v) if i % 2 else (w, m, v))
    assert_forces(backend, *made(*rows), histogram=True)


@every_backend
def test_moments_in_another_order_of_memory_than_the_weight(backend):
    w, m, v = row(torch.randn(3, 5, 7, 9))
    last = torch.channels_last
    rows = [(w, m.to(memory_format=last), v), (w.to(memory_format=last), m, v, v.clone())]
    wide, m, v = row(torch.randn(8, 30))
    rows += [(wide[:, ::3], m[:, :10], v[:, 20:]), (wide.T, m.T.contiguous(), v.T)]
    tensors, numbers = made(*rows)
    assert_forces(backend, tensors, numbers)
    for m in tensors.exp_avgs:  # copies are made anew
        m.mul_(2)
    assert_forces(backend, tensors, numbers)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_inputs(backend, dtype):
    weights = [readable(make(523).to(dtype), backend) for make in INPUTS.values()]
    rows = [row(weight, torch.float32, torch.float32) for weight in weights]
    assert_forces(backend, *made(*rows), histogram=True)


@every_backend
@pytest.mark.parametrize(
    "group",
    [
        {"beta1": 0.0},
        {"beta2": 0.0},
        {"decay_factor": 1.0},
        {"lr": 0.0},
        {"lr": 1.0, "decay_factor": -0.5},
        {"decay_factor": 1e-30},
        {"eps": 1e-3},
        {"beta2": 0.95, "float32_corrections": 1.0},
        {"sign": -1.0},  # sits in exp_avg already
    ],
    ids=str,
)
def test_settings(backend, group):
    rows = [row(torch.randn(300)) for _ in range(5)]
    rows.append(row(torch.randn(300, dtype=torch.float64)))
    counts = [0, 1, 2, 999, 100_000, 3]
    other = {"lr": 0.3, "decay_factor": 0.9}
    assert_forces(backend, *made(*rows, groups=[other, group], group_of=[1] * 5 + [0], counts=counts))


@every_backend
def test_corrections_that_torch_rounded_to_float32_differ(backend):
    rows = [row(torch.randn(300)) for _ in range(2)]
    rows[1] = rows[0]
    groups = [{"beta2": 0.999}, {"beta2": 0.999, "float32_corrections": 1.0}]
    found = assert_forces(backend, *made(*rows, groups=groups, group_of=[0, 1], counts=1))
    assert found[0, 1] != found[1, 1]
    assert found[0, 1].item() == pytest.approx(found[1, 1].item(), rel=1e-4)


@every_backend
def test_a_tensor_that_made_no_step_has_no_force(backend):
    w, m, v = row(torch.randn(300))
    broken = w.clone()
    broken[7] = math.nan
    zero = torch.zeros(300)
    tensors, numbers = made(
        (w,), (w, m, v), (broken,), (w, zero, zero), (broken, m, v), counts=[0, 3, 0, 0, 0]
    )
    found, _ = forces(backend, tensors, numbers)
    for i in (0, 2, 3, 4):
        booked = dict(zip(LEDGER_COLUMNS, found[i].tolist(), strict=True))
        assert [booked[name] for name in (*FORCES, "change", "steps", "step")] == [0] * 7
        assert same_bits(
            found[i, LEDGER_COLUMNS.index("norm_sq")], found[i, LEDGER_COLUMNS.index("norm_sq_start")]
        )
    assert_forces(backend, *made((w,), (w, m, v), (w, zero, zero), counts=[0, 3, 0]))


@every_backend
def test_what_a_step_books_is_what_is_seen_after_it(backend):
    columns = [(torch.randn(n), torch.randn(n), *moments_of(torch.randn(n))) for n in (700, 33)]
    tensors, step = make_step(*columns, groups=[{"lr": 0.01, "decay_factor": 0.999}])
    kernel("adamw", backend)(tensors, step)
    found, _ = forces(backend, tensors, step.hyperparameters)
    booked = dict(zip(LEDGER_COLUMNS, step.ledger.unbind(1), strict=True))
    seen = dict(zip(LEDGER_COLUMNS, found.unbind(1), strict=True))
    budget = sum(booked[name].abs() for name in FORCES)
    for name in FORCES:  # apart by the rounding of the weights
        assert ((seen[name] - booked[name]).abs() <= 1e-5 * budget).all(), name
    for name in ("norm_sq_start", "norm_sq"):
        assert seen[name].tolist() == pytest.approx(booked[name].tolist(), rel=1e-6)
    for name in ("log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count", "step"):
        assert seen[name].tolist() == pytest.approx(booked[name].tolist(), rel=1e-12)


@every_backend
def test_same_bits_when_called_again_and_when_made_anew(backend):
    tensors, numbers = made(*(row(torch.randn(n)) for n in (5000, 17, 1)))
    found = [forces(backend, tensors, numbers, histogram=h)[0] for h in (False, True, False)]
    anew = SteppedTensors(**{**vars(tensors), "prepared": {}})
    found.append(forces(backend, anew, numbers)[0])
    for other in found[1:]:
        assert same_bits(found[0], other)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_same_bits_wherever_the_memory_begins(backend, dtype):
    columns = row(torch.randn(600).to(dtype))

    def moved(tensor, offset):
        return torch.cat([tensor.new_full((offset,), math.nan), tensor])[offset:]

    found = [
        forces(backend, *made(tuple(moved(t, offset) for t in columns)), histogram=True)
        for offset in (0, 1, 3)
    ]
    for rows, bins in found[1:]:
        assert same_bits(found[0][0], rows)
        assert torch.equal(found[0][1], bins)


@pytest.mark.parametrize(
    "sizes",
    [
        {"on_chip": False, "window": 64},
        {"on_chip": False, "window": 1024, "counted": 4},
        {"window": 2048, "counted": 4},
        {"num_warps": 4, "vector": 8, "stages": 3},
    ],
    ids=str,
)
def test_triton_counts_the_same_whatever_its_sizes(sizes):
    weights = [readable(INPUTS[name](5000), "triton") for name in ("Weibull", "wide", "all kinds", "zeros")]
    rows = [row(weight.to(dtype)) for weight in weights for dtype in (torch.float32, torch.float64)]
    with tuned_as("sums and histogram", Tuning(chunk=2048, **sizes)):
        assert_forces("triton", *made(*rows), histogram=True)


@every_backend
def test_counts_of_one_entry_may_have_any_shape(backend):
    tensors, numbers = made(row(torch.randn(30)), row(torch.randn(5)), counts=[2, 9])
    plain, _ = forces(backend, tensors, numbers)
    shaped = SteppedTensors(
        **{**vars(tensors), "counts": [c.reshape(1) for c in tensors.counts], "prepared": {}}
    )
    assert same_bits(plain, forces(backend, shaped, numbers)[0])


@every_backend
def test_no_rows(backend):
    found, bins = forces(backend, *made(), histogram=True)
    assert (found.shape, bins.shape) == ((0, len(LEDGER_COLUMNS)), (0, BINS))
