"""Statistics of the weights themselves, from the same pass over memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .checkpoints import open_checkpoint
from .columns import Columns, picked
from .dispatch import find_kernel
from .kernels.interface import Rows, Sums
from .kernels.memory import capturing, numel_on
from .optimizers import names_in
from .roles import in_order, matching_rows, roles_of
from .shards import local_of, sums_over_shards
from .stored_tensors import PathLike, StoredTensor, tied
from .tensors import require_readable

Named = Iterable[tuple[str, Tensor]]
Source = torch.nn.Module | Mapping[str, Tensor] | Named | PathLike

# Bytes of a file that are looked at together. The memory they are read into is used again and again,
# and is small enough to stay in a processor's cache until the kernel reads it.
_READ = 1 << 23
# Tensors that are looked at together: each has a histogram, however few entries it has.
_ROWS = 64
# Bytes of tensors from an iterable that are held together: it may make them as it goes.
_HELD = 1 << 28
_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class WeightStatistics(Columns):
    """The distribution of |w| of P tensors in a few numbers each, [P].

    Logarithms are natural and run over the finite non-zero entries, of which there are
    `numel − zero_count − non_finite_count`; `max_abs` runs over the finite ones. `norm_sq` is
    the plain Σw². `histogram` is [P, BINS] int64 on the grid of float32's exponent and six
    leading mantissa bits, or None where it was not asked for. Source: [W1], log-moments.

    Statistics add: those of two shards, ranks or slices of the same tensors are `a + b`, and those
    of several tensors together are `total(...)`. Counts and histograms are exact either way.
    `left_out` says of names that have no row why; `role_overrides` are patterns to roles for names
    that `wk.role_of` would not know.
    """

    names: tuple[str, ...]
    numel: Tensor
    norm_sq: Tensor
    log_sum: Tensor
    log_sq_sum: Tensor
    max_abs: Tensor
    zero_count: Tensor
    non_finite_count: Tensor
    histogram: Tensor | None = None
    role_overrides: Mapping[str, str] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_sums(cls, names: tuple[str, ...], numel: Tensor, sums: Sums) -> WeightStatistics:
        """What a kernel returned, under the names of the tensors."""
        return cls(
            names=names,
            numel=numel,
            norm_sq=sums.weight_sq,
            log_sum=sums.log_sum,
            log_sq_sum=sums.log_sq_sum,
            max_abs=sums.max_abs,
            zero_count=sums.zero_count,
            non_finite_count=sums.non_finite_count,
            histogram=sums.histogram,
        )

    @property
    def rms(self) -> Tensor:
        """σ = √(‖w‖²/n), [P]: the root mean square, not the standard deviation of |w|."""
        return (self.norm_sq / self.numel).sqrt()

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of each tensor, as by `wk.role_of`."""
        return roles_of(self.names, self.role_overrides)

    def __add__(self, other: object) -> WeightStatistics:
        """Those of both together, of other entries of the same tensors; on the device of the first.

        Raises:
            ValueError: the names are not the same, or only one of them has a histogram.
        """
        if not isinstance(other, WeightStatistics):
            return NotImplemented
        if self.names != other.names:
            strange = sorted(set(self.names) ^ set(other.names))
            which = f"{', '.join(strange[:3])} in one of them only" if strange else "in another order"
            raise ValueError(f"statistics add where they are of the same tensors, these have {which}")
        if (self.histogram is None) != (other.histogram is None):
            raise ValueError("only one of the statistics has a histogram; take both with histogram=True")

        def together(mine: Tensor | None, its: Tensor | None, *, largest: bool) -> Tensor | None:
            if mine is None or its is None:
                return None
            its = its.to(mine.device)
            return torch.maximum(mine, its) if largest else mine + its

        columns: dict[str, Any] = {
            name: together(getattr(self, name), getattr(other, name), largest=name == "max_abs")
            for name in STATISTICS
        }
        return dataclasses.replace(self, **columns, left_out={**self.left_out, **other.left_out})

    def select(self, rows: list[int]) -> WeightStatistics:
        """The statistics of the given rows alone."""
        columns = {name: getattr(self, name) for name in STATISTICS}
        chosen: dict[str, Any] = {name: None if c is None else picked(c, rows) for name, c in columns.items()}
        return dataclasses.replace(self, names=tuple(self.names[row] for row in rows), **chosen)

    def total(self, pattern: str = "*", *, role: str | None = None) -> WeightStatistics:
        """One row: the tensors whose name matches, taken together.

        Args:
            pattern: as in `fnmatch`, such as "*.mlp.*"; all tensors by default.
            role: only those of this role; "transmission" is attention output and FFN together.

        Raises:
            ValueError: no name matches.

        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
        >>> weight_statistics(model).total("*.weight").numel.tolist()
        [10]
        """
        return self.select(matching_rows(self.names, self.roles, pattern, role)).summed(
            pattern if role is None else role, role
        )

    def by_role(self) -> WeightStatistics:
        """A row for each role that occurs, in the order of `ROLES`: its tensors taken together."""
        roles = in_order(self.roles)
        if not roles:
            return self
        joined = joined_statistics([self.total(role=role) for role in roles])
        return dataclasses.replace(joined, role_overrides={role: role for role in roles})

    def summed(self, name: str, role: str | None = None) -> WeightStatistics:
        """All rows as one, called `name`, and of that role if one is given."""
        columns = {column: getattr(self, column) for column in STATISTICS}
        one: dict[str, Any] = {
            name: None if c is None else (c.amax if name == "max_abs" else c.sum)(0, keepdim=True)
            for name, c in columns.items()
        }
        overrides = self.role_overrides if role is None else {name: role}
        return dataclasses.replace(self, names=(name,), role_overrides=overrides, **one)


STATISTICS = (
    *("numel", "norm_sq", "log_sum", "log_sq_sum", "max_abs"),
    *("zero_count", "non_finite_count", "histogram"),
)
"""The columns of `WeightStatistics`."""


def weight_statistics(
    source: Source,
    *,
    histogram: bool = True,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
) -> WeightStatistics:
    """Log-moments, extremes, counts and the histogram of |w| of every tensor, in one pass.

    Of a file or folder no more than 8 MB are in memory at a time, whatever its size, beside a
    histogram of 130 kB for every tensor. What is not floating point (token ids, masks) and what is
    tied to a tensor before it has no row and is named in `left_out`.

    Of tensors that torch has sharded (DTensor) the statistics are those of the whole, on every process: a
    collective call then, as `wk.forces` is, with one all-reduce a mesh.

    Args:
        source: a module, for its parameters under the names they have in `wk.forces`; a mapping
            from name to tensor, such as a `state_dict`; pairs (name, tensor), which may be made one
            by one; or the path of a checkpoint, see `open_checkpoint`. float32, float64, bfloat16,
            float16; any shape and device.
        histogram: count it; without, fits are by log moments alone.
        roles: patterns to roles, as in `wk.forces`.
        backend: "reference", "cpu", "triton", "cuda", or None to let the device choose.

    Returns:
        `WeightStatistics` in the order of the source, on the device of the tensors (the first
        accelerator if there are several). Nothing waits for it.

    Raises:
        TypeError: the source is none of these; or a tensor, which is named, is complex, float8,
            quantised, sparse or a wrapper.
        ValueError: nothing in it is floating point, or two tensors have one name.
        FileNotFoundError, CheckpointError: the path cannot be read.
        RuntimeError: the named backend cannot run here.

    >>> statistics = weight_statistics({"w": torch.tensor([0.0, 3.0, -4.0]), "ids": torch.arange(3)})
    >>> statistics.norm_sq.tolist(), statistics.zero_count.tolist(), statistics.left_out
    ([25.0], [1], {'ids': 'int64'})
    """
    if isinstance(source, (str, os.PathLike)):
        checkpoint = open_checkpoint(source)
        stored, left_out = readable(checkpoint)
        left_out |= checkpoint.left_out
        parts = list(stored_statistics(stored, histogram=histogram, backend=backend))
    else:
        left_out = {}
        pairs, together = _pairs(source, left_out)
        parts = list(_of_pairs(pairs, together, left_out, histogram, backend))
    if not parts:
        named = f"; left out were {', '.join(list(left_out)[:3])}" if left_out else ""
        raise ValueError(f"the source has no floating-point tensors{named}")
    joined = joined_statistics(parts)
    if len(set(joined.names)) < len(joined.names):
        again = next(name for name in joined.names if joined.names.count(name) > 1)
        raise ValueError(
            f"two tensors are called {again!r}; name them apart, or add statistics of the parts with +"
        )
    return dataclasses.replace(joined, role_overrides=roles, left_out=left_out)


def readable(stored: Iterable[StoredTensor]) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a checkpoint that are floating point, and the dtypes of the others by name.

    Raises:
        TypeError: a dtype is floating point or complex but not one of those the kernels read.
    """
    floating, left_out = [], {}
    for tensor in stored:
        # Of the same dtype as the tensor, with nothing in it: the rule is that of tensors in memory.
        if _is_weight(tensor.name, torch.empty(0, dtype=tensor.dtype)):
            floating.append(tensor)
        else:
            left_out[tensor.name] = _plain(tensor.dtype)
    return floating, left_out


@torch.no_grad()
def stored_statistics(
    stored: Iterable[StoredTensor],
    *,
    histogram: bool = True,
    backend: str | None = None,
    on_read: Callable[[int], object] = lambda count: None,
) -> Iterator[WeightStatistics]:
    """The statistics of the tensors of a checkpoint, of a few at a time, in their order.

    Each part is of at most 64 tensors, whose histograms are 8 MB; nothing of it is kept here.

    Args:
        stored: floating-point tensors; see `readable`.
        histogram: as in `weight_statistics`.
        backend: likewise.
        on_read: called with how many bytes were read, each time some were.
    """
    buffer = torch.empty(_READ, dtype=torch.uint8)
    batch: list[tuple[str, Tensor]] = []
    filled = 0
    for tensor in stored:
        if batch and (filled + tensor.nbytes > _READ or len(batch) == _ROWS):
            yield _measured(batch, histogram, backend)
            batch, filled = [], 0
        if tensor.nbytes > _READ:
            yield _in_pieces(tensor, buffer, histogram, backend, on_read)
            continue
        batch.append((tensor.name, tensor.read(out=buffer[filled:])))
        filled += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        on_read(tensor.nbytes)
    if batch:
        yield _measured(batch, histogram, backend)


def _in_pieces(
    tensor: StoredTensor,
    buffer: Tensor,
    histogram: bool,
    backend: str | None,
    on_read: Callable[[int], object],
) -> WeightStatistics:
    """Of a tensor that is read piece by piece into the same memory."""
    step, whole = len(buffer) // tensor.dtype.itemsize, None
    for start in range(0, tensor.numel, step):
        piece = tensor.read(start, start + step, out=buffer)
        part = _measured([(tensor.name, piece)], histogram, backend)
        whole = part if whole is None else whole + part
        on_read(piece.nbytes)
    assert whole is not None
    return whole


def _pairs(source: Any, left_out: dict[str, str]) -> tuple[Named, bool]:
    """Names and tensors, and whether all of them are in memory anyway. Notes which are tied."""
    if isinstance(source, torch.nn.Module):
        names = names_in(source)  # each parameter once
        rows: dict[int, tuple[str, Tensor]] = {}
        for name, parameter in source.named_parameters(remove_duplicate=False):
            if id(parameter) in rows:
                left_out[name] = f"tied to '{names[id(parameter)]}'"
            rows[id(parameter)] = names[id(parameter)], parameter
        return rows.values(), True
    if isinstance(source, Mapping):
        for name, tensor in source.items():
            _require_tensor(name, tensor)
        again = tied(source)
        left_out |= {name: f"tied to '{earlier}'" for name, earlier in again.items()}
        return [(name, tensor) for name, tensor in source.items() if name not in again], True
    if isinstance(source, Iterable) and not isinstance(source, Tensor):
        return source, False
    raise TypeError(
        "weight_statistics takes a module, a mapping from name to tensor, pairs (name, tensor) or the "
        f"path of a checkpoint, got {type(source).__name__}"
    )


@torch.no_grad()
def _of_pairs(
    pairs: Iterable[Any], together: bool, left_out: dict[str, str], histogram: bool, backend: str | None
) -> Iterator[WeightStatistics]:
    batch: list[tuple[str, Tensor]] = []
    held = 0
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"expected pairs (name, tensor), got a {type(pair).__name__}")
        name, tensor = pair
        _require_tensor(name, tensor)
        if not _is_weight(name, tensor):
            left_out[name] = _plain(tensor.dtype)
            continue
        batch.append((name, tensor))
        held += tensor.nbytes
        if held >= _HELD and not together:
            yield _measured(batch, histogram, backend)
            batch, held = [], 0
    if batch:
        yield _measured(batch, histogram, backend)


def _require_tensor(name: Any, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or not isinstance(name, str):
        raise TypeError(f"expected a tensor under each name, got {type(tensor).__name__} under {name!r}")


def _is_weight(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is floating point; raises if it is, or stands for such, and cannot be read."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized:
        require_readable(name, tensor)
        return True
    return False


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _measured(batch: list[tuple[str, Tensor]], histogram: bool, backend: str | None) -> WeightStatistics:
    """One launch for each device that the tensors are on."""
    by_device: dict[torch.device, list[int]] = {}
    for i, (_, tensor) in enumerate(batch):
        by_device.setdefault(tensor.device, []).append(i)
    parts = []
    for device, index in by_device.items():
        if capturing(device):
            raise RuntimeError(
                "statistics of weights cannot be captured into a CUDA graph, nor can a ledger's histogram; "
                "read them outside of it, or take those of wk.forces(), which can"
            )
        nothing = [None] * len(index)
        ones = torch.ones(len(index), dtype=torch.float64, device=device)
        weights = [batch[i][1] for i in index]
        here = [local_of(weight) for weight in weights]
        sums = find_kernel("sums", backend, device)(
            Rows(here, nothing, nothing, ones, ones, ones), with_histogram=histogram
        )
        sums = sums_over_shards(weights, sums)
        numel = numel_on(weights, device)
        parts.append(WeightStatistics.from_sums(tuple(batch[i][0] for i in index), numel, sums))
    if len(parts) == 1:
        return parts[0]
    order = [i for index in by_device.values() for i in index]
    return joined_statistics(parts).select(sorted(range(len(order)), key=order.__getitem__))


def joined_statistics(parts: list[WeightStatistics]) -> WeightStatistics:
    """The rows of all, one after the other, on the first accelerator; their names and columns alone."""
    if len(parts) == 1:
        return parts[0]
    devices = [part.numel.device for part in parts]
    home = next((device for device in devices if device.type != "cpu"), devices[0])

    def join(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        return torch.cat([value.to(home, non_blocking=home.type != "cpu") for value in values])

    columns = {name: join([getattr(part, name) for part in parts]) for name in STATISTICS}
    return WeightStatistics(names=tuple(name for part in parts for name in part.names), **columns)
