"""The part a parameter plays in a transformer, told from its name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

ROLES = ("attention_output", "ffn", "qkv", "embedding", "head", "norm", "bias", "other")

TRANSMISSION = ("attention_output", "ffn")
"""The roles whose weights [W1] finds Weibull: attention output and FFN matrices."""

# Each matches whole words of the dotted name; the first that is found decides.
_PATTERNS = tuple(
    (role, re.compile(rf"(^|\.)({words})(\.|$)"))
    for role, words in (
        ("norm", r"\w*norm\w*|ln|ln\d|ln_\w+"),
        ("bias", r"bias|\w+_bias"),
        ("other", r"router|(mlp|block_sparse_moe)\.gate"),  # of a mixture of experts
        (
            "head",
            r"lm_head|embed_out|head|output_head|unembed\w*|output(?=\.weight$)|score|classifier|transformer\.ff_out",
        ),
        ("embedding", r"\w*embed\w*|w[tp]e"),
        (
            "qkv",
            r"query_key_value|c_attn|att_proj|in_proj|in_proj_weight|Wqkv|W_pack|w[qkv]|query|key|value"
            r"|(q|k|v|kv|qkv|q_a|q_b|kv_a|kv_b)(_proj\w*)?",
        ),
        (
            "ffn",
            r"mlp|ffn|feed_?forward|block_sparse_moe|dense_h_to_4h|dense_4h_to_h|c_fc|fc\d|fc_in|fc_out"
            r"|(gate|up|down|gate_up)_proj|linear[12]|w[123]|ff_proj|ff_out",
        ),
        ("attention_output", r"o_proj|out_proj|attn_out|wo|(\w*attention|\w*attn)\.(dense|c_proj|proj)"),
    )
)


def role_of(name: str, overrides: Mapping[str, str] | None = None) -> str:
    """The role of a parameter, one of `ROLES`, by the naming of GPT-NeoX, the LLaMA family and GPT-2.

    Args:
        name: as in `model.named_parameters()`.
        overrides: patterns such as "*.adapter.*" (as in `fnmatch`) to roles; the first that
            matches decides before any other rule. A role of the user's own is allowed.

    Returns:
        The role; "other" where no rule knows the name.

    >>> role_of("gpt_neox.layers.0.attention.dense.weight")
    'attention_output'
    >>> role_of("model.layers.3.mlp.down_proj.weight")
    'ffn'
    """
    for pattern, role in (overrides or {}).items():
        if fnmatchcase(name, pattern):
            return role
    return _built_in_role(name)


@functools.lru_cache(maxsize=1 << 16)
def _built_in_role(name: str) -> str:
    return next((role for role, expression in _PATTERNS if expression.search(name)), "other")


def roles_of(names: Iterable[str], overrides: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """`role_of` each name."""
    return tuple(role_of(name, overrides) for name in names)


def matching_rows(names: Sequence[str], roles: Sequence[str], pattern: str, role: str | None) -> list[int]:
    """Positions of the names that match a pattern and have a role; "transmission" is two of them.

    Raises:
        ValueError: there is none.
    """
    wanted = TRANSMISSION if role == "transmission" else (role,)
    rows = [
        row
        for row, (name, its_role) in enumerate(zip(names, roles, strict=True))
        if fnmatchcase(name, pattern) and (role is None or its_role in wanted)
    ]
    if not rows:
        what = f"the name pattern {pattern!r}" if role is None else f"{pattern!r} and role {role!r}"
        raise ValueError(
            f"no tensor matches {what}; the {len(names)} names begin with {', '.join(names[:3])}, the roles "
            f"are {', '.join(sorted(set(roles)))}. Positions such as 0.0 become names where the model, or "
            "named parameters, are given"
        )
    return rows
