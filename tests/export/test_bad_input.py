"""What can't be imported is refused in one line that names it, and nothing is loaded."""

import json
import pickle
import re
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from cupola.errors import CupolaError, InputError
from cupola.export.folder import read_folder, write_folder
from tests.export.oracles import EXPORTED, byte_tokenizer, change_config, exported, opened, randomised

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path, request):
    name = getattr(request, "param", "llama")
    return exported(tmp_path / name, EXPORTED[name], randomised(name, EXPORTED[name]))


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(folder) -> str:
    with pytest.raises(InputError) as caught:
        read_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def rope(kind, **fields):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, **fields}}


@pytest.mark.parametrize(
    ("folder", "fields", "words"),
    [
        (
            "llama",
            {"model_type": "gpt_neox"},
            "model_type: 'gpt_neox' is not computed by Cupola; it imports gpt2,",
        ),
        ("llama", {"model_type": ...}, "model_type: None"),
        ("llama", {"hidden_size": ...}, "hidden_size is missing"),
        ("llama", {"hidden_size": "64"}, 'hidden_size: "64" is not a whole number'),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps: 0 is not a number above 0"),
        ("llama", {"tie_word_embeddings": "no"}, 'tie_word_embeddings: "no" is neither true nor false'),
        ("llama", {"num_key_value_heads": 3}, "key_value_heads: 4 heads can't be shared among 3"),
        ("llama", {"hidden_act": "relu"}, 'hidden_act: "relu" is not computed by Cupola (silu, swish)'),
        ("llama", rope("longrope"), 'rope_parameters: rope_type: "longrope" is not computed'),
        ("llama", {"rope_scaling": {"type": "su", "factor": 2.0}}, 'rope_scaling: rope_type: "su" is not'),
        (
            "llama",
            {"rope_scaling": {"type": ["yarn"], "factor": 2.0}},
            'rope_scaling: rope_type: ["yarn"] is not',
        ),
        ("llama", rope("dynamic", factor=None), "rope_parameters: factor is missing"),
        ("llama", rope("yarn", beta_slow=64), "rope.beta_slow: must not be above beta_fast 32.0"),
        ("llama", rope("yarn", beta_fast=-1), "rope_parameters: beta_fast: -1 is not a number from 0 on"),
        ("llama", rope("yarn", attention_factor=0), "attention_factor: 0 is not a number above 0"),
        ("llama", rope("yarn", truncate="no"), 'truncate: "no" is neither true nor false'),
        (
            "llama",
            rope("yarn", original_max_position_embeddings=1.5),
            "original_max_position_embeddings: 1.5 is not",
        ),
        ("llama", rope("linear", partial_rotary_factor=0.5), "partial_rotary_factor: 0.5 is not computed"),
        ("llama", {"partial_rotary_factor": 0.25}, "partial_rotary_factor: 0.25 is not computed"),
        ("llama", {"sliding_window": 32}, "sliding_window: 32 is not computed"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0 is not computed"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling: 8.0 is not computed by Cupola (1.0 is)"),
        ("llama", {"quantization_config": {"bits": 4}}, 'quantization_config: {"bits": 4} is not computed'),
        ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ("qwen2", {"attention_bias": True, "mlp_bias": True}, "attention_bias: true is not computed"),
        ("qwen3", {"layer_types": ["full_attention"]}, "is not a list of 2 layers"),
        ("qwen3", {"layer_types": ["full_attention", "chunked"]}, 'layer_types: "chunked" is no layer'),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window: null leaves"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step: 2 is not computed by Cupola (1 is)"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers: [1] is not computed"),
        ("qwen3_moe", {"mlp_only_layers": ["a", 1]}, 'mlp_only_layers: ["a", 1] is not computed'),
        ("qwen3_moe", {"router_aux_loss_coef": float("nan")}, "router_aux_loss_coef: NaN is not a number"),
        ("granite-moe", {"num_local_experts": 1}, "num_local_experts: 1 is not computed"),
        ("granite-moe", {"router_aux_loss_coef": -1}, "router_aux_loss_coef: -1 is not a number from 0 on"),
        ("llama", {"head_dim": ..., "num_attention_heads": 128}, "num_attention_heads: 128 is more than"),
        ("llama", {"rms_norm_eps": 10**400}, "is not a number above 0, and finite"),
        ("llama", rope("linear", rope_theta=float("inf")), "rope_theta: Infinity is not a number above 0"),
        ("llama", rope("linear", factor=None), "rope_parameters: factor is missing"),
        ("llama", rope("llama3", high_freq_factor=4.0), "rope_parameters: low_freq_factor is missing"),
        ("llama", rope("llama3", low_freq_factor=1.0), "rope_parameters: high_freq_factor is missing"),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "(one for all layers is)",
        ),
        ("llama", {"per_layer_config": {"1": {"hidden_act": "gelu"}}}, "per_layer_config"),
        ("llama", {"is_causal": False}, "is_causal: false is not computed by Cupola (true is)"),
        ("gpt2", {"is_causal": False}, "is_causal: false is not computed by Cupola (true is)"),
        ("mistral", {"layer_types": ["sliding_attention"]}, "is not a list of 2 layers"),
        (
            "mistral",
            {"layer_types": ["sliding_attention"] * 2, "sliding_window": None},
            "sliding_window: null",
        ),
        ("llama", rope("linear", factor=0.5), "rope.factor: 0.5: input should be greater than or equal to 1"),
        (
            "llama",
            {"num_hidden_layers": 2**24},
            "num_hidden_layers: 16777216 is not a whole number from 1 to",
        ),
        ("mixtral", {"num_local_experts": 2**24}, "num_local_experts: 16777216 is not a whole number from"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok: 9 is more than there are, 5"),
        ("gpt2", {"activation_function": "relu"}, 'activation_function: "relu" is not computed'),
        (
            "gpt2",
            {"scale_attn_weights": False},
            "scale_attn_weights: false is not computed by Cupola (true is)",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: true"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention: true"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, "time_step_limit: [0.0, 0.1] is not computed"),
        ("mamba2", {"num_heads": 3}, "3 heads do not divide the inner width 64"),
        ("mamba2", {"head_dim": 8}, "head_dim: 8 times 4 heads is not the inner width 64"),
        ("mamba2", {"n_groups": 3}, "groups"),
        ("granite", {"layer_types": ["mamba", "mamba", "moe", "mamba"]}, 'layer_types: "moe" is no layer'),
        ("granite", {"layers_block_type": ["mamba"] * 4}, 'layers_block_type: ["mamba", "mamba", '),
        ("granite", {"mamba_proj_bias": True}, "mamba_proj_bias: true is not computed"),
        ("granite", {"position_embedding_type": "alibi"}, 'position_embedding_type: "alibi"'),
        ("mamba", {"use_bias": True}, "use_bias: true is not computed"),
        ("mamba", {"use_conv_bias": False}, "use_conv_bias: false is not computed by Cupola (true is)"),
        ("mamba", {"hidden_act": "gelu"}, 'hidden_act: "gelu" is not computed'),
    ],
    indirect=["folder"],
)
def test_a_setting_that_is_not_computed_is_named(folder, fields, words):
    change_config(folder, **fields)
    assert words in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


def test_what_matters_in_training_alone_is_noted(folder):
    change_config(folder, attention_dropout=0.1, use_cache=False, some_new_field=3)
    assert read_folder(folder).notes == ["attention_dropout 0.1 is not applied: Cupola trains without it"]


def test_older_spellings_are_read(folder):
    """Of transformers before 5, and of files that leave out what is as by default."""
    change_config(
        folder, rope_parameters=..., rope_theta=500.0, rope_scaling={"type": "linear", "factor": 4.0}
    )
    model = read_folder(folder).model
    assert (model.rope.rope_theta, model.rope.rope_type, model.rope.factor) == (500.0, "linear", 4.0)
    change_config(
        folder, rope_scaling=None, rope_theta=..., head_dim=..., attention_bias=..., rms_norm_eps=...
    )
    model = read_folder(folder).model
    assert (model.rope.rope_theta, model.rope.rope_type) == (10000.0, "default")
    assert (model.sizes().head_width, model.norm_epsilon, model.attention_bias) == (16, 1e-6, False)


def drop(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


K = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop(K), f"1 tensor is missing: {K}; nothing was loaded"),
        (lambda tensors: tensors.update(strange=torch.zeros(3)), "1 tensor is not expected: strange"),
        (
            lambda tensors: tensors.update({K: torch.zeros(16, 64)}),
            f"of another shape: {K} is 16x64, not 32x64",
        ),
        (
            lambda tensors: tensors.update({K: torch.zeros(32, 64).to(torch.int8)}),
            f"{K} is int8, not plain numbers",
        ),
        (
            lambda tensors: tensors[K][3, :5].fill_(torch.inf),
            f"{K} has 5 of 2048 elements that are no finite",
        ),
        (lambda tensors: tensors[K][0, 0].fill_(torch.nan), f"{K} has 1 of 2048 elements that are no finite"),
        (drop("lm_head.weight"), "1 tensor is missing: lm_head.weight"),
        (lambda tensors: tensors.clear(), "tensors are missing: model.embed_tokens.weight, "),
    ],
)
def test_tensors_that_do_not_belong_are_named(folder, change, words):
    change_tensors(folder, change)
    assert words in refusal(folder)


def test_all_that_is_wrong_is_said_in_one_line(folder):
    change_tensors(folder, lambda t: (drop(K)(t), t.update(a=torch.ones(2), b=torch.ones(2))))
    message = refusal(folder)
    assert "1 tensor is missing" in message
    assert "2 tensors are not expected: a, b" in message
    change_config(folder, num_hidden_layers=1)
    assert "and 6 more" in refusal(folder)


@pytest.mark.parametrize("folder", ["qwen3"], indirect=True)
def test_a_tied_head_in_the_file_must_be_the_embedding(folder):
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "head.weight" not in read_folder(folder).weights
    change_tensors(folder, lambda t: t["lm_head.weight"].mul_(2))
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(folder)


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_names_without_prefix_and_computed_tables_are_read(folder):
    """As the first published GPT-2 has them."""
    before = read_folder(folder).weights
    tensors = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / WEIGHTS).items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(tensors, folder / WEIGHTS)
    after = read_folder(folder).weights
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_damaged_file_is_named(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert "is no safetensors file, or damaged" in refusal(folder)
    (folder / WEIGHTS).write_bytes(b"")
    assert "is no safetensors file, or damaged" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = exported(
        tmp_path / "out", EXPORTED["llama"], randomised("llama", EXPORTED["llama"]), shard_bytes=90_000
    )
    shards = sorted(folder.glob("model-*"))
    shards[1].unlink()
    assert f"names {shards[1].name}, which is not there (of {len(shards)} files)" in refusal(folder)
    (folder / f"{WEIGHTS}.index.json").write_text("{}")
    assert "is no index of shards" in refusal(folder)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/tmp/model.safetensors", "sub/../../x"])
def test_shards_outside_of_the_folder_are_not_read(folder, name):
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {K: name}}))
    assert f"names {name}, which is outside of its folder" in refusal(folder)


def test_one_file_counts_before_shards(folder):
    """As in transformers; an index that was left behind is not read."""
    before = read_folder(folder).weights
    save_file({"other": torch.ones(2)}, folder / "old.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"other": "old.safetensors"}}))
    assert all(torch.equal(before[name], tensor) for name, tensor in read_folder(folder).weights.items())
    assert torch.equal(opened(folder).get_input_embeddings().weight, before["embedding.weight"])


def test_a_disk_without_room_is_said_of_the_folder_that_was_asked_for(tmp_path):
    """No file may have more than 10,000 bytes: to a writer it is the same."""
    model = EXPORTED["llama"]
    state = dict(randomised("llama", model).state_dict())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CupolaError) as caught:
            write_folder(tmp_path / "out", state, model, byte_tokenizer(), 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.match(rf"{tmp_path}/out/{WEIGHTS}: cannot be written \(.*File too large", str(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_read_as_tensors_and_nothing_else(folder):
    expected = read_folder(folder).weights
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path)
    assert all(torch.equal(expected[k], v) for k, v in read_folder(folder).weights.items())
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert all(torch.equal(expected[k], v) for k, v in read_folder(folder).weights.items())
    torch.save([tensors], path)
    assert "holds no tensors by name" in refusal(folder)
    torch.save({"model": tensors}, path)
    assert "holds 'model', which is no tensor under a name" in refusal(folder)
    path.write_bytes(pickle.dumps(print))
    assert "is no file of tensors, or damaged" in refusal(folder)
    torch.save({"x": Dangerous()}, path)
    message = refusal(folder)
    assert "is no file of tensors, or damaged; nothing that it holds was run" in message
    assert "weights_only" not in message  # torch advises to run it all the same
    torch.save({"x": torch.ones(3).to_sparse()}, path)
    assert "x is not stored number by number" in refusal(folder)


class Dangerous:
    """What a pickle can do when it is opened without `weights_only`."""

    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)
