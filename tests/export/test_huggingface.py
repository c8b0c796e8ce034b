"""Folders of Hugging Face's, both ways: transformers computes the same from ours, and we from its own."""

import pytest
import torch

from cupola.errors import InputError
from cupola.export import rwkv7
from cupola.export.config import Config
from cupola.export.folder import read_folder
from cupola.export.formats import file_shapes, of_model, read_model
from cupola.export.pairs import our_shapes, to_ours, to_theirs
from cupola.models import build
from cupola.recipe.loading import load_preset
from cupola.recipe.lookup import presets
from tests.export.oracles import (
    EXPORTED,
    MOE,
    VOCABULARY,
    byte_tokenizer,
    exported,
    opened,
    randomise,
    randomised,
    some_tokens,
)
from tests.models.small_models import GPT2, LLAMA, LLAMA31, QWEN3

pytestmark = pytest.mark.oracle


GRANITE = {
    "experts.gate_up_proj": "input_linear.weight",
    "experts.down_proj": "output_linear.weight",
    "moe.router.weight": "moe.router.layer.weight",
}
MIXTRAL = {"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def as_in_files(gradients, model_type):
    """Hugging Face's gradients under the names of its files: experts, fused in memory, one by one."""
    found = {}
    for name, tensor in gradients.items():
        if model_type == "granitemoehybrid":
            for memory, file in GRANITE.items():
                name = name.replace(memory, file)
            found[name] = tensor
        elif name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found[name.replace("gate_up_proj", f"{expert}.gate_proj.weight")] = gate
                found[name.replace("gate_up_proj", f"{expert}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(tensor):
                found[name.replace("down_proj", f"{expert}.down_proj.weight")] = down
        else:
            found[name] = tensor
    if model_type == "mixtral":
        for memory, file in MIXTRAL.items():
            found = {name.replace(memory, file): tensor for name, tensor in found.items()}
    return found


@pytest.mark.parametrize("name", EXPORTED)
def test_transformers_computes_the_same_from_an_exported_folder(name, tmp_path):
    model = EXPORTED[name]
    module = randomised(name, model)
    module.zero_grad()
    oracle = opened(exported(tmp_path / "out", model, module))
    tokens, targets = some_tokens(2, 21), some_tokens(3, 14).flatten()

    logits = module.logits(module.hidden(tokens))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    expected = oracle(tokens).logits
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets).backward()

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    theirs = as_in_files({n: p.grad for n, p in oracle.named_parameters()}, of_model(model).model_type)
    ours = to_theirs({n: p.grad for n, p in module.named_parameters()}, of_model(model).pairs(model))
    assert ours.keys() == theirs.keys()
    for parameter, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[parameter], rtol=1e-5, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", EXPORTED)
def test_we_compute_the_same_from_what_transformers_saved(name, tmp_path):
    oracle = randomise(
        opened(exported(tmp_path / "ours", EXPORTED[name], randomised(name, EXPORTED[name]))), 7
    )
    oracle.tie_weights()
    oracle.save_pretrained(tmp_path / "theirs")
    imported = read_folder(tmp_path / "theirs")
    assert imported.vocabulary == VOCABULARY
    module = build(imported.model, imported.vocabulary, 0)
    module.load_state_dict(imported.weights)
    tokens = some_tokens(2, 19)
    torch.testing.assert_close(
        module.logits(module.hidden(tokens)), oracle(tokens).logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", EXPORTED)
def test_there_and_back_is_the_identity(name, tmp_path):
    model = EXPORTED[name]
    state = randomised(name, model).state_dict()
    pairs = list(of_model(model).pairs(model))
    back = to_ours(to_theirs(state, pairs), pairs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    imported = read_folder(exported(tmp_path / "out", model, randomised(name, model)))
    assert imported.weights.keys() == state.keys()
    assert all(torch.equal(imported.weights[key], value) for key, value in state.items())
    assert imported.model.mixers() == model.mixers()
    assert imported.model.sizes() == model.sizes()
    unset = {"pattern": None, "vocabulary": None, "max_positions": None, "init_std": 0.02}
    unset |= {"heads": None, "head_width": None, "key_value_heads": None, "feedforward": None}
    assert imported.model.model_copy(update=unset) == model.model_copy(update=unset)


def test_bf16_is_rounded_once(tmp_path):
    module = randomised("llama", LLAMA)
    folder = exported(tmp_path / "out", LLAMA, module, dtype="bf16")
    assert opened(folder).dtype == torch.bfloat16
    for name, tensor in read_folder(folder).weights.items():
        assert torch.equal(tensor, module.state_dict()[name].bfloat16().float())


def test_large_models_are_written_in_shards(tmp_path):
    module = randomised("qwen3", QWEN3)
    folder = exported(tmp_path / "out", QWEN3, module, shard_bytes=60_000)
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[-1] == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert not (folder / "model.safetensors").exists()
    tokens = some_tokens(1, 9)
    torch.testing.assert_close(
        opened(folder)(tokens).logits, module.logits(module.hidden(tokens)), rtol=1e-5, atol=1e-5
    )
    weights = read_folder(folder).weights
    assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen3", "gpt2", "qwen2", "mistral", "mixtral", "qwen3_moe", "mamba", "mamba2", "granite"],
)
def test_autotokenizer_gives_the_same_ids(name, tmp_path):
    from transformers import AutoTokenizer

    ours = byte_tokenizer()
    folder = exported(tmp_path / "out", EXPORTED[name], randomised(name, EXPORTED[name]))
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in ("The other thing, the  end.\n", "Zwölf \u3000 東京 🙂", ""):
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == text
        begun = [ours.delimiter, *ids]  # as `cupola generate` reads a prompt
        assert theirs(theirs.eos_token + text)["input_ids"] == begun
    begins = {"bos_token": theirs.eos_token, "add_bos_token": True}
    beginning = AutoTokenizer.from_pretrained(folder, local_files_only=True, **begins)
    assert beginning("The other")["input_ids"] == [ours.delimiter, *ours.encode("The other").tolist()]
    literal = "a <|endoftext|> b"
    assert theirs(literal, split_special_tokens=True)["input_ids"] == ours.encode(literal).tolist()
    assert ours.delimiter in theirs(literal)["input_ids"]
    assert theirs.eos_token_id == ours.delimiter
    config = opened(folder).generation_config
    assert config.eos_token_id == ours.delimiter


@pytest.mark.parametrize("name", presets())
def test_settings_of_every_preset_come_back(name):
    model = load_preset(name)
    if model.family == "rwkv7":
        assert rwkv7.objections(model) == []
    elif name == "gpt3-13b":  # 40 heads of 128 in a width of 5140
        with pytest.raises(InputError, match="gpt2 would need head_width: 128"):
            of_model(model)
    else:
        rows = model.rows(50_000)
        format_ = of_model(model)
        found, back = read_model(Config(format_.configuration(model, rows)))
        assert found is format_
        assert our_shapes(back, rows) == our_shapes(model, rows)
        assert back.mixers() == model.mixers()
        same = (
            "tied",
            "rope",
            "positions",
            "norm_epsilon",
            "attention_multiplier",
            "logits_scaling",
            "window",
        )
        assert all(getattr(back, setting) == getattr(model, setting) for setting in same)


def test_a_missing_parameter_is_an_error():
    state = build(LLAMA, VOCABULARY, 0).state_dict()
    del state["blocks.1.mixer.key.weight"]
    with pytest.raises(KeyError, match="key"):
        to_theirs(state, of_model(LLAMA).pairs(LLAMA))


def test_shapes_are_known_without_weights():
    shapes = file_shapes(of_model(GPT2), GPT2, VOCABULARY)
    state = to_theirs(build(GPT2, VOCABULARY, 0).state_dict(), of_model(GPT2).pairs(GPT2))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_settings_without_effect_are_not_read():
    """A hybrid's file states attention's settings even where no layer has it."""
    model = EXPORTED["granite"]
    fields = of_model(model).configuration(model, VOCABULARY) | {"layer_types": ["mamba"] * 4}
    _, found = read_model(Config(fields))
    unset = dict.fromkeys(("heads", "key_value_heads", "attention_multiplier", "max_positions"))
    unset |= {"pattern": ("mamba2",) * 4, "positions": "rope", "vocabulary": VOCABULARY}
    assert found == model.model_copy(update=unset)


@pytest.mark.parametrize("heads", [{}, {"head_dim": 32}])
def test_the_usual_scale_is_that_of_the_heads_in_force(heads):
    """A scale of 1/4 is the usual one of heads 16 wide, and none of heads 32 wide."""
    fields = of_model(EXPORTED["granite"]).configuration(EXPORTED["granite"], VOCABULARY)
    fields |= {"hidden_size": 64, "mamba_n_heads": 8, "attention_multiplier": 0.25, **heads}
    _, model = read_model(Config(fields))
    assert model.head_width == heads.get("head_dim", 16)
    assert model.attention_multiplier == (0.25 if heads else None)


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        (LLAMA31, {"output_bias": False}, "output_bias: true"),
        (QWEN3, {"feedforward_bias": True}, "llama would need qk_norm: false"),
        (GPT2, {"positions": "rope"}, "gpt2 would need positions: learned"),
        (GPT2, {"key_value_heads": 2}, "key_value_heads: 4"),
        (QWEN3, {"residual_multiplier": 0.2}, "qwen3 would need residual_multiplier: 1.0"),
        (LLAMA, {"embedding_norm": True}, "embedding_norm: false"),
        (
            EXPORTED["mixtral"],
            {"experts": MOE.model_copy(update={"score": "sigmoid"})},
            "mixtral would need experts.score: softmax",
        ),
        (EXPORTED["granite"], {"pattern": ("mamba2", "rwkv7")}, "pattern: of mamba2 and attention alone"),
        (EXPORTED["mamba2"], {"norm": "layernorm"}, "mamba2 would need norm: rmsnorm"),
        (
            EXPORTED["qwen3_moe"],
            {"experts": MOE.model_copy(update={"balance": "bias"})},
            "experts.balance",
        ),
    ],
)
def test_what_hugging_face_cannot_express_is_named(model, changes, named):
    with pytest.raises(InputError, match="Hugging Face has no such architecture") as caught:
        of_model(model.model_copy(update=changes))
    assert named in str(caught.value)
