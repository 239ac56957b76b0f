"""The Gram matrices of a run's checkpoints: all that a recovery of forces needs to know of the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .columns import Columns
from .stored_tensors import PathLike
from .trajectory import require_ascending

Floats = NDArray[np.float64]

_KEY, _FORMAT = b"weibull_kernels_gram", 1
_PER_TENSOR = ("products", "moves", "eps", "update_sq")


@dataclass(frozen=True, eq=False)
class CheckpointGram(Columns):
    """Gᵢⱼ = ⟨wᵢ,wⱼ⟩ of the K checkpoints of P tensors, and what else bears on their forces.

    Everything that a linear spline through checkpoints says of the forces is quadratic in them, so
    these K² numbers a tensor stand for the weights. Source: [W2], spline recovery; design of the
    Gram ours.

    Attributes:
        steps: [K], of the checkpoints.
        names: of the tensors, [P].
        numel: [P] int64.
        products: Gᵢⱼ, [P, K, K] float64, symmetric; NaN where two checkpoints were never read
            together, or only neighbours were asked for.
        moves: ‖wᵢ − wᵢ₋₁‖², [P, K] float64, 0 for the first: to all digits, where G has lost them.
        eps: of the dtype that the checkpoint has the tensor in, [P, K]: what rounding may have done.
        update_sq: û_rms² by an optimizer state that was saved with the weights, [P, K]; NaN where
            there was none.
        left_out: names without a row, and why.
        notes: what else was seen, such as a state that could not be used.
        role_overrides: patterns to roles for names that `wk.role_of` would not know.
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    numel: NDArray[np.int64]
    products: Floats
    moves: Floats
    eps: Floats
    update_sq: Floats
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    role_overrides: Mapping[str, str] | None = None

    @property
    def norm_sq(self) -> Floats:
        """‖w‖² at each checkpoint, [P, K]."""
        return np.diagonal(self.products, axis1=1, axis2=2)

    @property
    def unlinked(self) -> list[tuple[int, int]]:
        """Neighbouring steps whose checkpoints were not read together."""
        links = np.isnan(np.diagonal(self.products, offset=1, axis1=1, axis2=2)).any(axis=0)
        return [(self.steps[i], self.steps[i + 1]) for i in np.flatnonzero(links)]

    def __add__(self, other: object) -> CheckpointGram:
        """That of both shards together, of other entries of the same tensors.

        Raises:
            ValueError: the steps or the names are not the same.
        """
        if not isinstance(other, CheckpointGram):
            return NotImplemented
        self._require_steps(other)
        if self.names != other.names:
            strange = sorted(set(self.names) ^ set(other.names))
            which = f"{', '.join(strange[:3])} in one of them only" if strange else "in another order"
            raise ValueError(
                f"shards add where they are of the same tensors, these have {which}; a | b joins"
            )
        both = np.stack((self.numel, other.numel))[..., None]
        parts = np.where(both > 0, np.stack((self.update_sq, other.update_sq)), 0)
        return dataclasses.replace(
            self,
            numel=self.numel + other.numel,
            products=self.products + other.products,
            moves=self.moves + other.moves,
            eps=np.maximum(self.eps, other.eps),
            update_sq=(both * parts).sum(axis=0) / np.maximum(both.sum(axis=0), 1),  # a mean over entries
            left_out={**self.left_out, **other.left_out},
            notes=self.notes + other.notes,
        )

    def __or__(self, other: object) -> CheckpointGram:
        """The tensors of both, as from ranks that read different ones.

        Raises:
            ValueError: the steps are not the same, or a tensor is in both.
        """
        if not isinstance(other, CheckpointGram):
            return NotImplemented
        self._require_steps(other)
        if again := sorted(set(self.names) & set(other.names)):
            raise ValueError(f"{', '.join(again[:3])} is in both; shards of the same tensors are a + b")
        names = self.names + other.names
        left_out = {**self.left_out, **other.left_out}
        columns: dict[str, Any] = {
            column: np.concatenate((getattr(self, column), getattr(other, column)))
            for column in ("numel", *_PER_TENSOR)
        }
        return dataclasses.replace(
            self,
            names=names,
            **columns,
            notes=self.notes + other.notes,
            left_out={name: why for name, why in left_out.items() if name not in names},
        )

    def _require_steps(self, other: CheckpointGram) -> None:
        if self.steps != other.steps:
            strange = sorted(set(self.steps) ^ set(other.steps))
            raise ValueError(f"both must be of the same steps; only one has that of step {strange[0]}")

    def select(self, rows: Sequence[int]) -> CheckpointGram:
        """The given tensors alone."""
        chosen = list(rows)
        columns = {column: getattr(self, column)[chosen] for column in ("numel", *_PER_TENSOR)}
        return dataclasses.replace(self, names=tuple(self.names[row] for row in chosen), **columns)

    def at(self, steps: Sequence[int]) -> CheckpointGram:
        """That of some of the checkpoints alone.

        Raises:
            ValueError: one of the steps is not among them, or two that become neighbours were not
                read together.
        """
        numbers = require_ascending(steps)
        if strange := [step for step in numbers if step not in self.steps]:
            raise ValueError(f"there is no checkpoint of step {strange[0]}; there are {list(self.steps)}")
        chosen = np.array([self.steps.index(step) for step in numbers])
        products = self.products[:, chosen][:, :, chosen]
        norm_sq, crossed = (np.diagonal(products, offset=k, axis1=1, axis2=2) for k in (0, 1))
        # What was a move before is known better than the products tell.
        moves = np.zeros(norm_sq.shape)
        moves[:, 1:] = np.maximum(norm_sq[:, 1:] - 2 * crossed + norm_sq[:, :-1], 0)
        kept = np.flatnonzero(np.diff(chosen) == 1) + 1
        moves[:, kept] = self.moves[:, chosen[kept]]
        some = dataclasses.replace(
            self,
            steps=numbers,
            products=products,
            moves=moves,
            eps=self.eps[:, chosen],
            update_sq=self.update_sq[:, chosen],
        )
        if unlinked := some.unlinked:
            raise ValueError(
                "the checkpoints of steps {} and {} were not read together; take others, or read all of them "
                "with checkpoint_gram".format(*unlinked[0])
            )
        return some

    def save(self, path: PathLike) -> None:
        """As a Parquet file, with a row for each tensor; `load` reads it.

        A file that is there is replaced at once, never half.
        """
        described = {
            "format": _FORMAT,
            "steps": list(self.steps),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "role_overrides": None if self.role_overrides is None else dict(self.role_overrides),
        }
        numbers = {
            column: pa.array(list(getattr(self, column).reshape(len(self.names), -1)), pa.list_(pa.float64()))
            for column in _PER_TENSOR
        }
        table = pa.table(
            {
                "name": pa.array(self.names, pa.string()),
                "numel": pa.array(self.numel, pa.int64()),
                **numbers,
            },
        ).replace_schema_metadata({_KEY: json.dumps(described).encode()})
        whole = Path(path).with_name(Path(path).name + ".part")
        pq.write_table(table, whole)
        whole.replace(path)

    @classmethod
    def load(cls, path: PathLike) -> CheckpointGram:
        """What `save` wrote, to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is another.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path} of Gram matrices")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} holds no Gram matrices: {error}") from None
        metadata = table.schema.metadata or {}
        if _KEY not in metadata:
            raise ValueError(f"{path} holds no Gram matrices: expected what CheckpointGram.save wrote")
        described = json.loads(metadata[_KEY])
        if described["format"] != _FORMAT:
            raise ValueError(f"{path} is of format {described['format']}, this version reads {_FORMAT}")
        if missing := [column for column in _PER_TENSOR if column not in table.column_names]:
            raise ValueError(f"{path} lacks the columns {missing}; make it anew with checkpoint_gram")
        count = len(described["steps"])
        shapes = dict.fromkeys(_PER_TENSOR, (-1, count)) | {"products": (-1, count, count)}
        numbers = {
            column: table[column].combine_chunks().flatten().to_numpy().reshape(shape)
            for column, shape in shapes.items()
        }
        return cls(
            steps=tuple(described["steps"]),
            names=tuple(table["name"].to_pylist()),
            numel=table["numel"].to_numpy(),
            **numbers,
            left_out=described["left_out"],
            notes=tuple(described["notes"]),
            role_overrides=described["role_overrides"],
        )
