"""What one training run is made of."""

import math
from dataclasses import dataclass

import torch

ARCHITECTURES = ("neox", "llama")
OPTIMIZERS = ("adamw", "lion", "muon")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """Of one run. `lr` is the peak; `every` is how many steps lie between two records."""

    steps: int = 1000
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 64
    batch: int = 16
    lr: float = 6e-3
    weight_decay: float = 0.8
    beta2: float = 0.95
    warmup: int | None = None  # a tenth of the steps
    seed: int = 0
    every: int = 5
    fit_every: int = 5  # records from one Weibull fit of the weights to the next
    device: str = "auto"
    forces: bool = True
    architecture: str = "neox"
    optimizer: str = "adamw"
    final_lr: float = 0.05  # of the peak, at the end of the cosine
    clip: float | None = 1.0  # of the norm of the gradient
    weights: str = "float32"
    autocast: bool = False  # to bfloat16, of activations

    def __post_init__(self) -> None:
        for name in ("steps", "width", "layers", "heads", "context", "batch", "every", "fit_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in (("architecture", ARCHITECTURES), ("optimizer", OPTIMIZERS), ("weights", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a positive number, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or a positive number, got {self.weight_decay}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be from 0 to under 1, got {self.beta2}")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr must be a part of the peak, from 0 to 1, got {self.final_lr}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be a positive norm, or None, got {self.clip}")
        if self.lr * self.weight_decay >= 1:
            raise ValueError(f"lr·weight_decay must be under 1, got {self.lr * self.weight_decay}; lower one")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be an even number for each head; {self.width} over {self.heads} heads is not"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup must be from 0 to steps ({self.steps}), got {self.warmup}")

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return self.steps // 10 if self.warmup is None else self.warmup

    @property
    def tokens(self) -> int:
        """That the whole run sees."""
        return self.steps * self.batch * self.context

    @property
    def age(self) -> float:
        """Ση·ω over all steps: the effective training age, in time constants of the decay."""
        return self.lr * self.weight_decay * self.lr_sum

    @property
    def lr_sum(self) -> float:
        """Ση over all steps, in units of the peak."""
        return math.fsum(self.lr_factor(step) for step in range(1, self.steps + 1))

    def records(self, step: int) -> bool:
        """Whether the forces are written after a step."""
        return step % self.every == 0 or step == self.steps

    def torch_device(self) -> torch.device:
        """The GPU where there is one, unless told otherwise."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device '{self.device}' cannot be used here: {reason}") from None
        return device

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `final_lr`; part of the peak at a step, from 1."""
        warmup = self.warmup_steps
        if step <= warmup:
            return step / warmup
        along = (step - warmup) / max(1, self.steps - warmup)
        return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * along)) / 2
