"""The part a parameter plays in a transformer, told from its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

ROLES = ("attention_output", "ffn", "qkv", "embedding", "head", "norm", "bias", "other")

TRANSMISSION = ("attention_output", "ffn")
"""The roles whose weights [W1] finds Weibull: attention output and FFN matrices."""

# Tried from the top; the first that is found in the name decides.
_PATTERNS = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("norm", r"norm|(^|[._])ln(_|\d|\.|$)"),
        ("bias", r"(^|[._])bias$"),
        ("head", r"(^|\.)(lm_head|embed_out|output_head|unembed\w*|head)(\.|$)"),
        ("embedding", r"embed|(^|\.)w[tp]e(\.|$)"),
        (
            "qkv",
            r"query_key_value|(^|[._])(q|k|v|qkv|kv)_?(proj|attn|lin|b_proj|a_proj)?(\.|$)|c_attn|in_proj"
            r"|(^|[._])(query|key|value)(\.|$)|W_?(pack|qkv)|(^|\.)w[qkv](\.|$)",
        ),
        (
            "ffn",
            r"mlp|ffn|feed_?forward|(^|\.)(dense_h_to_4h|dense_4h_to_h|fc\d|c_fc|(gate|up|down)_proj|w[123])(\.|$)",
        ),
        (
            "attention_output",
            r"(^|[._])attn(\w*\.)|attention\.dense|self_attn\.o|(^|\.)(o_proj|out_proj|wo|att_proj|attn_out)(\.|$)",
        ),
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
    for role, expression in _PATTERNS:
        if expression.search(name):
            return role
    return "other"


def roles_of(names: Iterable[str], overrides: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """`role_of` each name."""
    return tuple(role_of(name, overrides) for name in names)
