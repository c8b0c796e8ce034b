"""Factors of learning rates and initial deviations, against published tables and the weights drawn."""

import math

import pytest
import torch

from cupola import optim
from cupola.models import build, table
from cupola.models.table import transfer
from cupola.recipe.model import RWKV7 as RWKV7Settings
from cupola.recipe.model import Experts, Mamba, Mamba2, Model
from cupola.recipe.parametrisation import Parametrisation, multipliers
from cupola.recipe.schema import Optimizer
from tests.models.small_models import ALL

VOCABULARY = 96
WIDE = Model(layers=8, width=256, heads=8, key_value_heads=4, feedforward=512)
BASE = Model(layers=2, width=64, heads=2, key_value_heads=1, feedforward=128)
KINDS = ("mup", "depth_mup", "completep")


def under(model: Model, kind: str, width: int, layers: int | None = None, **more: int) -> Model:
    layers = layers if kind != "mup" else None
    own = Parametrisation(kind=kind, base_width=width, base_layers=layers, **more)
    return model.model_copy(update={"parametrisation": own})


def factors(model: Model, kind: str) -> dict[str, transfer.Factors]:
    return {p.name: transfer.factors(p, model, kind) for p in table.parameters(model, VOCABULARY)}


@pytest.mark.parametrize(
    ("kind", "depth_rate", "residual"), [("mup", 1, 1), ("depth_mup", 0.5, 0.5), ("completep", 1, 0.25)]
)
def test_a_transformer_has_the_published_table(kind, depth_rate, residual):
    """Dey et al. 2025, table 1, at 4 times the width and the depth (alpha is 1/2 and 1); without depth it is
    Yang et al. 2022, table 8."""
    model = under(WIDE, kind, 64, 2)
    assert multipliers(model) == (1.0, residual, None, 4.0)
    found = factors(model, "adamw")
    epsilon = residual / 4
    hidden = transfer.Factors(depth_rate / 4, 4, epsilon)
    vector = transfer.Factors(depth_rate, 1, epsilon)
    for name, own in found.items():
        if name.startswith("blocks."):
            assert own == pytest.approx(vector if "norm" in name else hidden), name
        else:
            assert own == pytest.approx((1, 1, epsilon)), name


def test_muon_and_soap():
    """Yang, Simon and Bernstein 2023: Muon's update, 0.2 sqrt(max) in spectral norm here, is to be
    sqrt(outputs / inputs); SOAP's elements are as large as Adam's."""
    model = under(WIDE, "mup", 64)
    muon, soap, adamw = (factors(model, kind) for kind in ("muon", "soap", "adamw"))
    assert soap == adamw
    for parameter in table.parameters(model, VOCABULARY):
        if parameter.role == "matrix":
            (m, n), (base_m, base_n) = parameter.shape, parameter.base
            norm = 0.2 * math.sqrt(max(m, n)) * muon[parameter.name].learning_rate
            base = 0.2 * math.sqrt(max(base_m, base_n))
            assert norm / math.sqrt(m / n) == pytest.approx(base / math.sqrt(base_m / base_n))
        else:
            assert muon[parameter.name] == adamw[parameter.name]


def test_what_does_not_grow_is_an_output():
    """Routers and Mamba's B and C read a wide stream and write a fixed number: table 8's output weights."""
    experts = Experts(count=8, active=2, width=64)
    mixture = under(WIDE.model_copy(update={"experts": experts}), "mup", 64)
    mamba = under(Model(family="mamba", layers=2, width=256, mamba=Mamba(state=4)), "mup", 64)
    for model, names in ((mixture, ["router.weight"]), (mamba, ["mixer.b.weight", "mixer.c.weight"])):
        for parameter in table.parameters(model, VOCABULARY):
            if parameter.name.endswith(tuple(names)):
                drawn = 1 / 2 if parameter.draw == "fan_in" else 1  # which falls with inputs^1/2 anyway
                assert transfer.deviation(parameter, model) * drawn == pytest.approx(1 / 4), parameter.name
                assert transfer.factors(parameter, model, "muon").learning_rate == pytest.approx(1 / 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].width % 16 == 0])
def test_a_model_that_is_its_own_base_is_the_standard_one(name, kind):
    model = ALL[name]
    own = under(model, kind, model.width, model.layers)
    assert multipliers(own) == multipliers(model)
    for kind_of in ("adamw", "muon"):
        assert set(factors(own, kind_of).values()) == {transfer.Factors()}
    standard, same = build(model, VOCABULARY, seed=2), build(own, VOCABULARY, seed=2)
    for ours, theirs in zip(same.parameters(), standard.parameters(), strict=True):
        assert torch.equal(ours, theirs)


FAMILIES = {
    "transformer": (WIDE, BASE),
    "mamba": (
        Model(family="mamba", layers=8, width=256, mamba=Mamba(state=4)),
        Model(family="mamba", layers=2, width=64, mamba=Mamba(state=4)),
    ),
    "mamba2": (
        Model(family="mamba2", layers=8, width=256, mamba2=Mamba2(state=16, head_width=16)),
        Model(family="mamba2", layers=2, width=64, mamba2=Mamba2(state=16, head_width=16)),
    ),
    "rwkv7": (
        Model(family="rwkv7", layers=8, width=256, rwkv7=RWKV7Settings(head_width=16)),
        Model(family="rwkv7", layers=2, width=64, rwkv7=RWKV7Settings(head_width=16)),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_drawn_from_the_base_deviation(family):
    """Of the drawn weights: times sqrt(inputs), for square maps; the same for embedding and head; and of
    residual maps what the base's number of layers gives."""
    wide, base = FAMILIES[family]
    drawn = dict(build(under(wide, "completep", 64, 2), VOCABULARY, seed=0).named_parameters())
    small = build(base, VOCABULARY, seed=0)
    shapes = {p.name: p for p in table.parameters(base, VOCABULARY)}
    for name, expected in small.named_parameters():
        own, role = drawn[name].detach(), shapes[name].role
        if role == "vector" or not expected.std() > 0:
            continue
        ratio = float(own.std() / expected.detach().std())
        if role in ("matrix", "low_rank"):
            (m, n), (base_m, base_n) = own.shape, expected.shape
            ratio *= math.sqrt(n / base_n)
            ratio *= min(1, math.sqrt(base_m / base_n)) / min(1, math.sqrt(m / n))
        assert ratio == pytest.approx(1, abs=0.12), name


def test_groups_carry_the_factors():
    model = under(WIDE.model_copy(update={"layers": 1}), "mup", 64)
    module = build(model, VOCABULARY, seed=0)
    optimizer = optim.build(module, Optimizer(kind="adamw", epsilon=1e-6, embedding_scale=0.5))
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = factors(model, "adamw")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = found[names[parameter]]
            matrix = group["role"] == "matrix"
            assert group["scale"] == own.learning_rate * (1 if matrix else 0.5)
            assert group["decay"] == own.weight_decay * matrix
            assert group["eps"] == pytest.approx(1e-6 / 4)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(names)


def test_smaller_heads_at_the_base_scale_attention_by_their_width():
    """1 / head_width instead of its root (Yang et al. 2022, definition 4.1), equal at the base."""
    model = under(WIDE, "mup", 64, base_head_width=8, base_key_value_heads=4)
    assert multipliers(model).attention == pytest.approx(8**-0.5 * 8 / 32)
    tuned = model.model_copy(update={"attention_multiplier": 0.5})
    assert multipliers(tuned).attention == pytest.approx(0.5 * 8 / 32)
