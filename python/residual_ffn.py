"""A two-layer residual FFN, its teacher of few dimensions, and what noise in its gradients does."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 8  # dimensions of the inputs, and of the targets, at every width
TEACHER = 32  # hidden units of the teacher
LABEL_NOISE = 1.0  # rms of what is added to a target, in its own dimensions
BETA1 = 0.9


class ResidualFFN(nn.Module):
    """A residual FFN without gains or biases, [width → width].

        y = x + N(W₂·relu(W₁·N(x)))        N(x) = x/rms(x)

    The second N leaves the size of either matrix free, which is what a norm after the branch, or the
    norm that the next layer begins with, does in a transformer. `branch_norm=False` is the FFN
    without it, y = x + W₂·relu(W₁·N(x)), in which the targets fix the size of the product of W₁ and W₂.

    Args:
        width: of the residual stream and of the hidden layer.
        std: of the entries to start with.
        generator: they are drawn from.
        branch_norm: whether the branch ends with a norm.
    """

    def __init__(self, width: int, std: float, generator: torch.Generator, branch_norm: bool = True) -> None:
        super().__init__()
        self.width = width
        self.branch_norm = branch_norm
        self.up_proj = nn.Parameter(std * torch.randn(width, width, generator=generator))
        self.down_proj = nn.Parameter(std * torch.randn(width, width, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Of inputs [..., width]."""
        hidden = F.relu(F.linear(F.rms_norm(x, (self.width,)), self.up_proj))
        branch = F.linear(hidden, self.down_proj)
        return x + (F.rms_norm(branch, (self.width,)) if self.branch_norm else branch)


@dataclass(frozen=True)
class Task:
    """Inputs and targets that live in a few of the width's dimensions.

        z ~ N(0, I)        x = A·z        y* = x + C·(M₂·tanh(2·M₁·z) + ν·ξ)        ξ ~ N(0, I)

    Attributes:
        lift_in, lift_out: A and C, [width, LATENT], with orthogonal columns of norm √(width/LATENT),
            so that the entries of x and of a target have a size that does not depend on the width.
        inner, outer: M₁ [TEACHER, LATENT] and M₂ [LATENT, TEACHER]; the same at every width.
        label_noise: ν.
    """

    lift_in: Tensor
    lift_out: Tensor
    inner: Tensor
    outer: Tensor
    label_noise: float

    @classmethod
    def of(cls, width: int, seed: int, label_noise: float = LABEL_NOISE) -> "Task":
        """The task of a seed at a width of at least `LATENT`.

        >>> Task.of(64, seed=0).lift_in.shape
        torch.Size([64, 8])
        """
        if width < LATENT:
            raise ValueError(f"width must be at least {LATENT}, the dimensions of the task, got {width}")
        generator = torch.Generator().manual_seed(seed)
        inner = torch.randn(TEACHER, LATENT, generator=generator) / math.sqrt(LATENT)
        outer = torch.randn(LATENT, TEACHER, generator=generator) / math.sqrt(TEACHER)
        lifts = [torch.linalg.qr(torch.randn(width, LATENT, generator=generator))[0] for _ in range(2)]
        scale = math.sqrt(width / LATENT)
        return cls(lifts[0] * scale, lifts[1] * scale, inner, outer, label_noise)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh inputs and targets, [size, width] each."""
        latent = torch.randn(size, LATENT, generator=generator)
        x = latent @ self.lift_in.T
        wanted = torch.tanh(2 * latent @ self.inner.T) @ self.outer.T
        wanted += self.label_noise * torch.randn(size, LATENT, generator=generator)
        return x, x + wanted @ self.lift_out.T


def add_noise(gradient: Tensor, ratio: float, scratch: Tensor, generator: torch.Generator) -> None:
    """Add i.i.d. Gaussian noise of `ratio` times the rms of a gradient to it, in place.

    A ratio of infinity leaves noise alone, of rms 1: AdamW does not see the size of a gradient.
    `scratch` is of the gradient's shape and ends with what the noise was drawn as, of rms 1.
    """
    scratch.normal_(generator=generator)
    if math.isinf(ratio):
        gradient.copy_(scratch)
    else:
        rms = gradient.norm().item() / math.sqrt(gradient.numel())
        gradient.add_(scratch, alpha=ratio * rms)


def noise_limit(lr: float, weight_decay: float, beta1: float = BETA1) -> float:
    """The rms of a weight whose gradients are noise, under AdamW with a second moment that is exact.

        rms² = η²·(1−β₁)/(1+β₁)·(1+cβ₁)/((1−c²)(1−cβ₁))        c = 1 − ηω

    the stationary variance of w⁺ = c·w − η·m with m an average of unit noise; η/(2ω) to first order
    in ηω, whatever β₁.

    >>> round(noise_limit(1e-6, 1.0) / math.sqrt(1e-6 / 2), 4)
    1.0
    """
    c = 1 - lr * weight_decay
    return lr * math.sqrt((1 - beta1) / (1 + beta1) * (1 + c * beta1) / ((1 - c * c) * (1 - c * beta1)))
