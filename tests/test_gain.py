import pytest
import torch
from neox import GPTNeoXForCausalLM
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import weibull_kernels as wk


def rms(tensor):
    return tensor.detach().double().square().mean().sqrt()


def test_gain_of_a_scaled_identity_is_its_scale():
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(2.5 * torch.eye(3))
    with wk.gain(layer) as meter:
        layer(torch.randn(7, 3))
        layer(input=torch.randn(2, 5, 3))
    found = meter.result()
    assert found.names == ("weight",)
    assert found.values.item() == pytest.approx(2.5, rel=1e-6)
    assert found.calls.tolist() == [2]
    assert found.to_pandas()["gain"].item() == pytest.approx(2.5, rel=1e-6)


def test_all_passes_are_one_mean_square():
    layer = nn.Linear(4, 2)
    first, second = torch.randn(6, 4), 10 * torch.randn(3, 4)
    with wk.gain(layer) as meter:
        outputs = torch.cat([layer(first), layer(second)])
    found = meter.result()
    assert found.input_rms.item() == pytest.approx(rms(torch.cat([first, second])).item(), rel=1e-6)
    assert found.output_rms.item() == pytest.approx(rms(outputs).item(), rel=1e-6)


def test_tiny_activations_do_not_underflow():
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(3 * torch.eye(4))
    with wk.gain(layer) as meter:
        layer(torch.full((5, 4), 1e-24))
    assert meter.result().values.item() == pytest.approx(3, rel=1e-6)


def model_and_tokens():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(vocabulary=32, width=16, layers=2, heads=2), torch.randint(32, (2, 8))


def test_every_matrix_of_a_model_and_no_embedding():
    model, tokens = model_and_tokens()
    with wk.gain(model) as meter:
        model(tokens)
    found = meter.result()
    matrices = [n for n, p in model.named_parameters() if p.ndim == 2 and n != "gpt_neox.embed_in.weight"]
    assert sorted(found.names) == sorted(matrices)
    assert set(found.roles) == {"qkv", "attention_output", "ffn", "head"}
    assert (found.values > 0).all()
    with wk.gain(model, "*.mlp.*") as meter:
        model(tokens)
    assert set(meter.result().roles) == {"ffn"}


def test_watching_changes_nothing():
    def gradients(watched):
        model, tokens = model_and_tokens()
        dropped = nn.Sequential(model, nn.Dropout(0.5))
        torch.manual_seed(1)
        if watched:
            with wk.gain(dropped):
                output = dropped(tokens)
        else:
            output = dropped(tokens)
        output.square().mean().backward()
        assert not any(module._forward_hooks for module in dropped.modules())
        return [output, *(p.grad for p in model.parameters()), torch.get_rng_state()]

    for with_meter, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_meter, without)


def test_names_are_those_of_the_model_before_it_was_compiled():
    model, tokens = model_and_tokens()
    compiled = torch.compile(model, backend="eager")
    with wk.gain(compiled, "gpt_neox.layers.0.*") as meter:
        compiled(tokens)
    assert "gpt_neox.layers.0.attention.dense.weight" in meter.result().names


def test_a_matrix_that_was_not_used_has_no_gain():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    with wk.gain(model) as meter:
        model["used"](torch.randn(1, 2))
    found = meter.result()
    assert found.calls.tolist() == [1, 0]
    assert found.values.isnan().tolist() == [False, True]


def test_errors_say_what_to_do():
    layer = nn.Linear(2, 2)
    expected = pytest.raises(ValueError, match=r"no matrix matches '\*\.q_proj\.\*'; the 1 of this model")
    with expected, wk.gain(layer, "*.q_proj.*"):
        pass
    with wk.gain(layer) as meter:
        pass
    with pytest.raises(ValueError, match="none of the 1 modules has seen a forward pass"):
        meter.result()


def test_hooks_go_when_the_block_fails():
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), wk.gain(layer):
        layer(torch.randn(1, 3))
    assert not layer._forward_hooks


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x):
        return x @ self.weight.T, x.argmax(-1)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, tokens):
        return self.weight[tokens]


def test_modules_that_take_or_give_other_things_are_left_in_peace():
    router, table = Router(), Table()
    with wk.gain(nn.ModuleDict({"router": router, "table": table})) as meter:
        router(torch.randn(3, 4))
        table(torch.tensor([0, 1]))
    found = meter.result()
    assert dict(zip(found.names, found.calls.tolist(), strict=True)) == {
        "router.weight": 1,
        "table.weight": 0,
    }
    assert found.values[0].item() == pytest.approx(1)


def test_the_hooks_do_not_wait_for_a_device():
    """No value of a tensor is asked for by Python, which is what makes it wait."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            assert function is not torch.ops.aten._local_scalar_dense.default
            return function(*arguments, **(named or {}))

    model, tokens = model_and_tokens()
    with wk.gain(model) as meter, Watch():
        model(tokens)
    assert (meter.result().calls == 1).all()
