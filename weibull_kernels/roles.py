"""The part a parameter plays in a transformer, told from its name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

ROLES = ("attention_output", "ffn", "qkv", "embedding", "head", "norm", "bias", "other")

TRANSMISSION = ("attention_output", "ffn")
"""The roles whose weights [W1] finds Weibull: attention output and FFN matrices."""

EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
"""What the name of a tensor has whose first dimension is one of experts, where it has three."""

# Each matches whole words of the dotted name; the first that is found decides. Some are said of the module
# that owns the parameter, others of any module on the way to it.
_ANYWHERE = r"(^|\.)({words})(\.|$)"
_OWNER = r"(^|\.)({words})(\.\d+)?(\.\w+)?$"
_PATTERNS = tuple(
    (role, re.compile(where.replace("{words}", words)))
    for role, where, words in (
        ("norm", _OWNER, r"(?i:\w*norm\w*)|ln|ln\d|ln_\w+|lnf|[lb]n\d"),
        ("bias", _ANYWHERE, r"bias|\w+_bias"),
        # Of a mixture of experts.
        ("other", _ANYWHERE, r"router|(mlp|ffn|feed_?forward|\w*moe)\.gate|shared_expert_gate"),
        (
            "head",
            _OWNER,
            r"lm_head|lm_head\.(decoder|linear|proj)|embed_out|head|output_head|unembed\w*|output_layer|score"
            r"|classifier|classifier\.out_proj|transformer\.ff_out",
        ),
        ("head", r"^((?!attention|attn)\w+\.)?({words})$", r"output\.weight"),
        ("embedding", _OWNER, r"\w*embed\w*|w[tp]e|(\w+_)?emb"),
        ("embedding", r"^(\w+\.)?({words})$", r"shared\.weight"),
        (
            "ffn",
            _ANYWHERE,
            r"mlp|ffn|ff|ff\d|feed_?forward|block_sparse_moe|dense_h_to_4h|dense_4h_to_h|c_fc|fc\d|fc_in|fc_out"
            r"|(gate|up|down|gate_up)_proj|linear[12]|linear_fc\d|w[123]|[wW]i|wi_\d|ff_proj|ff_out"
            r"|DenseReluDense|intermediate\.dense|(?<!attention\.)output\.dense",
        ),
        (
            "qkv",
            _ANYWHERE,
            r"query_key_value|c_attn|q_attn|att_proj|in_proj|in_proj_weight|[wW]qkv|W_pack|query|key|value"
            r"|w_?[qkv]|w(q|kv)_[ab]|linear_(q|kv|qkv)|attn\.attn"
            r"|(q|k|v|kv|qkv|q_a|q_b|kv_a|kv_b)(_proj\w*)?",
        ),
        (
            "attention_output",
            _ANYWHERE,
            r"o_proj|out_proj|attn_out|wo|w_out|linear_proj"
            r"|(\w*[aA]ttention|\w*attn)\.(dense|c_proj|proj|o|out|Wo|output|output\.dense)",
        ),
    )
)


def role_of(name: str, overrides: Mapping[str, str] | None = None) -> str:
    """The role of a parameter, one of `ROLES`, by the naming of GPT-NeoX, the LLaMA family, GPT-2 and others.

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
    if not overrides:
        return _built_in_roles(tuple(names))
    return tuple(role_of(name, overrides) for name in names)


@functools.lru_cache(maxsize=64)
def _built_in_roles(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of the tensors of a model, which every record asks for."""
    return tuple(map(_built_in_role, names))


def in_order(roles: Iterable[str]) -> list[str]:
    """The roles that occur, each once, in the order of `ROLES`; a user's own after them."""
    present = set(roles)
    return [role for role in ROLES if role in present] + sorted(present - set(ROLES))


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
