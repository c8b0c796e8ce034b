"""Settings of files as transformers reads them: what is left out, spelt otherwise, or said in two places."""

import pytest
import torch

from cupola.export.config import Config
from cupola.export.folder import read_folder
from cupola.export.formats import FORMATS, of_model, read_model
from cupola.models import build
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
    if isinstance(fields.get("layer_types"), list) or "rope_parameters" in fields:
        assert float((found - before).detach().abs().max()) > 1e-3


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
