"""Forces from sparse checkpoints, without the optimizer: the recovery of [W2], corrected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import injection as estimates
from .budget import Array
from .gram import CheckpointGram
from .gram_pass import gram_of
from .injection import UpdateEstimate
from .interpolation import END_CONDITIONS, VARIABLES, Grid
from .optimizer_states import OptimizerState, require_steps, stored_update_sq
from .rates_by_name import Rates, rates_by_name, together
from .recovery_methods import FEWEST, METHODS, Collected, correct, displace
from .schedules import Schedule, rates
from .series import Integers, Recovery
from .stored_tensors import PathLike
from .trajectory import CheckpointSource, open_trajectory, require_ascending

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_VARIABLE = {"corrected": "lr_sum", "spline": "step", "midpoint": "lr_sum", "two_point": "lr_sum"}


def recover(
    checkpoints: CheckpointGram | PathLike | Sequence[CheckpointSource],
    steps: Sequence[int] | None = None,
    *,
    lr: Schedule | Mapping[str, Schedule],
    weight_decay: float | Mapping[str, float],
    betas: tuple[float, float] = (0.9, 0.999),
    method: str = "corrected",
    bc_type: str = "not-a-knot",
    variable: str | None = None,
    injection: str | float = "estimate",
    optimizer_states: Mapping[int, OptimizerState] | None = None,
    at: Sequence[int] | None = None,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    on_read: Callable[[int], object] = lambda count: None,
) -> Recovery:
    """The three forces of every tensor at every step between checkpoints, for all of its weights.

    AdamW's step w⁺ = c·w − η·u with c = 1 − ηω moves ‖w‖² by alignment + injection + decay +
    coupling (see `ForceBudget`). Checkpoints tell ‖w‖² and the decay, hence the *sum* of
    alignment and injection, and no method that sees weights alone tells one from the other.

        corrected  ‖w‖²(t) is a cubic spline through the checkpoints, along Ση. The injection is
                   estimated, and the alignment is what is left:
                   alignment = (Δ‖w‖² − η²·n·û_rms² + (1−c²)‖w‖²)/c. Over an interval between two
                   checkpoints Δ‖w‖² is exact.
        spline     as published in [W2]: a cubic spline cs(t) through every weight,
                   û = −(cs(t) − cs(t−1))/η − ω·cs(t−1), and the forces of û. What is called its
                   alignment is alignment + injection; its injection is that of a smooth path.
        two_point  published baseline: û = −(wᵢ₊₁ − wᵢ)/Ση − ω·wᵢ over the whole interval, at wᵢ.
        midpoint   the same at (wᵢ + wᵢ₊₁)/2: like `spline` without the spline.

    All are worked out from the K×K Gram matrix of the checkpoints of a tensor.

    û_rms² comes, in this order, from the optimizer's state in a checkpoint ("stored"); from how far
    the weights went between neighbouring checkpoints ("diffusion", see `injection.by_diffusion`),
    which gives way, the longer the interval, to gradients that are noise ("noise_limit",
    (1−β₁)/(1+β₁)). `impulses` says which was used and how sure it is.

    Args:
        checkpoints: paths or mappings from name to tensor, in the order of their steps; a folder of
            `step*`; or a `CheckpointGram`, which spares reading the checkpoints again. At least 4,
            or 2 for `two_point` and `midpoint`. See `checkpoint_gram`.
        steps: [K]; told from the paths if None.
        lr: η: a number, a callable, a table, or a description such as
            "cosine:peak=1e-3,warmup=200,total=20000,floor=0.1"; see `schedules.rates`. Or a
            mapping from name pattern or role to such, of which the first that matches counts.
        weight_decay: ω, decoupled; or such a mapping, as {"norm": 0, "bias": 0, "*": 0.1}.
        betas: β₁ and β₂ of AdamW; β₁ bears on the estimates of the injection.
        method: one of `METHODS`.
        bc_type: end condition of the splines: "not-a-knot", "natural" or "clamped".
        variable: what is interpolated along: "lr_sum" (Ση), "step" or "log_step"; by default the step
            for the published `spline` and Ση for `corrected`. Of no effect without splines.
        injection: "estimate", "noise_limit", or û_rms as a number. For `corrected` alone.
        optimizer_states: as in `checkpoint_gram`.
        at: steps to return, from steps[0] + 1 to steps[-1]; all of them by default, which of a long
            run takes more memory than reading it. Impulses are of every step in any case.
        roles: patterns to roles, as in `wk.forces`.
        backend: as in `checkpoint_gram`.
        process_group: likewise.
        on_read: likewise.

    Returns:
        A `Recovery`. Tensors that cannot be followed are named in its `left_out`: those that are
            not in every checkpoint, change their shape, are not finite, never move (buffers), or
            move where lr is 0.

    Raises:
        ValueError: there are too few checkpoints; the steps do not ascend; the schedule does not
            cover them; an option is unknown; no tensor is left.
        FileNotFoundError, CheckpointError: a path cannot be read.

    >>> import torch
    >>> run = [{"w": torch.full((3,), 2.0 - 0.1 * i)} for i in range(5)]  # straight, at u = 1
    >>> recovery = recover(run, [0, 10, 20, 30, 40], lr=0.01, weight_decay=0.0, injection=1.0)
    >>> recovery.alignment[0, :2].round(6).tolist(), recovery.impulses.alignment[0].round(3).tolist()
    ([-0.12, -0.1194], [-1.173, -1.113, -1.053, -0.993])
    """
    trajectory = None
    if isinstance(checkpoints, CheckpointGram):
        if steps is not None:
            raise ValueError(
                "a CheckpointGram has its own steps; leave them out, or choose by gram.at(steps)"
            )
        knots, names = checkpoints.steps, checkpoints.names
        roles = roles or checkpoints.role_overrides
    else:
        trajectory = open_trajectory(checkpoints, steps)
        knots, names = trajectory.steps, tuple(trajectory.tensors)
    # What can be wrong with the options is said before anything is read: that takes minutes.
    grid, chosen, along = checked(knots, betas, method, bc_type, variable, injection, at)
    rates_of = rates_by_name(names, lr, weight_decay, roles, grid.steps)
    require_steps(optimizer_states, knots)
    with_states = method == "corrected" and injection == "estimate"
    if trajectory is None:
        assert isinstance(checkpoints, CheckpointGram)
        gram = _with_states(checkpoints, optimizer_states) if with_states else checkpoints
    else:
        products = "all" if method == "spline" else "neighbours"
        gram = gram_of(
            trajectory, products, optimizer_states, roles, backend, process_group, on_read, with_states
        )
    gram = _followed(gram, rates_of, grid)
    collected = Collected(grid, chosen, len(gram.names))
    for its, rows in together(gram.names, rates_of):
        part = gram.select(rows)
        collected.rates(rows, its)
        if method == "corrected":
            estimate = _estimate(injection, part, grid, its, betas[0])
            correct(collected, rows, part.norm_sq, part.numel, its, estimate, along, bc_type)
        else:
            displace(collected, rows, part, its, method, along, bc_type)
    unused = optimizer_states and not with_states
    return collected.result(
        gram.numel,
        gram.names,
        role_overrides=roles,
        method=method,
        bc_type=bc_type,
        variable=along,
        left_out=gram.left_out,
        notes=(*gram.notes, *(["optimizer_states were given and not used"] if unused else [])),
    )


def recover_from_norms(
    step: Array,
    norm_sq: Array,
    *,
    numel: Array,
    lr: Schedule,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    injection: str | float = "estimate",
    bc_type: str = "not-a-knot",
    variable: str | None = None,
    at: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Recovery:
    """The forces between logged squared norms: `recover` where nothing but ‖w‖² was kept.

    The method is `corrected`, which needs of the weights no more than this; û_rms is the noise
    limit unless it is given, as norms do not tell how far the weights went.

    Args:
        step: of the norms, [K] whole numbers, ascending, at least 4: ‖w‖² after so many steps.
        norm_sq: ‖w‖², [K], or [P, K] for several tensors.
        numel: entries, a number or [P].
        lr: as in `recover`.
        weight_decay: likewise, a number.
        betas: likewise.
        injection: "estimate" and "noise_limit" are the same here; or û_rms as a number.
        bc_type: as in `recover`.
        variable: likewise.
        at: likewise.
        names: of the tensors, [P].

    Returns:
        A `Recovery`, whose forces are [T], or [P, T].

    Raises:
        ValueError: as `recover`; or a norm is not positive and finite.

    >>> norms = [4.0, 4.4, 4.8, 5.2]
    >>> recovery = recover_from_norms([0, 10, 20, 30], norms, numel=100, lr=1e-2, weight_decay=0)
    >>> recovery.alignment.shape, recovery.impulses.alignment.round(3).tolist()
    ((30,), [0.395, 0.395, 0.395])
    """
    norms = np.asarray(norm_sq, dtype=np.float64)
    knots = require_ascending(np.asarray(step).tolist())
    if norms.ndim not in (1, 2) or norms.shape[-1] != len(knots):
        raise ValueError(f"norm_sq must be [K] or [P, K] with K = {len(knots)} steps, got {norms.shape}")
    if (wrong := np.argwhere(~(np.isfinite(norms) & (norms > 0)))).size:
        place = tuple(wrong[0])
        raise ValueError(
            f"norm_sq must be positive, got {norms[place]} at step {knots[place[-1]]}; leave such rows out"
        )
    grid, chosen, along = checked(knots, betas, "corrected", bc_type, variable, injection, at)
    its = Rates.of("the tensor", rates(lr, grid.steps), weight_decay)
    table = np.atleast_2d(norms)
    if names is not None and len(names) != len(table):
        raise ValueError(f"names must be one for each of the {len(table)} rows of norm_sq, got {len(names)}")
    rows, entries = list(range(len(table))), np.broadcast_to(np.asarray(numel), len(table))
    collected = Collected(grid, chosen, len(table))
    collected.rates(rows, its)
    known = "noise_limit" if injection == "estimate" else injection
    estimate = _told(known, (len(table), len(grid.lengths)), betas[0])
    correct(collected, rows, table, entries, its, estimate, along, bc_type)
    labels = None if names is None else tuple(names)
    result = collected.result(entries, labels, method="corrected", bc_type=bc_type, variable=along)
    return _of_one(result) if norms.ndim == 1 and names is None else result


def _of_one(result: Recovery) -> Recovery:
    """Without the dimension of tensors, of which there is one."""

    def squeezed(series: Any) -> Any:
        columns = {
            name: value[0]
            for name, value in vars(series).items()
            if isinstance(value, np.ndarray) and name not in ("step", "steps")
        }
        return replace(series, **columns)

    one: Recovery = replace(squeezed(result), impulses=squeezed(result.impulses))
    return one


def _with_states(
    gram: CheckpointGram, optimizer_states: Mapping[int, OptimizerState] | None
) -> CheckpointGram:
    """With what the given optimizer states say in the place of what it has."""
    if not optimizer_states:
        return gram
    given, notes = stored_update_sq(None, optimizer_states, gram.steps, gram.names, gram.numel.tolist())
    return replace(gram, update_sq=np.where(np.isnan(given), gram.update_sq, given), notes=gram.notes + notes)


def _followed(gram: CheckpointGram, rates_of: Mapping[str, Rates], grid: Grid) -> CheckpointGram:
    """Without the tensors that no optimizer moved, or that moved where their rate is 0."""
    left_out = dict(gram.left_out)
    kept = []
    for row, name in enumerate(gram.names):
        moved = gram.moves[row, 1:] > 0
        still = np.flatnonzero(moved & (grid.summed(rates_of[name].lr) == 0))
        if gram.numel[row] == 0:
            left_out[name] = "has no entries"
        elif not moved.any():
            left_out[name] = "the same in every checkpoint: a buffer, or frozen"
        elif len(still):
            a, b = gram.steps[still[0] : still[0] + 2]
            left_out[name] = f"moved from step {a} to {b}, where lr is 0; is the schedule off by a step?"
        else:
            kept.append(row)
    if not kept:
        raise ValueError(f"no tensor is left; {gram.names[0]}: {left_out[gram.names[0]]}")
    return replace(gram.select(kept), left_out=left_out)


def _estimate(
    injection: str | float, gram: CheckpointGram, grid: Grid, its: Rates, beta1: float
) -> UpdateEstimate:
    if injection != "estimate":
        return _told(injection, (len(gram.names), len(grid.lengths)), beta1)
    rates_of_intervals = np.split(its.lr, grid.bounds[1:-1])
    found = estimates.by_diffusion(gram, rates_of_intervals, its.weight_decay, beta1)
    return estimates.with_stored(found, gram.update_sq, grid.lengths)


def _told(injection: str | float, shape: tuple[int, int], beta1: float) -> UpdateEstimate:
    if isinstance(injection, str):
        return estimates.by_noise_limit(shape, beta1)
    return estimates.given(injection, shape)


def checked(
    knots: Sequence[int],
    betas: tuple[float, float],
    method: str,
    bc_type: str,
    variable: str | None,
    injection: str | float,
    at: Sequence[int] | None,
) -> tuple[Grid, Integers, str]:
    """The steps between the checkpoints, which of them are to be returned, and along what to interpolate.

    Raises:
        ValueError: an option of `recover` is not one.
    """
    known = {"method": METHODS, "bc_type": END_CONDITIONS, "variable": (*VARIABLES, None)}
    for name, value in (("method", method), ("bc_type", bc_type), ("variable", variable)):
        if value not in known[name]:
            raise ValueError(f"{name} must be one of {known[name]}, got {value!r}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers from 0 to under 1, got {betas}")
    if isinstance(injection, str) or injection is None:
        if injection not in ("estimate", "noise_limit"):
            raise ValueError(
                f"injection must be 'estimate', 'noise_limit' or û_rms as a number, got {injection!r}"
            )
    elif not 0 < injection < np.inf:
        raise ValueError(
            f"injection as a number is û_rms, about 0.1 to 0.4, and must be positive; got {injection}"
        )
    if len(knots) < FEWEST[method]:
        raise ValueError(
            f"method='{method}' needs at least {FEWEST[method]} checkpoints, got {len(knots)}"
            + ("; 'midpoint' takes 2" if len(knots) >= 2 else "")
        )
    grid = Grid(np.array(knots, dtype=np.int64))
    return grid, _chosen(grid, at), variable or _VARIABLE[method]


def _chosen(grid: Grid, at: Sequence[int] | None) -> Integers:
    """The places in `grid.steps` of the steps that are to be returned."""
    if at is None:
        return np.arange(len(grid.steps))
    steps = np.array(require_ascending(at), dtype=np.int64)
    if len(steps) and (steps[0] <= grid.knots[0] or steps[-1] > grid.knots[-1]):
        raise ValueError(
            f"at must lie between the checkpoints, from {grid.knots[0] + 1} to {grid.knots[-1]}; "
            f"got {steps[0]} to {steps[-1]}"
        )
    places: Integers = steps - grid.steps[0]
    return places
