"""A language model of the LLaMA architecture, with the parameter names of Hugging Face's."""

import torch.nn.functional as F
from neox import rotate
from torch import Tensor, nn

NORM_EPS = 1e-6
EMBEDDING_STD = 1.0  # at every width


class LlamaForCausalLM(nn.Module):
    """Tokens [batch, time] to logits [batch, time, vocabulary]; the embeddings are untied.

    Heads of `head` dimensions, so that a wider model has more of them; `logit_scale` multiplies the
    logits, 1/m for a head that keeps its learning rate at m times the width. With `initial_rms` all
    matrices start there, as Hugging Face's do at 0.02; else at 1/√inputs, with embeddings at 1 and a
    head of zeros, so that nothing depends on the width.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        head: int = 16,
        logit_scale: float = 1.0,
        initial_rms: float | None = None,
    ) -> None:
        super().__init__()
        if width % head or head % 2:
            raise ValueError(
                f"width must be a multiple of the head's dimensions, and those even; "
                f"{width} and {head} are not"
            )
        self.logit_scale = logit_scale
        self.model = LlamaModel(vocabulary, width, layers, head)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if initial_rms is not None:
            for weight in self.parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=initial_rms)
        else:
            self.apply(_initialise)
            # Every token as likely as any other at first, at every width.
            nn.init.zeros_(self.lm_head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        return self.lm_head(self.logit_scale * self.model(tokens))


class LlamaModel(nn.Module):
    """Everything but the head."""

    def __init__(self, vocabulary: int, width: int, layers: int, head: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, head) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, time] to hidden states [batch, time, width]."""
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class Layer(nn.Module):
    """Attention, then the MLP, each behind an RMSNorm of its own."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=NORM_EPS)
        self.self_attn = Attention(width, head)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Attention(nn.Module):
    """Causal attention with rotary positions on all of each head; scores are divided by √head."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        # [batch, time, heads · head] -> [batch, heads, time, head]
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, self.head), rotate(key, self.head)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU, 5/2 as wide inside: near LLaMA's 8/3, and the same part of every even width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inside = 5 * width // 2
        self.gate_proj = nn.Linear(width, inside, bias=False)
        self.up_proj = nn.Linear(width, inside, bias=False)
        self.down_proj = nn.Linear(inside, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)
