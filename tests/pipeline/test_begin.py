"""A run that begins with weights from elsewhere: what it takes from there, and that it is its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cupola.cli import main
from cupola.display import Display
from cupola.errors import InputError
from cupola.evaluate import bits_per_byte
from cupola.export.folder import read_folder, write_folder
from cupola.models.extending import extended
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.importing import import_model
from cupola.pipeline.opening import open_run
from cupola.pipeline.origin import read_origin
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.displays import Heard
from tests.export.oracles import EXPORTED, VOCABULARY, byte_tokenizer, exported, opened, randomised
from tests.models.small_models import GPT2, LLAMA
from tests.pipeline.test_dpo import DPO, pair
from tests.pipeline.test_resume import Crash, Saboteur, final_weights
from tests.pipeline.test_sft import SFT, conversation

CHATML = ["<|im_start|>", "<|im_end|>"]
STAGE = {
    "data": {"manual": 1},
    "tokens": 1024,
    "sequence_length": 32,
    "batch_tokens": 256,
    "learning_rate": 1e-4,
}
TEXT = "The other day they went there. Zwölf Boxkämpfer.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder, whose tokenizer has fewer tokens than the embedding has rows."""
    return exported(tmp_path / "llama", LLAMA, randomised("llama", LLAMA))


@pytest.fixture
def recipe(tiny_recipe: Path, tmp_path: Path, folder: Path) -> dict:
    """The tiny recipe without model and tokenizer, beginning with the folder's weights; one stage."""
    for name, records in (
        ("counting", [conversation(number) for number in range(40)]),
        ("pairs", [pair(number) for number in range(40)]),
    ):
        lines = "\n".join(json.dumps(record) for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "manual").mkdir()
    for number in range(30):
        (tmp_path / "manual" / f"{number}.txt").write_text(f"Of {number} {TEXT}" * 6, encoding="utf-8")
    values = yaml.safe_load(tiny_recipe.read_text())
    del values["model"], values["tokenizer"]
    corpora = {"manual": {"files": "manual/*.txt", "heldout": 0.1}}
    corpora["counting"] = {"files": "counting.jsonl", "format": "chat", "heldout": 0.1}
    corpora["pairs"] = {"files": "pairs.jsonl", "format": "preference", "heldout": 0.1}
    values |= {"corpora": corpora, "begin": str(folder), "stages": {"more": STAGE}, "health": "off"}
    return values


def loaded(recipe: dict, tmp_path: Path, *overrides: str):
    path = tmp_path / "begin.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return load(path, overrides, read_origin)


def trained(recipe: dict, tmp_path: Path, *overrides: str, name: str = "run") -> Path:
    report = run(loaded(recipe, tmp_path, *overrides), tmp_path / name, None, Display(), check_first=False)
    assert report.error is None
    return tmp_path / name


def test_model_and_tokenizer_are_the_weights_own(recipe, folder, tmp_path):
    found = loaded(recipe, tmp_path)
    assert found.model == read_folder(folder).model
    assert (found.model.vocabulary, found.model.max_positions) == (VOCABULARY, 64)
    assert found.tokenizer.path == str(folder / "tokenizer.json")
    assert found.begin.weights == str(folder)
    again = loaded({**recipe, "model": found.model.model_dump(mode="json")}, tmp_path)
    assert again == found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("begin")


@pytest.fixture
def done(recipe: dict, folder: Path, tmp_path: Path, kept: Path) -> Path:
    """The recipe trained, with its first block frozen; once for all tests, each of which has a copy."""
    recipe["stages"]["more"] = {**STAGE, "freeze": ["blocks.0.*"]}
    recipe["begin"] = str(kept / "llama")
    if not (kept / "run").exists():
        shutil.copytree(folder, kept / "llama")
        shutil.move(trained(recipe, tmp_path), kept / "run")
    recipe["begin"] = str(tmp_path / "origin")
    shutil.copytree(kept / "llama", tmp_path / "origin")
    path = shutil.copytree(kept / "run", tmp_path / "run", symlinks=True)
    text = (path / "recipe.yaml").read_text()
    (path / "recipe.yaml").write_text(text.replace(str(kept / "llama"), str(tmp_path / "origin")))
    return path


def test_it_begins_where_the_weights_are_and_goes_on_from_there(done):
    begun, after = open_run(done, Display(), "begin"), open_run(done, Display()).module.state_dict()
    for name, tensor in randomised("llama", LLAMA).state_dict().items():
        assert torch.equal(begun.module.state_dict()[name], tensor), name
        assert torch.equal(after[name], tensor) == name.startswith("blocks.0."), name
    expected = bits_per_byte(randomised("llama", LLAMA), byte_tokenizer(), [TEXT], 32)
    measured = bits_per_byte(begun.module, begun.tokenizer, [TEXT], begun.sequence_length)
    assert measured.bits == pytest.approx(expected.bits, rel=1e-6)


def test_where_the_weights_are_from_is_shown(done, kept, capsys):
    assert f"begin: the weights of {kept / 'llama'}" in (done / "report.html").read_text()
    assert main(["runs", "--in", str(done.parent)]) == 0
    line = capsys.readouterr().out
    assert ": begin done, more done  " in line
    assert f"(begins with {kept / 'llama'})" in line


def test_a_second_call_changes_nothing_and_a_crash_neither(recipe, done, tmp_path):
    report = run(loaded(recipe, tmp_path), done, None, Display())
    assert [stage.status for stage in report.stages] == ["unchanged"]
    with pytest.raises(Crash):
        run(loaded(recipe, tmp_path), tmp_path / "crashed", None, Saboteur([3], "crash"), check_first=False)
    run(loaded(recipe, tmp_path), tmp_path / "crashed", None, Display(), check_first=False)
    assert final_weights(tmp_path / "crashed") == final_weights(done)


def test_other_weights_train_the_stages_anew(recipe, done, tmp_path):
    before = final_weights(done)
    shutil.rmtree(tmp_path / "origin")
    state = {name: tensor * 1.01 for name, tensor in randomised("llama", LLAMA).state_dict().items()}
    write_folder(tmp_path / "origin", state, LLAMA, byte_tokenizer(), sequence_length=64)
    heard = Heard()
    report = run(loaded(recipe, tmp_path), done, None, heard, check_first=False)
    assert [stage.status for stage in report.stages] == ["done"]
    assert any("begin: the weights that the run begins with" in line for line in heard.warnings)
    assert any("more: its settings, data or parent changed" in line for line in heard.warnings)
    assert final_weights(done) != before
    del recipe["begin"]
    recipe |= {"model": loaded_model(done), "tokenizer": {"kind": "file", "path": "origin/tokenizer.json"}}
    run(loaded(recipe, tmp_path), done, "more", heard, check_first=False)
    assert "begin: the recipe has no such stage there" in heard.warnings[-1]


def loaded_model(path: Path) -> dict:
    return open_run(path, Display()).recipe.model.model_dump(mode="json")


def test_a_run_whose_origin_is_gone_is_whole(recipe, done, tmp_path, capsys):
    shutil.rmtree(tmp_path / "origin")
    open_run(done, Display())
    assert main(["run", str(done / "recipe.yaml"), "--out", str(done), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["stages"][0]["status"] == "unchanged"
    assert "goes on with its own copy" in captured.err
    (tmp_path / "begin.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(tmp_path / "begin.yaml"), "--out", str(tmp_path / "other")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "begin" in line
    assert f"{tmp_path / 'origin'}: there is no such folder" in line


def test_a_damaged_record_is_mended(recipe, done, tmp_path):
    (done / "stages/00-begin/stage.json").write_text("{}")
    report = run(loaded(recipe, tmp_path), done, None, Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged"]
    assert RunFolder(done).stage(0, "begin").facts()["origin"]["files"]


def test_readers_take_what_was_trained_before_what_it_began_with(done):
    facts = json.loads((done / "stages/01-more/stage.json").read_text())
    kept = {key: facts[key] for key in ("name", "key")} | {"status": "running"}
    (done / "stages/01-more/stage.json").write_text(json.dumps(kept))
    assert open_run(done, Display()).stage == "more"
    shutil.rmtree(done / "stages/01-more")
    assert open_run(done, Display()).stage == "begin"


def test_damaged_weights_are_read_again(recipe, done, tmp_path):
    file = done / "stages/00-begin/checkpoints/latest/weights.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    heard = Heard()
    report = run(loaded(recipe, tmp_path), done, None, heard, check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged"]
    assert "the weights are read again" in heard.warnings[0]
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["qwen3_moe", "mamba", "granite-moe"])
def test_every_kind_that_is_imported_can_begin(name, recipe, folder, tmp_path):
    shutil.rmtree(folder)
    exported(folder, EXPORTED[name], randomised(name, EXPORTED[name]))
    path = trained(recipe, tmp_path)
    weights = open_run(path, Display(), "begin").module.state_dict()
    for key, tensor in randomised(name, EXPORTED[name]).state_dict().items():
        assert torch.equal(weights[key], tensor), key


def test_a_run_and_a_stage_of_it_can_begin(recipe, done, tmp_path):
    """Imported, trained, and what a run itself began with."""
    import_model(tmp_path / "origin", tmp_path / "imported", Display())
    of_import = trained({**recipe, "begin": str(tmp_path / "imported")}, tmp_path, name="a")
    assert final_weights(of_import)["more"] == final_weights(done)["more"]
    for stage in (None, "more", "begin"):
        begin = {"weights": str(done), **({"stage": stage} if stage else {})}
        found = loaded({**recipe, "begin": begin}, tmp_path)
        assert found.begin.stage == (stage or "more")
        assert found.model.max_positions == 64
    path = trained({**recipe, "begin": str(done)}, tmp_path, name="c")
    assert final_weights(path)["begin"] == final_weights(done)["more"]
    [facts] = [event for event in RunFolder(path).ledger.events() if event["event"] == "stage_done"][:1]
    assert facts["origin"]["from"] == str(done)
    assert facts["origin"]["stage"] == "more"
    with pytest.raises(InputError, match=r"stage rl: .* has no such stage; it has begin, more"):
        loaded({**recipe, "begin": {"weights": str(done), "stage": "rl"}}, tmp_path)


def test_a_bare_name_is_that_of_a_run(recipe, folder, tmp_path):
    import_model(folder, tmp_path / "runs" / "mine", Display())
    assert loaded({**recipe, "begin": "mine"}, tmp_path).begin.weights == str(tmp_path / "runs" / "mine")


def test_the_context_that_the_weights_have_counts(recipe, tmp_path):
    rope = {"rope_type": "yarn", "factor": 4}
    stages = {"long": {**STAGE, "sequence_length": 128, "rope": rope}}
    found = loaded({**recipe, "stages": stages}, tmp_path)
    assert found.stages["long"].rope.original_max_position_embeddings == 64
    assert found.model_of("long").max_positions == 128
    assert loaded(recipe, tmp_path).model_of("more").max_positions == 64
    longer = {"more": {**STAGE, "sequence_length": 96}}
    assert loaded({**recipe, "stages": longer}, tmp_path).model_of("more").max_positions == 96


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.width=128"], "128 is not what the weights of {folder} have, 64; leave it out"),
        (["model.rope.rope_theta=5"], "state it in the first stage, or leave it out"),
        (["model.vocabulary=300"], "300 is less than the 320 rows of the weights"),
        (["tokenizer.vocabulary=512"], "trains one, and the weights of {folder} go with"),
        (["begin=nowhere"], "{here}/nowhere: there is no such folder"),
        (["begin.stage=sft"], "stage sft: {folder} is no run, so it has no stages; remove it"),
        (["stages.more.carry=[]"], "begin: no stage takes its weights"),
        (["stages.more.carry=[weights, optimizer]"], "there is no stage before this one; remove optimizer"),
        (["stages.begin={data: {manual: 1}, tokens: 1k, learning_rate: 1e-3}"], "call the stage otherwise"),
    ],
)
def test_what_does_not_agree_is_one_line(overrides, message, recipe, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        loaded(recipe, tmp_path, *overrides)
    assert message.format(folder=folder, here=tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_first_stage_may_compare_with_the_weights(recipe, tmp_path):
    """Answers for DPO's reference come from them, and two stages can begin with them beside each other."""
    stages = {
        "dpo": {**DPO, "tokens": "1 epoch", "sequence_length": 256, "batch_tokens": 1024},
        "sft": {**SFT, "tokens": "1 epoch", "parent": "begin"},
    }
    path = trained({**recipe, "stages": stages, "tokenizer": {"add": CHATML}}, tmp_path)
    rows = RunFolder(path).stage(1, "dpo").metrics.read_text().splitlines()
    assert json.loads(rows[0])["loss"] == pytest.approx(np.log(2), abs=1e-5)
    alone = trained(
        {**recipe, "stages": {"sft": stages["sft"]}, "tokenizer": {"add": CHATML}}, tmp_path, name="b"
    )
    assert final_weights(path)["sft"] == final_weights(alone)["sft"]


@pytest.mark.parametrize(("kind", "model"), [("llama", LLAMA), ("gpt2", GPT2)])
def test_new_tokens_leave_what_was_there_as_it_was(kind, model, recipe, folder, tmp_path):
    """One matrix (tied) or two; against transformers' reading of the folder that was given."""
    shutil.rmtree(folder)
    old = byte_tokenizer()
    exported(folder, model, randomised(kind, model))
    many = [*CHATML, *(f"<|tool_{number}|>" for number in range(70))]
    path = trained({**recipe, "tokenizer": {"add": many}}, tmp_path)
    begun = open_run(path, Display(), "begin")
    assert begun.tokenizer.special["<|im_start|>"] == old.size
    size, rows = begun.tokenizer.size, begun.module.head_weight.shape[0]
    assert (size, rows) == (old.size + 72, -(-size // 64) * 64)

    ids = torch.tensor(old.encode(TEXT).astype(np.int64))[None]
    assert np.array_equal(begun.tokenizer.encode(TEXT), old.encode(TEXT))
    theirs = opened(folder)(ids).logits[..., : old.size]
    ours = begun.module.logits(begun.module.hidden(ids))[..., : old.size]
    assert torch.allclose(ours, theirs, atol=1e-5)
    before = randomised(kind, model).state_dict()["embedding.weight"]
    after = begun.module.state_dict()["embedding.weight"]
    assert torch.equal(after[: old.size], before[: old.size])
    pieces = old.encode("<|im_end|>").tolist()
    assert torch.allclose(after[old.size + 1], torch.stack([before[p] for p in pieces]).mean(0), atol=1e-7)
    assert torch.allclose(after[-1], before[: old.size].mean(0), atol=1e-6)


def test_rows_that_no_token_had_are_used_first(recipe, tmp_path):
    begun = open_run(trained({**recipe, "tokenizer": {"add": CHATML}}, tmp_path), Display(), "begin")
    before, after = randomised("llama", LLAMA).state_dict(), begun.module.state_dict()
    size = byte_tokenizer().size
    for name in ("embedding.weight", "head.weight"):
        assert after[name].shape == before[name].shape
        changed = (after[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert changed == [size, size + 1]


def test_chatml_makes_a_base_model_one_that_answers(recipe, folder, tmp_path, capsys):
    stages = {"sft": {**SFT, "tokens": "1 epoch"}}
    (tmp_path / "begin.yaml").write_text(yaml.safe_dump({**recipe, "stages": stages}), encoding="utf-8")
    assert main(["run", str(tmp_path / "begin.yaml"), "--out", str(tmp_path / "run"), "--no-check"]) == 2
    assert 'tokenizer: {add: ["<|im_start|>", "<|im_end|>"]}' in capsys.readouterr().err.splitlines()[-1]
    path = trained({**recipe, "stages": stages, "tokenizer": {"add": CHATML}}, tmp_path)
    assert main(["chat", str(path), "--prompt", "Hello", "--max-tokens", "4", "--json"]) == 0
    out = tmp_path / "out"
    assert main(["export", str(path), "--out", str(out)]) == 0
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs.convert_tokens_to_ids("<|im_end|>") == byte_tokenizer().size + 1


def test_a_template_that_marks_no_answers_is_named(recipe, folder, tmp_path, capsys):
    stages = {"sft": {**SFT, "tokens": "1 epoch"}}
    corpora = {"counting": recipe["corpora"]["counting"]}
    recipe |= {"corpora": corpora, "stages": stages, "tokenizer": {"add": CHATML}}
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    heard = Heard()
    report = run(loaded(recipe, tmp_path), tmp_path / "run", None, heard, check_first=False)
    assert report.error is None
    assert [line for line in heard.said if f"{folder}: its chat template does not mark" in line]
    assert main(["eval", str(tmp_path / "run"), "--stage", "begin"]) == 2
    assert "has held no text out" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_theirs_is_refused(recipe, folder, tmp_path):
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "other.json").write_text(json.dumps(text))
    other = {"kind": "file", "path": "other.json"}
    with pytest.raises(InputError, match=r"'[ab]' is .*, and .* to the weights that the run begins with"):
        run(loaded({**recipe, "tokenizer": other}, tmp_path), tmp_path / "run", None, Display())


def test_extended_rows_by_a_plain_loop():
    table = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    found = extended({"embedding.weight": table, "other": table}, 8, 5, {5: [0, 2], 6: []})
    assert torch.equal(found["other"], table)
    result = found["embedding.weight"]
    assert torch.equal(result[:5], table[:5])
    for column in range(3):
        assert result[5, column] == pytest.approx((table[0, column] + table[2, column]).item() / 2, abs=1e-6)
        mean = sum(table[row, column].item() for row in range(5)) / 5
        assert result[6, column] == pytest.approx(mean, abs=1e-6)
        assert result[7, column] == pytest.approx(mean, abs=1e-6)


def test_added_tokens_follow_and_known_ones_stay():
    tokenizer = byte_tokenizer()
    more = tokenizer.with_special(["<|a|>", "<|endoftext|>", "<|a|>", "<|b|>"])
    assert more.special == {**tokenizer.special, "<|a|>": tokenizer.size, "<|b|>": tokenizer.size + 1}
    assert more.delimiter == tokenizer.delimiter
    assert np.array_equal(more.encode("then <|a|>"), tokenizer.encode("then <|a|>"))
    assert tokenizer.with_special(["<|endoftext|>"]) is tokenizer


def test_a_run_does_not_begin_with_itself(recipe: dict, tmp_path: Path) -> None:
    out = trained(recipe, tmp_path)
    with pytest.raises(InputError, match="is the folder of this very run"):
        run(loaded({**recipe, "begin": str(out)}, tmp_path), out, None, Display())
    assert [stage.name for stage in RunFolder(out).stages()] == ["begin", "more"]
