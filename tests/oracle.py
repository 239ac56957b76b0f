"""What the tests compare with: the float64 reference, and AdamW worked out from its definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import NamedTuple

import torch
from neox import GPTNeoXForCausalLM
from text import VOCABULARY, library_source, random_windows
from torch import Tensor
from torch.nn.functional import cross_entropy

from weibull_kernels.dispatch import KERNELS, backends
from weibull_kernels.kernels import reference
from weibull_kernels.kernels.interface import (
    HYPERPARAMETERS,
    LEDGER_COLUMNS,
    Rows,
    Step,
    SteppedTensors,
    Sums,
)

BACKENDS = [backend.name for backend in backends() if backend.available]
FAST = [name for name in BACKENDS if name != "triton"]

# Of ‖w‖², ‖u‖² and Σ|w·u|. A float32 u takes four roundings (ε, root, sum, quotient), of which at
# most three bear on it, so u² is off by 6·2⁻²⁴ = 3.6e-7 at worst.
TOLERANCE = {"reference": 1e-14, "cpu": 5e-7, "triton": 1e-6}
LOG_TOLERANCE = 1e-6


def kernel(operation: str, backend: str):
    """The function in the dispatch table."""
    module, function = KERNELS[operation, backend].split(":")
    return getattr(__import__(module, fromlist=[function]), function)


def make_rows(*columns, beta1=0.9, beta2=0.95, eps=1e-8, steps=3) -> Rows:
    """Rows from (w, m, v) or (w,) each; `steps` is one number or one a row."""
    columns = [column if len(column) == 3 else (*column, None, None) for column in columns]
    device = columns[0][0].device if columns else "cpu"
    step = torch.as_tensor(steps, dtype=torch.float64, device=device).expand(len(columns))
    return Rows(
        weights=[w for w, _, _ in columns],
        exp_avgs=[m for _, m, _ in columns],
        exp_avg_sqs=[v for _, _, v in columns],
        bias_correction1=1 - beta1**step,
        bias_correction2=1 - beta2**step,
        eps=torch.full((len(columns),), eps, dtype=torch.float64, device=device),
    )


def update_of(rows: Rows, i: int) -> Tensor:
    """u of row `i` in float64."""
    w, m, v = rows.weights[i].double(), rows.exp_avgs[i], rows.exp_avg_sqs[i]
    if m is None:
        return torch.zeros_like(w)
    return reference.update(
        m.double(), v.double(), rows.bias_correction1[i], rows.bias_correction2[i], rows.eps[i]
    )


def assert_within(found: Tensor, expected: Tensor, allowed: Tensor, what: str) -> None:
    """Equal, or finite and no further apart than allowed; NaN equals NaN."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    close = ((found - expected).abs() <= allowed) & expected.isfinite()
    bad = (~(same | close)).nonzero().flatten().tolist()
    assert not bad, (
        f"{what} of rows {bad}: {found[bad].tolist()}, "
        f"expected {expected[bad].tolist()} ± {allowed[bad].tolist()}"
    )


def assert_agrees(found: Sums, rows: Rows, tolerance: float) -> None:
    """Every sum against the float64 reference."""
    expected = reference.sums(rows, with_histogram=found.histogram is not None)
    products, logs = [], []
    for i, weight in enumerate(rows.weights):
        ln = reference.log_magnitudes(weight.double()).abs()
        products.append((weight.double() * update_of(rows, i)).abs().sum())
        logs.append((1 + ln).sum())
    assert_within(found.weight_sq, expected.weight_sq, tolerance * expected.weight_sq, "‖w‖²")
    assert_within(found.update_sq, expected.update_sq, tolerance * expected.update_sq, "‖u‖²")
    assert_within(found.weight_update, expected.weight_update, tolerance * stacked(products), "⟨w,u⟩")
    assert_within(found.log_sum, expected.log_sum, LOG_TOLERANCE * stacked(logs), "Σln|w|")
    assert_within(found.log_sq_sum, expected.log_sq_sum, LOG_TOLERANCE * stacked(logs), "Σln²|w|")
    for exact in ("max_abs", "zero_count", "non_finite_count", "histogram"):
        if getattr(expected, exact) is not None:
            assert torch.equal(getattr(found, exact), getattr(expected, exact)), exact


def stacked(values: list[Tensor]) -> Tensor:
    return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)


def assert_same_bits(a: Sums, b: Sums) -> None:
    """Every number the same to the last bit."""
    for field in fields(Sums):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if x is None or y is None:
            assert x is y, field.name
        else:
            # Which of its bit patterns a NaN has is not promised.
            x, y = (torch.where(t != t, torch.nan, t) if t.is_floating_point() else t for t in (x, y))
            x, y = (t.contiguous().view(torch.int64) for t in (x, y))
            assert torch.equal(x, y), field.name


def row_of(sums: Sums, i: int) -> Sums:
    """One row alone."""
    values = {field.name: getattr(sums, field.name) for field in fields(Sums)}
    return Sums(**{name: None if value is None else value[i : i + 1] for name, value in values.items()})


def norms_sq(parameters) -> Tensor:
    """‖w‖² of each in float64, [P]."""
    return torch.stack([p.detach().double().square().sum() for p in parameters])


def set_gradients(parameters, scale=1.0) -> None:
    """Fresh random gradients."""
    for p in parameters:
        p.grad = scale * torch.randn_like(p)


def terms(budget) -> Tensor:
    """The four forces, [4, P]."""
    return torch.stack([budget.alignment, budget.injection, budget.decay, budget.coupling])


def terms_from_definition(optimizer, lr=None, rounded_to=torch.float64) -> Tensor:
    """The four forces of the last step, [4, P], from weights and moments after it, in plain float64.

    `rounded_to` is the dtype to which torch rounded c = 1 − ηω of this form of the optimizer.
    """
    columns = []
    for group in optimizer.param_groups:
        eta, (beta1, beta2) = float(group["lr"] if lr is None else lr), group["betas"]
        omega = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        c = torch.tensor(1 - eta * omega, dtype=torch.float64).to(rounded_to).item()
        for p in group["params"]:
            state = optimizer.state[p]
            m = state["exp_avg"].double() / (1 - beta1 ** state["step"].item())
            v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
            u = m / ((v / (1 - beta2 ** state["step"].item())).sqrt() + group["eps"])
            w = (p.detach().double() + eta * u) / c  # the step, undone
            wu, uu, ww = (w * u).sum(), (u * u).sum(), (w * w).sum()
            coupling = (1 - c) * (2 * eta * wu + (1 - c) * ww)
            columns.append(torch.stack([-2 * eta * wu, eta**2 * uu, -2 * (1 - c) * ww, coupling]))
    return torch.stack(columns, dim=1)


def everything_about(optimizer) -> list[Tensor]:
    """Copies of weights, gradients and states."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            found += [p, p.grad, *optimizer.state.get(p, {}).values()]
    return [t.detach().clone() for t in found if isinstance(t, Tensor)]


class Language(GPTNeoXForCausalLM):
    """The demo's language model, small; the head tied to the embedding if asked."""

    def __init__(self, vocabulary=17, width=16, tied=False):
        super().__init__(vocabulary, width, layers=2, heads=2)
        if tied:
            self.embed_out.weight = self.gpt_neox.embed_in.weight


@cache
def demo_text() -> Tensor:
    return library_source(limit=100_000)


def losses(model, batch=4, context=16, seed=1) -> Iterator[Tensor]:
    """The loss of the language model on one random batch of the demo's text after another."""
    text, places = demo_text(), torch.Generator().manual_seed(seed)
    while True:
        tokens, following = random_windows(text, batch, context, places)
        yield cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def language(seed=1, dtype=torch.float32, **options) -> Language:
    """The same narrow model for the same seed."""
    torch.manual_seed(seed)
    return Language(VOCABULARY, **options).to(dtype)


GROUP = {
    "lr": 0.01,
    "decay_factor": 0.999,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-8,
    "sign": 1.0,
    "float32_corrections": 0.0,
}


def make_step(
    *columns, groups=(GROUP,), group_of=None, places=None, ledger_rows=None, counts=3, booked=True, **scaler
) -> tuple[SteppedTensors, Step]:
    """What a kernel gets for rows (w, g, m, v) or (w, g, m, v, max v); groups are changes to `GROUP`."""
    count = torch.as_tensor(counts, dtype=torch.float32).expand(len(columns))
    columns = [column if len(column) == 5 else (*column, None) for column in columns]
    tensors = SteppedTensors(
        weights=[column[0] for column in columns],
        exp_avgs=[column[2] for column in columns],
        exp_avg_sqs=[column[3] for column in columns],
        max_exp_avg_sqs=[column[4] for column in columns],
        counts=[c.clone() for c in count],
        groups=[0] * len(columns) if group_of is None else group_of,
        places=list(range(len(columns))) if places is None else places,
    )
    settings = [[{**GROUP, **group}[name] for name in HYPERPARAMETERS] for group in groups]
    rows = len(columns) if ledger_rows is None else ledger_rows
    ledger = torch.zeros(rows, len(LEDGER_COLUMNS), dtype=torch.float64) if booked else None
    return tensors, Step(
        grads=[column[1] for column in columns],
        hyperparameters=torch.tensor(settings, dtype=torch.float64),
        ledger=ledger,
        **{name: torch.tensor(value, dtype=torch.float32) for name, value in scaler.items()},
    )


class Stepped(NamedTuple):
    """A row after its step in float64, and the magnitudes that rounding errors are relative to."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None
    update: Tensor
    mean_scale: Tensor  # of exp_avg
    update_scale: Tensor  # of u


def stepped(tensors: SteppedTensors, step: Step, i: int) -> Stepped:
    """Row `i` of what is about to be stepped, from AdamW's definition."""
    group = dict(zip(HYPERPARAMETERS, step.hyperparameters[tensors.groups[i]].tolist(), strict=True))
    beta1, beta2, t = group["beta1"], group["beta2"], tensors.counts[i].item() + 1
    g = group["sign"] * step.grads[i].double()
    if step.grad_scale is not None:
        g = g / step.grad_scale.double()
    w, m, v = (x[i].detach().double() for x in (tensors.weights, tensors.exp_avgs, tensors.exp_avg_sqs))
    mean_scale = beta1 * m.abs() + (1 - beta1) * g.abs()
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    largest = tensors.max_exp_avg_sqs[i]
    largest = None if largest is None else torch.maximum(largest.double(), v)
    root = ((v if largest is None else largest) / (1 - beta2**t)).sqrt() + group["eps"]
    u, update_scale = (x / (1 - beta1**t) / root for x in (m, mean_scale))
    return Stepped(group["decay_factor"] * w - group["lr"] * u, m, v, largest, u, mean_scale, update_scale)


def copy_of(tensors: SteppedTensors, step: Step) -> tuple[SteppedTensors, Step]:
    """The same to step once more, in other memory of the same layout."""

    def copies(column):
        return [None if tensor is None else tensor.detach().clone() for tensor in column]

    names = [field.name for field in fields(tensors) if field.name not in ("groups", "places", "prepared")]
    return (
        SteppedTensors(
            groups=tensors.groups,
            places=tensors.places,
            **{name: copies(getattr(tensors, name)) for name in names},
        ),
        Step(
            copies(step.grads),
            step.hyperparameters,
            *copies([step.ledger, step.grad_scale, step.found_inf]),
        ),
    )


def assert_stored(found: Tensor, exact: Tensor, error: Tensor, what: str) -> None:
    """That `found` is `exact` computed with no more than `error` and rounded to the dtype of `found`."""
    info = torch.finfo(found.dtype)
    allowed = info.eps * exact.abs() + error + info.smallest_normal * info.eps
    expected = exact.to(found.dtype).double()
    assert_within(found.double().flatten(), expected.flatten(), allowed.flatten(), what)


def assert_steps(backend: str, tensors: SteppedTensors, step: Step, **options) -> None:
    """Steps, and holds every row and what is booked of it against the definition."""
    rows = [stepped(tensors, step, i) for i in range(len(tensors))]
    before, begun = copy_of(tensors, step)
    kernel("adamw", backend)(tensors, step, **options)
    for i, exact in enumerate(rows):
        group = dict(zip(HYPERPARAMETERS, step.hyperparameters[tensors.groups[i]].tolist(), strict=True))
        columns = (tensors.weights[i], step.grads[i], tensors.exp_avgs[i], tensors.exp_avg_sqs[i])
        wide = backend == "reference" or any(column.dtype == torch.float64 for column in columns)
        r = 2.0**-53 if wide else 2.0**-24
        if step.grad_scale is not None:  # which the gradient may be rounded after
            quotient = begun.grads[i].double() / step.grad_scale.double()
            r += 0 if torch.equal(quotient, step.grads[i].double()) else torch.finfo(step.grads[i].dtype).eps
        w = before.weights[i].double()
        assert tensors.counts[i].item() == before.counts[i].item() + 1
        assert_stored(tensors.exp_avgs[i], exact.exp_avg, 4 * r * exact.mean_scale, f"m of row {i},")
        assert_stored(tensors.exp_avg_sqs[i], exact.exp_avg_sq, 4 * r * exact.exp_avg_sq, f"v of row {i},")
        if exact.max_exp_avg_sq is not None:
            largest = exact.max_exp_avg_sq
            assert_stored(tensors.max_exp_avg_sqs[i], largest, 4 * r * largest, f"max v of row {i},")
        error = 4 * r * w.abs() + 12 * r * group["lr"] * exact.update_scale
        assert_stored(tensors.weights[i], exact.weight, error, f"w of row {i},")
        if step.ledger is not None:
            place = tensors.places[i]
            assert_booked(
                step.ledger[place], begun.ledger[place], exact, w, tensors.weights[i], group, 12 * r
            )
            assert step.ledger[place, LEDGER_COLUMNS.index("step")] == tensors.counts[i].item()


def assert_booked(row, row_before, exact: Stepped, before, after, group, tolerance) -> None:
    """A row of the ledger against the definition; what a backend rounded is taken as it stored it."""
    columns = dict(zip(LEDGER_COLUMNS, row.unbind(), strict=True))
    held = dict(zip(LEDGER_COLUMNS, row_before.unbind(), strict=True))
    lr, lost, u, after = group["lr"], 1 - group["decay_factor"], exact.update, after.detach().double()
    wu, uu, ww = (before * u).sum(), (u * u).sum(), (before * before).sum()
    error = tolerance * (before.abs() * exact.update_scale).sum()
    last_bits = 1e-13 * ww  # of float64 sums
    change, moved = (
        ((after - before) * (after + before)).sum(),
        ((after - before) * (after + before)).abs().sum(),
    )
    sums = reference.sums(make_rows((after,)))
    logs = LOG_TOLERANCE * (1 + reference.log_magnitudes(after).abs()).sum()
    update_sq = (exact.update_scale**2).sum()
    expected = {  # and how far from it
        "alignment": (held["alignment"] - 2 * lr * wu, 2 * lr * error),
        "injection": (held["injection"] + lr**2 * uu, 2 * lr**2 * tolerance * update_sq),
        "decay": (held["decay"] - 2 * lost * ww, 2 * lost * last_bits),
        "coupling": (
            held["coupling"] + lost * (2 * lr * wu + lost * ww),
            lost * (2 * lr * error + last_bits),
        ),
        "change": (held["change"] + change, 1e-13 * moved),
        "steps": (held["steps"] + 1, 0 * ww),
        "norm_sq_start": (held["norm_sq_start"] if held["steps"] else ww, last_bits),
        "norm_sq": ((after * after).sum(), last_bits + 1e-13 * moved),
        "log_sum": (sums.log_sum[0], logs),
        "log_sq_sum": (sums.log_sq_sum[0], logs),
        "max_abs": (sums.max_abs[0], 0 * logs),
        "zero_count": (sums.zero_count[0].double(), 0 * logs),
        "non_finite_count": (sums.non_finite_count[0].double(), 0 * logs),
    }
    for name, (value, allowed) in expected.items():
        ulps = 1e-15 * held[name].abs()  # of adding to what was there
        if value.isfinite():
            assert_within(columns[name][None], value[None], (allowed + ulps)[None], name)
        else:  # whether ∞ or NaN depends on what was subtracted
            assert not columns[name].isfinite(), name


def assert_same_step(a: tuple[SteppedTensors, Step], b: tuple[SteppedTensors, Step], but=()) -> None:
    """Weights, moments, counts, gradients and ledger the same to the last bit."""
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "counts", "grads", "ledger"):
        if name in but:
            continue
        x, y = (getattr(one[name in ("grads", "ledger")], name) for one in (a, b))
        for i, (this, that) in enumerate(zip(x, y, strict=True)):
            assert (this is None and that is None) or same_bits(this, that), f"{name} of row {i}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit; which of its bit patterns a NaN has is not promised."""
    a, b = a.detach(), b.detach()
    same = (a == b) & (a.signbit() == b.signbit())
    return a.dtype == b.dtype and bool((same | (a.isnan() & b.isnan())).all())
