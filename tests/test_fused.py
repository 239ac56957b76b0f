"""Parameters that hold several matrices: which entries are whose, and what is refused."""

import pytest
import torch

from weibull_kernels.fused import Fused

ROWS = torch.arange(12.0)[:, None] + torch.zeros(12, 2)


def rows_of(fused, matrix=ROWS):
    """The first columns of the parts, by name."""
    return {name: part.flatten(0, -2)[:, 0].tolist() for name, part in fused.split("w", matrix)}


def test_one_after_the_other():
    assert rows_of(Fused(("q", "k", "v"))) == {
        "w[q]": [0, 1, 2, 3],
        "w[k]": [4, 5, 6, 7],
        "w[v]": [8, 9, 10, 11],
    }


def test_head_by_head():
    # As GPT-NeoX: q, k, v of the first head, then of the second.
    found = rows_of(Fused(("q", "k", "v"), heads=2))
    assert found == {"w[q]": [0, 1, 6, 7], "w[k]": [2, 3, 8, 9], "w[v]": [4, 5, 10, 11]}


def test_unequal_sizes():
    assert rows_of(Fused(("q", "k", "v"), sizes=(8, 2, 2)))["w[v]"] == [10, 11]
    assert rows_of(Fused(("q", "kv"), sizes=(1, 2), heads=4))["w[q]"] == [0, 3, 6, 9]


@pytest.mark.parametrize("heads", [1, 2])
def test_along_columns_is_along_rows_transposed(heads):
    # As GPT-2's Conv1D.
    matrix = torch.randn(5, 12)
    along_rows = Fused(("q", "k", "v"), heads=heads).split("w", matrix.T)
    along_columns = Fused(("q", "k", "v"), heads=heads, dim=1).split("w", matrix)
    for (name, a), (other, b) in zip(along_rows, along_columns, strict=True):
        assert name == other
        assert torch.equal(a.flatten(0, -2).T, b.flatten(1))


def test_parts_are_views():
    matrix = torch.zeros(12, 2)
    for _, part in Fused(("q", "k", "v"), heads=2).split("w", matrix):
        part += 1
    assert matrix.eq(1).all()


@pytest.mark.parametrize(
    ("fused", "message"),
    [
        (Fused(("q", "k", "v"), heads=5), r"'w' has 12 along dim 0, .* 5 heads × 3 parts \(q, k, v\)"),
        (Fused(("a", "b"), heads=12), "12 heads × 2 parts"),
        (Fused(("q", "k"), sizes=(4, 1), heads=2), r"12 along dim 0, but 2 heads × \(4 \+ 1\) is 10"),
        (Fused(("q", "k"), dim=1, heads=2), "2 along dim 1"),
    ],
)
def test_what_does_not_divide(fused, message):
    with pytest.raises(ValueError, match=message):
        fused.split("w", ROWS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": ()}, "parts must be names"),
        ({"parts": "qkv"}, "parts must be names"),
        ({"parts": ("q", "q")}, "each once"),
        ({"parts": ("q", "k"), "sizes": (1,)}, "for each of q, k"),
        ({"parts": ("q", "k"), "sizes": (1, 0)}, "a positive number"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"dim": 2}, "dim must be 0 or 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Fused(**settings)
