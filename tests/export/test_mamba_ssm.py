"""Files of the `mamba_ssm` package, as the published Mamba and Mamba-2 weights are: other names alone."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cupola.errors import InputError
from cupola.export.config import Config
from cupola.export.folder import read_folder
from cupola.export.formats import read_model
from cupola.models import table
from tests.export.oracles import MAMBA, VOCABULARY, exported, randomised

PUBLISHED = {  # mamba2-130m, in full
    "d_model": 768,
    "d_intermediate": 0,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}


def test_the_published_settings_give_the_published_number_of_parameters():
    format_, model = read_model(Config(PUBLISHED))
    assert (format_.model_type, model.vocabulary) == ("mamba2", 50288)
    assert table.count(model, 50288) == 128_989_632
    first = {**PUBLISHED, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}
    format_, model = read_model(Config(first))
    assert (format_.model_type, model.vocabulary) == ("mamba", 50280)
    assert table.count(model, 50280) == 129_135_360


def test_weights_under_its_names_are_read(tmp_path):
    folder = exported(tmp_path / "out", MAMBA, randomised("mamba", MAMBA))
    expected = read_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    fields = {"d_model": 32, "n_layer": 2, "vocab_size": VOCABULARY - 3, "tie_embeddings": True}
    fields["ssm_cfg"] = {"d_state": 4, "dt_rank": 3}
    (folder / "config.json").write_text(json.dumps(fields))
    found = read_folder(folder)
    assert found.model == expected.model
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attn_layer_idx": [3]}, r"attn_layer_idx: \[3\] is not computed"),
        ({"d_intermediate": 64}, "d_intermediate: 64 is not computed"),
        ({"rms_norm": False}, "rms_norm: false is not computed by Cupola"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, 'ssm_cfg: layer: "Mamba3" is not computed'),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "ssm_cfg: rmsnorm: false is not known"),
        (
            {"ssm_cfg": {"layer": "Mamba2", "headdim": 100}},
            "15 heads do not divide the inner width 1536",
        ),
    ],
)
def test_what_is_not_computed_is_named(fields, words):
    with pytest.raises(InputError, match=words):
        read_model(Config({**PUBLISHED, **fields}))
