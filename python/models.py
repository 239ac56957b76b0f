"""The two architectures of the published runs, small or not."""

import torch
from llama import LlamaForCausalLM
from neox import INITIAL_RMS, GPTNeoXForCausalLM
from settings import DTYPES, Settings
from text import VOCABULARY
from torch import Tensor


def make_model(settings: Settings) -> torch.nn.Module:
    """A model on the device of the settings, its matrices from N(0, 0.02²), by the settings' seed."""
    torch.manual_seed(settings.seed)
    width, layers, heads = settings.width, settings.layers, settings.heads
    model: torch.nn.Module
    if settings.architecture == "neox":
        model = GPTNeoXForCausalLM(VOCABULARY, width, layers, heads)
    else:
        model = LlamaForCausalLM(VOCABULARY, width, layers, width // heads, initial_rms=INITIAL_RMS)
    return model.to(settings.torch_device(), DTYPES[settings.weights])


def logits_of(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Logits of the next token, with activations in float32 whatever the weights are kept in.

    So what a run with bfloat16 weights does otherwise is due to the rounding of weights and gradients alone.
    """
    named = dict(model.named_parameters())
    if all(weight.dtype == torch.float32 for weight in named.values()):
        logits: Tensor = model(tokens)
        return logits
    widened = {name: weight.float() for name, weight in named.items()}
    return torch.func.functional_call(model, widened, (tokens,))
