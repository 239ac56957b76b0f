"""The text of a run, whole or made less coherent, and how well one byte of it tells the next."""

from dataclasses import dataclass

import numpy as np
import torch
from text import VOCABULARY, library_source
from torch import Tensor

PIECE = 16
"""Windows in a piece: a corpus that is not all of the text is made of pieces from everywhere in it."""


@dataclass(frozen=True)
class Corpus:
    """Which text a run is trained on.

    Attributes:
        shuffled: ρ, the part of the positions in each window whose bytes change places among themselves.
        window: bytes of a window.
        length: of the text, bytes, in pieces of `PIECE` windows from all over it; the whole text in its
            own order if None. A run longer than that sees it again and again. With the same seed a
            shorter text is the beginning of a longer one.
        seed: of the shuffling, and of which pieces.
    """

    shuffled: float = 0.0
    window: int = 64
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        # 0 and 0.0 are the same text, and runs are called by what JSON makes of them.
        object.__setattr__(self, "shuffled", float(self.shuffled))
        if not 0 <= self.shuffled <= 1:
            raise ValueError(f"shuffled must be a part of the positions, from 0 to 1, got {self.shuffled}")
        if self.window < 2:
            raise ValueError(f"window must be at least 2 bytes, got {self.window}")
        if self.shuffled > 0 and self.moved < 2:
            raise ValueError(
                f"shuffled must be 0, or at least 2 of the {self.window} positions of a window so that they "
                f"can change places, got {self.shuffled}; raise it or the window"
            )
        if self.length is not None and self.length < self.window:
            raise ValueError(f"length must be at least a window, {self.window} bytes, got {self.length}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    @property
    def moved(self) -> int:
        """Positions of each window that change places."""
        return round(self.shuffled * self.window)

    def load(self) -> Tensor:
        """The text, uint8 [length].

        Raises:
            ValueError: there is not that much text.
        """
        text = library_source()
        if self.length is not None:
            text = scattered(text, self.length, PIECE * self.window, self.seed)
        return shuffle_windows(text, self.shuffled, self.window, self.seed) if self.shuffled else text


def scattered(text: Tensor, length: int, piece: int, seed: int) -> Tensor:
    """The first `length` bytes of the text whose pieces stand in random order, the odd end of it last.

    So that a small part of a text is like the whole: its beginning alone may be of another kind.
    """
    if length > len(text):
        raise ValueError(f"length must be at most the {len(text)} bytes of text, got {length}")
    whole = len(text) // piece
    # A stream of its own: that of the bare seed is the shuffling's.
    order = np.random.default_rng((seed, 1)).permutation(whole)
    pieces = text[: whole * piece].view(whole, piece)[torch.from_numpy(order[: -(-length // piece)])]
    return torch.cat((pieces.flatten(), text[whole * piece :]))[:length]


def shuffle_windows(text: Tensor, fraction: float, window: int, seed: int) -> Tensor:
    """Round(fraction·window) random positions of each window change places; what is over stays as it is.

    Every window keeps its bytes, so that no count of single bytes changes: only their order does. With the
    same seed the positions of a smaller fraction are among those of a larger one.
    """
    moved = round(fraction * window)
    whole = len(text) // window
    rows = text[: whole * window].view(whole, window).clone()
    generator = np.random.default_rng(seed)
    # Random positions in random order, and the same positions in ascending order.
    places = generator.random((whole, window)).argsort(axis=1)[:, :moved]
    source, target = torch.from_numpy(places), torch.from_numpy(np.sort(places, axis=1))
    rows.scatter_(1, target, rows.gather(1, source))
    return torch.cat((rows.flatten(), text[whole * window :]))


def retained_pairs(text: Tensor, changed: Tensor, window: int) -> float:
    """S, the part of the adjacent pairs inside windows that are the same two bytes in both texts.

    Raises:
        ValueError: the texts are not equally long, or have no whole window.
    """
    if len(text) != len(changed) or len(text) < window:
        raise ValueError(
            f"the texts must be equally long, and at least a window of {window} bytes; "
            f"got {len(text)} and {len(changed)}"
        )
    whole = len(text) // window * window
    same = (text == changed)[:whole].view(-1, window)
    return (same[:, :-1] & same[:, 1:]).double().mean().item()


def in_pairs(text: Tensor) -> Tensor:
    """The text in tokens of two bytes each, int64 [length // 2]."""
    first, second = text[: len(text) // 2 * 2].view(-1, 2).long().T
    return first * VOCABULARY + second


def conditional_entropy(tokens: Tensor) -> float:
    """D = H(next | token) = −Σ p(a,b)·log₂ p(b|a) of adjacent tokens, in bits a token; a text's are bytes.

    Raises:
        ValueError: there is no pair.
    """
    if len(tokens) < 2:
        raise ValueError(f"tokens must be at least 2, so that there is a pair, got {len(tokens)}")
    data = tokens.to(torch.int64)
    pairs = data[:-1] * (data.max() + 1) + data[1:]
    return _entropy(_counts(pairs)) - _entropy(_counts(data[:-1]))


def unigram_entropy(text: Tensor) -> float:
    """H(byte) = −Σ p(a)·log₂ p(a), in bits: what is left when order says nothing.

    Raises:
        ValueError: the text is empty.
    """
    if not len(text):
        raise ValueError("text must have at least a byte, got none")
    return _entropy(_counts(text.to(torch.int64)))


def _counts(values: Tensor) -> Tensor:
    """How often each occurs."""
    if values.max() < VOCABULARY**2:  # bytes and their pairs, without sorting
        return torch.bincount(values).double()
    return torch.unique(values, return_counts=True)[1].double()


def _entropy(counts: Tensor) -> float:
    chances = counts[counts > 0] / counts.sum()
    return abs((chances * chances.log2()).sum().item())  # a sum of nothing but minus or zero
