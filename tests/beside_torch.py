"""The same scenario with torch.optim.AdamW and with wk.AdamW."""

import inspect

import torch
from torch import nn

import weibull_kernels as wk

LR = 0.05  # large, so that a step left out or made twice shows

SETTINGS = {
    "default": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "no decay": {"weight_decay": 0.0},
    "amsgrad, maximize": {"amsgrad": True, "maximize": True},
    "betas and eps": {"betas": (0.8, 0.7), "eps": 1e-3},
    "no betas": {"betas": (0.0, 0.0)},
    "tensor betas": {"betas": (torch.tensor(0.5), torch.tensor(0.75))},
    "capturable": {"capturable": True},
    "tensor lr": {"lr": torch.tensor(0.03)},
    "tensor lr in float64": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "lr of one entry": {"lr": torch.tensor([0.03])},
    "lr 0": {"lr": 0.0},
}


def fused(params, **settings):
    """torch's AdamW in the form whose place wk.AdamW takes. On a CPU it reads tensors as if contiguous."""
    return torch.optim.AdamW(params, **({"fused": True} | settings))


def loop(params, **settings):
    """torch's AdamW in the form that is right for all strides."""
    return torch.optim.AdamW(params, **({"foreach": False} | settings))


def same_as(theirs):
    """Makes a test of a scenario: from one seed it returns the same with `theirs` and with wk.AdamW."""

    def decorate(scenario):
        def test(**arguments):
            results = []
            for make in (theirs, wk.AdamW):
                torch.manual_seed(0)
                results.append(scenario(make, **arguments))
            assert_same(results[1], results[0])

        signature = inspect.signature(scenario)
        test.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
        return test

    return decorate


# A step differs by the rounding of one number, some steps of a small gradient by more. What a step
# does wrong shows in float64; half precision is allowed its last bit.
_TOLERANCE = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-4, 2e-6),
    torch.bfloat16: (2**-7, 1e-3),
    torch.float16: (2**-10, 1e-4),
}


def assert_same(found, expected, where="result") -> None:
    """Nested dicts, sequences, tensors and plain values; a tensor to the rounding of its dtype."""
    assert type(found) is type(expected), f"{where}: {found!r}, expected {expected!r}"
    if isinstance(expected, torch.Tensor):
        rtol, atol = _TOLERANCE.get(expected.dtype, (0, 0))
        torch.testing.assert_close(
            found, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(expected, dict):
        assert list(found) == list(expected), f"{where}: {list(found)}, expected {list(expected)}"
        for key in expected:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), f"{where}: {len(found)} entries, expected {len(expected)}"
        for place, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    else:
        assert found == expected, f"{where}: {found!r}, expected {expected!r}"


def everything(optimizer):
    """Copies of weights, gradients, states and settings."""
    found = []
    for group in optimizer.param_groups:
        settings = {name: copied(value) for name, value in group.items() if name != "params"}
        for p in group["params"]:
            state = {name: copied(value) for name, value in optimizer.state.get(p, {}).items()}
            found.append({"weight": copied(p), "grad": copied(p.grad), **state})
        found.append(settings)
    return found


def copied(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def booked(optimizer):
    """A copy of the rows of the ledger."""
    return optimizer.ledger.state_dict()["rows"]


def net(dtype=torch.float64):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)


def loss_of(model):
    """On fresh random data."""
    weight = next(model.parameters())
    x = torch.randn(8, 4, dtype=torch.float64).to(weight.dtype)
    return (model(x) - 1).square().mean()


def train(model, optimizer, steps=3):
    """The losses of a plain loop."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def assert_bits(found, expected):
    """As `assert_same`, with nothing left to rounding."""
    for place, (a, b) in enumerate(zip(tensors_in(found), tensors_in(expected), strict=True)):
        same = torch.equal(a, b) if a.layout is torch.strided and not a.is_meta else a.shape == b.shape
        assert same, f"tensor {place}: {a}, expected {b}"


def tensors_in(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for branch in branches for tensor in tensors_in(branch)]


def bucket_view(grad):
    # As gradient_as_bucket_view does it: a slice of one flat buffer.
    buffer = torch.full((grad.numel() + 7,), torch.nan, dtype=grad.dtype)
    buffer[3:-4] = grad.flatten()
    return buffer[3:-4].view(grad.shape)


def with_gaps(grad):
    return torch.stack([grad, torch.full_like(grad, torch.nan)], dim=-1)[..., 0]


def weight(*shape, dtype=torch.float64):
    return nn.Parameter(torch.randn(shape, dtype=dtype))


def language_losses(model, optimizer, steps=5):
    losses = []
    for _ in range(steps):
        tokens = torch.randint(17, (4, 9))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses
