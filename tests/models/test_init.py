"""Initial weights: a function of seed and name; the first loss is ln(vocabulary)."""

import math

import pytest
import torch
import torch.nn.functional as F

from cupola.models import build, table
from cupola.models.init import draw, initialise
from cupola.models.stack import LanguageModel
from cupola.recipe.model import Model
from tests.models.small_models import ALL, GPT2, HYBRIDS, LLAMA, RECURRENT


def test_weights_depend_on_seed_and_name_alone():
    module = build(LLAMA, 97, seed=4)
    same, other = build(LLAMA, 97, seed=4), build(LLAMA, 97, seed=5)
    for (name, first), second, third in zip(
        module.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(first, second)
        assert torch.equal(first, third) == ("norm" in name)
    # Drawn alone, without the rest of the model, and in a model of other depth: still the same.
    declared = {p.name: p for p in table.parameters(LLAMA, 97)}
    name = "blocks.1.mixer.query.weight"
    assert torch.equal(draw(declared[name], LLAMA, 4), dict(module.named_parameters())[name])
    deeper = build(LLAMA.model_copy(update={"layers": 5}), 97, seed=4)
    assert torch.equal(dict(deeper.named_parameters())[name], dict(module.named_parameters())[name])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(build(LLAMA, 97, seed=4).head_weight, module.head_weight)


@pytest.mark.parametrize("name", [name for name in ALL if name not in RECURRENT | HYBRIDS])
def test_distributions(name):
    model = ALL[name].model_copy(update={"width": 256, "heads": 4, "key_value_heads": 4, "layers": 8})
    module = build(model, 512, seed=0)
    for key, parameter in module.state_dict().items():
        if "norm" in key:
            assert torch.all(parameter == (0 if "bias" in key else 1))
        elif key.endswith("bias"):
            assert torch.all(parameter == 0)
        else:
            writes = key.endswith(("mixer.output.weight", ".down.weight", ".down"))
            expected = 0.02 / 4 if writes else 0.02
            assert abs(float(parameter.std()) / expected - 1) < 0.05
            assert abs(float(parameter.mean())) < expected / 10


def test_a_wide_model_gets_a_quieter_head():
    wide = Model(layers=1, width=2304, heads=1, head_width=8, feedforward=8)
    declared = {p.name: p for p in table.parameters(wide, 512)}
    assert abs(float(draw(declared["head.weight"], wide, 0).std()) * math.sqrt(2304) - 0.4) < 0.01
    assert abs(float(draw(declared["embedding.weight"], wide, 0).std()) - 0.02) < 1e-3


@pytest.mark.parametrize("vocabulary", [512, 32768, 131072])
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["untied", "tied"])
def test_the_first_loss_is_ln_vocabulary(vocabulary, base):
    module = build(base, vocabulary, seed=0)
    tokens = torch.randint(0, vocabulary, (1, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = F.cross_entropy(module.logits(module.hidden(tokens[:, :-1]))[0], tokens[0, 1:])
    assert abs(float(loss) / math.log(vocabulary) - 1) < 0.03


@pytest.mark.parametrize("width", [128, 1536])
@pytest.mark.parametrize("tied", [False, True])
def test_the_first_loss_at_other_widths(width, tied):
    model = Model(layers=2, width=width, heads=2, tied=tied)
    module = build(model, 4096, seed=0)
    tokens = torch.randint(0, 4096, (2, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = F.cross_entropy(
            module.logits(module.hidden(tokens[:, :-1])).flatten(0, 1), tokens[:, 1:].flatten()
        )
    assert abs(float(loss) / math.log(4096) - 1) < 0.03


def test_meta_takes_no_memory_and_a_part_can_be_initialised_alone():
    whole = build(LLAMA, 97, seed=2)
    assert all(p.is_meta for p in build(LLAMA, 97, seed=2, device="meta").parameters())
    part = LanguageModel(LLAMA, 97)
    del part.blocks["0"]
    initialise(part, LLAMA, 97, seed=2)
    expected = dict(whole.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in part.named_parameters())


def test_an_undeclared_parameter_is_an_error():
    module = LanguageModel(LLAMA, 97)
    module.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="extra"):
        initialise(module, LLAMA, 97, seed=0)


def test_dtype():
    assert build(LLAMA, 97, seed=0, dtype=torch.bfloat16).head_weight.dtype == torch.bfloat16
