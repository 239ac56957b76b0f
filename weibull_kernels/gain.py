"""How much each matrix of a model enlarges what passes through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from .columns import Columns
from .names import unwrapped
from .roles import roles_of
from .tables import columns_table


@dataclass(frozen=True, eq=False)
class Gains(Columns):
    """‖y‖rms/‖x‖rms of matrices over the forward passes that were watched.

    Attributes:
        names: [P], of the weights, as in `model.named_parameters()`.
        input_rms: float64 [P], root mean square of all entries of x.
        output_rms: float64 [P], of all entries of y, the bias included.
        calls: int64 [P], forward passes that were seen; where there was none the three numbers are NaN.
    """

    names: tuple[str, ...]
    input_rms: Tensor
    output_rms: Tensor
    calls: Tensor

    @property
    def values(self) -> Tensor:
        """‖y‖rms/‖x‖rms, [P]: the sublayer gain of [F]."""
        return self.output_rms / self.input_rms

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of each weight, as by `wk.role_of`."""
        return roles_of(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Columns by name, `gain` among them, as numpy arrays; this waits for the device."""
        return super().to_dict() | {"gain": self.values.cpu().numpy()}

    def __str__(self) -> str:
        return columns_table(self.to_dict())


class GainMeter:
    """Sums of squares of what goes into each matrix and comes out, kept where the activations are."""

    def __init__(self, modules: Mapping[str, torch.nn.Module]) -> None:
        self._modules = dict(modules)
        # Of a module: sums of squares of x and y, and how many entries and calls.
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._counts = {name: [0, 0, 0] for name in modules}

    def result(self) -> Gains:
        """The gains of all forward passes so far, on the device of the first matrix that was used.

        Raises:
            ValueError: there was no forward pass, or none that hooks see (a module that was compiled
                before keeps to the hooks it had).
        """
        if not self._sums:
            raise ValueError(
                f"none of the {len(self._modules)} modules has seen a forward pass; run the model inside "
                "the block, and compile it inside too if it is compiled"
            )
        device = next(iter(self._sums.values()))[0].device
        never = torch.full((2,), torch.nan, dtype=torch.float64, device=device)
        rows = [torch.stack(self._sums[n]).to(device) if n in self._sums else never for n in self._modules]
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64)
        entries = counts[:, :2].to(device, non_blocking=True)
        input_rms, output_rms = (torch.stack(rows) / entries).sqrt().unbind(1)
        return Gains(tuple(self._modules), input_rms, output_rms, counts[:, 2].long().to(device))

    @torch.no_grad()
    def _see(self, name: str, *passed: Any) -> None:
        # A router or an embedding of somebody's own may take or give what has no size.
        seen = [x[0] if isinstance(x, tuple) and x else x for x in passed]
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in seen):
            return
        # In float64: squares of 1e-24 would vanish in less.
        squares = [torch.linalg.vector_norm(x.detach(), dtype=torch.float64).square() for x in seen]
        before = self._sums.get(name)
        if before is not None:
            squares = [now + then for now, then in zip(squares, before, strict=True)]
        self._sums[name] = squares[0], squares[1]
        counts = self._counts[name]
        counts[:] = counts[0] + seen[0].numel(), counts[1] + seen[1].numel(), counts[2] + 1


@contextmanager
def gain(model: torch.nn.Module, pattern: str = "*") -> Iterator[GainMeter]:
    """Watches ‖y‖rms/‖x‖rms of the matrices of a model in the forward passes of a block.

    A matrix is a module with a two-dimensional weight of its own that is no embedding: a Linear, or
    the Conv1D of GPT-2. What is called is what is seen: torch's MultiheadAttention uses its weights without
    calling their modules, so they have no row or no calls, and stacked experts have none. The hooks read
    x and y once, add to sums on their device, and do not wait for it; outputs, gradients and random state
    are the same bits as without them.

    Args:
        model: whose forward passes are to be watched.
        pattern: as in `fnmatch`, of the names of weights, such as "*.mlp.*".

    Yields:
        A meter, whose `result()` may be asked for within the block and after it.

    Raises:
        ValueError: no matrix matches the pattern.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad(), gain(model) as meter:
    ...     _ = model.weight.copy_(torch.tensor([[0.0, 3.0], [3.0, 0.0]]))
    ...     _ = model(torch.ones(5, 2))
    >>> meter.result().values
    tensor([3.], dtype=torch.float64)
    """
    owners = {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if _is_matrix(module)
    }
    plain = unwrapped(owners)
    chosen = {
        name: module
        for name, module in zip(plain, owners.values(), strict=True)
        if fnmatchcase(name, pattern)
    }
    if not chosen:
        raise ValueError(
            f"no matrix matches {pattern!r}; "
            + (
                f"the {len(plain)} of this model begin with {', '.join(plain[:3])}"
                if plain
                else "this model has no module with a two-dimensional weight; watch it before it is flattened"
            )
        )
    meter = GainMeter(chosen)
    hooks = [
        module.register_forward_hook(
            lambda _, inputs, named, output, name=name: meter._see(
                name, (*inputs, *named.values())[0], output
            ),
            with_kwargs=True,
        )
        for name, module in chosen.items()
    ]
    try:
        yield meter
    finally:
        for hook in hooks:
            hook.remove()


def _is_matrix(module: torch.nn.Module) -> bool:
    if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2
