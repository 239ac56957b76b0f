"""The LLaMA-style model: its parameters by Hugging Face's names, and its logits by plain float64 formulas."""

import numpy as np
import pytest
import torch
from llama import LlamaForCausalLM

import weibull_kernels as wk


def model_of(width=32, layers=1, head=16, **options):
    model = LlamaForCausalLM(11, width, layers, head, **options).double()
    torch.nn.init.normal_(model.lm_head.weight)  # zeros at first, which would show nothing
    return model


def test_the_parameters_are_called_as_in_hugging_face():
    layer = [
        *(f"self_attn.{kind}_proj.weight" for kind in "qkvo"),
        *(f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    ]
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected |= {f"model.layers.{index}.{name}" for index in range(2) for name in layer}
    names = dict(model_of(layers=2).named_parameters())
    assert set(names) == expected
    assert "other" not in {wk.role_of(name) for name in names}
    assert names["model.layers.0.mlp.down_proj.weight"].shape == (32, 80)


def rotated(heads):
    """[time, head] by angles time·10000^(−2i/head), dimension i with i + head/2, as complex numbers."""
    time, head = heads.shape
    turn = np.exp(1j * np.outer(np.arange(time), 10_000.0 ** (-2 * np.arange(head // 2) / head)))
    turned = (heads[:, : head // 2] + 1j * heads[:, head // 2 :]) * turn
    return np.concatenate((turned.real, turned.imag), axis=1)


def normed(hidden):
    return hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-6)


def plain_logits(model, tokens, head):
    """What the architecture says, with numpy, head by head."""
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    hidden = weights["model.embed_tokens.weight"][tokens]
    layers = {name.split(".")[2] for name in weights if ".layers." in name}
    for layer in sorted(layers):

        def project(kind, x, at=f"model.layers.{layer}."):
            return x @ weights[f"{at}{kind}_proj.weight"].T

        query, key, value = (project(f"self_attn.{kind}", normed(hidden)) for kind in "qkv")
        attended = np.empty_like(hidden)
        for start in range(0, hidden.shape[1], head):
            part = slice(start, start + head)
            scores = rotated(query[:, part]) @ rotated(key[:, part]).T / np.sqrt(head)
            scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            attended[:, part] = chances / chances.sum(axis=1, keepdims=True) @ value[:, part]
        hidden = hidden + project("self_attn.o", attended)
        gate, up = (project(f"mlp.{kind}", normed(hidden)) for kind in ("gate", "up"))
        hidden = hidden + project("mlp.down", gate / (1 + np.exp(-gate)) * up)
    return model.logit_scale * normed(hidden) @ weights["lm_head.weight"].T


def test_logits_are_those_of_the_formulas():
    model = model_of(layers=2, logit_scale=0.5)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    # The angles of the rotation are float32.
    torch.testing.assert_close(
        model(tokens)[0].detach(),
        torch.from_numpy(plain_logits(model, tokens[0].numpy(), 16)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_it_does_not_look_ahead():
    model = model_of()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    changed = tokens.clone()
    changed[0, 3] = 7
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.allclose(before[0, 3:], after[0, 3:])


def test_it_starts_with_every_token_as_likely_and_matrices_of_the_size_of_their_inputs():
    model = LlamaForCausalLM(11, 128, 1)
    assert torch.equal(model(torch.tensor([[1, 2]])), torch.zeros(1, 2, 11))
    stds = {name: weight.std().item() for name, weight in model.named_parameters() if weight.ndim == 2}
    assert stds["model.embed_tokens.weight"] == pytest.approx(1.0, rel=0.1)
    assert stds["model.layers.0.self_attn.q_proj.weight"] == pytest.approx(128**-0.5, rel=0.05)
    assert stds["model.layers.0.mlp.down_proj.weight"] == pytest.approx(320**-0.5, rel=0.05)


@pytest.mark.parametrize(("width", "head"), [(40, 16), (30, 15)])
def test_a_width_that_does_not_part_into_heads_is_refused(width, head):
    with pytest.raises(ValueError, match=f"multiple of the head's dimensions.*{width} and {head}"):
        LlamaForCausalLM(11, width, 1, head)
