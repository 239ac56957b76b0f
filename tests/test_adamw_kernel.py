"""One step of AdamW by every backend against its definition in float64, and what it books."""

import dataclasses
import math

import pytest
import torch
from oracle import (
    BACKENDS,
    assert_same_step,
    assert_steps,
    copy_of,
    kernel,
    make_step,
    same_bits,
)
from test_kernels import DTYPES, HALF, INPUTS, LAYOUTS, dtype_id, moments_of, readable

from weibull_kernels.kernels import cpu
from weibull_kernels.kernels.interface import LEDGER_COLUMNS

# Triton's interpreter works in numpy, which warns of what a GPU does in silence.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning")
    for what in ("invalid value", "overflow", "divide by zero")
]

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def row(weight, exp_avg_dtype=None, exp_avg_sq_dtype=None, amsgrad=False):
    """(w, g, m, v) in the weight's own layout, with max v where asked for."""
    m, v = moments_of(weight, exp_avg_dtype or weight.dtype, exp_avg_sq_dtype or weight.dtype)
    g = torch.empty_like(weight).copy_(1e-2 * torch.randn(weight.shape, dtype=torch.float64))
    if not amsgrad:
        return weight, g, m, v
    twice_or_none = 2 * (torch.rand(v.shape) < 0.5).to(v.dtype)
    return weight, g, m, v, v * twice_or_none


def step(backend, *columns, **options):
    """What was stepped and with what, after the step."""
    made = make_step(*columns, **options)
    kernel("adamw", backend)(*made)
    return made


def inputs(dtype):
    """Weights of every kind; infinite ones have a test of their own."""
    weights = [make(523).to(dtype) for make in INPUTS.values()]
    return [weight.where(~weight.isinf(), 1.0) for weight in weights]


@every_backend
def test_a_case_by_hand(backend):
    # The first step, so m̂ = g and v̂ = g². With ε = 1: u = g/(|g|+1) = 1/2, −3/4, 0.
    # η = ½ and c = ¾: w⁺ = ¾·2 − ½·½ = 5/4, ¾·(−1) + ½·¾ = −3/8 and 0.
    w, g, m, v = torch.tensor([2.0, -1, 0]), torch.tensor([1.0, -3, 0]), torch.zeros(3), torch.zeros(3)
    group = {"lr": 0.5, "decay_factor": 0.75, "beta1": 0.5, "beta2": 0.75, "eps": 1.0}
    tensors, done = step(backend, (w, g, m, v), groups=[group], counts=0)
    assert w.tolist() == [1.25, -0.375, 0]
    assert m.tolist() == [0.5, -1.5, 0]
    assert v.tolist() == [0.25, 2.25, 0]
    assert g.tolist() == [1, -3, 0]
    assert tensors.counts[0].item() == 1
    # ⟨w,u⟩ = 7/4, ‖u‖² = 13/16, ‖w‖² = 5.
    booked = dict(zip(LEDGER_COLUMNS, done.ledger[0].tolist(), strict=True))
    assert booked.pop("log_sum") == pytest.approx(math.log(1.25) + math.log(0.375), rel=1e-6)
    assert booked.pop("log_sq_sum") == pytest.approx(math.log(1.25) ** 2 + math.log(0.375) ** 2, rel=1e-6)
    assert booked == {
        "alignment": -2 * 0.5 * 7 / 4,
        "injection": 0.25 * 13 / 16,
        "decay": -2 * 0.25 * 5,
        "coupling": 0.25 * (2 * 0.5 * 7 / 4 + 0.25 * 5),
        "change": 25 / 16 + 9 / 64 - 5,
        "steps": 1,
        "norm_sq_start": 5,
        "norm_sq": 25 / 16 + 9 / 64,
        "max_abs": 1.25,
        "zero_count": 1,
        "non_finite_count": 0,
        "step": 1,
    }


# A weight cannot hold an entry twice. Triton's interpreter is slow: it gets some of them.
STEPPED = [name for name in LAYOUTS if name != "expanded"]
SOME = ["0-dim", "empty", "17", "257", "16385", "channels last", "transposed", "every other column"]


@every_backend
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(map(dtype_id, d)))
def test_layouts(backend, dtypes):
    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtypes[0])

    columns = [
        row(LAYOUTS[name](draw), *dtypes[1:], amsgrad=amsgrad)
        for i, name in enumerate(SOME if backend == "triton" else STEPPED)
        for amsgrad in ([bool(i % 2)] if backend == "triton" else [False, True])
    ]
    assert_steps(backend, *make_step(*columns))


def in_order(order):
    def arranged(tensor):
        return torch.empty_like(tensor, memory_format=order).copy_(tensor)

    return arranged


def gapped(tensor):
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 7.0, dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


CHANGES = {
    "channels last": in_order(torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "with gaps": gapped,
}


OTHERS = {
    "weight": [0],
    "gradient": [1],
    "m": [2],
    "v": [3],
    "max v": [4],
    "all but the weight": [1, 2, 3, 4],
}


@every_backend
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("others", OTHERS)
def test_columns_in_other_orders_of_memory_than_the_weight(backend, change, others):
    columns = list(row(torch.randn(3, 5, 7, 9), amsgrad=True))
    for i in OTHERS[others]:
        columns[i] = CHANGES[change](columns[i])
    tensors, first = make_step(columns, row(torch.randn(40)))
    assert_steps(backend, tensors, first)
    # The orders are known by now; in the second step the gradients have none of their own.
    second = make_step(columns, row(torch.randn(40)))[1]
    plain = [torch.randn(3, 5, 7, 9), torch.randn(40)]
    assert_steps(backend, tensors, dataclasses.replace(second, grads=plain))


@every_backend
def test_a_gradient_that_keeps_its_sign_beside_the_memory(backend):
    plain = row(torch.randn(9, 17))
    negative = [t.clone() for t in plain]
    negative[1] = torch._neg_view(-plain[1])
    assert negative[1].is_neg()
    tensors, done = make_step(plain, negative)
    assert_steps(backend, tensors, done)
    assert same_bits(*tensors.weights)
    assert same_bits(done.ledger[0], done.ledger[1])


@every_backend
def test_a_gradient_that_holds_an_entry_for_many(backend):
    w, _, m, v = row(torch.randn(9, 17))
    assert_steps(backend, *make_step((w, torch.randn(1, 17).expand(9, 17), m, v)))


@every_backend
def test_nothing_is_written_between_the_entries_of_a_weight(backend):
    wide = torch.randn(33, 40)
    before, w = wide.clone(), wide[3:20, 1:30:2]
    assert_steps(backend, *make_step(row(w)))
    assert not torch.equal(wide, before)
    wide[3:20, 1:30:2] = before[3:20, 1:30:2]
    assert torch.equal(wide, before)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_inputs(backend, dtype):
    gradients = [1e-2, 1e-20, 0.0, min(1e15, torch.finfo(dtype).max / 1e4)]  # float32 holds their squares
    columns = []
    for i, weight in enumerate(inputs(dtype)):
        for gradient in [gradients[i % 4]] if backend == "triton" else gradients:
            w, _, *moments = row(readable(weight, backend), torch.float32, torch.float32)
            g = (gradient * torch.randn(len(w), dtype=torch.float64)).to(dtype)
            columns.append((w.clone(), readable(g, backend), *moments))
    assert_steps(backend, *make_step(*columns))


BAD = {
    "weight": [math.nan, math.inf, -math.inf],
    "gradient": [math.nan, math.inf, -math.inf],
    "m": [math.nan],
    "v": [math.nan, math.inf],  # infinite once g² was too large: the entry only decays from then on
}


@every_backend
@pytest.mark.parametrize("column", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_a_non_finite_entry_stays_where_it_is(backend, dtype, column):
    plain, columns = row(torch.randn(300).to(dtype)), []
    for entry in BAD[column]:
        columns += [[t.clone() for t in plain], [t.clone() for t in plain]]
        columns[-1][list(BAD).index(column)][100] = entry
    tensors, done = make_step(*columns)
    assert_steps(backend, tensors, done)
    others = torch.arange(300) != 100
    for i, entry in enumerate(BAD[column]):
        assert same_bits(tensors.weights[2 * i], tensors.weights[0])
        assert same_bits(tensors.weights[2 * i + 1][others], tensors.weights[0][others])
        assert same_bits(done.ledger[2 * i], done.ledger[0])
        bad = dict(zip(LEDGER_COLUMNS, done.ledger[2 * i + 1].tolist(), strict=True))
        harmless = column == "v" and entry == math.inf
        assert bad["non_finite_count"] == (0 if harmless else 1)
        assert math.isfinite(bad["alignment"]) == harmless
        assert all(math.isfinite(bad[name]) for name in ("log_sum", "log_sq_sum", "max_abs"))


@every_backend
@pytest.mark.parametrize(
    "group",
    [
        {"beta1": 0.0},
        {"beta1": 0.4},  # the gradient is nearer to the mean than the mean of before
        {"beta2": 0.0},
        {"beta1": 0.5, "beta2": 0.999},
        {"decay_factor": 1.0},
        {"decay_factor": 0.0},
        {"lr": 0.0},
        {"lr": 1.0, "decay_factor": -0.5},
        {"eps": 1e-3},
        {"eps": 1e-15, "beta2": 0.95},
        {"sign": -1.0},
    ],
    ids=str,
)
def test_settings(backend, group):
    columns = [row(torch.randn(300), amsgrad=amsgrad) for amsgrad in (False, True) for _ in range(4)]
    columns.append(row(torch.randn(300, dtype=torch.float64)))
    assert_steps(backend, *make_step(*columns, groups=[group], counts=[0, 1, 999, 100_000] * 2 + [3]))


@every_backend
def test_without_a_memory_the_mean_is_the_gradient(backend):
    w, g, m, v = row(torch.randn(300))
    step(backend, (w, g, m, v), groups=[{"beta1": 0.0, "beta2": 0.0}])
    assert same_bits(m, g)
    assert torch.allclose(v, g * g, rtol=1e-6, atol=0)


@every_backend
def test_maximize_is_a_step_against_the_gradient(backend):
    w, g, m, v = row(torch.randn(523))
    towards = step(backend, (w.clone(), g.clone(), m.clone(), v.clone()), groups=[{"sign": -1.0}])
    against = step(backend, (w, -g, m, v))
    assert_same_step(towards, against, but=("grads",))


@every_backend
def test_amsgrad_keeps_the_largest(backend):
    w, g, m, v = row(torch.randn(523))
    before, large, small = (
        w.clone(),
        (w.clone(), g, m.clone(), v.clone(), torch.ones(523)),
        (w, g, m, v, torch.zeros(523)),
    )
    tensors, _ = step(backend, large, small)
    assert (tensors.max_exp_avg_sqs[0] == 1).all()
    assert same_bits(tensors.max_exp_avg_sqs[1], tensors.exp_avg_sqs[1])
    # √1 is some 500 times the root of any v here, and so is the divisor of m.
    moved = [(after - 0.999 * before).norm() for after in tensors.weights]
    assert moved[0] < 0.01 * moved[1]


@every_backend
def test_groups_and_counts_are_each_rows_own(backend):
    w, g, m, v = row(torch.randn(100))
    groups = [{}, {"lr": 0.1, "beta1": 0.5}, {"decay_factor": 0.9, "eps": 1e-3, "sign": -1.0}, {"beta2": 0.5}]
    group_of, counts = [0, 1, 2, 3, 1, 0], [0, 1, 2, 3, 1000, 5]
    columns = [tuple(t.clone() for t in (w, g, m, v)) for _ in group_of]
    tensors, done = make_step(*columns, groups=groups, group_of=group_of, counts=counts)
    assert_steps(backend, tensors, done)
    assert [count.item() for count in tensors.counts] == [1, 2, 3, 4, 1001, 6]
    assert len({tuple(w.tolist()) for w in tensors.weights}) == len(group_of)
    for i in range(len(group_of)):  # and alone it is the same
        alone = step(
            backend, (w.clone(), g, m.clone(), v.clone()), groups=[groups[group_of[i]]], counts=counts[i]
        )
        assert same_bits(alone[0].weights[0], tensors.weights[i])
        assert same_bits(alone[1].ledger[0], done.ledger[i])


@every_backend
def test_rows_are_booked_at_their_places(backend):
    columns = [row(torch.randn(n)) for n in (100, 17, 0, 300)]
    tensors, done = make_step(*columns, places=[5, 0, 3, 1], ledger_rows=8)
    _, plain = step(backend, *([t.clone() for t in c] for c in columns))
    untouched = torch.rand(8, len(LEDGER_COLUMNS), dtype=torch.float64)
    done.ledger[[2, 4, 6, 7]] = untouched[[2, 4, 6, 7]]
    assert_steps(backend, tensors, done)
    assert same_bits(done.ledger[[5, 0, 3, 1]], plain.ledger)
    assert same_bits(done.ledger[[2, 4, 6, 7]], untouched[[2, 4, 6, 7]])


@every_backend
@pytest.mark.parametrize("layout", ["plain", "with gaps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_a_gradient_scaler_divides_and_the_gradient_is_written_back(backend, dtype, layout):
    w, g, m, v = row(torch.randn(9, 60).to(dtype), torch.float32, torch.float32)
    scaled = (g * 1024.0).contiguous()
    if layout == "with gaps":
        w, scaled = gapped(w), gapped(scaled)
    tensors, done = make_step((w, scaled, m, v), grad_scale=1024.0, found_inf=0.0)
    assert_steps(backend, tensors, done)
    assert same_bits(scaled, g)


@every_backend
@pytest.mark.parametrize("scale", [3.0, 1e-3, 65536.0])
def test_a_scale_need_not_be_a_power_of_two(backend, scale):
    columns = [row(torch.randn(n)) for n in (16385, 0)]
    assert_steps(backend, *make_step(*columns, row(torch.randn(300).bfloat16()), grad_scale=scale))


@every_backend
@pytest.mark.parametrize("layout", ["plain", "with gaps"])
def test_a_found_infinity_stops_everything(backend, layout):
    w, g, m, v, largest = row(torch.randn(9, 60), amsgrad=True)
    g[0, 0] = math.inf
    w = gapped(w) if layout == "with gaps" else w
    made = make_step((w, g, m, v, largest), row(torch.randn(7)), grad_scale=2.0, found_inf=1.0)
    made[1].ledger.copy_(torch.rand(2, len(LEDGER_COLUMNS)))
    before = copy_of(*made)
    kernel("adamw", backend)(*made)
    assert_same_step(before, made)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_id)
def test_weights_are_the_same_bits_with_a_ledger_and_without(backend, dtype):
    booked = make_step(
        row(torch.randn(15).to(dtype)),
        *(row(weight) for weight in inputs(dtype)[:: 3 if backend == "triton" else 1]),
    )
    tensors, done = copy_of(*booked)
    plain = tensors, dataclasses.replace(done, ledger=None)
    for made in (booked, plain):
        kernel("adamw", backend)(*made)
    assert_same_step(booked, plain, but=("ledger",))


@every_backend
def test_steps_add_up(backend):
    columns = [row(torch.randn(300)), row(torch.randn(523).bfloat16(), torch.float32, torch.float32)]
    tensors, done = make_step(*columns, groups=[{}, {"lr": 0.1}], group_of=[0, 1], counts=0)
    start = [w.double().square().sum().item() for w in tensors.weights]
    for _ in range(5):
        for g in done.grads:
            g.copy_(torch.randn(g.shape))
        assert_steps(backend, tensors, done)
    booked = dict(zip(LEDGER_COLUMNS, done.ledger.unbind(1), strict=True))
    end = torch.stack([w.double().square().sum() for w in tensors.weights])
    assert booked["steps"].tolist() == booked["step"].tolist() == [5, 5]
    assert booked["norm_sq_start"].tolist() == pytest.approx(start, rel=1e-14)
    assert (booked["change"] - (end - booked["norm_sq_start"])).abs().max() < 1e-12 * end.max()


def many_rows():
    """Enough entries for every thread, in tensors larger and smaller than a chunk."""
    sizes = [300_001, *[257] * 40, 70_000, 16384, 16383, 5, 0, 90_001]
    dtypes = [torch.float32, *HALF] * 16
    return make_step(
        *(
            row(torch.randn(n).to(dtype), torch.float32, torch.float32)
            for n, dtype in zip(sizes, dtypes, strict=False)
        )
    )


@pytest.mark.usefixtures("restore_threads")
def test_same_bits_for_any_number_of_threads():
    made, found = many_rows(), []
    for threads in (1, 2, 4, 3, 1):
        torch.set_num_threads(threads)
        found.append(copy_of(*made))
        for _ in range(2):
            cpu.adamw(*found[-1])
    for other in found[1:]:
        assert_same_step(found[0], other)
    assert_steps("cpu", *made)


@every_backend
def test_same_bits_when_called_again(backend):
    made = make_step(*(row(torch.randn(n)) for n in (5000, 17, 1)))
    again = copy_of(*made)
    for one in (made, again):
        kernel("adamw", backend)(*one)
    assert_same_step(made, again)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=dtype_id)
def test_same_bits_wherever_the_memory_begins(backend, dtype):
    columns, found = row(torch.randn(600).to(dtype), amsgrad=True), []
    for offset in (0, 1, 3, 7):
        moved = [torch.cat([t.new_full((offset,), math.nan), t])[offset:] for t in columns]
        found.append(step(backend, moved))
    for other in found[1:]:
        assert_same_step(found[0], other)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(map(dtype_id, d)))
def test_instruction_sets(dtypes):
    columns = [row(weight, *dtypes[1:], amsgrad=True) for weight in inputs(dtypes[0])]
    columns += [row(torch.randn(40_000).to(dtypes[0]), *dtypes[1:])]
    made, found = make_step(*columns), {}
    for name in cpu.instruction_sets():
        found[name] = copy_of(*made)
        assert_steps("cpu", *found[name], instruction_set=name)
    assert "portable" in found
    fused = [result for name, result in found.items() if name != "portable"]
    for other in fused[1:]:  # the same lanes, whatever the width of a register
        assert_same_step(fused[0], other)


def test_an_instruction_set_that_cannot_run_is_an_error():
    made = make_step(row(torch.randn(3)))
    before = copy_of(*made)
    with pytest.raises(ValueError, match=r"does not run instruction set .avx1024.; it runs: .*portable"):
        cpu.adamw(*made, instruction_set="avx1024")
    assert_same_step(before, made)


@every_backend
def test_no_rows(backend):
    kernel("adamw", backend)(*make_step())
