"""Logits and all gradients equal Hugging Face's for the same random weights, in fp32."""

import pytest
import torch

from cupola.errors import InputError
from cupola.models import build, huggingface
from cupola.recipe.model import Model
from tests.models.small_models import GPT2, LLAMA, LLAMA31, QWEN3, TRANSFORMERS

VOCABULARY = 131
pytestmark = pytest.mark.oracle


def randomised(model: Model, seed: int = 5):
    """Weights far from their initial values: norms and biases are random too, and blocks weigh more."""
    module = build(model, VOCABULARY, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(noise + (1.0 if "norm" in name and "weight" in name else 0.0))
            elif name.startswith("blocks"):
                parameter.mul_(5)
    return module


def oracle_of(model: Model, state: dict[str, torch.Tensor]):
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = huggingface.configuration(model, VOCABULARY)
    config = AutoConfig.for_model(**fields, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    oracle = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    loaded = oracle.load_state_dict(huggingface.to_huggingface(state, model), strict=False)
    assert not loaded.unexpected_keys
    assert loaded.missing_keys == (["lm_head.weight"] if model.tied else [])
    return oracle


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize(("batch", "length"), [(2, 21), (1, 64)])
def test_logits_and_gradients_equal(name, batch, length):
    model = TRANSFORMERS[name]
    module = randomised(model)
    oracle = oracle_of(model, module.state_dict())
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    targets = torch.randint(0, VOCABULARY, (batch, length), generator=generator).flatten()

    logits = module.logits(module.hidden(tokens))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    expected = oracle(tokens).logits
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets).backward()

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    theirs = {n: p.grad for n, p in oracle.named_parameters()}
    ours = huggingface.to_huggingface({n: p.grad for n, p in module.named_parameters()}, model)
    assert ours.keys() == theirs.keys()
    for parameter, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[parameter], rtol=1e-5, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_conversion_there_and_back_is_the_identity(name):
    state = randomised(TRANSFORMERS[name]).state_dict()
    back = huggingface.from_huggingface(huggingface.to_huggingface(state, TRANSFORMERS[name]), TRANSFORMERS[name])
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_a_missing_parameter_is_an_error():
    state = build(LLAMA, VOCABULARY, 0).state_dict()
    del state["blocks.1.mixer.key.weight"]
    with pytest.raises(KeyError, match="key"):
        huggingface.to_huggingface(state, LLAMA)


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        (LLAMA31, {"output_bias": False}, "output_bias"),
        (QWEN3, {"feedforward_bias": True}, "feedforward_bias"),
        (GPT2, {"tied": False}, "tied"),
        (GPT2, {"positions": "rope"}, "positions"),
        (GPT2, {"key_value_heads": 2}, "key_value_heads"),
    ],
)
def test_what_hugging_face_cannot_express_is_named(model, changes, named):
    with pytest.raises(InputError, match=named):
        huggingface.configuration(model.model_copy(update=changes), VOCABULARY)
