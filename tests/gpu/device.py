"""What the device tests share: where they run, lists of tensors with every kind of entry, their kernels."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oracle import GROUP, assert_within, make_rows

from weibull_kernels.dispatch import find_kernel
from weibull_kernels.kernels import reference, triton
from weibull_kernels.kernels.interface import HYPERPARAMETERS, LEDGER_COLUMNS, Rows, Step, SteppedTensors

DEVICE = torch.device("cuda")
BACKENDS = ("triton", "cuda")
assert not triton._interpreted(), "these tests are for the compiled kernels; unset TRITON_INTERPRET"

# Around the sizes at which the kernels begin another block or chunk.
SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (511,),
    (512,),
    (513,),
    (2049,),
    (16385,),
    (32768,),
    (32769,),
    (300, 1000),
    (3, 5, 7, 11),
    (2_000_003,),
]
DTYPES = {
    "fp32": (torch.float32,) * 3,
    "bf16 with fp32 moments": (torch.bfloat16, torch.float32, torch.float32),
    "fp16 with fp32 moments": (torch.float16, torch.float32, torch.float32),
    "bf16": (torch.bfloat16,) * 3,
    "fp16": (torch.float16,) * 3,
    "fp64": (torch.float64,) * 3,
    "fp32 with bf16 moments": (torch.float32, torch.bfloat16, torch.bfloat16),
    "fp32 with unlike moments": (torch.float32, torch.bfloat16, torch.float32),
}
STEP_DTYPES = {  # of weight, gradient and moments
    "fp32": (torch.float32,) * 4,
    "bf16 with fp32 moments": (torch.bfloat16,) * 2 + (torch.float32,) * 2,
    "fp16 with fp32 moments": (torch.float16,) * 2 + (torch.float32,) * 2,
    "bf16": (torch.bfloat16,) * 4,
    "fp16": (torch.float16,) * 4,
    "fp64": (torch.float64,) * 4,
    "fp32 with bf16 gradient": (torch.float32, torch.bfloat16) + (torch.float32,) * 2,
}
SPECIAL = [0.0, -0.0, 1e-24, -1e-40, 1e-45, 3e-8, 64.0, 1e4, -1.0]


def on_device(value):
    """The same in memory of the device: a tensor, a list, or what the kernels take."""
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, (list, tuple)):
        return [on_device(one) for one in value]
    if isinstance(value, (Rows, Step)):
        return type(value)(**{name: on_device(one) for name, one in vars(value).items()})
    if isinstance(value, SteppedTensors):
        columns = {name: on_device(one) for name, one in vars(value).items() if name != "prepared"}
        return SteppedTensors(**columns)
    return value


def columns(shape, weight, exp_avg, exp_avg_sq):
    """Random w, m, v of a shape on the device, with every kind of special entry in w where there is room."""
    w = torch.randn(shape, dtype=torch.float64, device=DEVICE) * 0.02
    if w.numel() > 500:
        w.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64, device=DEVICE)
    m, v = torch.randn(shape, device=DEVICE) * 0.01, torch.rand(shape, device=DEVICE) * 1e-3
    return w.to(weight), m.to(exp_avg), v.to(exp_avg_sq)


def rows_of(dtypes, shapes=SHAPES, **settings):
    """`Rows` of random columns on the device."""
    return on_device(make_rows(*(columns(shape, *dtypes) for shape in shapes), **{"eps": 1e-4, **settings}))


def stepped_tensors(rows, counts=3.0, groups=(GROUP,), group_of=None, maxima=None):
    """The tensors of `Rows` as right after a step, and the hyperparameters of their groups, [G, 7]."""
    size = len(rows.weights)
    counts = torch.as_tensor(counts, dtype=torch.float32).expand(size)
    tensors = SteppedTensors(
        weights=rows.weights,
        exp_avgs=rows.exp_avgs,
        exp_avg_sqs=rows.exp_avg_sqs,
        max_exp_avg_sqs=[None] * size if maxima is None else maxima,
        counts=[count.clone() for count in counts.to(DEVICE)],
        groups=[0] * size if group_of is None else group_of,
        places=list(range(size)),
    )
    defaults = {**dict.fromkeys(HYPERPARAMETERS, 0.0), **GROUP}
    table = [[{**defaults, **group}[name] for name in HYPERPARAMETERS] for group in groups]
    return tensors, torch.tensor(table, dtype=torch.float64, device=DEVICE)


def kernel(operation, backend):
    """The function that does it here."""
    return find_kernel(operation, backend, DEVICE)


def column(rows, name):
    """A column of rows of the ledger."""
    return rows[:, LEDGER_COLUMNS.index(name)]


def unaligned(tensor):
    """A copy whose memory begins one entry past an aligned address."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)[1:]
    return flat.copy_(tensor.detach().flatten()).view(tensor.shape)


@contextmanager
def poisoned():
    """Memory that torch hands out is filled with NaN, so that what is not written shows."""
    torch.use_deterministic_algorithms(True)  # which fills what is not initialised
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def nothing_waits():
    """Raises an error where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_forces(found, histogram, tensors, hyperparameters, tolerance=1e-6):
    """Rows of `forces` and their histogram against the step, undone in float64, and the reference's sums."""
    assert found.shape == (len(tensors), len(LEDGER_COLUMNS))
    assert found.dtype == torch.float64
    expected, allowed = [], []
    for i in range(len(tensors)):
        values, errors = _forces_of(tensors, hyperparameters, i)
        expected.append(torch.stack([torch.as_tensor(v, device=DEVICE).double() for v in values]))
        allowed.append(torch.stack([torch.as_tensor(e, device=DEVICE).double() for e in errors]))
    expected, allowed = torch.stack(expected), tolerance * torch.stack(allowed)
    for place, name in enumerate(LEDGER_COLUMNS):
        assert_within(found[:, place], expected[:, place], allowed[:, place], name)
    if histogram is not None:
        counted = [reference.histogram(weight.double()) for weight in tensors.weights]
        assert torch.equal(histogram, torch.stack(counted))


def _forces_of(tensors, hyperparameters, i):
    """The columns of row `i`, and the magnitudes that their rounding errors are relative to."""
    lr, c, beta1, beta2, eps, _, rounded = hyperparameters[tensors.groups[i]].unbind()
    after, t = tensors.weights[i].detach().double(), tensors.counts[i].double().reshape(())
    m, v = tensors.exp_avgs[i], tensors.exp_avg_sqs[i]
    v = v if tensors.max_exp_avg_sqs[i] is None else tensors.max_exp_avg_sqs[i]
    moved = m is not None and bool(t > 0)
    u, spread = torch.zeros_like(after), 1.0
    if moved:
        corrections = [_correction(beta, t, rounded) for beta in (beta1, beta2)]
        u = reference.update(m.double(), v.double(), *corrections, eps)
        if rounded and t > 1:  # two powers in float32 may differ in their last bits
            spread += 4 * 2.0**-24 / 1e-6 * sum(1 / correction for correction in corrections)
    lost = (1 - c) if moved else 0 * c
    before = (after + lr * u) / (1 - lost)
    wu, uu, ww = (before * u).sum(), (u * u).sum(), (before * before).sum()
    wu_scale = spread * (before * u).abs().sum()
    ww_scale = ww + spread * (2 * lr * (after * u).abs().sum() + lr**2 * uu)
    sums = reference.sums(make_rows((after,)))
    logs = (1 + reference.log_magnitudes(after).abs()).sum()
    columns = {  # and the scale of the error of each
        "alignment": (-2 * lr * wu, 2 * lr * (wu_scale + spread * lr * uu)),
        "injection": (lr**2 * uu, lr**2 * spread * uu),
        "decay": (-2 * lost * ww, 2 * lost.abs() * ww_scale),
        "coupling": (lost * (2 * lr * wu + lost * ww), lost.abs() * (2 * lr * wu_scale + lost * ww_scale)),
        "change": (0.0, 0.0),
        "steps": (float(moved), 0.0),
        "norm_sq_start": (ww, ww_scale),
        "norm_sq": (sums.weight_sq[0], sums.weight_sq[0]),
        "log_sum": (sums.log_sum[0], logs),
        "log_sq_sum": (sums.log_sq_sum[0], logs),
        "max_abs": (sums.max_abs[0], 0.0),
        "zero_count": (sums.zero_count[0], 0.0),
        "non_finite_count": (sums.non_finite_count[0], 0.0),
        "step": (t if moved else 0.0, 0.0),
    }
    return zip(*(columns[name] for name in LEDGER_COLUMNS), strict=True)


def _correction(beta, t, rounded):
    """1 − βᵗ, in float32 where the optimizer took it so."""
    return (1 - beta.float() ** t.float()).double() if rounded else 1 - beta**t
