"""RWKV-7's `.pth`: the `rwkv` package computes the same from ours; other versions are refused by name."""

import os

import pytest
import torch

from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.export import rwkv7
from cupola.export.pairs import our_shapes
from cupola.models import build
from cupola.pipeline.exporting import export_run
from cupola.pipeline.importing import import_model
from cupola.recipe.model import RWKV7, Model
from tests.export.oracles import VOCABULARY, byte_tokenizer, randomise, some_tokens
from tests.models.small_models import LLAMA

RANKS = RWKV7(head_width=16, decay_rank=6, rate_rank=5, value_rank=4, gate_rank=7)
MODEL = Model(family="rwkv7", layers=3, width=64, rwkv7=RANKS, vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def module():
    return randomise(build(MODEL, VOCABULARY, 0))


@pytest.fixture
def file(module, tmp_path):
    rwkv7.write_folder(tmp_path / "goose", dict(module.state_dict()), MODEL, byte_tokenizer())
    return tmp_path / "goose" / rwkv7.FILE


def change(file, spoil):
    tensors = torch.load(file)
    spoil(tensors)
    torch.save(tensors, file)


@pytest.mark.oracle
def test_the_runtime_computes_the_same(module, file, monkeypatch):
    for name, value in {"RWKV_V7_ON": "1", "RWKV_CUDA_ON": "0", "RWKV_JIT_ON": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    from rwkv.model import RWKV

    tokens = some_tokens(1, 37)
    with torch.no_grad():
        ours = module.logits(module.hidden(tokens))[0]
    runtime = RWKV(model=str(file).removesuffix(".pth"), strategy="cpu fp32")
    theirs, _ = runtime.forward(tokens[0].tolist(), None, full_output=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    state = None
    for token in tokens[0].tolist():
        one, state = runtime.forward([token], state)
    torch.testing.assert_close(ours[-1], one, rtol=1e-4, atol=1e-4)


def test_there_and_back_is_the_identity(module, file):
    found = rwkv7.read_file(file)
    assert found.model == MODEL.model_copy(update={"feedforward": MODEL.sizes().feedforward})
    state = module.state_dict()
    assert found.weights.keys() == state.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in state.items())
    assert found.notes == []


def test_a_tied_head_is_written_as_a_head(tmp_path):
    model = MODEL.model_copy(update={"tied": True})
    module = randomise(build(model, VOCABULARY, 0))
    rwkv7.write_folder(tmp_path / "goose", dict(module.state_dict()), model, byte_tokenizer())
    found = rwkv7.read_file(tmp_path / "goose" / rwkv7.FILE)
    assert torch.equal(found.weights["head.weight"], module.embedding.weight)
    untied = build(found.model, VOCABULARY, 0)
    untied.load_state_dict(found.weights)
    tokens = some_tokens(1, 9)
    assert torch.equal(untied.logits(untied.hidden(tokens)), module.logits(module.hidden(tokens)))


def test_names_and_shapes_are_the_published_ones(file):
    tensors = torch.load(file)
    expected = {
        "emb.weight": (VOCABULARY, 64),
        "blocks.0.ln0.bias": (64,),
        "blocks.1.att.x_r": (1, 1, 64),
        "blocks.1.att.w1": (64, 6),
        "blocks.1.att.w2": (6, 64),
        "blocks.1.att.v0": (1, 1, 64),
        "blocks.2.att.g2": (7, 64),
        "blocks.2.att.r_k": (4, 16),
        "blocks.0.att.k_k": (1, 1, 64),
        "blocks.0.att.ln_x.weight": (64,),
        "blocks.0.ffn.x_k": (1, 1, 64),
        "blocks.0.ffn.key.weight": (256, 64),
        "ln_out.weight": (64,),
        "head.weight": (VOCABULARY, 64),
    }
    for name, shape in expected.items():
        assert tuple(tensors[name].shape) == shape
    assert "blocks.0.att.v0" not in tensors
    assert len(tensors) == len(our_shapes(MODEL, VOCABULARY))


def test_the_value_residual_of_the_first_layer_is_dropped_and_said(file):
    change(file, lambda t: t.update({f"blocks.0.att.v{n}": torch.zeros(1) for n in range(3)}))
    assert "blocks.0.att.v0, blocks.0.att.v1, blocks.0.att.v2 dropped" in rwkv7.read_file(file).notes[0]


def test_bf16_files_are_read(module, tmp_path):
    rwkv7.write_folder(tmp_path / "out", dict(module.state_dict()), MODEL, byte_tokenizer(), dtype="bf16")
    found = rwkv7.read_file(tmp_path / "out" / rwkv7.FILE)
    for name, tensor in module.state_dict().items():
        assert torch.equal(found.weights[name], tensor.bfloat16().float())


OTHERS = {
    "RWKV-4": ["att.time_decay", "att.time_first", "att.time_mix_k", "att.key.weight"],
    "RWKV-5": ["att.time_decay", "att.time_faaaa", "att.time_mix_k", "att.ln_x.weight"],
    "RWKV-6": ["att.time_decay", "att.time_faaaa", "att.time_maa_x", "att.ln_x.weight"],
}


@pytest.mark.parametrize("version", OTHERS)
def test_another_version_is_refused_by_its_name(version, tmp_path):
    tensors = {f"blocks.0.{name}": torch.zeros(4) for name in OTHERS[version]}
    torch.save({"emb.weight": torch.zeros(8, 4), **tensors}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"holds {version}, not RWKV-7 .it has blocks.0.att"):
        rwkv7.read_file(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.pop("blocks.1.att.k_a"), "1 tensor is missing: blocks.1.att.k_a; nothing was loaded"),
        (lambda t: t.pop("blocks.0.att.r_k"), "blocks.0.att.r_k"),
        (lambda t: t.pop("blocks.0.att.w1"), "blocks.0.att.w1"),
        (lambda t: t.update({"blocks.0.att.r_k": torch.ones(64, 1)}), "rwkv7.head_width: 1: input should be"),
        (lambda t: t.update({"emb.weight": torch.ones(1, 64)}), "model.vocabulary: 1: input should be"),
        (lambda t: t.update({"blocks.4000.x": torch.ones(2)}), "of block 4000 and none of block 3; nothing"),
        (
            lambda t: t.update({f"blocks.{'9' * 5000}.x": torch.ones(2)}),
            "1 tensor is not expected: blocks.99",
        ),
        (lambda t: t.update(strange=torch.ones(2)), "1 tensor is not expected: strange"),
        (lambda t: t.update({"ln_out.bias": torch.ones(9)}), "ln_out.bias is 9, not 64"),
        (
            lambda t: t.update({"emb.weight": t["emb.weight"].to_sparse()}),
            "emb.weight is not stored number by number",
        ),
        (lambda t: t["blocks.1.att.x_r"][0, 0, :2].fill_(torch.nan), "blocks.1.att.x_r has 2 of 64 elements"),
        (lambda t: t.update({"blocks.0.ffn.s_emb.weight": torch.ones(9)}), "RWKV-7a (DeepEmbed)"),
        (lambda t: (t.clear(), t.update(x=torch.ones(1))), "holds no RWKV-7"),
    ],
)
def test_what_does_not_belong_is_named(file, spoil, words):
    change(file, spoil)
    with pytest.raises(InputError) as caught:
        rwkv7.read_file(file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class FullDisk:
    """A tokenizer that leaves no room for the weights."""

    def save(self, folder):
        (folder / rwkv7.FILE).symlink_to("/dev/full")


def test_a_full_disk_is_said_of_the_file_that_was_asked_for(module, tmp_path):
    with pytest.raises(CupolaError) as caught:
        rwkv7.write_folder(tmp_path / "goose", dict(module.state_dict()), MODEL, FullDisk())
    expected = f"{tmp_path / 'goose' / rwkv7.FILE}: cannot be written (No space left on device)"
    assert str(caught.value) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MODEL.model_copy(update={"norm_epsilon": 1e-6}), "norm_epsilon: 1e-05"),
        (MODEL.model_copy(update={"embedding_norm": False}), "embedding_norm: true"),
        (MODEL.model_copy(update={"rwkv7": RWKV7(head_width=16, gate_rank=1)}), "ranks above 1"),
        (LLAMA, "family: rwkv7"),
    ],
)
def test_what_the_runtime_does_not_compute_is_named(model, words):
    assert any(words in objection for objection in rwkv7.objections(model))


def test_a_run_in_and_out(file, tmp_path):
    run = tmp_path / "runs" / "goose"
    assert import_model(file, run, Display()).kind == "rwkv7"
    report = export_run(run, tmp_path / "again", Display())
    assert report.kind == "rwkv7"
    before, after = torch.load(file), torch.load(tmp_path / "again" / rwkv7.FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    import_model(tmp_path / "again", tmp_path / "runs" / "second", Display())
    with pytest.raises(InputError, match="Hugging Face has no RWKV-7; take --format rwkv"):
        export_run(run, tmp_path / "hf", Display(), kind="huggingface")
    (file.parent / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json beside its weights .*World"):
        import_model(file, tmp_path / "runs" / "third", Display())
