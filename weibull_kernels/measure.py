"""From an optimizer, right after its step, to the force budget of that step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .budget import ForceBudget
from .columns import picked
from .dispatch import find_kernel
from .forces_plan import ForcesPlan, Measured
from .kernels.interface import Sums
from .kernels.memory import index_on
from .ledger_rows import STEP, budget_of_rows, rows_over_shards, without_steps
from .optimizers import LearningRate, names_by_model, rates_of, require_known_update
from .statistics import WeightStatistics


@torch._disable_dynamo  # type: ignore[attr-defined]  # the public form would load the compiler
@torch.no_grad()
def forces(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module | None = None,
    *,
    lr: LearningRate | None = None,
    since: ForceBudget | None = None,
    histogram: bool = False,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
) -> ForceBudget:
    """The force budget of the optimizer's last step, one row per parameter.

        Δ‖w‖² = alignment + injection + decay + coupling

    Call it right after `optimizer.step()`, before `scheduler.step()`. It reads weights and
    moments once, changes nothing, and does not wait for the device: results stay there until
    they are read. The formulas are those of `ForceBudget`; they hold exactly, with every
    group's own learning rate, decay, betas and step, as torch rounds them.

    Parameters that torch has sharded (DTensor: FSDP2, HSDP, tensor parallelism and any of them together) are
    measured as a whole, and every process gets the same budget. It is then a collective call: every process
    of the mesh must make it, right after the same step. It takes one all-reduce for each device mesh that
    parameters are sharded over (within a pipeline stage, for each dimension of it); those that are no
    DTensors, as under DDP, are measured where they are.

    Inside a function that torch compiles it runs uncompiled. A compiled `optimizer.step` rounds
    the bias corrections to float32 and does not say so: 1e-5 of the budget in the first steps.

    It can be captured into a CUDA graph after it was called once outside of it, on an optimizer whose step
    counts lie on the device (capturable, fused) and whose parameters are not sharded: each replay measures
    the step that was made then. A tensor lr is followed, a number stays what it was while capturing.

    A step that a gradient scaler skipped leaves no trace in the optimizer, so the budget is
    then that of the last step taken, `budget.step` unmoved. Pass the previous budget as
    `since` to have such rows come back as zeros.

    Args:
        optimizer: `torch.optim.AdamW` or `torch.optim.Adam` in any of their forms. Adam's L2
            decay acts through the gradient, so it sits in u and `decay` is 0.
        model: names the rows. Else the names are those given to the optimizer
            (`AdamW(model.named_parameters())`), else positions, "group.index".
        lr: the rate that the step used, where a scheduler has moved on already: a number, or
            one per param group as from `scheduler.get_last_lr()` before it stepped.
        since: an earlier budget of the same optimizer. Tensors whose step count has not moved
            since (a skipped step, no gradient) become rows of zero force, `steps` 0.
        histogram: also count the bit-pattern histogram into `budget.weights`.
        roles: patterns to roles, such as {"*.adapter.*": "ffn"}, for tables and totals by role,
            where the names are not those that `wk.role_of` knows.
        backend: "reference", "cpu", "triton", "cuda", or None to let the device choose.

    Returns:
        A `ForceBudget` in the order of the param groups, float64 on the device of the
        parameters. A parameter without state yet has zero force and `steps` 0.
        `budget.weights` holds the statistics of the weights after the step.

    Raises:
        TypeError: the optimizer's update is not known, or a parameter is sparse, complex,
            quantised or a wrapper, or sharded in another way (FSDP1, DeepSpeed: see `wk.forces_from`).
        ValueError: no parameters, or `lr`, `model` or `since` do not fit the optimizer.
        RuntimeError: the named backend cannot run here, or what is captured into a CUDA graph cannot be.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> forces(optimizer).names
    ('weight', 'bias')
    """
    if not any(group["params"] for group in getattr(optimizer, "param_groups", ())):
        require_known_update(optimizer)
        raise ValueError("the optimizer has no parameters to measure")
    budget = last_step(optimizer, model, lr, since, histogram=histogram, backend=backend)
    return budget if roles is None else dataclasses.replace(budget, role_overrides=roles)


def last_step(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module | None = None,
    lr: LearningRate | None = None,
    since: ForceBudget | Tensor | None = None,
    *,
    histogram: bool = False,
    backend: str | None = None,
) -> ForceBudget:
    """The budget of the last step of an optimizer; see `forces`.

    `since` may also be the counts [P] at which tensors have not moved.
    """
    rates = rates_of(lr, len(optimizer.param_groups))
    plan, found = ForcesPlan.of(optimizer)
    names = plan.names if model is None else names_by_model(model, found.parameters, plan.places)
    standing: Tensor | None = since if isinstance(since, Tensor) else None
    if isinstance(since, ForceBudget):
        if since.step is None or since.names != names:
            raise ValueError(
                "since= must be an earlier budget of the same optimizer, from forces(): "
                "its rows have other names, or no step"
            )
        standing = since.step
    parts, places = [], []
    for measured in plan.measured(optimizer, found, rates):
        alone = len(measured.places) == len(names)
        parts.append(
            _budget(
                measured,
                names if alone else tuple(names[place] for place in measured.places),
                standing if standing is None or alone else picked(standing, measured.places),
                histogram,
                backend,
            )
        )
        places += measured.places
    return parts[0] if len(parts) == 1 else _joined(parts, places)


def _budget(
    measured: Measured, names: tuple[str, ...], standing: Tensor | None, histogram: bool, backend: str | None
) -> ForceBudget:
    """The budget of the rows of one device, those at whose count is not `standing`, [P]."""
    table = measured.hyperparameters
    rows, counts = find_kernel("forces", backend, table.device)(
        measured.tensors, table, with_histogram=histogram
    )
    if measured.sharded:
        rows, counts = rows_over_shards(measured.weights, rows, counts)
    if standing is not None:
        rows = without_steps(rows, rows[:, STEP] == standing.to(rows.device, non_blocking=True))
    return budget_of_rows(rows, names, measured.numel, counts)


def on_each_device(weights: Sequence[Tensor], measured: Callable[[list[int]], ForceBudget]) -> ForceBudget:
    """The budgets that `measured` gives of the places of each device, as one in the order of the weights."""
    by_device: dict[torch.device, list[int]] = {}
    for place, weight in enumerate(weights):
        by_device.setdefault(weight.device, []).append(place)
    parts = [measured(places) for places in by_device.values()]
    if len(parts) == 1:
        return parts[0]
    return _joined(parts, [place for places in by_device.values() for place in places])


def _joined(parts: list[ForceBudget], rows: list[int]) -> ForceBudget:
    """The budgets of several devices as one, in the order of `rows`, on the first accelerator."""
    devices = [part.alignment.device for part in parts]
    home = next((device for device in devices if device.type != "cpu"), devices[0])
    order = sorted(range(len(rows)), key=rows.__getitem__)
    index = index_on(order, home)

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat([value.to(home, non_blocking=home.type != "cpu") for value in values])[index]
        if isinstance(values[0], tuple):
            together = [name for value in values for name in value]
            return tuple(together[row] for row in order)
        if isinstance(values[0], (ForceBudget, WeightStatistics)):
            fields = [field.name for field in dataclasses.fields(values[0])]
            return type(values[0])(
                **{field: join([getattr(value, field) for value in values]) for field in fields}
            )
        return values[0]

    joined: ForceBudget = join(parts)
    return joined


def budget_after_step(
    names: tuple[str, ...],
    numel: Tensor,
    sums: Sums,
    *,
    lr: Tensor,
    decay_factor: Tensor,
    step: Tensor,
    moved: Tensor,
) -> ForceBudget:
    """The budget of a step from the sums that were taken after it.

    Args:
        names: of P tensors.
        numel: their entries, int64 [P].
        sums: with the weights after the step.
        lr: η of the step, float64 [P].
        decay_factor: c as it was rounded, float64 [P].
        step: how many steps each tensor has made, [P].
        moved: whether it made one now, bool [P].
    """
    # A tensor that did not move has no update, no decay and, should it hold a NaN, no norm: no force.
    budget = ForceBudget.from_sums(
        torch.where(moved, sums.weight_update, 0.0),
        torch.where(moved, sums.update_sq, 0.0),
        torch.where(moved, sums.weight_sq, 0.0),
        lr=lr,
        decay_factor=torch.where(moved, decay_factor, 1.0),
        at="after",
        numel=numel,
        steps=moved.long(),
        step=step.long(),
        names=names,
        weights=WeightStatistics.from_sums(names, numel, sums),
    )
    return dataclasses.replace(budget, norm_sq=torch.where(moved, budget.norm_sq, sums.weight_sq))
