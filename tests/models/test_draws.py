"""Initial values of the state-space families against the published formulas, written out plainly."""

import math

import pytest
import torch

from cupola.models import build
from cupola.recipe.model import RWKV7, Mamba2, Model

WIDTH, LAYERS, HEAD = 64, 3, 32
GOOSE = Model(family="rwkv7", layers=LAYERS, width=WIDTH, rwkv7=RWKV7(head_width=HEAD))


@pytest.fixture(scope="module")
def weights():
    return build(GOOSE, 97, seed=0).state_dict()


@pytest.mark.parametrize("layer", range(LAYERS))
def test_rwkv7_channel_by_channel(weights, layer):
    """RWKV-LM's trainer for version 7, one channel at a time."""
    block = f"blocks.{layer}."
    depth, back = layer / (LAYERS - 1), 1 - layer / LAYERS
    for i in range(WIDTH):
        slope = i / (WIDTH - 1) - 0.5
        z = (i % HEAD - (HEAD - 1) / 2) / ((HEAD - 1) / 2)
        zigzag = z * abs(z)
        expected = {
            "mixer.shift_receptance": 1 - (i / WIDTH) ** (0.2 * back),
            "mixer.shift_gate": 1 - (i / WIDTH) ** (0.2 * back),
            "mixer.shift_decay": 1 - (i / WIDTH) ** (0.9 * back),
            "mixer.shift_rate": 1 - (i / WIDTH) ** (0.9 * back),
            "mixer.shift_key": 1 - (i / WIDTH) ** (0.7 * back),
            "mixer.shift_value": 1 - (i / WIDTH) ** (0.7 * back),
            "feedforward.shift_key": 1 - (i / WIDTH) ** (back**4),
            "mixer.decay_bias": -6 + 6 * (i / (WIDTH - 1)) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag,
            "mixer.rate_bias": -0.19 + 0.3 * zigzag + 0.4 * slope,
            "mixer.key_scale": 0.71 - 0.1 * slope,
            "mixer.key_rate": 1.02,
            "mixer.bonus": -0.04,
            "mixer.norm.weight": ((layer + 1) / LAYERS) ** 0.7,
        }
        if layer > 0:
            expected["mixer.mix_bias"] = 0.73 - 0.4 * slope
        for name, value in expected.items():
            assert float(weights[block + name][i]) == pytest.approx(value, abs=1e-5), name


def test_rwkv7_matrices(weights):
    """Published: orthogonal, of gain 1 (key 0.1, the ups of low-rank maps 0.1); outputs zero."""
    assert float(weights["embedding.weight"].abs().max()) <= 1e-4
    for layer in range(LAYERS):
        for name in ("mixer.output", "feedforward.value", "mixer.gate_down", "mixer.decay_down"):
            assert not weights[f"blocks.{layer}.{name}.weight"].any()
    deviations = {
        "mixer.receptance": WIDTH**-0.5,
        "mixer.value": WIDTH**-0.5,
        "mixer.key": 0.1 * WIDTH**-0.5,
        "mixer.decay_up": 0.1 * WIDTH**-0.5,
        "feedforward.key": GOOSE.sizes().feedforward ** -0.5,
    }
    for name, expected in deviations.items():
        assert float(weights[f"blocks.1.{name}.weight"].std()) == pytest.approx(expected, rel=0.1), name


def test_mamba2():
    """A uniform in 1 to 16, steps log-uniform in 0.001 to 0.1, linear maps and convolution as torch's."""
    model = Model(family="mamba2", layers=4, width=256, mamba2=Mamba2(head_width=4))
    block = build(model, 97, seed=0).blocks["0"].mixer.state_dict()
    decays = block["a_log"].exp()
    assert 1 <= float(decays.min()) < 2
    assert 15 < float(decays.max()) <= 16
    steps = torch.nn.functional.softplus(block["dt_bias"]).log()
    assert math.log(0.001) - 1e-4 <= float(steps.min())
    assert float(steps.max()) <= math.log(0.1) + 1e-4
    assert float(steps.mean()) == pytest.approx((math.log(0.001) + math.log(0.1)) / 2, abs=0.4)
    assert float(block["input.weight"].abs().max()) == pytest.approx(256**-0.5, rel=0.01)
    assert float(block["output.weight"].abs().max()) == pytest.approx(512**-0.5 / math.sqrt(4), rel=0.01)
    assert float(block["input_convolution.weight"].abs().max()) == pytest.approx(0.5, rel=0.01)
