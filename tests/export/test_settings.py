"""Settings of files as transformers reads them: what is left out, spelt otherwise, or said in two places."""

import json

import pytest
import torch

from cupola.export.config import Config
from cupola.export.folder import read_folder
from cupola.export.formats import FORMATS, of_model, read_model
from cupola.models import build
from cupola.recipe.rotary import Rope
from tests.export.oracles import (
    EXPORTED,
    VOCABULARY,
    change_config,
    exported,
    opened,
    randomised,
    some_tokens,
)

pytestmark = pytest.mark.oracle
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def ours(folder, tokens):
    imported = read_folder(folder)
    module = build(imported.model, imported.vocabulary, 0)
    module.load_state_dict(imported.weights)
    return module.logits(module.hidden(tokens))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mistral", {"layer_types": [FULL, SLIDING]}),
        ("mistral", {"layer_types": [FULL, FULL]}),
        ("mistral", {"layer_types": None}),
        ("mixtral", {"layer_types": [FULL, FULL], "sliding_window": 5}),
        ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
        (
            "llama",
            {
                "original_max_position_embeddings": 16,
                "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64},
            },
        ),
        ("llama", {"original_max_position_embeddings": 16, "rope_parameters": LLAMA3}),
        ("llama", {"max_position_embeddings": 16, "rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": YARN}),
        ("llama", {"rope_parameters": YARN | {"truncate": False, "beta_fast": 0, "beta_slow": 2}}),
        (
            "llama",
            {"rope_parameters": YARN | {"attention_factor": 1.7, "mscale": 1.0, "mscale_all_dim": 0.5}},
        ),
        ("llama", {"rope_parameters": YARN | {"mscale": 2.0}}),
        ("llama", {"rope_parameters": YARN | {"mscale": 2.0, "mscale_all_dim": 0}}),
        ("llama", {"rope_parameters": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}}),
        ("llama", {"rope_parameters": YARN | {"factor": None, "original_max_position_embeddings": 8}}),
        ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "yarn", "factor": 4.0}}),
        ("llama", {"original_max_position_embeddings": 8, "rope_parameters": YARN}),
        ("llama", {"rope_parameters": DYNAMIC}),  # within its context
        ("gpt2", {"is_decoder": False}),
        ("granite", {"layers_block_type": ["mamba", "attention"] * 2, "layer_types": ...}),
    ],
)
def test_the_same_is_computed_of_settings_as_others_write_them(name, fields, tmp_path):
    folder = exported(tmp_path / name, EXPORTED[name], randomised(name, EXPORTED[name]))
    tokens = some_tokens(1, 40)
    before = ours(folder, tokens)
    change_config(folder, **fields)
    found, expected = ours(folder, tokens), opened(folder)(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    stretched = "rope_parameters" in fields and fields["rope_parameters"] != DYNAMIC
    if isinstance(fields.get("layer_types"), list) or stretched:
        assert float((found - before).detach().abs().max()) > 1e-3


def test_dynamic_is_one_base_in_a_context(tmp_path):
    """Transformers' at that length; written as a base of its own, the same for a text of any length."""
    name, rope = "llama", Rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=16)
    model, module = EXPORTED[name].model_copy(update={"rope": rope}), randomised(name, EXPORTED[name])
    folder = exported(tmp_path / "moving", model, module)
    found = json.loads((folder / "config.json").read_text())
    assert found["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}
    assert found["max_position_embeddings"] == 16
    for context in (12, 40):
        settled = build(model.stretched(None, context), VOCABULARY, 0)
        settled.load_state_dict(module.state_dict())
        logits = settled.logits(settled.hidden(some_tokens(1, context)))
        expected = opened(folder)(some_tokens(1, context)).logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    folder = exported(tmp_path / "settled", model.stretched(None, 40), module)
    found = json.loads((folder / "config.json").read_text())
    assert found["rope_parameters"]["rope_type"] == "default"
    assert found["max_position_embeddings"] == 40
    for length in (12, 40):
        logits = settled.logits(settled.hidden(some_tokens(1, length)))
        torch.testing.assert_close(
            logits, opened(folder)(some_tokens(1, length)).logits, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.model_type)
def test_whether_a_head_is_tied_where_the_file_does_not_say(format_):
    from transformers import AutoConfig

    model = next(m for m in EXPORTED.values() if not format_.objections(m) and of_model(m) is format_)
    fields = format_.configuration(model, VOCABULARY)
    del fields["tie_word_embeddings"]
    expected = AutoConfig.for_model(format_.model_type).tie_word_embeddings
    assert read_model(Config(fields))[1].tied is expected


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_trained_weights_are_not_rescaled_on_reading(name, tmp_path):
    """transformers does so, each time: our reading is that of the file without the setting."""
    folder = exported(tmp_path / name, EXPORTED[name], randomised(name, EXPORTED[name]))
    tokens = some_tokens(1, 20)
    expected = opened(folder)(tokens).logits
    change_config(folder, rescale_prenorm_residual=True)
    torch.testing.assert_close(ours(folder, tokens), expected, rtol=1e-5, atol=1e-5)
    [note] = read_folder(folder).notes
    assert "rescale_prenorm_residual true is of initialisation alone" in note


def test_a_byte_order_mark_is_skipped(tmp_path):
    folder = exported(tmp_path / "llama", EXPORTED["llama"], randomised("llama", EXPORTED["llama"]))
    before = read_folder(folder).model
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text, encoding="utf-8-sig")
    assert read_folder(folder).model == before
