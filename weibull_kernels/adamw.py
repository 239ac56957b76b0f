"""AdamW whose every step is booked in a ledger of forces."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .dispatch import find_kernel, frames_to_the_caller, require_backend
from .kernels.host import Found
from .kernels.memory import capturing
from .ledger import Ledger, Tables, require_ledger
from .optimizers import name_at, parameters_of
from .plan import MOMENTS, StepPlan, found_in
from .tensors import require_readable

_PLANS = 4


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, fused, and the force budget of everything it did for nothing.

        m ← m + (1−β₁)(g − m)        v ← β₂·v + (1−β₂)·g²
        u = m̂/(√v̂ + ε)               m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)
        w ← c·w − η·u                c = 1 − ηω        (decoupled decay, as in torch.optim)

    One pass over memory steps all tensors of all groups and sums ⟨w,u⟩, ‖u‖², ‖w‖², the change of
    ‖w‖² that came of it and the statistics of the new weights; see `Ledger`. The factor of the decay
    and the betas are rounded as by `torch.optim.AdamW(fused=True)` of the device, so that weights
    stay within rounding of torch's, step after step; they are the same bits with the ledger and without.

    A checkpoint of one loads in the other, both ways. `state_dict()` has one more key, "ledger",
    which torch ignores.

    Parameters may be sharded by torch (DTensor: FSDP2, HSDP, tensor parallelism and any of them together).
    A step is then one of what lies here and talks to no other process, unless a gradient is placed in another
    way than its weight (a sum still to be made), which torch's AdamW redistributes as well. State is sharded
    like the weights. Reading the ledger is what the processes do together; see `Ledger`.

    Args:
        params: parameters, named parameters (the names are those of the budget's rows) or groups.
        lr, betas, eps, weight_decay, amsgrad, maximize: as in `torch.optim.AdamW`.
        capturable: whether steps may be captured into a CUDA graph, after one or more outside of it. A
            number for lr then stays what it was while capturing, as in torch; a tensor is followed.
        foreach, fused, differentiable: there is one implementation, the fused one, which is not
            differentiable; leave them unset.
        state_dtype: `torch.float32` keeps the moments of bfloat16 or float16 weights in float32; by
            default they have the dtype of the weights, as in torch.
        ledger: whether steps are booked.
        backend: "reference", "cpu", "triton", "cuda", or None to let the device choose.

    Raises:
        ValueError: a setting out of its range, one that asks for another implementation, a
            parameter listed twice.
        TypeError: a parameter that is sparse, complex, quantised or a wrapper, or sharded in another way
            than by DTensor.

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
        if state_dtype not in (None, torch.float32):
            raise ValueError(f"state_dtype must be torch.float32 or None, got {state_dtype!r}")
        _require_ours({"foreach": foreach, "differentiable": differentiable, "fused": fused})
        if backend is not None:
            require_backend(backend)
        self.state_dtype = state_dtype
        self.backend = backend
        self._tables = Tables() if ledger else None
        self._plans: list[StepPlan] = []
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
            AttributeError: the optimizer was made with ledger=False.
        """
        if self._tables is None:
            raise AttributeError("this optimizer keeps no ledger; make it with wk.AdamW(..., ledger=True)")
        return Ledger(self, self._tables)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in torch; its tensors get rows at the end of the ledger."""
        super().add_param_group(param_group)
        index, group = len(self.param_groups) - 1, self.param_groups[-1]
        try:
            _require_ours(group)
            for position, parameter in enumerate(group["params"]):
                if not parameter.is_meta and not isinstance(parameter, torch.nn.UninitializedParameter):
                    require_readable(name_at(group, index, position), parameter)
            if len({id(parameter) for parameter in group["params"]}) < len(group["params"]):
                raise ValueError(f"group {index} lists a parameter twice; it would be stepped twice")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        group["fused"] = True

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
            RuntimeError: the backend that was named cannot run here; or a CUDA graph is captured without
                capturable=True, or without a step before it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan, found = self._plan()
        for weights, tensors, now in plan.steps(self, found, self._table):
            find_kernel("adamw", self.backend, weights[0].device)(tensors, now)
            # The kernel writes by address: autograd must learn that weights it saved have changed.
            torch.autograd.graph.increment_version(weights)
        return loss

    def _plan(self) -> tuple[StepPlan, Found]:
        """The plan that holds, made if none does; the latest are kept, for gradients that come and go."""
        found = found_in(self)
        plan = next((plan for plan in self._plans if plan.holds(self, found)), None)
        if any(map(capturing, {p.device for p in found.parameters} if plan is None else plan.devices)):
            _require_capturable(self, plan)
        if plan is None:
            plan = StepPlan(self, self._begin)
            found = found_in(self)
        elif plan is self._plans[0]:
            return plan, found
        if self._tables is not None:
            self._tables.open(parameters_of(self), self.backend)
        self._plans = [plan, *(other for other in self._plans if other is not plan)][:_PLANS]
        return plan, found

    def _begin(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a weight before its first step."""
        moments = {
            moment: torch.zeros_like(weight, dtype=self.state_dtype, memory_format=torch.preserve_format)
            for moment in (MOMENTS if group["amsgrad"] else MOMENTS[:2])
        }
        return {"step": torch.zeros((), dtype=torch.float32, device=weight.device), **moments}

    def _table(self, device: torch.device) -> Tensor | None:
        return None if self._tables is None else self._tables.on(device)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the ledger under "ledger": of sharded parameters what this process booked."""

        def add_ledger(_: torch.optim.Optimizer, found: dict[str, Any]) -> None:
            if self._tables is not None:
                found["ledger"] = self.ledger.local_state_dict()

        # Before the user's own hooks.
        handle = self.register_state_dict_post_hook(add_ledger, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint of `wk.AdamW` or `torch.optim.AdamW`.

        From a checkpoint without a ledger the next step begins a new interval.

        Raises:
            ValueError: the checkpoint is that of other parameters; nothing is changed.
        """
        loaded: dict[str, Any] = {}

        def prepare(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            # How torch made its steps is no matter here.
            ours = {"fused": True, "foreach": None, "differentiable": False}
            loaded.update(saved, param_groups=[{**group, **ours} for group in saved["param_groups"]])
            if "ledger" in loaded:
                # Before anything is replaced: a checkpoint is loaded whole or not at all.
                require_ledger(loaded["ledger"], sum(len(group["params"]) for group in saved["param_groups"]))
            return dict(loaded)

        # Between the user's own hooks before and after.
        handles = (
            self.register_load_state_dict_pre_hook(prepare),
            self.register_load_state_dict_post_hook(lambda _: self._restore(loaded), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _restore(self, loaded: Mapping[str, Any]) -> None:
        """What torch's loading leaves out: moments in `state_dtype`, and the ledger."""
        self._restore_moments(loaded)
        self._plans = []
        if self._tables is None:
            if "ledger" in loaded:
                warnings.warn(
                    "the checkpoint holds a ledger, which this optimizer was told not to keep: it is left "
                    "out; make the optimizer with ledger=True to go on with it",
                    stacklevel=frames_to_the_caller(),
                )
        elif "ledger" in loaded:
            self.ledger.load_state_dict(loaded["ledger"])
        else:
            self._tables.clear()

    def _restore_moments(self, loaded: Mapping[str, Any]) -> None:
        """The moments in `state_dtype`: torch rounded them to the dtype of the weights."""
        if self.state_dtype is None:
            return
        keys = [key for group in loaded["param_groups"] for key in group["params"]]
        for key, weight in zip(keys, parameters_of(self), strict=True):
            for moment in MOMENTS:
                if moment in loaded["state"].get(key, {}):
                    saved = loaded["state"][key][moment]
                    self.state[weight][moment] = saved.to(weight.device, self.state_dtype)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("state_dtype", "backend", "_tables")}
        return {**super().__getstate__(), **own, "_plans": []}


def _require_capturable(optimizer: torch.optim.Optimizer, plan: StepPlan | None) -> None:
    """Raises a RuntimeError unless a step can go into a CUDA graph."""
    for index, group in enumerate(optimizer.param_groups):
        if not group["capturable"]:
            raise RuntimeError(
                f"a CUDA graph is captured, and group {index} of wk.AdamW has capturable=False; make it with "
                "capturable=True; a number for lr then stays what it is while capturing, a tensor is followed"
            )
    if plan is None:
        raise RuntimeError(
            "wk.AdamW has to make a step before one is captured into a CUDA graph: step once or more outside "
            "of the graph, with gradients of the same parameters, and replace no tensor since"
        )


def _require_ours(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError if these ask for another implementation or another kind of decay."""
    if settings["foreach"] or settings["differentiable"] or settings["fused"] is False:
        asked = ", ".join(f"{name}={settings[name]}" for name in ("foreach", "differentiable", "fused"))
        raise ValueError(
            f"wk.AdamW has one implementation, the fused one, and was asked for {asked}; leave these unset, "
            "or use torch.optim.AdamW with wk.forces()"
        )
    if not settings.get("decoupled_weight_decay", True):
        raise ValueError(
            "wk.AdamW decouples weight decay, and was asked for decoupled_weight_decay=False; use "
            "torch.optim.Adam with wk.forces()"
        )
