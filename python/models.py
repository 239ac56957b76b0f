"""The two architectures of the published runs, small or not."""

import torch
from llama import LlamaForCausalLM
from neox import INITIAL_RMS, GPTNeoXForCausalLM
from settings import DTYPES, Settings
from text import VOCABULARY


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
