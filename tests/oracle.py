"""What the tests compare with: the float64 reference, and AdamW worked out from its definition."""

from __future__ import annotations

from dataclasses import fields

import torch
from neox import GPTNeoXForCausalLM
from torch import Tensor

from weibull_kernels.dispatch import KERNELS, backends
from weibull_kernels.kernels import reference
from weibull_kernels.kernels.interface import Rows, Sums

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
    step = torch.as_tensor(steps, dtype=torch.float64).expand(len(columns))
    return Rows(
        weights=[w for w, _, _ in columns],
        exp_avgs=[m for _, m, _ in columns],
        exp_avg_sqs=[v for _, _, v in columns],
        bias_correction1=1 - beta1**step,
        bias_correction2=1 - beta2**step,
        eps=torch.full((len(columns),), eps, dtype=torch.float64),
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
