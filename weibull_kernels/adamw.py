"""AdamW whose every step is booked in a ledger of forces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .dispatch import find_kernel
from .kernels.interface import HYPERPARAMETERS, SteppedRows
from .ledger import Ledger
from .optimizers import column, fits, misfit, name_at, parameters_of, require_plain, settings_of

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, fused, and the force budget of everything it did for nothing.

        m ← m + (1−β₁)(g − m)        v ← β₂·v + (1−β₂)·g²
        u = m̂/(√v̂ + ε)               m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)
        w ← c·w − η·u                c = 1 − ηω        (decoupled decay, as in torch.optim)

    One pass over memory steps all tensors of all groups and sums ⟨w,u⟩, ‖u‖², ‖w‖², the change of
    ‖w‖² that came of it and the statistics of the new weights; see `Ledger`. Numbers are rounded as
    by `torch.optim.AdamW(fused=True)` of the device, so that training goes on identically; weights
    are the same bits with the ledger and without.

    A checkpoint of one loads in the other, both ways. `state_dict()` has one more key, "ledger",
    which torch ignores.

    Args:
        params: parameters, named parameters (the names are those of the budget's rows) or groups.
        lr, betas, eps, weight_decay, amsgrad, maximize, capturable: as in `torch.optim.AdamW`.
        foreach, fused, differentiable: there is one implementation, the fused one, which is not
            differentiable; leave them unset.
        state_dtype: `torch.float32` keeps the moments of bfloat16 or float16 weights in float32; by
            default they have the dtype of the weights, as in torch.
        ledger: whether steps are booked.
        backend: "reference", "cpu", "triton", or None to let the device choose.

    Raises:
        ValueError: a setting out of its range, or one that asks for another implementation.
        TypeError: a parameter that is sparse, complex, quantised or a wrapper.

    >>> import weibull_kernels as wk
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = wk.AdamW(model.named_parameters(), lr=1e-3, weight_decay=0.1)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> budget = optimizer.ledger.drain()
    >>> budget.names, budget.steps.tolist()
    (('weight', 'bias'), [1, 1])
    """

    # torch hands a gradient scaler's numbers to such an optimizer instead of skipping its step. On
    # the class, because an unpickled torch optimizer forgets it.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        ledger: bool = True,
        backend: str | None = None,
    ) -> None:
        for name, value, wanted in (
            ("foreach", foreach, (None, False)),
            ("fused", fused, (None, True)),
            ("differentiable", differentiable, (False,)),
        ):
            if value not in wanted:
                raise ValueError(
                    f"{name} must be {' or '.join(map(str, wanted))}, got {value!r}: wk.AdamW has one "
                    "implementation, the fused one; leave it unset, or use torch.optim.AdamW with wk.forces()"
                )
        if state_dtype not in (None, torch.float32):
            raise ValueError(f"state_dtype must be torch.float32 or None, got {state_dtype!r}")
        self.state_dtype = state_dtype
        self.backend = backend
        self._ledger = Ledger(self) if ledger else None
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            capturable=capturable,
            fused=True,
        )

    @property
    def ledger(self) -> Ledger:
        """The ledger of the steps.

        Raises:
            RuntimeError: the optimizer was made with ledger=False.
        """
        if self._ledger is None:
            raise RuntimeError("this optimizer keeps no ledger; make it with wk.AdamW(..., ledger=True)")
        return self._ledger

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in torch; its tensors get rows at the end of the ledger."""
        super().add_param_group(param_group)
        index, group = len(self.param_groups) - 1, self.param_groups[-1]
        try:
            for position, parameter in enumerate(group["params"]):
                require_plain(name_at(group, index, position), parameter)
            if len({id(parameter) for parameter in group["params"]}) < len(group["params"]):
                raise ValueError(f"group {index} lists a parameter twice; it would be stepped twice")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch._disable_dynamo  # type: ignore[attr-defined]  # the public form would load the compiler
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient, booked in the ledger.

        It does not wait for the device. Where a gradient scaler found an infinity nothing happens
        and nothing is booked.

        Args:
            closure: evaluates the model again and returns the loss, as in torch.

        Returns:
            What `closure` returned, or None.

        Raises:
            ValueError: gradient or state do not fit the weight.
            TypeError: a sparse gradient, or state of another kind than dense tensors.
        """
        self._check_graph_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._ledger is not None:
            self._ledger.open()
        for device, rows in self._rows().items():
            find_kernel("adamw", self.backend, device)(rows)
        return loss

    def _rows(self) -> dict[torch.device, SteppedRows]:
        """Every parameter that has a gradient, by device."""
        batches: dict[torch.device, _Batch] = {}
        place = -1
        for index, group in enumerate(self.param_groups):
            for position, weight in enumerate(group["params"]):
                place += 1
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    self._begin(state, weight, group)
                device = weight.device
                batch = batches.get(device)
                if batch is None:
                    batch = batches[device] = _Batch(device)
                try:
                    batch.add(weight, state, group, index, place)
                except KeyError as missing:
                    raise ValueError(
                        f"the state of '{name_at(group, index, position)}' has no {missing}; load the state "
                        "of an AdamW with the same amsgrad setting"
                    ) from None
                except (TypeError, ValueError) as error:
                    raise type(error)(f"'{name_at(group, index, position)}': {error}") from None
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        return {
            device: batch.rows(
                None if self._ledger is None else self._ledger.table(device), grad_scale, found_inf
            )
            for device, batch in batches.items()
        }

    def _begin(self, state: dict[str, Any], weight: Tensor, group: Mapping[str, Any]) -> None:
        """The state of a parameter before its first step."""
        state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        for moment in _MOMENTS if group["amsgrad"] else _MOMENTS[:2]:
            state[moment] = torch.zeros_like(
                weight, dtype=self.state_dtype, memory_format=torch.preserve_format
            )

    def _check_graph_capture(self) -> None:
        # torch renamed it in 2.12 and warns of the old name.
        check = getattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", None)
        (check or torch.optim.Optimizer._cuda_graph_capture_health_check)(self)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the ledger under "ledger"."""
        found = super().state_dict()
        if self._ledger is not None:
            found["ledger"] = self._ledger.state_dict()
        return found

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint of `wk.AdamW` or `torch.optim.AdamW`.

        From a checkpoint without a ledger the next step begins a new interval.

        Raises:
            ValueError: the checkpoint is that of other parameters.
        """
        loaded: dict[str, Any] = {}

        def prepare(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            # Runs after the user's own hooks. How torch made its steps is no matter here.
            ours = {"fused": True, "foreach": None, "differentiable": False}
            loaded.update(saved, param_groups=[{**group, **ours} for group in saved["param_groups"]])
            return dict(loaded)

        handle = self.register_load_state_dict_pre_hook(prepare)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self._restore_moments(loaded)
        if self._ledger is not None:
            if "ledger" in loaded:
                self._ledger.load_state_dict(loaded["ledger"])
            else:
                self._ledger.clear()

    def _restore_moments(self, loaded: Mapping[str, Any]) -> None:
        """The moments in `state_dtype`: torch rounded them to the dtype of the weights."""
        if self.state_dtype is None:
            return
        keys = [key for group in loaded["param_groups"] for key in group["params"]]
        for key, weight in zip(keys, parameters_of(self), strict=True):
            for moment in _MOMENTS:
                if moment in loaded["state"].get(key, {}):
                    saved = loaded["state"][key][moment]
                    self.state[weight][moment] = saved.to(weight.device, self.state_dtype)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("state_dtype", "backend", "_ledger")}
        return {**super().__getstate__(), **own}


class _Batch:
    """The tensors of one device that a step moves, while they are gathered."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._weights: list[Tensor] = []
        self._grads: list[Tensor] = []
        self._exp_avgs: list[Tensor] = []
        self._exp_avg_sqs: list[Tensor] = []
        self._max_exp_avg_sqs: list[Tensor | None] = []
        self._counts: list[Tensor] = []
        self._groups: list[int] = []
        self._places: list[int] = []
        # The numbers of a group depend on the dtype of the weight too, which decides how c is rounded.
        self._rows_of_numbers: dict[tuple[int, torch.dtype], int] = {}
        self._numbers: list[float | Tensor] = []

    def add(
        self, weight: Tensor, state: Mapping[str, Any], group: dict[str, Any], index: int, place: int
    ) -> None:
        """One parameter of group `index`, whose row in the ledger is `place`."""
        grad: Any = weight.grad
        exp_avg, exp_avg_sq, count = state["exp_avg"], state["exp_avg_sq"], state["step"]
        largest = state["max_exp_avg_sq"] if group["amsgrad"] else None
        for what, tensor in (
            ("gradient", grad),
            ("exp_avg", exp_avg),
            ("exp_avg_sq", exp_avg_sq),
            ("max_exp_avg_sq", largest),
        ):
            if tensor is not None and not fits(tensor, weight):
                raise misfit(what, tensor, weight)
        if count.dtype != torch.float32 or count.device != self._device:
            raise ValueError(f"step must be float32 on {self._device}, got {count.dtype} on {count.device}")
        key = index, weight.dtype
        row = self._rows_of_numbers.get(key)
        if row is None:
            row = self._rows_of_numbers[key] = len(self._rows_of_numbers)
            self._numbers += _numbers(group, weight)
        self._weights.append(weight)
        self._grads.append(grad)
        self._exp_avgs.append(exp_avg)
        self._exp_avg_sqs.append(exp_avg_sq)
        self._max_exp_avg_sqs.append(largest)
        self._counts.append(count)
        self._groups.append(row)
        self._places.append(place)

    def rows(self, ledger: Tensor | None, grad_scale: Tensor | None, found_inf: Tensor | None) -> SteppedRows:
        """All of them, for the kernel."""

        def here(number: Tensor | None) -> Tensor | None:
            wait = self._device.type == "cpu"
            return None if number is None else number.to(self._device, torch.float32, non_blocking=not wait)

        return SteppedRows(
            weights=self._weights,
            grads=self._grads,
            exp_avgs=self._exp_avgs,
            exp_avg_sqs=self._exp_avg_sqs,
            max_exp_avg_sqs=self._max_exp_avg_sqs,
            counts=self._counts,
            groups=self._groups,
            places=self._places,
            hyperparameters=column(self._numbers, self._device).reshape(-1, len(HYPERPARAMETERS)),
            ledger=ledger,
            grad_scale=here(grad_scale),
            found_inf=here(found_inf),
        )


def _numbers(group: dict[str, Any], weight: Tensor) -> list[float | Tensor]:
    """The `HYPERPARAMETERS` of a group for weights like this one."""
    settings = settings_of(group)
    return [
        settings.lr,
        settings.decay_factor(weight),
        settings.beta1,
        settings.beta2,
        settings.eps,
        -1.0 if group["maximize"] else 1.0,
    ]
