"""A language model of the GPT-NeoX architecture, with the parameter names of Hugging Face's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_FRACTION = 0.25  # of each head's dimensions; the rest sees no position
ROTARY_BASE = 10_000.0
INITIAL_RMS = 0.02


class GPTNeoXForCausalLM(nn.Module):
    """Tokens [batch, time] to logits [batch, time, vocabulary]; the embeddings are untied."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.gpt_neox = GPTNeoX(vocabulary, width, layers, heads)
        self.embed_out = nn.Linear(width, vocabulary, bias=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        return self.embed_out(self.gpt_neox(tokens))


class GPTNeoX(nn.Module):
    """Everything but the head."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, time] to hidden states [batch, time, width]."""
        hidden = self.embed_in(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.final_layer_norm(hidden)


class Layer(nn.Module):
    """Attention and MLP side by side on the residual stream, each behind a LayerNorm of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(width)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = MLP(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        attended = self.attention(self.input_layernorm(hidden))
        return hidden + attended + self.mlp(self.post_attention_layernorm(hidden))


class Attention(nn.Module):
    """Causal attention with fused QKV and rotary positions on part of each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = max(2, int(ROTARY_FRACTION * (width // heads)) // 2 * 2)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        # [batch, time, heads · 3 · head] -> three of [batch, heads, time, head]
        fused = self.query_key_value(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key, value = fused.chunk(3, dim=-1)
        query, key = rotate(query, self.rotary), rotate(key, self.rotary)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.dense(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Four times as wide inside, GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(width, 4 * width)
        self.dense_4h_to_h = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden)))


def rotate(heads: Tensor, dims: int) -> Tensor:
    """Turn the first `dims` dimensions of each head by angles that grow with time.

    `heads` is [batch, heads, time, head]; dimension i is paired with i + dims/2.
    """
    frequency = ROTARY_BASE ** (-torch.arange(0, dims, 2, device=heads.device) / dims)
    angle = torch.outer(torch.arange(heads.shape[-2], device=heads.device), frequency)
    turning, still = heads[..., :dims], heads[..., dims:]
    first, second = turning.chunk(2, dim=-1)
    cos, sin = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, still), dim=-1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INITIAL_RMS)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
