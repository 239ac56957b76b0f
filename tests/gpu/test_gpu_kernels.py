"""The kernels of every backend on a GPU: agreement with float64, all kinds of memory, the same bits again.

python3 -m pytest --noconftest tests/gpu
"""

import pytest
import torch
from device import (
    BACKENDS,
    DEVICE,
    DTYPES,
    SHAPES,
    STEP_DTYPES,
    assert_forces,
    column,
    columns,
    kernel,
    on_device,
    poisoned,
    rows_of,
    stepped_tensors,
    unaligned,
)
from oracle import (
    GROUP,
    assert_agrees,
    assert_same_bits,
    assert_same_step,
    assert_steps,
    copy_of,
    make_rows,
    make_step,
    same_bits,
)

from weibull_kernels.kernels import cuda
from weibull_kernels.kernels.interface import LEDGER_COLUMNS, Rows, Step, SteppedTensors, Sums

GROUPS = (
    GROUP,
    {"lr": 0.003, "decay_factor": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-4},
    {"lr": 0.02, "float32_corrections": 1.0},
)
# Blocks that share 84 chunks or more: alone, unevenly, all but one with a chunk of its own. 0 is one a chunk.
GRIDS = (1, 7, 50, 83)

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtypes = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)


def same_rows(a, b):
    """Of `forces`: rows and histograms the same to the bit."""
    return same_bits(a[0], b[0]) and (a[1] is b[1] is None or torch.equal(a[1], b[1]))


def measured(dtypes, shapes=SHAPES, seed=0):
    """Tensors as right after steps of three groups, every other one by amsgrad."""
    torch.manual_seed(seed)
    rows = rows_of(dtypes, shapes)
    size = len(shapes)
    maxima = [2 * v if i % 2 else None for i, v in enumerate(rows.exp_avg_sqs)]
    counts = [1.0 + i for i in range(size)]
    return stepped_tensors(rows, counts, GROUPS, [i % len(GROUPS) for i in range(size)], maxima)


@each_dtypes
@each_backend
def test_sums_agree_with_the_reference(backend, dtypes):
    torch.manual_seed(0)
    rows, sums = rows_of(dtypes), kernel("sums", backend)
    found = sums(rows, with_histogram=True)
    assert_agrees(found, rows, 1e-6)
    with poisoned():
        assert_same_bits(found, sums(rows, with_histogram=True))


@pytest.mark.parametrize("histogram", [False, True])
@each_backend
def test_weights_alone(backend, histogram):
    torch.manual_seed(0)
    rows = on_device(make_rows(*((columns(shape, *DTYPES["fp32"])[0],) for shape in SHAPES)))
    assert_agrees(kernel("sums", backend)(rows, with_histogram=histogram), rows, 1e-6)


@each_dtypes
@each_backend
def test_forces_agree_with_the_step_undone(backend, dtypes):
    tensors, table = measured(dtypes)
    found = kernel("forces", backend)(tensors, table, with_histogram=True)
    assert_forces(*found, tensors, table)
    with poisoned():
        assert same_rows(found, kernel("forces", backend)(tensors, table, with_histogram=True))
    rows, none = kernel("forces", backend)(tensors, table)
    assert none is None
    # Entries outside the histogram's window are added one by one where there is one.
    logs = [LEDGER_COLUMNS.index(name) for name in ("log_sum", "log_sq_sum")]
    torch.testing.assert_close(rows[:, logs], found[0][:, logs], rtol=1e-12, atol=0, equal_nan=True)
    rest = [place for place in range(rows.shape[1]) if place not in logs]
    assert same_bits(rows[:, rest], found[0][:, rest])


@each_backend
def test_a_tensor_without_steps_has_no_force(backend):
    tensors, table = measured(DTYPES["fp32"], [(700,), (40_000,), (3,)])
    begun = SteppedTensors(
        **{
            **vars(tensors),
            "exp_avgs": [tensors.exp_avgs[0], None, None],
            "exp_avg_sqs": [tensors.exp_avg_sqs[0], None, None],
            "max_exp_avg_sqs": [None] * 3,
            "counts": [tensors.counts[0], *(torch.zeros((), device=DEVICE) for _ in range(2))],
            "prepared": {},
        }
    )
    found = kernel("forces", backend)(begun, table, with_histogram=True)
    assert_forces(*found, begun, table)
    assert not found[0][1:, : LEDGER_COLUMNS.index("norm_sq_start")].any()


@each_backend
def test_corrections_are_rounded_where_torch_rounded_them(backend):
    """At β = 0.9999 the first one is off by 3e-4 in float32, and shows."""
    group = {"beta1": 0.999, "beta2": 0.9999, "eps": 1e-4}
    for rounded in (0.0, 1.0):
        rows = rows_of(DTYPES["fp32"], [(700,), (40_000,)])
        tensors, table = stepped_tensors(rows, 1.0, ({**group, "float32_corrections": rounded},))
        assert_forces(*kernel("forces", backend)(tensors, table), tensors, table)


@each_backend
def test_tensors_that_change_between_calls_are_read_anew(backend):
    """Tables are kept; what lies in the memory that they name is not."""
    tensors, table = measured(DTYPES["fp32"], [(5000,), (33,)])
    forces = kernel("forces", backend)
    forces(tensors, table)
    for column_ in (tensors.weights, tensors.exp_avgs, tensors.counts):
        for tensor in column_:
            tensor.add_(1)
    table[:, 0] *= 2
    assert_forces(*forces(tensors, table), tensors, table)


@each_backend
def test_special_weights(backend):
    """NaN, infinities, zeros, subnormal numbers, all equal; the histogram of each is the reference's."""
    ones = torch.ones(70_001, device=DEVICE)
    spoilt = torch.randn_like(ones)
    spoilt[::3], spoilt[1::7], spoilt[5::11] = torch.nan, torch.inf, -torch.inf
    weights = [0.02 * ones, 0 * ones, -0.0 * ones, 1e-40 * torch.randn_like(ones), spoilt, torch.nan * ones]
    rows = on_device(make_rows(*((w, 0.01 * torch.randn_like(w), torch.rand_like(w)) for w in weights)))
    assert_agrees(kernel("sums", backend)(rows, with_histogram=True), rows, 1e-6)
    tensors, table = stepped_tensors(rows)
    assert_forces(*kernel("forces", backend)(tensors, table, with_histogram=True), tensors, table)


@each_backend
def test_special_moments(backend):
    """A second moment of 0 or below the normal numbers; u is as IEEE arithmetic gives it."""
    w, m = torch.ones(3000, device=DEVICE), torch.full((3000,), 1e-3, device=DEVICE)
    v = torch.tensor([0.0, 1e-45, 1e-41, 1e-38, 1e-12, 1.0], device=DEVICE).repeat(500)
    tensors, table = stepped_tensors(rows_of(DTYPES["fp32"], [(3000,)]))
    tensors = SteppedTensors(
        **{**vars(tensors), "weights": [w], "exp_avgs": [m], "exp_avg_sqs": [v], "prepared": {}}
    )
    assert_forces(*kernel("forces", backend)(tensors, table), tensors, table)


def odd_memory(kind, tensor):
    match kind:
        case "unaligned":
            return unaligned(tensor)
        case "channels last":
            return tensor.clone(memory_format=torch.channels_last)
        case "gaps":
            return tensor.repeat_interleave(2, dim=-1)[..., ::2]
        case "transposed":
            return tensor.clone().transpose(0, 1).contiguous().transpose(0, 1)
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["unaligned", "channels last", "gaps", "transposed"])
@each_backend
def test_odd_memory(backend, kind):
    torch.manual_seed(0)
    plain = [columns((65, 17, 9, 11), *DTYPES[name]) for name in ("fp32", "bf16 with fp32 moments", "bf16")]
    odd = [tuple(odd_memory(kind, tensor) for tensor in row) for row in plain]
    # One column alone in another order than the others of its row.
    odd.append((plain[0][0], odd[0][1], plain[0][2]))
    rows = on_device(make_rows(*odd, eps=1e-4))
    assert_agrees(kernel("sums", backend)(rows, with_histogram=True), rows, 1e-6)
    tensors, table = stepped_tensors(rows)
    assert_forces(*kernel("forces", backend)(tensors, table, with_histogram=True), tensors, table)


STEP_SHAPES = [(), (0,), (1,), (7,), (1025,), (16385,), (32769,), (300, 1000)]


def about_to_step(dtypes, seed=0, amsgrad=False, **more):
    """Random tensors of two groups, about to be stepped, on the device."""
    torch.manual_seed(seed)
    weight, grad, exp_avg, exp_avg_sq = dtypes
    rows = []
    # The definition says nothing of the rounding of sums, which shows in float64 for many entries.
    for shape in STEP_SHAPES[:5] if weight == torch.float64 else STEP_SHAPES:
        w, m, v = columns(shape, weight, exp_avg, exp_avg_sq)
        g = (0.01 * torch.randn(shape, device=DEVICE)).to(grad)
        rows.append((w, g, m, v, *([2 * v] if amsgrad else [])))
    group_of = [i % 2 for i in range(len(rows))]
    groups = ({"eps": 1e-4}, {"eps": 1e-4, "lr": 0.003, "decay_factor": 1.0, "sign": -1.0})
    tensors, step = make_step(*rows, groups=groups, group_of=group_of, **more)
    return on_device(tensors), on_device(step)


@pytest.mark.parametrize("dtypes", STEP_DTYPES.values(), ids=STEP_DTYPES)
@pytest.mark.parametrize("amsgrad", [False, True])
@each_backend
def test_steps_agree_with_the_definition(backend, dtypes, amsgrad):
    tensors, step = about_to_step(dtypes, amsgrad=amsgrad)
    other, again = copy_of(tensors, step)
    assert_steps(backend, tensors, step)
    with poisoned():
        kernel("adamw", backend)(other, again)
    assert_same_step((tensors, step), (other, again))


@each_backend
def test_scaled_gradients(backend):
    assert_steps(backend, *about_to_step(STEP_DTYPES["fp32"], grad_scale=3.0, found_inf=0.0))


@each_backend
def test_nothing_happens_where_an_infinity_was_found(backend):
    tensors, step = about_to_step(STEP_DTYPES["fp32"], grad_scale=3.0, found_inf=1.0)
    other, again = copy_of(tensors, step)
    kernel("adamw", backend)(tensors, step)
    assert_same_step((tensors, step), (other, again))


@pytest.mark.parametrize("name", ["fp32", "bf16 with fp32 moments"])
@pytest.mark.parametrize("operation", ["sums", "forces", "adamw"])
def test_every_grid_gives_the_same_bits(operation, name):
    """Partial sums belong to places in the tensors, not to the blocks that made them."""
    found = []
    for blocks in (0, *GRIDS):
        if operation == "sums":
            torch.manual_seed(0)
            found.append(cuda.sums(rows_of(DTYPES[name]), with_histogram=True, blocks=blocks))
            assert_same_bits(found[0], found[-1])
        elif operation == "forces":
            found.append(cuda.forces(*measured(DTYPES[name]), with_histogram=True, blocks=blocks))
            assert same_rows(found[0], found[-1])
        else:
            found.append(about_to_step(STEP_DTYPES[name]))
            cuda.adamw(*found[-1], blocks=blocks)
            assert_same_step(found[0], found[-1])


def test_backends_agree_with_each_other():
    """Each with the others, the C++ of the CPU too; the histograms are the same."""
    tensors, table = measured(DTYPES["fp32"])
    here = SteppedTensors(
        **{
            name: [None if one is None else one.cpu() for one in value]
            for name, value in vars(tensors).items()
            if name not in ("groups", "places", "prepared")
        },
        groups=tensors.groups,
        places=tensors.places,
    )
    from weibull_kernels.dispatch import find_kernel

    by_cpu = find_kernel("forces", "cpu", torch.device("cpu"))(here, table.cpu(), with_histogram=True)
    found = [kernel("forces", backend)(tensors, table, with_histogram=True) for backend in BACKENDS]
    found.append(tuple(one.to(DEVICE) for one in by_cpu))
    for rows, histogram in found:
        assert_forces(rows, histogram, tensors, table)
        assert torch.equal(histogram, found[0][1])


@each_backend
def test_no_tensors(backend):
    nothing = torch.zeros(0, dtype=torch.float64, device=DEVICE)
    found = kernel("sums", backend)(Rows([], [], [], nothing, nothing, nothing), with_histogram=True)
    assert isinstance(found, Sums)
    assert found.weight_sq.shape == (0,)
    assert found.histogram.shape[0] == 0
    only_empty = rows_of(DTYPES["fp32"], [(0,), (3, 0)])
    tensors, table = stepped_tensors(only_empty)
    assert_forces(*kernel("forces", backend)(tensors, table, with_histogram=True), tensors, table)


BEYOND = 2**31 + 5


@each_backend
def test_sums_of_more_than_2_to_the_31_entries(backend):
    w = torch.ones(BEYOND, dtype=torch.bfloat16, device=DEVICE)
    w[-1] = 2
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    found = kernel("sums", backend)(Rows([w], [None], [None], one, one, one), with_histogram=True)
    assert found.weight_sq.item() == BEYOND + 3
    assert found.max_abs.item() == 2
    assert found.histogram.sum().item() == BEYOND


@each_backend
def test_forces_of_more_than_2_to_the_31_entries(backend):
    w, m, v = (torch.ones(BEYOND, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    w[-1] = m[-1] = 2
    # u = m/√v with so many steps behind it; without decay w = w⁺ + η·u.
    group = {"lr": 0.5, "decay_factor": 1.0, "eps": 0.0}
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    tensors, table = stepped_tensors(Rows([w], [m], [v], one, one, one), 1e9, (group,))
    rows, _ = kernel("forces", backend)(tensors, table)
    assert column(rows, "norm_sq").item() == BEYOND + 3
    assert column(rows, "injection").item() == pytest.approx(0.25 * (BEYOND + 3), rel=1e-12)
    assert column(rows, "alignment").item() == pytest.approx(-(1.5 * (BEYOND - 1) + 6), rel=1e-12)
    assert column(rows, "max_abs").item() == 2


@each_backend
def test_a_step_of_more_than_2_to_the_31_entries(backend):
    weight = torch.ones(BEYOND, dtype=torch.bfloat16, device=DEVICE)
    grad = torch.ones_like(weight)
    grad[-1] = -1
    moments = [torch.zeros_like(weight) for _ in range(2)]
    group = {"lr": 0.25, "decay_factor": 1.0}
    tensors, step = make_step((weight, grad, *moments), groups=(group,), counts=0)
    small = {name: on_device(getattr(step, name)) for name in ("hyperparameters", "ledger")}
    tensors = SteppedTensors(**{**vars(tensors), "counts": on_device(tensors.counts), "prepared": {}})
    kernel("adamw", backend)(tensors, Step(grads=step.grads, **small))
    assert weight[0].item() == weight[-2].item() == 0.75
    assert weight[-1].item() == 1.25
    norm_sq = column(small["ledger"], "norm_sq").item()
    assert norm_sq == pytest.approx((BEYOND - 1) * 0.75**2 + 1.25**2, rel=1e-12)
    assert column(small["ledger"], "alignment").item() == pytest.approx(-2 * 0.25 * (BEYOND - 2), rel=1e-6)
