"""Force budgets from the flat shards of engines that divide parameters in their own way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .budget import ForceBudget
from .dispatch import find_kernel
from .kernels.interface import BINS, Rows
from .kernels.memory import index_on
from .measure import budget_after_step
from .optimizers import settings_of
from .shards import MAX_ABS, SUMS, all_reduced, packed, unpacked
from .tensors import column, fits, misfit, require_plain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Shard = tuple[str, Tensor, Tensor | None, Tensor | None, Mapping[str, Any]]

_NEEDED = ("lr", "weight_decay", "betas", "eps", "step")
# What a group says of how it is executed if it is one of torch's; of other engines it is exact.
_EXECUTED = {"fused": True, "foreach": None, "capturable": False, "differentiable": False}


@torch._disable_dynamo  # type: ignore[attr-defined]  # the public form would load the compiler
@torch.no_grad()
def forces_from(
    shards: Iterable[Shard],
    *,
    process_group: ProcessGroup | None = None,
    histogram: bool = False,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
) -> ForceBudget:
    """The force budget of the last AdamW step, from shards that an engine keeps itself.

        Δ‖w‖² = alignment + injection + decay + coupling, each a sum over all shards of a name

    For DeepSpeed's ZeRO, Megatron's distributed optimizer and FSDP1, whose shards are flat pieces of
    parameters; what torch shards as DTensor is measured by `wk.forces`. Call it right after the step. It
    changes nothing, and waits for the device where the numbers of the groups are tensors or there are
    other processes.

    With a process group it is a collective call: every process of it must make it. Names and numbers are
    exchanged first, and whatever is wrong with the shards of one process raises an error on all; then one
    all-reduce adds the sums. Each entry of a parameter must be in one shard of one process: shards of one
    name add up, also those of one process, and replicas would count again.

    Args:
        shards: (name, weight, exp_avg, exp_avg_sq, group), each of the three tensors of one shape, any
            and with no entries too. `weight` is that after the step, the float32 master copy where
            there is one; `exp_avg` and `exp_avg_sq` are None before the first step, and with amsgrad the
            latter is max_exp_avg_sq. `group` holds the numbers of the step: `lr`, `weight_decay`, `betas`,
            `eps` and `step`, the count of steps made with this one. Decay is decoupled unless
            `decoupled_weight_decay` is False; `bias_correction` may be False. With the `foreach` and
            `fused` of a param group of torch's the decay is rounded as torch rounds it. The processes
            may hold different names, or none.
        process_group: of the processes that hold the shards, such as `torch.distributed.group.WORLD`;
            None for this process alone.
        histogram: as in `wk.forces`, as are roles and backend.
        roles: patterns to roles.
        backend: "reference", "cpu", "triton", "cuda", or None to let the device choose.

    Returns:
        A `ForceBudget` with a row for each name, the same on every process: in the order of the shards of
        the first process, then what the second has beside these, and so on. float64, on the first
        accelerator that the shards of this process are on, else on the CPU.

    Raises:
        TypeError: a shard is not such a tuple, or a tensor is not plain.
        ValueError: there are no shards at all; moments do not fit their weight; a group lacks a number, or
            two shards of one name have different ones, which are named.
        RuntimeError: the shards of another process raised an error, which is quoted; or the named backend
            cannot run here.

    >>> weight = torch.tensor([0.9])  # was 1.0
    >>> group = {"lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 0.0, "step": 1}
    >>> budget = forces_from([("w", weight, torch.tensor([0.1]), torch.tensor([0.001]), group)])
    >>> round(budget.alignment.item(), 6), round(budget.injection.item(), 6)
    (-0.2, 0.01)
    """
    if process_group is None:
        part = _measured(shards, histogram, backend)
        table, numbers = part.columns, part.numbers
    else:
        table, numbers = _together(shards, process_group, histogram, backend)
    if not numbers:
        raise ValueError("there are no shards to measure, on this process or another of the process_group")
    device, rows = table.device, list(numbers.values())
    step = column([row.step for row in rows], device)
    budget = budget_after_step(
        tuple(numbers),
        table[:, 0].long(),
        unpacked(table[:, 1:]),
        lr=column([row.lr for row in rows], device),
        decay_factor=column([row.decay_factor for row in rows], device),
        step=step,
        moved=step > 0,
    )
    return budget if roles is None else dataclasses.replace(budget, role_overrides=roles)


class _Numbers(NamedTuple):
    """What the shards of one name were stepped with, on the host: their processes must agree on it."""

    lr: float
    weight_decay: float
    decay_factor: float
    beta1: float
    beta2: float
    eps: float
    step: float
    corrects_bias: bool

    def bias_correction(self, beta: float) -> float:
        """1 − βᵗ; 1 where nothing is corrected or no step was made."""
        return 1 - beta**self.step if self.corrects_bias and self.step else 1.0


@dataclass(frozen=True)
class _Part:
    """Of one process: columns (numel, then `packed` sums) with a row a name, and the numbers by name."""

    columns: Tensor
    numbers: dict[str, _Numbers]


_MAX_ABS = 1 + MAX_ABS  # of these columns the one that is no sum


def _together(
    shards: Iterable[Shard], group: ProcessGroup, histogram: bool, backend: str | None
) -> tuple[Tensor, dict[str, _Numbers]]:
    """The columns of all processes added up, and the numbers of all names in the order of the processes."""
    size, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not part of the process_group; call it on those that are")
    part: _Part | None = None
    error: Exception | None = None
    try:
        part = _measured(shards, histogram, backend)
    except Exception as raised:  # of the user's iterable too: it must not leave the others waiting
        error = raised
    said: list[Any] = [None] * size
    mine = (None if part is None else part.numbers, histogram, error and f"{type(error).__name__}: {error}")
    torch.distributed.all_gather_object(said, mine, group=group)
    if error is not None:
        raise error
    assert part is not None
    for other, (_, _, failed) in enumerate(said):
        if failed is not None:
            raise RuntimeError(
                f"the shards of process {other} of the process_group cannot be measured: {failed}"
            )
    if len({asked for _, asked, _ in said}) > 1:
        raise ValueError("histogram= must be the same on every process of the process_group")
    numbers: dict[str, _Numbers] = {}
    for theirs, _, _ in said:
        for name, found in theirs.items():
            _add(numbers, name, found)
    place = {name: row for row, name in enumerate(numbers)}
    table = part.columns.new_zeros(len(numbers), part.columns.shape[1])
    table[index_on([place[name] for name in part.numbers], table.device)] = part.columns
    return all_reduced(table, [_MAX_ABS], [group], rank, size, _device(group, table.device)), numbers


def _measured(shards: Iterable[Shard], histogram: bool, backend: str | None) -> _Part:
    """The part of this process."""
    numbers: dict[str, _Numbers] = {}
    by_device: dict[torch.device, list[Shard]] = {}
    for shard in shards:
        name, weight, *_ = _checked(shard)
        _add(numbers, name, _numbers_of(shard))
        by_device.setdefault(weight.device, []).append(shard)
    home = next((device for device in by_device if device.type != "cpu"), torch.device("cpu"))
    place = {name: row for row, name in enumerate(numbers)}
    width = 1 + SUMS + (BINS if histogram else 0)
    table = torch.zeros(len(numbers), width, dtype=torch.float64, device=home)
    for device, here in by_device.items():
        columns = _sums(here, device, numbers, histogram, backend).to(home)
        rows = index_on([place[name] for name, *_ in here], home)
        largest = table[:, _MAX_ABS].scatter_reduce(0, rows, columns[:, _MAX_ABS], "amax")
        table.index_add_(0, rows, columns)
        table[:, _MAX_ABS] = largest
    return _Part(table, numbers)


def _sums(
    shards: list[Shard],
    device: torch.device,
    numbers: Mapping[str, _Numbers],
    histogram: bool,
    backend: str | None,
) -> Tensor:
    """A row of columns for each of the shards of one device."""
    stepped = [numbers[name] for name, *_ in shards]
    rows = Rows(
        weights=[weight for _, weight, _, _, _ in shards],
        exp_avgs=[exp_avg for _, _, exp_avg, _, _ in shards],
        exp_avg_sqs=[exp_avg_sq for _, _, _, exp_avg_sq, _ in shards],
        bias_correction1=column([row.bias_correction(row.beta1) for row in stepped], device),
        bias_correction2=column([row.bias_correction(row.beta2) for row in stepped], device),
        eps=column([row.eps for row in stepped], device),
    )
    numel = column([weight.numel() for weight in rows.weights], device)
    sums = find_kernel("sums", backend, device)(rows, with_histogram=histogram)
    return torch.cat([numel[:, None], packed(sums)], dim=1)


def _checked(shard: Any) -> Shard:
    """It, if it is a shard whose tensors the kernels read."""
    if not isinstance(shard, (tuple, list)) or len(shard) != 5 or not isinstance(shard[0], str):
        raise TypeError(
            f"expected shards (name, weight, exp_avg, exp_avg_sq, group), got {_described(shard)}"
        )
    name, weight, exp_avg, exp_avg_sq, group = shard
    if not isinstance(weight, Tensor) or not isinstance(group, Mapping):
        kinds = f"{type(weight).__name__} and {type(group).__name__}"
        raise TypeError(f"the weight of '{name}' must be a tensor and its group a mapping, got {kinds}")
    require_plain(name, weight)
    if missing := [key for key in _NEEDED if key not in group]:
        raise ValueError(
            f"the group of '{name}' has no {', '.join(missing)}; it must hold {', '.join(_NEEDED)}"
        )
    moments = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if exp_avg is None and exp_avg_sq is None:
        if group["step"] != 0:
            raise ValueError(
                f"'{name}' has no moments, but its group has step {group['step']}; give both, or step 0"
            )
        return name, weight, None, None, group
    for moment, tensor in moments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{moment} of '{name}' must be a tensor like its weight, got {type(tensor).__name__}"
            )
        if not fits(tensor, weight):
            raise misfit(f"{moment} of '{name}'", tensor, weight)
    return name, weight, exp_avg, exp_avg_sq, group


def _described(shard: Any) -> str:
    if isinstance(shard, (tuple, list)):
        return f"({', '.join(type(part).__name__ for part in shard)})"
    return f"a {type(shard).__name__}"


def _numbers_of(shard: Shard) -> _Numbers:
    name, weight, _, _, group = shard
    settings = settings_of({"decoupled_weight_decay": True, **_EXECUTED, **group})
    lr, beta1, beta2 = (float(number) for number in (settings.lr, settings.beta1, settings.beta2))
    if "foreach" in group:
        factor = float(settings.decay_factor(weight))
    else:
        factor = 1 - lr * settings.weight_decay if settings.decoupled else 1.0
    if factor == 0:
        raise ValueError(
            f"lr {lr} times weight_decay {settings.weight_decay} of '{name}' is 1: the step erased the "
            "weights before it, and forces_from() cannot look back at them; use a smaller weight_decay"
        )
    corrects = bool(group.get("bias_correction", True))
    step = float(group["step"])
    return _Numbers(lr, settings.weight_decay, factor, beta1, beta2, settings.eps, step, corrects)


def _add(numbers: dict[str, _Numbers], name: str, found: _Numbers) -> None:
    """Notes the numbers of a name; those of its other shards must be the same."""
    known = numbers.setdefault(name, found)
    if known != found:
        apart = [
            f"{field} {one!r} and {other!r}"
            for field, one, other in zip(_Numbers._fields, known, found, strict=True)
            if one != other
        ]
        raise ValueError(
            f"the shards of '{name}' were stepped with different numbers: {', '.join(apart)}; shards of one "
            "name are parts of one parameter, so their groups must hold the same"
        )


def _device(group: ProcessGroup, home: torch.device) -> torch.device:
    """Where a group communicates: where the shards are if it can."""
    kinds = [part.partition(":")[0] for part in torch.distributed.get_backend_config(group).split(",")]
    if home.type in kinds:
        return home
    return (
        torch.device("cpu")
        if "cpu" in kinds
        else torch.device(kinds[0], torch.accelerator.current_device_index())
    )
