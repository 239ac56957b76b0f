"""The ledger of `wk.AdamW`: every step booked, tensor by tensor, on the device."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .budget import ForceBudget
from .dispatch import find_kernel
from .kernels.interface import LEDGER_COLUMNS, Rows, Sums
from .kernels.memory import sent
from .optimizers import names_of, parameters_of
from .statistics import WeightStatistics

if TYPE_CHECKING:
    from .adamw import AdamW

_STATISTICS = ("norm_sq", "log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count")
_INTERVAL = LEDGER_COLUMNS.index("steps") + 1  # the columns that an interval sums come first
_START, _NOW = (LEDGER_COLUMNS.index(name) for name in ("norm_sq_start", "norm_sq"))


class Ledger:
    """What the steps of a `wk.AdamW` did to ‖w‖² of every tensor since the last `drain()`.

    Every step adds its four forces and the change that it really made, Σ(w⁺−w)(w⁺+w), to float64
    sums on the device, in the pass over memory that the step makes anyway. So the budget of an
    interval is exact over its steps, however many, and nothing waits for the device.

    It lives in `optimizer.ledger`, travels in `optimizer.state_dict()`, and goes on from there.
    """

    def __init__(self, optimizer: AdamW) -> None:
        self._optimizer = optimizer
        self._parameters: list[Tensor] = []  # whose rows there are, in the order of the groups
        self._homes: list[torch.device] = []  # where each of them was
        self._tables: dict[torch.device, Tensor] = {}  # float64 [P, 14]; rows at home elsewhere stay 0

    def drain(self) -> ForceBudget:
        """The budget since the last `drain()`, and the start of a new interval."""
        budget = self.peek()
        for table in self._tables.values():
            table[:, :_INTERVAL].zero_()
            table[:, _START].copy_(table[:, _NOW])
        return budget

    def peek(self) -> ForceBudget:
        """The budget since the last `drain()`; the interval goes on.

        Returns:
            A `ForceBudget` of [P] rows in the order of the param groups, float64 on the device of
            the parameters; reading its numbers waits for the device, this call does not. Forces
            are sums over the `steps` of the interval, `norm_sq` is ‖w‖² before it, and

                rounding = measured Δ‖w‖² − (alignment + injection + decay + coupling)

            is what the rounding of single entries did. `weights` are statistics of the weights
            after the latest step. A tensor that made no step has zero force and `steps` 0. After
            infinite or NaN gradients the forces of their tensors are NaN: those are named by it.

        >>> import weibull_kernels as wk
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = wk.AdamW(model.named_parameters(), lr=1e-3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        >>> optimizer.ledger.peek().steps.tolist()
        [3, 3]
        """
        rows = self._rows()
        columns = dict(zip(LEDGER_COLUMNS, rows.unbind(1), strict=True))
        parameters, names = parameters_of(self._optimizer), names_of(self._optimizer)
        numel = sent(torch.tensor([p.numel() for p in parameters], device="cpu"), rows.device)
        forces: dict[str, Any] = {
            name: columns[name] for name in ("alignment", "injection", "decay", "coupling")
        }
        statistics: dict[str, Any] = {name: columns[name] for name in _STATISTICS}
        for count in ("zero_count", "non_finite_count"):
            statistics[count] = statistics[count].long()
        return ForceBudget(
            **forces,
            rounding=columns["change"] - sum(forces.values()),
            norm_sq=columns["norm_sq_start"],
            numel=numel,
            steps=columns["steps"].long(),
            step=columns["step"].long(),
            names=names,
            weights=WeightStatistics(names=names, numel=numel, **statistics),
        )

    def open(self) -> None:
        """Gives a row to every parameter that has none yet, with the weights as they are.

        Parameters keep theirs wherever they move; of those that left the optimizer there is none.
        """
        parameters = parameters_of(self._optimizer)
        homes = [parameter.device for parameter in parameters]
        if homes == self._homes and all(map(is_, parameters, self._parameters)):
            return
        place_of = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        before = self._gathered()
        self._tables = {device: _rows(len(parameters), device) for device in dict.fromkeys(homes)}
        for device, table in self._tables.items():
            here = [place for place, home in enumerate(homes) if home == device]
            new = [place for place in here if id(parameters[place]) not in place_of]
            old = [place for place in here if id(parameters[place]) in place_of]
            if new:
                table[_index(new, device)] = _opening([parameters[place] for place in new], self._optimizer)
            if old:
                kept = before[_index([place_of[id(parameters[place])] for place in old], before.device)]
                table[_index(old, device)] = kept.to(device, non_blocking=device.type != "cpu")
        self._parameters, self._homes = parameters, homes

    def table(self, device: torch.device) -> Tensor:
        """The rows of the parameters on `device`, float64 [P, 14] by `LEDGER_COLUMNS`: steps write there."""
        return self._tables[device]

    def state_dict(self) -> dict[str, Any]:
        """The ledger as a checkpoint holds it: the names of the columns and a copy of the rows."""
        return {"columns": list(LEDGER_COLUMNS), "rows": self._rows()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on from a saved ledger; what this one held is forgotten, as its weights are.

        Raises:
            ValueError: it is that of other parameters, or of an unknown format.
        """
        parameters = parameters_of(self._optimizer)
        homes = [parameter.device for parameter in parameters]
        require_ledger(saved, rows=len(homes))
        self._parameters, self._homes, self._tables = parameters, homes, {}
        for device in dict.fromkeys(homes):
            rows = saved["rows"].to(device, torch.float64, copy=True)
            away = [place for place, home in enumerate(homes) if home != device]
            if away:
                rows[_index(away, device)] = 0
            self._tables[device] = rows

    def clear(self) -> None:
        """Forgets everything; the next step opens new rows."""
        self._parameters, self._homes, self._tables = [], [], {}

    def _rows(self) -> Tensor:
        """A copy of all rows, [P, 14], on the first device that is not a CPU."""
        self.open()
        return self._gathered()

    def _gathered(self) -> Tensor:
        if not self._tables:
            return _rows(0, torch.device("cpu"))
        home = next((device for device in self._homes if device.type != "cpu"), self._homes[0])
        rows = self._tables[home].clone()
        for device, table in self._tables.items():
            places = [place for place, where in enumerate(self._homes) if where == device != home]
            if places:
                moved = table[_index(places, device)].to(home, non_blocking=home.type != "cpu")
                rows[_index(places, home)] = moved
        return rows


def _rows(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, len(LEDGER_COLUMNS), dtype=torch.float64, device=device)


def require_ledger(saved: Mapping[str, Any], rows: int) -> None:
    """Raises a ValueError if this is not the state of a ledger of so many parameters."""
    expected = (rows, len(LEDGER_COLUMNS))
    columns, found = tuple(saved.get("columns", ())), saved.get("rows")
    if columns != LEDGER_COLUMNS or not isinstance(found, Tensor) or tuple(found.shape) != expected:
        shape = tuple(found.shape) if isinstance(found, Tensor) else found
        raise ValueError(
            f"the ledger of the checkpoint has columns {columns} and rows {shape}; expected {LEDGER_COLUMNS} "
            f"and rows {expected}. Load the checkpoint of this model, or remove its 'ledger' to begin anew"
        )


def _opening(parameters: list[Tensor], optimizer: AdamW) -> Tensor:
    """Rows [N, 14] of tensors that have made no step."""
    device, nothing = parameters[0].device, [None] * len(parameters)
    one = torch.ones(len(parameters), dtype=torch.float64, device=device)
    kernel = find_kernel("sums", optimizer.backend, device)
    sums: Sums = kernel(Rows([p.detach() for p in parameters], nothing, nothing, one, one, one))
    known = {
        "norm_sq_start": sums.weight_sq,
        "norm_sq": sums.weight_sq,
        **{name: getattr(sums, name) for name in _STATISTICS[1:]},
    }
    return torch.stack([known.get(name, 0 * one).double() for name in LEDGER_COLUMNS], dim=1)


def _index(places: list[int], device: torch.device) -> Tensor:
    return sent(torch.tensor(places, device="cpu"), device)
