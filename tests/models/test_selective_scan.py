"""The first Mamba's scan against the token loop in fp64, and its layer against transformers'."""

import pytest
import torch
from torch import Tensor

from cupola.models import build
from cupola.models.layer import Carried, Inputs
from cupola.models.segments import Segments
from cupola.models.selective_scan import scan, scan_reference
from cupola.recipe.model import Model
from tests.models.small_models import MAMBA

BATCH, CHANNELS, STATES = 2, 5, 3


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x, b, c = normal(BATCH, length, CHANNELS), normal(BATCH, length, STATES), normal(BATCH, length, STATES)
    return [x, normal(BATCH, length, CHANNELS).exp(), -normal(CHANNELS, STATES).exp(), b, c]


def documents(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length + 1)
    return (torch.rand(BATCH, length, generator=generator) < 0.2).int().cumsum(1)


@pytest.mark.parametrize("length", [1, 7, 16, 50])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("entering", [False, True])
def test_scan_equals_the_token_loop_gradients_too(length, cut, entering):
    segments = Segments(documents(length) if cut else None)
    state = torch.randn(BATCH, CHANNELS, STATES, dtype=torch.float64) if entering else None
    found, expected = [], []
    for function, dtype, results in ((scan, torch.float32, found), (scan_reference, torch.float64, expected)):
        given = [t.requires_grad_() for t in inputs(length, dtype)]
        begun = None if state is None else state.to(dtype).requires_grad_()
        y, last = function(*given, segments, begun)
        weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        ((y * weights).sum() + last.sum()).backward()
        results += [y, last, *(t.grad for t in given), *([] if begun is None else [begun.grad])]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-5)


@pytest.mark.oracle
def test_the_layer_equals_transformers():
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    mixer = build(MAMBA, 97, seed=3).blocks["0"].mixer
    config = MambaConfig(
        hidden_size=MAMBA.width,
        num_hidden_layers=1,
        state_size=MAMBA.mamba.state,
        expand=MAMBA.mamba.expansion,
        conv_kernel=MAMBA.mamba.convolution,
        time_step_rank=MAMBA.mamba.rank(MAMBA.width),
        use_cache=False,
    )
    theirs = MambaMixer(config, layer_idx=0)
    state = {name: value.detach() for name, value in mixer.named_parameters()}
    theirs.load_state_dict(
        {
            "in_proj.weight": torch.cat([state["input.weight"], state["gate.weight"]]),
            "conv1d.weight": state["convolution.weight"][:, None],
            "conv1d.bias": state["convolution.bias"],
            "x_proj.weight": torch.cat([state["dt_down.weight"], state["b.weight"], state["c.weight"]]),
            "dt_proj.weight": state["dt.weight"],
            "dt_proj.bias": state["dt.bias"],
            "A_log": state["a_log"],
            "D": state["d"],
            "out_proj.weight": state["output.weight"],
        }
    )
    x = torch.randn(2, 21, MAMBA.width, generator=torch.Generator().manual_seed(1))
    ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, _ = mixer(ours, mixer.plan(Inputs(2, 21, x.device, None)), None, Carried())
    expected = theirs(other)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixer.a_log.grad, theirs.A_log.grad, rtol=1e-4, atol=1e-5)


def test_decays_of_a_fresh_layer_are_published_ones():
    """A of -1 to -states in every channel, steps between 0.0001 and 0.1 where the input says nothing."""
    mixer = build(Model(family="mamba", layers=1, width=32), 97, seed=0).blocks["0"].mixer
    assert torch.equal(mixer.a_log.exp().round(), torch.arange(1.0, 17).expand(64, 16))
    steps = torch.nn.functional.softplus(mixer.dt.bias)
    assert float(steps.min().detach()) >= 1e-4
    assert float(steps.max().detach()) <= 0.1 + 1e-6
