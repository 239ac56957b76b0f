"""Text made less coherent, or less of it: what stays, what changes, and what it tells of the next byte."""

import corpus
import numpy as np
import pytest
import torch
from corpus import (
    PIECE,
    Corpus,
    conditional_entropy,
    in_pairs,
    retained_pairs,
    scattered,
    shuffle_windows,
    unigram_entropy,
)
from hypothesis import given
from hypothesis import strategies as st
from text import library_source


def text_of(*values):
    return torch.tensor(values, dtype=torch.uint8)


def distinct(windows, window=64):
    """Windows of bytes that all differ, so that one sees where each has gone."""
    return torch.arange(window, dtype=torch.uint8).repeat(windows)


@pytest.fixture(scope="module")
def source():
    return library_source(200_000)


@given(
    st.lists(st.integers(0, 255), max_size=200), st.floats(0, 1), st.integers(2, 30), st.integers(0, 2**32)
)
def test_every_window_keeps_its_bytes(values, fraction, window, seed):
    text = text_of(*values)
    before = text.clone()
    changed = shuffle_windows(text, fraction, window, seed)
    assert torch.equal(text, before)
    assert changed.dtype == torch.uint8
    whole = len(text) // window * window
    assert torch.equal(changed[whole:], text[whole:])
    rows, others = (each[:whole].view(-1, window).sort(1).values for each in (text, changed))
    assert torch.equal(rows, others)
    assert unigram_entropy(changed) == unigram_entropy(text) if values else True
    different = (changed != text)[:whole].view(-1, window).sum(1)
    assert (different <= round(fraction * window)).all()
    assert torch.equal(shuffle_windows(text, fraction, window, seed), changed)


def test_all_orders_of_a_window_are_equally_likely():
    rows = shuffle_windows(distinct(60_000, 3), 1.0, 3, seed=1).view(-1, 3)
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert (counts - 10_000).abs().max() < 5 * (60_000 * 1 / 6 * 5 / 6) ** 0.5


def test_all_positions_are_equally_likely():
    windows = 20_000
    moved = (shuffle_windows(distinct(windows), 0.25, 64, seed=2) != distinct(windows)).view(-1, 64)
    expected = 16 / 64 * (1 - 1 / 16)  # chosen, and not left in its place by chance
    deviation = (windows * expected * (1 - expected)) ** 0.5
    assert (moved.sum(0) - windows * expected).abs().max() < 5 * deviation


def test_positions_of_a_smaller_fraction_are_among_those_of_a_larger():
    few, many = (shuffle_windows(distinct(2000), fraction, 64, seed=3) for fraction in (0.3, 0.6))
    only_few = ((few != distinct(2000)) & (many == distinct(2000))).sum() / 2000
    assert only_few < 1  # a window has one byte left in its place by chance; apart it would be 7.7


def test_seeds_shuffle_differently(source):
    one, other = (shuffle_windows(source, 0.5, 64, seed) for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6, 1.0])
def test_pairs_that_are_left_come_to_their_expectation(fraction):
    n, m = 64, round(fraction * 64)
    # Both positions not chosen; one of them, and left in its place; both, and both left.
    expected = (n - m) * (n - m - 1) + 2 * (n - m) * m / m + m * (m - 1) / (m * (m - 1))
    expected /= n * (n - 1)
    text = distinct(20_000)
    found = retained_pairs(text, shuffle_windows(text, fraction, n, seed=4), n)
    assert found == pytest.approx(expected, abs=5 * (0.25 / text.numel()) ** 0.5 * 3)


def test_retained_pairs_by_hand():
    # Pairs of two windows of 4: (1,2) stays, (2,3) and (3,4) do not; all three of the second do.
    text, changed = text_of(1, 2, 3, 4, 5, 6, 7, 8, 9), text_of(1, 2, 4, 3, 5, 6, 7, 8, 0)
    assert retained_pairs(text, changed, 4) == 4 / 6
    assert retained_pairs(text, text, 4) == 1
    with pytest.raises(ValueError, match=r"equally long.*got 9 and 8"):
        retained_pairs(text, changed[:8], 4)
    with pytest.raises(ValueError, match="at least a window of 10 bytes"):
        retained_pairs(text, changed, 10)


def test_shuffling_raises_the_entropy_of_bigrams_and_leaves_that_of_bytes(source):
    texts = [shuffle_windows(source, rho, 64, 0) for rho in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)]
    entropies = [conditional_entropy(text) for text in (source, *texts)]
    assert entropies == sorted(entropies)
    assert all(unigram_entropy(text) == unigram_entropy(source) for text in texts)
    assert entropies[-1] < unigram_entropy(source)


def test_entropies_by_hand():
    alternating = text_of(*[65, 66] * 50)
    assert conditional_entropy(alternating) == 0
    assert unigram_entropy(alternating) == 1
    # 00110 has each of the pairs 00, 01, 11, 10 once; a pair begins with 0 as often as with 1.
    every_pair = text_of(0, 0, 1, 1, 0)
    assert conditional_entropy(every_pair) == 1
    assert unigram_entropy(every_pair) == pytest.approx(-(0.6 * np.log2(0.6) + 0.4 * np.log2(0.4)))
    # 255 followed by 0 once and by 255 twice: H = log₂3 − 2/3.
    assert conditional_entropy(text_of(255, 255, 255, 0)) == pytest.approx(np.log2(3) - 2 / 3)


def test_entropy_of_a_chain_comes_to_its_closed_form():
    flips = torch.from_numpy(np.random.default_rng(0).random(400_000) < 0.1)
    chain = (flips.cumsum(0) % 2).to(torch.uint8)
    assert conditional_entropy(chain) == pytest.approx(-(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)), abs=5e-3)


@given(st.lists(st.integers(0, 255), min_size=2, max_size=300), st.randoms(use_true_random=False))
def test_entropies_do_not_depend_on_the_names_of_bytes(values, random):
    named = list(range(256))
    random.shuffle(named)
    text, renamed = text_of(*values), text_of(*(named[value] for value in values))
    assert conditional_entropy(renamed) == pytest.approx(conditional_entropy(text), abs=1e-12)
    assert unigram_entropy(renamed) == pytest.approx(unigram_entropy(text), abs=1e-12)
    assert -1e-12 <= conditional_entropy(text) <= unigram_entropy(text[1:]) + 1e-12  # order can only tell


def test_entropies_need_something_to_count():
    with pytest.raises(ValueError, match=r"at least 2.*got 1"):
        conditional_entropy(text_of(7))
    with pytest.raises(ValueError, match="at least a byte"):
        unigram_entropy(text_of())


def test_tokens_of_two_bytes():
    tokens = in_pairs(text_of(1, 2, 0, 255, 255, 255, 7))
    assert tokens.tolist() == [258, 255, 65535]
    assert conditional_entropy(in_pairs(text_of(*[1, 2, 3, 4] * 9))) == 0
    # Whatever the tokens are called, they tell as much: by counting and by sorting.
    names = torch.from_numpy(np.random.default_rng(0).integers(0, 4, 500))
    assert conditional_entropy(names * 70_000) == pytest.approx(conditional_entropy(names), abs=1e-12)


def test_a_smaller_corpus_is_pieces_from_all_over_the_text():
    text = (torch.arange(103) % 256).to(torch.uint8)  # ten pieces of 10, and 3 over
    whole = scattered(text, 103, 10, seed=0)
    assert sorted(whole.tolist()) == sorted(text.tolist())
    assert whole[100:].tolist() == [100, 101, 102]
    pieces = whole[:100].view(10, 10)
    assert (pieces % 10 == torch.arange(10)).all()  # each in its own order
    assert pieces[:, 0].tolist() != sorted(pieces[:, 0].tolist())
    for length in (1, 9, 10, 25, 100, 102):
        assert torch.equal(scattered(text, length, 10, seed=0), whole[:length])
    assert not torch.equal(scattered(text, 50, 10, seed=1), whole[:50])
    with pytest.raises(ValueError, match=r"at most the 103 bytes of text, got 104"):
        scattered(text, 104, 10, seed=0)


def test_a_corpus_loads_what_it_says(monkeypatch, source):
    monkeypatch.setattr(corpus, "library_source", lambda: source)
    assert torch.equal(Corpus().load(), source)
    short = Corpus(length=5000, window=16, seed=2).load()
    assert torch.equal(short, scattered(source, 5000, PIECE * 16, 2))
    both = Corpus(shuffled=0.5, length=5000, window=16, seed=2)
    assert both.moved == 8
    assert torch.equal(both.load(), shuffle_windows(short, 0.5, 16, 2))
    with pytest.raises(ValueError, match="length must be at most the 200000 bytes"):
        Corpus(length=200_001).load()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"shuffled": 1.1}, "shuffled must be a part of the positions, from 0 to 1, got 1.1"),
        ({"shuffled": -0.1}, "shuffled must be a part"),
        ({"shuffled": float("nan")}, "shuffled must be a part"),
        ({"shuffled": 0.02}, "at least 2 of the 64 positions.*got 0.02"),
        ({"window": 1}, "window must be at least 2 bytes, got 1"),
        ({"length": 63}, "length must be at least a window, 64 bytes, got 63"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_a_corpus_says_what_is_wrong_with_it(said, message):
    with pytest.raises(ValueError, match=message):
        Corpus(**said)
