"""The tensor lists that are measured: weights with their AdamW moments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weibull_kernels.kernels.interface import HYPERPARAMETERS, Rows, SteppedTensors

BETAS, EPS, STEP = (0.9, 0.95), 1e-8, 1000
LR, WEIGHT_DECAY = 1e-4, 0.1

Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]
"""Of weights and moments."""

FP32 = (torch.float32,) * 3
BF16_FP32 = (torch.bfloat16, torch.float32, torch.float32)

# Entries are cut from a pool of this many: as good as fresh ones for timing, and ready in a second.
_POOL = 1 << 22

_ALIGNMENT = 512


@dataclass(frozen=True)
class Workload:
    """One list of tensors; `name` is its key in the result files."""

    name: str
    rows: Rows
    memory: Tensor | None = None
    """All of it in one piece, uint8, where the tensors were cut from one."""

    @property
    def numel(self) -> int:
        """Entries of all weights."""
        return sum(weight.numel() for weight in self.rows.weights)

    @property
    def columns(self) -> list[Tensor]:
        """Every tensor that one pass reads."""
        rows = self.rows
        return [
            t for column in (rows.weights, rows.exp_avgs, rows.exp_avg_sqs) for t in column if t is not None
        ]

    @property
    def bytes(self) -> int:
        """What one pass reads."""
        return sum(t.numel() * t.element_size() for t in self.columns)

    def stepped(self) -> tuple[SteppedTensors, Tensor]:
        """What `forces` takes: the tensors as right after step `STEP`, and their hyperparameters [1, 7]."""
        rows, device = self.rows, self.rows.eps.device
        count = len(rows)
        decay_factor = 1 - LR * WEIGHT_DECAY
        settings = dict(zip(HYPERPARAMETERS, (LR, decay_factor, *BETAS, EPS, 1.0, 0.0), strict=True))
        tensors = SteppedTensors(
            weights=rows.weights,
            exp_avgs=rows.exp_avgs,
            exp_avg_sqs=rows.exp_avg_sqs,
            max_exp_avg_sqs=[None] * count,
            counts=list(torch.full((count,), float(STEP), device=device)),
            groups=[0] * count,
            places=list(range(count)),
        )
        return tensors, torch.tensor([list(settings.values())], dtype=torch.float64, device=device)


def pythia_70m() -> list[tuple[int, ...]]:
    """Pythia-70M's parameters (GPT-NeoX): 76 tensors, 70.4M entries."""
    vocabulary, hidden, ffn, layers = 50304, 512, 2048, 6
    norm = [(hidden,), (hidden,)]
    attention = [(3 * hidden, hidden), (3 * hidden,), (hidden, hidden), (hidden,)]
    mlp = [(ffn, hidden), (ffn,), (hidden, ffn), (hidden,)]
    embedding = (vocabulary, hidden)
    return [embedding, *(norm + norm + attention + mlp) * layers, *norm, embedding]


def llama_1_4b() -> list[tuple[int, ...]]:
    """A LLaMA of 1.4B: width 2048, 24 layers, full attention, untied embeddings; 219 tensors."""
    vocabulary, hidden, ffn, layers = 32000, 2048, 5632, 24
    layer = [(hidden, hidden)] * 4 + [(ffn, hidden), (ffn, hidden), (hidden, ffn), (hidden,), (hidden,)]
    embedding = (vocabulary, hidden)
    return [embedding, *layer * layers, (hidden,), embedding]


def llama_8b(layers: int = 32) -> list[tuple[int, ...]]:
    """Llama 3's 8B: width 4096, 8 of 32 heads for K and V, untied embeddings; 291 tensors with 32 layers."""
    vocabulary, hidden, ffn, kv = 128256, 4096, 14336, 1024
    attention = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    layer = [*attention, (ffn, hidden), (ffn, hidden), (hidden, ffn), (hidden,), (hidden,)]
    embedding = (vocabulary, hidden)
    return [embedding, *layer * layers, (hidden,), embedding]


def small(count: int = 2000) -> list[tuple[int, ...]]:
    """Many tensors of 500 to 1,500 entries."""
    return [(500 + 617 * i % 1001,) for i in range(count)]


def large_and_small(large: int = 50_000_000) -> list[tuple[int, ...]]:
    """One large tensor, then many small ones."""
    return [(large,), *small()]


def shards_with_empty(rank_share: int = 4) -> list[tuple[int, ...]]:
    """What one of four ranks holds of Pythia-70M under FSDP2: rows cut, and most biases elsewhere."""
    shards: list[tuple[int, ...]] = []
    for shape in pythia_70m():
        first = 0 if len(shape) == 1 and shape[0] < 1024 else shape[0] // rank_share
        shards.append((first, *shape[1:]))
    return shards


SHAPES = {
    "pythia-70m": pythia_70m,
    "llama-1.4b": llama_1_4b,
    "llama-8b": llama_8b,
    "2000-small": small,
    "large-and-2000-small": large_and_small,
    "shards-with-empty": shards_with_empty,
}

HISTOGRAM_INPUTS = ("weibull", "all-equal", "zeros", "subnormals", "nan-and-inf")


def weights(kind: str, count: int, device: str, generator: torch.Generator) -> Tensor:
    """`count` weights: of Weibull shape 1.2 with random signs, or the worst that a histogram may meet."""
    uniform = torch.rand(count, generator=generator, device=device).clamp(min=1e-7)
    sign = torch.randint(0, 2, (count,), generator=generator, device=device) * 2 - 1
    weibull = 0.02 * sign * (-uniform.log()) ** (1 / 1.2)
    match kind:
        case "weibull":
            return weibull
        case "all-equal":
            return torch.full_like(weibull, 0.02)
        case "zeros":
            return torch.zeros_like(weibull)
        case "subnormals":
            return weibull * 1e-37
        case "nan-and-inf":
            weibull[::3] = torch.nan
            weibull[1::3] = torch.inf
            return weibull
    raise ValueError(f"kind must be one of {', '.join(HISTOGRAM_INPUTS)}, got {kind!r}")


def cut(
    pool: Tensor, shapes: Iterable[tuple[int, ...]], memory: Iterator[Tensor] | None = None
) -> list[Tensor]:
    """Tensors of these shapes, filled from `pool` from a moving start; each has memory of its own.

    `memory` gives a flat tensor of the dtype of the pool for each of them; by default torch does.
    """
    tensors, start = [], 0
    for shape in shapes:
        tensor = torch.empty(shape, dtype=pool.dtype, device=pool.device) if memory is None else next(memory)
        tensor = tensor.view(shape)
        flat, done = tensor.view(-1), 0
        while done < flat.numel():
            part = pool[start : start + flat.numel() - done]
            flat[done : done + part.numel()] = part
            done += part.numel()
            start = (start + part.numel()) % pool.numel()
        tensors.append(tensor)
    return tensors


def make(
    name: str,
    shapes: list[tuple[int, ...]],
    device: str = "cpu",
    kind: str = "weibull",
    dtypes: Dtypes = FP32,
    in_one_piece: bool = False,
) -> Workload:
    """The list of these shapes on `device`, with moments as late in training: rms of u about 0.2.

    `in_one_piece` lays all tensors into one piece of memory, each where torch's allocator would begin one
    (at a multiple of 512 bytes), so that a plain read of that piece is a read of the list.
    """
    generator = torch.Generator(device).manual_seed(0)
    exp_avg_sq = 1e-8 * (0.1 + torch.rand(_POOL, generator=generator, device=device))
    exp_avg = 0.2 * exp_avg_sq.sqrt() * torch.randn(_POOL, generator=generator, device=device)
    pools = [
        pool.to(dtype)
        for pool, dtype in zip(
            (weights(kind, _POOL, device, generator), exp_avg, exp_avg_sq), dtypes, strict=True
        )
    ]
    memory, places = _laid_out(shapes, dtypes, device) if in_one_piece else (None, [None] * 3)
    columns = [cut(pool, shapes, place) for pool, place in zip(pools, places, strict=True)]
    ones = torch.ones(len(shapes), dtype=torch.float64, device=device)
    corrections = [(1 - beta**STEP) * ones for beta in BETAS]
    return Workload(name, Rows(*columns, *corrections, EPS * ones), memory)


def _laid_out(
    shapes: list[tuple[int, ...]], dtypes: Dtypes, device: str
) -> tuple[Tensor, list[Iterator[Tensor]]]:
    """One piece of memory, and for each column the flat tensors in it, one a shape."""
    ends, end = [], 0
    for dtype in dtypes:
        for shape in shapes:
            size = math.prod(shape) * dtype.itemsize
            ends.append((end, size, dtype))
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
    memory = torch.empty(end, dtype=torch.uint8, device=device)
    flat = [memory[start : start + size].view(dtype) for start, size, dtype in ends]
    return memory, [iter(flat[i * len(shapes) : (i + 1) * len(shapes)]) for i in range(len(dtypes))]
