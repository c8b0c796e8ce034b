"""PEFT loads what LoRA has learnt beside an exported base: the same logits and gradients, and merged."""

import json

import pytest
import torch

from cupola.errors import InputError
from cupola.export.adapter import updates, write_adapter
from cupola.export.formats import of_model
from cupola.export.pairs import our_shapes
from cupola.models import lora
from cupola.recipe.adapting import Lora
from cupola.recipe.schema import Stage
from tests.export.oracles import EXPORTED, VOCABULARY, exported, opened, randomised, some_tokens
from tests.models.small_models import LLAMA

pytestmark = pytest.mark.oracle

INWARDS = ["gate", "input", "b", "c", "dt"]
CASES = {
    "llama": {"rank": 4},
    "llama3.1": {"rank": 3, "alpha": 5, "targets": ["query", "value", "down"]},
    "qwen3": {"rank": 16, "rslora": True, "alpha": 8},
    "mistral": {"rank": 4, "targets": ["mixer.*"]},
    "gpt2": {"rank": 4},
    "gpt2-exact": {"rank": 4, "rslora": True, "targets": ["query", "value", "up"]},
    "mixtral": {"rank": 4},
    "mamba2": {"rank": 2, "targets": INWARDS},
    "granite": {"rank": 4, "targets": ["query", "key", "value", "feedforward.*"]},
}


def adapted(name, settings):
    """A module with updates that are not 0, its base's folder-ready state, and A and B."""
    import copy

    module = copy.deepcopy(randomised(name, EXPORTED[name]))
    base = {key: value.clone() for key, value in module.state_dict().items()}
    stage = Stage.model_validate({"data": {"mine": 1}, "learning_rate": 1, "lora": settings})
    lora.restrict(module, stage, "sft", 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.adapters:
            module.get_parameter(parameter.name).normal_(0, 0.1, generator=generator)
    return module, base, {p.name: module.get_parameter(p.name) for p in module.adapters}


@pytest.mark.parametrize("name", CASES)
def test_peft_computes_the_same(name, tmp_path):
    from peft import PeftModel

    model, settings = EXPORTED[name], Lora.model_validate(CASES[name])
    module, _, adapter = adapted(name, CASES[name])
    base = exported(tmp_path / "base", model, randomised(name, model))
    detached = {key: value.detach() for key, value in adapter.items()}
    write_adapter(tmp_path / "adapter", detached, settings, model)
    oracle = PeftModel.from_pretrained(opened(base), str(tmp_path / "adapter"), is_trainable=True)
    theirs = {n: p for n, p in oracle.named_parameters() if p.requires_grad}
    written = list(updates(detached, of_model(model).pairs(model), our_shapes(model, VOCABULARY)))
    assert len(theirs) == 2 * len(written)

    tokens, targets = some_tokens(2, 21), some_tokens(3, 14).flatten()
    logits = module.logits(module.hidden(tokens))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    expected = oracle(tokens).logits
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets).backward()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    gradients = {key: value.grad for key, value in adapter.items()}
    for place, a, b in updates(gradients, of_model(model).pairs(model), our_shapes(model, VOCABULARY)):
        found = [theirs[f"base_model.model.{place}.lora_{part}.default.weight"].grad for part in "AB"]
        torch.testing.assert_close(a, found[0], rtol=1e-5, atol=1e-5, msg=place)
        # Of a joined matrix only the blocks along the diagonal are ours.
        torch.testing.assert_close(b, found[1] * (b != 0), rtol=1e-5, atol=1e-5, msg=place)
        assert a.any()
        assert b.any()

    merged = oracle.merge_and_unload()
    lora.merge(module)
    torch.testing.assert_close(
        module.logits(module.hidden(tokens)), merged(tokens).logits, rtol=1e-5, atol=1e-5
    )


def test_first_weights_are_drawn_as_peft_draws_them(tmp_path):
    """A within the same bounds, evenly; B 0."""
    from peft import LoraConfig, get_peft_model

    base = exported(tmp_path / "base", LLAMA, randomised("llama", LLAMA))
    oracle = get_peft_model(opened(base), LoraConfig(r=32, target_modules=["q_proj"]))
    theirs = {n: p.detach() for n, p in oracle.named_parameters() if "lora_" in n}
    import copy

    module = copy.deepcopy(randomised("llama", LLAMA))
    stage = Stage.model_validate(
        {"data": {"mine": 1}, "learning_rate": 1, "lora": {"rank": 32, "targets": ["query"]}}
    )
    lora.restrict(module, stage, "sft", 0)
    ours = {p.name: module.get_parameter(p.name).detach() for p in module.adapters}
    for letter in "ab":
        found, expected = (
            torch.cat([t.flatten() for n, t in group.items() if f"lora_{letter}" in n.lower()])
            for group in (ours, theirs)
        )
        assert found.shape == expected.shape
        torch.testing.assert_close(found.sort().values, expected.sort().values, rtol=0, atol=0.012)


def test_the_configuration_names_what_is_adapted(tmp_path):
    _, _, adapter = adapted("gpt2", CASES["gpt2"])
    write_adapter(
        tmp_path / "adapter", {k: v.detach() for k, v in adapter.items()}, Lora(rank=4), EXPORTED["gpt2"]
    )
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert found["fan_in_fan_out"] is True
    assert found["lora_alpha"] == 8
    assert found["rank_pattern"] == {f"transformer.h.{n}.attn.c_attn": 12 for n in range(2)}
    assert set(found["alpha_pattern"].values()) == {24}


def test_what_peft_does_not_adapt_is_refused(tmp_path):
    _, _, adapter = adapted("mamba2", {"rank": 2})
    with pytest.raises(InputError, match="PEFT does not adapt output of mamba2"):
        write_adapter(
            tmp_path / "adapter",
            {k: v.detach() for k, v in adapter.items()},
            Lora(rank=2),
            EXPORTED["mamba2"],
        )
    assert not (tmp_path / "adapter").exists()
