"""The text of a run, whole or made less coherent, and how well one byte of it tells the next."""

from dataclasses import dataclass

import numpy as np
import torch
from text import VOCABULARY, library_source
from torch import Tensor


@dataclass(frozen=True)
class Corpus:
    """Which text a run is trained on.

    Attributes:
        shuffled: ρ, the part of the positions in each window whose bytes change places among themselves.
        window: bytes of a window.
        length: of the text, bytes from its beginning; all that there is if None. A run longer than that
            sees it again and again.
        seed: of the shuffling.
    """

    shuffled: float = 0.0
    window: int = 64
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shuffled <= 1:
            raise ValueError(f"shuffled must be a part of the positions, from 0 to 1, got {self.shuffled}")
        if self.window < 2:
            raise ValueError(f"window must be at least 2 bytes, got {self.window}")
        if self.length is not None and self.length < self.window:
            raise ValueError(f"length must be at least a window, {self.window} bytes, got {self.length}")

    def load(self) -> Tensor:
        """The text, uint8 [length]."""
        text = library_source()
        if self.length is not None:
            if self.length > len(text):
                raise ValueError(f"length must be at most the {len(text)} bytes of text, got {self.length}")
            text = text[: self.length]
        return shuffle_windows(text, self.shuffled, self.window, self.seed) if self.shuffled else text


def shuffle_windows(text: Tensor, fraction: float, window: int, seed: int) -> Tensor:
    """Round(fraction·window) random positions of each window change places; what is over stays as it is.

    Every window keeps its bytes, so that no count of single bytes changes: only their order does.
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


def conditional_entropy(text: Tensor) -> float:
    """H(next byte | byte) = −Σ p(a,b)·log₂ p(b|a) of adjacent bytes, in bits a byte."""
    data = text.to(torch.int64)
    pairs = torch.bincount(data[:-1] * VOCABULARY + data[1:], minlength=VOCABULARY**2).double()
    return _entropy(pairs) - _entropy(pairs.view(VOCABULARY, VOCABULARY).sum(1))


def unigram_entropy(text: Tensor) -> float:
    """H(byte) = −Σ p(a)·log₂ p(a), in bits: what is left when order says nothing."""
    return _entropy(torch.bincount(text.to(torch.int64), minlength=VOCABULARY).double())


def _entropy(counts: Tensor) -> float:
    chances = counts[counts > 0] / counts.sum()
    return -(chances * chances.log2()).sum().item()
