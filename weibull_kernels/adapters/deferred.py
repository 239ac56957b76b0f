"""`wk.attach` for a framework that makes its optimizer later than its callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..meter import Meter, attach
from ..sinks.adapt import as_sinks

Optimizer = torch.optim.Optimizer


class DeferredAttach:
    """The arguments of `wk.attach`, kept until there is an optimizer.

    Args:
        sinks: as in `wk.attach`, in a list.
        options: the others, but for the optimizer; `names` are else the model's.

    Raises:
        TypeError: `wk.attach` has no such argument, or one of the sinks is none.
    """

    def __init__(self, sinks: Sequence[Any], options: Mapping[str, Any]) -> None:
        try:
            inspect.signature(attach).bind(None, **options)
        except TypeError as error:
            raise TypeError(f"a ForcesCallback takes the arguments of wk.attach: {error}") from None
        self._sinks, self._options = as_sinks(sinks), dict(options)

    def __call__(self, optimizer: Optimizer | Sequence[Optimizer], model: Any, more: Sequence[Any]) -> Meter:
        """Attaches a meter that names the parameters as the model does, with more sinks."""
        return attach(optimizer, **({"names": model} | self._options), sinks=[*self._sinks, *more])
