"""Mamba-2's layer against Hugging Face's and against the plain recurrence; documents; decoding."""

import pytest
import torch
import torch.nn.functional as F

from cupola.models.convolution import convolve_reference
from cupola.models.gated_norm import gated_norm_reference
from cupola.models.layer import Carried, Inputs
from cupola.models.mamba2 import Mamba2
from cupola.models.segments import Segments
from cupola.models.ssd import scan_reference
from cupola.recipe.model import Mamba2 as Settings
from cupola.recipe.model import Model

ONE = Model(family="mamba2", layers=1, width=32, mamba2=Settings(state=16, head_width=16))
GROUPS = Model(
    family="mamba2", layers=1, width=32, mamba2=Settings(state=8, head_width=8, groups=2, convolution=3)
)
CPU = torch.device("cpu")


def layer(model: Model = ONE, dtype: torch.dtype = torch.float32) -> Mamba2:
    """Weights that make every part count."""
    module = Mamba2(model, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        module.dt_bias.sub_(2)
        module.a_log.uniform_(0, 2.5, generator=generator)
        module.norm.weight.add_(1)
    return module.to(dtype)


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def run(module: Mamba2, x: torch.Tensor, numbers=None, state=None, start: int = 0) -> torch.Tensor:
    plan = module.plan(Inputs(x.shape[0], x.shape[1], CPU, numbers, start))
    return module(x, plan, state, Carried())[0]


def plain(module: Mamba2, x: torch.Tensor, numbers=None) -> torch.Tensor:
    """The layer of plain formulas."""
    segments = Segments(numbers)
    inside, b, c = (
        convolve_reference(linear(x), convolution.weight, convolution.bias, segments)
        for linear, convolution in (
            (module.input, module.input_convolution),
            (module.b, module.b_convolution),
            (module.c, module.c_convolution),
        )
    )
    inside = inside.unflatten(-1, (-1, module.head_width))
    b, c = (t.unflatten(-1, (-1, module.state_width)) for t in (b, c))
    dt = F.softplus(module.dt(x) + module.dt_bias)
    y, _ = scan_reference(inside, dt, -module.a_log.exp(), b, c, segments, skip=module.d)
    norm = module.norm
    return module.output(
        gated_norm_reference(y.flatten(2), module.gate(x), norm.weight, norm.groups, norm.epsilon)
    )


def gradients(module, function, x, weights):
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = function(module, x)
    (y * weights.to(y.dtype)).sum().backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("model", [ONE, GROUPS], ids=["one group", "two groups"])
@pytest.mark.parametrize("length", [1, 2, 64, 150])
def test_layer_equals_the_plain_formulas(model, length, packed):
    exact, x = layer(model, torch.float64), tokens(2, length, 32, dtype=torch.float64)
    weights = tokens(2, length, 32, dtype=torch.float64).flip(0)
    numbers = torch.tensor([[0], [0]]).expand(2, length)
    if packed:
        draws = torch.rand(2, length, generator=torch.Generator().manual_seed(1))
        numbers = (draws < 0.1).cumsum(dim=1)
    want = gradients(exact, lambda m, x: plain(m, x, numbers), x, weights)
    got = gradients(exact, lambda m, x: run(m, x, numbers), x, weights)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)
    got = gradients(layer(model), lambda m, x: run(m, x, numbers), x.float(), weights)
    for name, value in want.items():
        assert float((got[name] - value).norm() / value.norm().clamp_min(1e-12)) < 1e-5, name


@pytest.mark.parametrize("length", [50, 150])
def test_layer_equals_hugging_faces(length):
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config

    module = layer()
    config = Mamba2Config(
        hidden_size=32,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        state_size=16,
        chunk_size=32,
        layer_norm_epsilon=ONE.norm_epsilon,
        time_step_limit=(0.0, float("inf")),
    )
    theirs = modeling.Mamba2Mixer(config, 0)
    parts = {name: getattr(module, name) for name in ("gate", "input", "b", "c", "dt")}
    convolutions = [getattr(module, f"{name}_convolution") for name in ("input", "b", "c")]
    weights = {
        "in_proj.weight": torch.cat([part.weight for part in parts.values()]),
        "conv1d.weight": torch.cat([c.weight for c in convolutions])[:, None],
        "conv1d.bias": torch.cat([c.bias for c in convolutions]),
        "A_log": module.a_log,
        "D": module.d,
        "dt_bias": module.dt_bias,
        "norm.weight": module.norm.weight,
        "out_proj.weight": module.output.weight,
    }
    theirs.load_state_dict({name: value.detach() for name, value in weights.items()})
    x, factors = tokens(2, length, 32), tokens(2, length, 32).flip(0)
    ours = gradients(module, run, x, factors)
    other = gradients(theirs, lambda m, x: m(x), x, factors)
    torch.testing.assert_close(ours["y"], other["y"], rtol=1e-5, atol=1e-5)
    ours["in_proj.weight"] = torch.cat([part.weight.grad for part in parts.values()])
    ours["conv1d.weight"] = torch.cat([c.weight.grad for c in convolutions])[:, None]
    for mine, name in (("a_log", "A_log"), ("d", "D"), ("output.weight", "out_proj.weight")):
        ours[name] = ours[mine]
    for name in ("x", "in_proj.weight", "conv1d.weight", "A_log", "D", "dt_bias", "out_proj.weight"):
        assert float((ours[name] - other[name]).norm() / other[name].norm()) < 1e-5, name


def test_packed_documents_are_as_each_alone():
    module, lengths = layer(), [70, 1, 2, 3, 64]
    x, factors = tokens(1, 140, 32), tokens(1, 140, 32).flip(1)
    numbers = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))[None]
    packed = gradients(module, lambda m, x: run(m, x, numbers), x, factors)
    summed, start = {}, 0
    for length in lengths:
        part = slice(start, start + length)
        alone = gradients(module, run, x[:, part], factors[:, part])
        for name in ("y", "x"):
            torch.testing.assert_close(packed[name][:, part], alone.pop(name), rtol=1e-5, atol=1e-5)
        summed = {name: value + summed.get(name, 0) for name, value in alone.items()}
        start += length
    for name, value in summed.items():
        assert float((packed[name] - value).norm() / value.norm()) < 1e-5, name


@pytest.mark.parametrize("model", [ONE, GROUPS], ids=["one group", "two groups"])
@pytest.mark.parametrize("first", [1, 2, 64, 70])
def test_decoding_continues_a_prefill(model, first):
    module, x = layer(model), tokens(2, 90, 32)
    with torch.no_grad():
        expected = run(module, x)
        state = module.state(90)
        torch.testing.assert_close(run(module, x[:, :first], state=state), expected[:, :first])
        some = run(module, x[:, first : first + 5], state=state, start=first)
        torch.testing.assert_close(some, expected[:, first : first + 5], rtol=1e-5, atol=1e-5)
        state.select(torch.tensor([1, 0]))
        for t in range(first + 5, 90):
            one = run(module, x[:, t : t + 1].flip(0), state=state, start=t)
            torch.testing.assert_close(one.flip(0), expected[:, t : t + 1], rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_is_forgotten():
    module, x = layer(), tokens(1, 20, 32)
    with torch.no_grad():
        for first in (1, 17, 18):
            expected = run(module, x[:, first:])
            state, numbers = module.state(20), (torch.arange(19) >= first).long()[None]
            begun = run(module, x[:, :19], numbers, state)
            torch.testing.assert_close(begun[:, first:], expected[:, :-1], rtol=1e-5, atol=1e-5)
            last = run(module, x[:, 19:], state=state, start=19)
            torch.testing.assert_close(last, expected[:, -1:], rtol=1e-5, atol=1e-5)


def test_error_of_bf16():
    module, x, factors = layer(), tokens(2, 200, 32), tokens(2, 200, 32).flip(0)
    want = gradients(module, run, x, factors)

    def mixed(module, x):
        with torch.autocast("cpu", torch.bfloat16):
            return run(module, x.bfloat16())

    got = gradients(module, mixed, x, factors)
    assert got.pop("y").dtype == torch.bfloat16
    for name, value in got.items():
        assert float((value - want[name]).norm() / want[name].norm()) < 0.03, name
