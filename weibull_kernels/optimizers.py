"""From an optimizer, right after its step, to rows of tensors and the numbers it stepped with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .kernels.interface import Rows
from .kernels.memory import sent
from .names import unwrapped
from .shards import local_of
from .tensors import column, fits, misfit, require_readable

# Where the `step` functions stand whose update is known.
_KNOWN_STEPS = (torch.optim.Adam.__module__, "weibull_kernels.adamw")

LearningRate = float | Tensor | Sequence[float | Tensor]


class Row(NamedTuple):
    """One parameter: its name, its tensors (no moments before its first step), its group's settings.

    The tensors are the optimizer's own, so DTensors where they are sharded.
    """

    name: str
    weight: Tensor
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    step: Tensor | float
    settings: Settings


@dataclass(frozen=True)
class Settings:
    """What one param group of Adam or AdamW is set to, and how torch executes it."""

    lr: float | Tensor
    weight_decay: float
    beta1: float | Tensor
    beta2: float | Tensor
    eps: float
    decoupled: bool
    fused: bool
    foreach: bool | None
    capturable: bool
    differentiable: bool
    by_torch: bool = True

    def decay_factor(self, weight: Tensor) -> float | Tensor:
        """The c of w⁺ = c·w − η·u, as rounded by the implementation that multiplied by it.

        The for-loop, foreach and the CPU's fused step multiply by 1 − lr·wd rounded to the dtype
        of the arithmetic (foreach: of the weight); CUDA's fused step subtracts lr·wd·w, which is
        nearly exact. A tensor lr is multiplied in its own dtype.
        """
        if not self.decoupled or self.weight_decay == 0:
            return 1.0
        factor = 1 - (_as_double(self.lr) if self.fused else self.lr) * self.weight_decay
        rounded_to = self._dtype_of_decay(weight)
        if isinstance(factor, Tensor):
            return factor.to(rounded_to).double()
        return torch.tensor(factor, dtype=torch.float64, device="cpu").to(rounded_to).item()

    def _dtype_of_decay(self, weight: Tensor) -> torch.dtype:
        on_gpu = weight.device.type == "cuda"
        if weight.dtype == torch.float64 or (self.fused and on_gpu):
            return torch.float64
        tensor_lr = isinstance(self.lr, Tensor)
        foreach = self.foreach
        if foreach is None:  # as torch chooses
            chosen = on_gpu and not self.fused and not self.differentiable
            foreach = chosen and (self.capturable or not tensor_lr)
        # What multiplies a list is rounded to its dtype: a number on a CPU, a tensor on a GPU.
        return weight.dtype if foreach and tensor_lr == on_gpu else torch.float32

    def bias_correction_in_float32(self, weight: Tensor) -> bool:
        """Whether torch computed 1 − βᵗ in float32: capturable, differentiable, CUDA fused since 2.11."""
        if not self.by_torch:
            return False
        if self.fused:
            return weight.device.type == "cuda" and torch.__version__ >= (2, 11)  # type: ignore[operator]
        return self.capturable or self.differentiable


@dataclass(frozen=True)
class Stepped:
    """The rows of one device and their numbers, as float64 columns [P] of that device.

    `kernel_rows` hold of sharded tensors what lies here.
    """

    rows: tuple[Row, ...]
    lr: Tensor
    decay_factor: Tensor
    step: Tensor
    kernel_rows: Rows


def read_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | None = None, lr: LearningRate | None = None
) -> list[Row]:
    """One row per parameter in the order of `optimizer.param_groups`, a parameter listed twice only once.

    Args:
        optimizer: a `torch.optim.AdamW` or `torch.optim.Adam`.
        model: names the parameters. Without it the names are those of named param groups,
            else positions, "group.index".
        lr: the rate that the last step used, for all groups or one per group; read from the
            groups if None.

    Raises:
        TypeError: an optimizer whose update is not known, or a parameter that `require_readable` refuses.
        ValueError: a parameter that `model` does not own, or the wrong number of learning rates.
    """
    require_known_update(optimizer)
    names = None if model is None else names_in(model)
    rates = rates_of(lr, len(optimizer.param_groups))
    by_torch = is_by_torch(optimizer)
    settings = [
        settings_of(group, rate, by_torch=by_torch)
        for group, rate in zip(optimizer.param_groups, rates, strict=True)
    ]
    rows: list[Row] = []
    for name, place, parameter, index, group in placed_parameters(optimizer):
        name = (name or place) if names is None else _look_up(names, parameter, place)
        rows.append(_row(name, parameter, optimizer.state.get(parameter, {}), group, settings[index]))
    return rows


class PlacedParameter(NamedTuple):
    """A parameter of an optimizer: its name in a named group, its place "group.index", its group."""

    name: str | None
    place: str
    tensor: Tensor
    group_index: int
    group: dict[str, Any]


def placed_parameters(optimizer: torch.optim.Optimizer) -> Iterator[PlacedParameter]:
    """Every parameter once, in the order of the groups."""
    seen: set[int] = set()
    for index, group in enumerate(optimizer.param_groups):
        named = group.get("param_names")
        for position, parameter in enumerate(group["params"]):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                name = None if named is None else str(named[position])
                yield PlacedParameter(name, f"{index}.{position}", parameter, index, group)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every parameter, in the order of the groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def names_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What `name_at` says of each of them."""
    names: list[str] = []
    for index, group in enumerate(optimizer.param_groups):
        given = group.get("param_names")
        names += (f"{index}.{i}" for i in range(len(group["params"]))) if given is None else map(str, given)
    return tuple(names)


def name_at(group: Mapping[str, Any], index: int, position: int) -> str:
    """The name of a parameter in a named param group, else its place, "group.index"."""
    given = group.get("param_names")
    return f"{index}.{position}" if given is None else str(given[position])


def with_columns(rows: Sequence[Row]) -> Stepped:
    """Rows of one device with their numbers. Nothing is read back from the device.

    Numbers on the host are sent there, tensors (a capturable step, a tensor lr) are stacked.
    """
    device = rows[0].weight.device
    # Rows of one group and dtype stand together and share their numbers; without state they have none.
    runs = [
        list(run)
        for _, run in groupby(rows, key=lambda row: (id(row.settings), row.weight.dtype, row.exp_avg is None))
    ]
    lengths = sent(torch.tensor([len(run) for run in runs], device="cpu"), device)
    groups = [(run[0].settings, run[0].weight) for run in runs]

    def spread(values: Iterable[float | Tensor]) -> Tensor:
        return column(values, device).repeat_interleave(lengths, output_size=len(rows))

    step = column([row.step for row in rows], device)
    counted = step.clamp(min=1)  # rows without state have no correction; 1 keeps them finite
    rounded = [settings.bias_correction_in_float32(weight) for settings, weight in groups]

    def bias_correction(beta: Tensor) -> Tensor:
        exact = 1 - beta**counted
        if not any(rounded):
            return exact
        return torch.where(spread(rounded) > 0, (1 - beta.float() ** counted.float()).double(), exact)

    return Stepped(
        rows=tuple(rows),
        lr=spread(settings.lr for settings, _ in groups),
        decay_factor=spread(
            1.0 if run[0].exp_avg is None else _looked_back_by(run[0].settings, run[0].weight) for run in runs
        ),
        step=step,
        kernel_rows=Rows(
            weights=[local_of(row.weight) for row in rows],
            exp_avgs=[None if row.exp_avg is None else local_of(row.exp_avg) for row in rows],
            exp_avg_sqs=[None if row.exp_avg_sq is None else local_of(row.exp_avg_sq) for row in rows],
            bias_correction1=bias_correction(spread(settings.beta1 for settings, _ in groups)),
            bias_correction2=bias_correction(spread(settings.beta2 for settings, _ in groups)),
            eps=spread(settings.eps for settings, _ in groups),
        ),
    )


def _looked_back_by(settings: Settings, weight: Tensor) -> float | Tensor:
    """The decay factor, by which the weights before the step are found."""
    factor = settings.decay_factor(weight)
    require_look_back(settings, factor)
    return factor


def require_look_back(settings: Settings, factor: float | Tensor) -> None:
    """Raises a ValueError if the decay factor of a step, a number, is 0: the weights before it are lost."""
    if not isinstance(factor, Tensor) and factor == 0:
        raise ValueError(
            f"lr {settings.lr} times weight_decay {settings.weight_decay} is 1: the step erased the weights "
            "before it, and forces() cannot look back at them; use a smaller weight_decay"
        )


def update_is_known(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it steps by the formula of torch's Adam and AdamW."""
    # A subclass is as good as its parent unless it steps in its own way. Torch wraps the `step` of
    # whichever class is instantiated first, so what counts is the function inside.
    return isinstance(optimizer, torch.optim.Adam) and _module_of_step(optimizer) in _KNOWN_STEPS


# Optimizers that step shards of their own, whose sums over one process are not those of a parameter.
_OWN_SHARDS = ("deepspeed.", "megatron.", "torch.distributed.optim.zero_redundancy_optimizer")


def require_no_own_shards(optimizer: Any) -> None:
    """Raises a TypeError if it steps flat shards of its own, whose names and shapes it does not tell."""
    kind = _kind(optimizer)
    if kind.startswith(_OWN_SHARDS):
        raise TypeError(
            f"{kind} divides parameters or their state among processes: give its shards to wk.forces_from, "
            "or shard with torch.distributed.fsdp.fully_shard and step with torch.optim.AdamW"
        )


def _kind(optimizer: Any) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def require_known_update(optimizer: torch.optim.Optimizer) -> None:
    """Raises a TypeError if the optimizer steps by a formula that is not known."""
    require_no_own_shards(optimizer)
    if update_is_known(optimizer):
        return
    kind = _kind(optimizer)
    if isinstance(getattr(optimizer, "optimizer", None), torch.optim.Adam):
        remedy = "pass the optimizer it wraps, `.optimizer`"
    else:
        remedy = "use torch.optim.AdamW or Adam, or wk.attach, which measures any optimizer"
    raise TypeError(
        f"forces() knows the update of torch.optim.AdamW and torch.optim.Adam, got {kind}; {remedy}"
    )


def is_by_torch(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step is torch's own code, and rounds as that does."""
    return _module_of_step(optimizer) == _KNOWN_STEPS[0]


def _module_of_step(optimizer: torch.optim.Optimizer) -> str:
    return str(inspect.unwrap(type(optimizer).step).__module__)


def names_in(model: torch.nn.Module) -> dict[int, str]:
    """Names of a model's parameters by their identity, without what wrappers put before them."""
    named = dict(model.named_parameters())
    return dict(zip(map(id, named.values()), unwrapped(named), strict=True))


def names_by_model(
    model: torch.nn.Module, parameters: Sequence[Tensor], places: Sequence[str]
) -> tuple[str, ...]:
    """The names that a model has for parameters, which are at these places of an optimizer.

    Raises:
        ValueError: the model does not own one of them.
    """
    names = names_in(model)
    return tuple(
        _look_up(names, parameter, place) for parameter, place in zip(parameters, places, strict=True)
    )


def _look_up(names: dict[int, str], parameter: Tensor, place: str) -> str:
    try:
        return names[id(parameter)]
    except KeyError:
        raise ValueError(
            f"the parameter at {place} of the optimizer (shape {tuple(parameter.shape)}) is not among "
            "model.named_parameters(); pass the model that owns all parameters, or model=None"
        ) from None


def rates_of(lr: LearningRate | None, groups: int) -> list[float | Tensor | None]:
    """A rate for each group, None where the group's own is meant; a ValueError if `lr` is none of these."""
    if lr is None:
        return [None] * groups
    if isinstance(lr, (Real, str)) or (isinstance(lr, Tensor) and lr.numel() == 1):
        return [_rate(lr)] * groups
    rates = [_rate(rate) for rate in cast(Sequence[float | Tensor], lr)]
    if len(rates) != groups:
        raise ValueError(f"lr must be one rate or one per param group ({groups}), got {len(rates)}")
    return list(rates)


def _rate(lr: Any) -> float | Tensor:
    if isinstance(lr, Tensor):
        return lr
    if not isinstance(lr, Real) or not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr must be a finite rate of 0 or more, or one per param group, got {lr!r}")
    return float(lr)


def settings_of(
    group: dict[str, Any], rate: float | Tensor | None = None, *, by_torch: bool = True
) -> Settings:
    """What a param group is set to, with `rate` in place of its lr if given."""
    beta1, beta2 = (scalar(beta) for beta in group["betas"])
    return Settings(
        lr=scalar(group["lr"] if rate is None else rate),
        weight_decay=float(group["weight_decay"]),
        beta1=beta1,
        beta2=beta2,
        eps=float(group["eps"]),
        decoupled=bool(group["decoupled_weight_decay"]),
        fused=bool(group["fused"]) or not by_torch,
        foreach=group["foreach"],
        capturable=bool(group["capturable"]),
        differentiable=bool(group["differentiable"]),
        by_torch=by_torch,
    )


def _row(
    name: str, parameter: Tensor, state: dict[str, Any], group: dict[str, Any], settings: Settings
) -> Row:
    require_readable(name, parameter)
    if "exp_avg" not in state:
        return Row(name, parameter, None, None, 0.0, settings)
    exp_avg_sq = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    for moment, tensor in (("exp_avg", state["exp_avg"]), ("exp_avg_sq", exp_avg_sq)):
        if not fits(tensor, parameter):
            raise misfit(f"{moment} of '{name}'", tensor, parameter)
    return Row(name, parameter, state["exp_avg"], exp_avg_sq, state["step"], settings)


def scalar(value: float | Tensor) -> float | Tensor:
    """A number, or a one-entry tensor as 0-dim: reading its value would wait for the device."""
    return value.detach().reshape(()) if isinstance(value, Tensor) else float(value)


def _as_double(value: float | Tensor) -> float | Tensor:
    return value.double() if isinstance(value, Tensor) else value
