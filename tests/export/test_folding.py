"""Models of another parametrisation are exported as the same function, or refused."""

import pytest
import torch

from cupola.display import Display
from cupola.errors import InputError
from cupola.export import formats, rwkv7
from cupola.export.folding import fold
from cupola.models import build
from cupola.models.stack import LanguageModel
from cupola.recipe.model import Model
from cupola.recipe.parametrisation import Parametrisation
from tests.export.oracles import GRANITE, MAMBA2, randomise
from tests.models.small_models import EXPERTS, GPT2, LLAMA, QWEN3, RWKV7

MUP = Parametrisation(kind="mup", base_width=16)
DEEP = Parametrisation(kind="completep", base_width=16, base_layers=1)
SMALL_HEADS = Parametrisation(kind="mup", base_width=16, base_head_width=4, base_key_value_heads=2)
CASES = {
    "llama": (LLAMA, MUP.model_copy(update={"base_key_value_heads": 1})),
    "llama, small heads and depth": (
        LLAMA,
        SMALL_HEADS.model_copy(update={"kind": "completep", "base_layers": 1}),
    ),
    "qwen3": (QWEN3, SMALL_HEADS),
    "gpt2": (GPT2, DEEP),
    "mixtral": (EXPERTS, DEEP),
    "mamba2": (MAMBA2, DEEP),
    "rwkv7": (RWKV7, DEEP),
    "granite": (GRANITE, MUP.model_copy(update={"base_width": 24})),
}


def without_multipliers(model: Model) -> str:
    """A format's name by whether it would have to hold multipliers."""
    return str(model.logits_scaling)


@pytest.mark.parametrize("name", CASES)
def test_the_folded_model_computes_the_same(name):
    model, parametrisation = CASES[name]
    model = model.model_copy(update={"parametrisation": parametrisation})
    module = build(model, 64, seed=1).double()
    randomise(module)
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = module.logits(module.hidden(tokens))
    plain = build(model.model_copy(update={"parametrisation": Parametrisation()}), 64, seed=1).double()
    plain.load_state_dict(module.state_dict())
    assert not torch.allclose(plain.logits(plain.hidden(tokens)), expected, rtol=1e-3)
    for format_of in (without_multipliers, lambda model: "any"):
        standard, state = fold(model, module.state_dict(), format_of, Display())
        assert standard.parametrisation == Parametrisation()
        other = LanguageModel(standard, 64).double()
        other.load_state_dict(state)
        torch.testing.assert_close(other.logits(other.hidden(tokens)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_format_holds_it_once_it_is_folded(name):
    model, parametrisation = CASES[name]
    model = model.model_copy(update={"parametrisation": parametrisation})
    format_of = rwkv7.name_for if name == "rwkv7" else formats.name_for
    assert format_of(model) is None
    state = build(model, 64, seed=1).state_dict()
    standard, folded = fold(model, state, format_of, Display())
    names = {"llama, small heads and depth": "llama", "granite": "granitemoehybrid"}
    assert format_of(standard) == names.get(name, name)
    unchanged = all(torch.equal(state[key], folded[key]) for key in state)
    assert unchanged == (name == "granite")


def test_a_parametrisation_is_refused_where_nothing_folds_it():
    model = LLAMA.model_copy(update={"parametrisation": MUP})
    with pytest.raises(InputError, match=r"would need .*parametrisation"):
        formats.of_model(model)
