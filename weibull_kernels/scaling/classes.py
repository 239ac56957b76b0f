"""Which law of width each parameter follows."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from ..columns import Columns
from ..dispatch import frames_to_the_caller
from ..names import Named, pairs
from ..roles import role_of

SCALING_CLASSES = ("matrix", "vector", "embedding", "head")

# What several matrices side by side are called, as whole words of the name.
_FUSED = re.compile(
    r"(^|\.)(query_key_value|c_attn|att_proj|in_proj|in_proj_weight|Wqkv|W_pack|qkv|qkv_proj|kv_proj"
    r"|gate_up_proj|w12|w13)(\.|$)"
)
_FLAT = re.compile(r"(^|\.)_?flat_param")

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

    def of(self, name: str) -> str:
        """The class of the parameter of this name.

        Raises:
            ValueError: it is not among the names.
        """
        try:
            return self.classes[self.names.index(name)]
        except ValueError:
            raise ValueError(
                f"'{name}' is not among the {len(self)} classified parameters, which begin with "
                f"{', '.join(self.names[:_SHOWN])}; classify the model that is trained"
            ) from None


def labels(classes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """The columns `class` and `shape` of a table."""
    return {"class": np.array(classes), "shape": np.array(["x".join(map(str, shape)) for shape in shapes])}


def classify(named: Named, overrides: Mapping[str, str] | None = None) -> Classification:
    """Sorts parameters into matrix-like, vector-like, embedding and head, by role and shape.

    A matrix of attention or of an FFN (the roles of `wk.role_of`) is a "matrix", also where
    experts are stacked to three dimensions; norms, biases and whatever else has at most one dimension
    are a "vector". What several names share is one parameter, of the class of its first name.

    Args:
        named: a model, pairs (name, tensor), or a mapping from name to tensor or shape. Of a model
            tied parameters are found; of pairs, where one comes twice.
        overrides: patterns (as in `fnmatch`) of names to classes; the first that matches decides.

    Returns:
        A row for each parameter.

    Raises:
        ValueError: a parameter cannot be classified, or is flattened, or the names of one have
            different classes (an embedding tied to a head aside); each is named. An override is of no
            class, or matches nothing.

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
    first: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, tuple[str, ...]] = {}
    for name, item in pairs(named):
        earlier = first.setdefault(id(item), name) if isinstance(item, torch.Tensor) else name
        if earlier != name:
            tied[earlier] = (*tied.get(earlier, ()), name)
        elif name in shapes:
            raise ValueError(f"two parameters are named '{name}'; names must tell them apart")
        else:
            shapes[name] = tuple(getattr(item, "shape", item))
    if not shapes:
        raise ValueError("there are no parameters; was a generator such as named_parameters() used up?")
    return list(shapes), list(shapes.values()), tied


def _class_of(name: str, shape: tuple[int, ...], overrides: Mapping[str, str]) -> str | None:
    """The class; None where no rule knows it."""
    for pattern, scaling_class in overrides.items():
        if fnmatchcase(name, pattern):
            return scaling_class
    role = role_of(name)
    if _FLAT.search(name):
        return None
    if role in MATRIX_ROLES:
        return "matrix" if len(shape) in (2, 3) else None
    if role in ("embedding", "head"):
        return role if len(shape) == 2 else None
    return "vector" if role in ("norm", "bias") or len(shape) <= 1 else None


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
    flat = all(len(shapes[row]) == 1 for row in unknown)
    remedy = (
        "they look flattened, as FSDP leaves them: classify(model) before it is wrapped, and hand the "
        "result over as classes="
        if flat
        else "say what they are, as in overrides={'*.router.weight': 'matrix'}, one of "
        + ", ".join(SCALING_CLASSES)
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
        said.append(f"{shown} hold several matrices each, which share one lr and decay")
    if said:
        warnings.warn(
            "; ".join(said) + ". Name them in overrides to say that this is meant",
            UserWarning,
            stacklevel=frames_to_the_caller(),
        )


def _few(items: list[str]) -> str:
    rest = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
