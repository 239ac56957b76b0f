"""Which law of width each parameter follows."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from ..columns import Columns
from ..dispatch import frames_to_the_caller
from ..names import Named, pairs
from ..roles import EXPERTS, role_of
from ..tables import columns_table
from ..tensors import place_of

SCALING_CLASSES = ("matrix", "vector", "embedding", "head")

# What several matrices side by side are called, as whole words of the name.
_FUSED = re.compile(
    r"(^|\.)(query_key_value|c_attn|att_proj|in_proj|in_proj_weight|[wW]qkv|W_pack|(linear_)?qkv|qkv_proj|kv_proj"
    r"|attn\.attn|gate_up_proj|ff_proj|Wi|w12|w13)(\.|$)"
)
# Whose shape says nothing of a width: several parameters in one, and adapters of a fixed rank.
_NO_MATRIX = re.compile(r"(^|\.)(_?flat_param\w*|lora_\w+)(\.|$)")

MATRIX_ROLES = ("attention_output", "ffn", "qkv")
"""The roles whose tensors are matrix-like."""

_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Classification(Columns):
    """The scaling class of each parameter, one of `SCALING_CLASSES`.

    Attributes:
        names: [P], without what wrappers put into them.
        classes: [P].
        shapes: [P].
        tied: the further names of a parameter by the one it has here.
        fused: names of parameters that hold several matrices, and that no override speaks of.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """`name`, `class` and `shape`, text such as 64x256, as numpy arrays [P]."""
        return {"name": np.array(self.names)} | labels(self.classes, self.shapes)

    def __str__(self) -> str:
        return columns_table(self.to_dict())

    def of(self, name: str) -> str:
        """The class of the parameter of this name, which may be one that is tied.

        Raises:
            ValueError: it is not among the names.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise ValueError(
                f"'{name}' is not among the {len(self)} classified parameters, which begin with "
                f"{', '.join(self.names[:_SHOWN])}; classify the model that is trained"
            ) from None

    @functools.cached_property
    def _by_name(self) -> dict[str, str]:
        classes = dict(zip(self.names, self.classes, strict=True))
        return classes | {other: classes[name] for name, others in self.tied.items() for other in others}


def classes_or(
    classes: Classification | None, named: Named, overrides: Mapping[str, str] | None
) -> Classification:
    """The `classes` that were given, or those of `named` by its overrides.

    Raises:
        ValueError: both are given; or as `classify`.
    """
    if classes is None:
        return classify(named, overrides)
    if overrides is not None:
        raise ValueError("classes= and overrides= exclude each other; give the overrides to classify()")
    return classes


def labels(classes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """The columns `class` and `shape` of a table."""
    return {"class": np.array(classes), "shape": np.array(["x".join(map(str, shape)) for shape in shapes])}


def classify(named: Named, overrides: Mapping[str, str] | None = None) -> Classification:
    """Sorts parameters into matrix-like, vector-like, embedding and head, by role and shape.

    A matrix of attention or of an FFN (the roles of `wk.role_of`) is a "matrix", also where
    experts are stacked to three dimensions. Norms, biases and whatever else has at most one dimension are a
    "vector", unless its name is that of a matrix. What several names share is one parameter; one that
    is an embedding and a head is an embedding.

    Args:
        named: a model, pairs (name, tensor), or a mapping from name to tensor or shape. Of a model
            tied parameters are found; of pairs, where one comes twice.
        overrides: patterns (as in `fnmatch`) of names to classes; the first that matches decides.

    Returns:
        A row for each parameter.

    Raises:
        ValueError: a parameter cannot be classified (a router, an adapter, a convolution), or is
            flattened, or the names of one have different classes (an embedding tied to a head aside); each
            is named. An override is of no class, or matches nothing.
        TypeError: there is neither a tensor nor a shape under a name.

    Warns:
        UserWarning: names what is tied, and what holds several matrices (fused QKV, gate and
            up); both share one lr and decay. An override of the name says that it is known.

    >>> classify({"h.0.mlp.c_fc.weight": (256, 64), "h.0.ln_1.weight": (64,)}).classes
    ('matrix', 'vector')
    """
    overrides = overrides or {}
    for pattern, scaling_class in overrides.items():
        if scaling_class not in SCALING_CLASSES:
            raise ValueError(
                f"overrides[{pattern!r}] must be one of {', '.join(SCALING_CLASSES)}, got {scaling_class!r}"
            )
    names, shapes, tied = _rows(named)
    every = [*names, *(name for others in tied.values() for name in others)]
    unused = [p for p in overrides if not any(fnmatchcase(name, p) for name in every)]
    if unused:
        raise ValueError(
            f"no parameter matches overrides[{unused[0]!r}]; the {len(names)} names begin with "
            f"{', '.join(names[:_SHOWN])}"
        )
    found = [
        _class_of_all((name, *tied.get(name, ())), shape, overrides)
        for name, shape in zip(names, shapes, strict=True)
    ]
    _require_classes(names, shapes, found)
    classes = [scaling_class or "" for scaling_class in found]

    def known(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in overrides)

    fused = tuple(
        name
        for name, scaling_class in zip(names, classes, strict=True)
        if scaling_class == "matrix" and _FUSED.search(name) and not known(name)
    )
    _warn(fused, {name: others for name, others in tied.items() if not any(map(known, (name, *others)))})
    return Classification(tuple(names), tuple(classes), tuple(shapes), tied, fused)


def _rows(named: Named) -> tuple[list[str], list[tuple[int, ...]], dict[str, tuple[str, ...]]]:
    """Each parameter once: its name, its shape, and the further names of those that have some."""
    first: dict[Hashable, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, tuple[str, ...]] = {}
    for name, item in pairs(named):
        # By their memory, which the copies in a state_dict share; of a shard or on meta the object tells.
        same = isinstance(item, torch.Tensor) and (place_of(item) or id(item))
        earlier = first.setdefault(same, name) if same else name
        if earlier != name:
            tied[earlier] = (*tied.get(earlier, ()), name)
        elif name in shapes:
            raise ValueError(f"two parameters are named '{name}'; names must tell them apart")
        else:
            shapes[name] = _shape_of(name, item)
    if not shapes:
        raise ValueError("there are no parameters; was a generator such as named_parameters() used up?")
    return list(shapes), list(shapes.values()), tied


def _shape_of(name: str, item: Any) -> tuple[int, ...]:
    shape = getattr(item, "shape", item)
    if not isinstance(shape, (tuple, list)) or not all(isinstance(size, int) for size in shape):
        raise TypeError(f"expected a tensor or a shape such as (64, 256) under '{name}', got {item!r}")
    return tuple(shape)


def _class_of(name: str, shape: tuple[int, ...], overrides: Mapping[str, str]) -> str | None:
    """The class; None where no rule knows it."""
    for pattern, scaling_class in overrides.items():
        if fnmatchcase(name, pattern):
            return scaling_class
    role = role_of(name)
    if _NO_MATRIX.search(name):
        return None
    if len(shape) < 2:
        # A vector, unless it is what a sharded model has left of a matrix.
        return None if _may_be_flat(name, role) else "vector"
    if role in ("norm", "bias"):
        return "vector"
    if role in MATRIX_ROLES and (len(shape) == 2 or (len(shape) == 3 and EXPERTS.search(name))):
        return "matrix"
    return role if role in ("embedding", "head") and len(shape) == 2 else None


def _may_be_flat(name: str, role: str) -> bool:
    return role in (*MATRIX_ROLES, "embedding", "head") and name.endswith("weight")


def _class_of_all(names: tuple[str, ...], shape: tuple[int, ...], overrides: Mapping[str, str]) -> str | None:
    """That of a parameter with several names; an embedding that is also the head is an embedding."""
    found = dict.fromkeys(_class_of(name, shape, overrides) for name in names)
    if set(found) == {"embedding", "head"}:
        return "embedding"
    if len(found) > 1:
        said = ", ".join(f"'{name}' ({_class_of(name, shape, overrides)})" for name in names)
        raise ValueError(
            f"{said} are one parameter, which can follow one law; name all of them in overrides to say which"
        )
    return next(iter(found))


def _require_classes(names: list[str], shapes: list[tuple[int, ...]], classes: list[str | None]) -> None:
    unknown = [row for row, scaling_class in enumerate(classes) if scaling_class is None]
    if not unknown:
        return
    remedy = (
        f"say what they are in overrides, as in {{{names[unknown[0]]!r}: 'vector'}}, one of "
        + ", ".join(SCALING_CLASSES)
    )
    if any(len(shapes[row]) == 1 for row in unknown):
        remedy += (
            "; if they are flat because they are sharded, as by FSDP, classify(model) before it is wrapped, "
            "and hand the result over as classes="
        )
    shown = _few([f"{names[row]} {list(shapes[row])}" for row in unknown])
    raise ValueError(f"cannot tell the scaling class of {shown}; {remedy}")


def _warn(fused: tuple[str, ...], tied: Mapping[str, tuple[str, ...]]) -> None:
    said = []
    if tied:
        shown = _few([" = ".join((name, *others)) for name, others in tied.items()])
        said.append(f"{shown} are tied and of one class, an embedding's where one of them is")
    if fused:
        shown = _few(list(fused))
        said.append(f"{shown}: several matrices in each, which share one lr and decay")
    if said:
        warnings.warn(
            "; ".join(said) + ". Name them in overrides to say that this is meant",
            UserWarning,
            stacklevel=frames_to_the_caller(),
        )


def _few(items: list[str]) -> str:
    rest = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
