"""`cupola export` and `cupola import`: weights out and in again, and what every command makes of them."""

import json
import shutil

import pytest
import torch

from cupola.cli import main
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import InputError
from cupola.evaluate import bits_per_byte
from cupola.generate import continue_texts
from cupola.models import build
from cupola.pipeline.importing import import_model
from cupola.pipeline.opening import open_run
from cupola.recipe.loading import load
from tests.export.oracles import (
    EXPORTED,
    VOCABULARY,
    byte_tokenizer,
    change_config,
    exported,
    opened,
    randomised,
)
from tests.models.small_models import GPT2, LLAMA

TEXT = "The other day they went there. Zwölf Boxkämpfer.\n" * 5


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder."""
    return exported(tmp_path / "llama", LLAMA, randomised("llama", LLAMA))


@pytest.fixture
def run(folder, tmp_path):
    """The run that was made of it."""
    import_model(folder, tmp_path / "runs" / "mine", Display())
    return tmp_path / "runs" / "mine"


def last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_an_imported_run_is_read_by_every_command(folder, tmp_path, capsys):
    out = tmp_path / "runs" / "mine"
    assert main(["import", str(folder), "--out", str(out), "--json"]) == 0
    report = last_json(capsys)
    assert (report["run"], report["kind"], report["vocabulary"]) == (str(out), "llama", VOCABULARY)
    module = randomised("llama", LLAMA)
    assert report["parameters"] == sum(p.numel() for p in module.parameters())

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert main(["eval", str(out), "--text", str(tmp_path / "text.txt"), "--json"]) == 0
    expected = bits_per_byte(module, byte_tokenizer(), [TEXT], report["sequence_length"])
    assert last_json(capsys)["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)

    assert main(["generate", str(out), "--prompt", "The", "--max-tokens", "5", "--json"]) == 0
    assert last_json(capsys)["stage"] == "imported"
    assert main(["runs", "--in", str(out.parent), "--json"]) == 0
    [row] = last_json(capsys)["runs"]
    assert (row["name"], row["stages"][0]["name"], row["stages"][0]["status"]) == ("mine", "imported", "done")
    for verb in ("list", "verify"):
        assert main(["checkpoint", verb, str(out), "--json"]) == 0
        [row] = last_json(capsys)["checkpoints"]
        assert row["verified"] is (True if verb == "verify" else None)
        assert "error" not in row
        assert row["path"] == report["checkpoint"]
    assert main(["eval", str(out)]) == 2
    assert "was imported and has held nothing out; give --text FILE" in capsys.readouterr().err


def test_out_and_in_again_gives_the_same_weights_and_tokenizer(run, tmp_path, capsys):
    again = tmp_path / "again"
    assert main(["export", str(run), "--out", str(again), "--json"]) == 0
    report = last_json(capsys)
    assert (report["kind"], report["stage"], report["dtype"]) == ("llama", "imported", "fp32")
    import_model(again, tmp_path / "runs" / "second", Display())
    first, second = (open_run(path, Display()) for path in (run, tmp_path / "runs" / "second"))
    assert first.facts["weights_sha256"] == second.facts["weights_sha256"]
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint == byte_tokenizer().fingerprint
    assert first.recipe.model == second.recipe.model
    for name, tensor in randomised("llama", LLAMA).state_dict().items():
        assert torch.equal(second.module.state_dict()[name], tensor)


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "mamba", "mamba2", "granite-moe"])
def test_every_kind_of_file_comes_out_as_it_went_in(name, tmp_path):
    folder = exported(tmp_path / "in", EXPORTED[name], randomised(name, EXPORTED[name]))
    import_model(folder, tmp_path / "run", Display())
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert main(["generate", str(tmp_path / "run"), "--prompt", "The", "--max-tokens", "3"]) == 0
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "out" / file).read_bytes() == (folder / file).read_bytes()


def test_a_moved_run_and_a_single_checkpoint_are_exported(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    latest = moved / "stages" / "01-imported" / "checkpoints" / "latest"
    assert main(["export", str(latest), "--out", str(tmp_path / "out"), "--dtype", "bf16"]) == 0
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["dtype"] == "bfloat16"


def test_its_recipe_is_a_base_for_training_the_same_shape(run, tmp_path, text_folder):
    path = tmp_path / "more.yaml"
    stage = "{data: {manual: 1}, tokens: 4k, sequence_length: 32, batch_tokens: 256, learning_rate: 1e-3}"
    path.write_text(
        f"base: {run / 'recipe.yaml'}\nname: more\ncorpora: {{manual: {{files: {text_folder / 'manual'}}}}}\n"
        f"stages: {{pretrain: {stage}}}\n"
    )
    recipe = load(path)
    assert recipe.model == open_run(run, Display()).recipe.model
    assert recipe.tokenizer.path == str(run / "tokenizer" / "tokenizer.json")


def test_existing_folders_are_never_touched(folder, run, tmp_path, capsys):
    before = sorted(path.name for path in run.iterdir())
    assert main(["import", str(folder), "--out", str(run)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(folder)]) == 2
    assert "exists" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def test_nor_are_those_that_appear_while_it_works(folder, run, tmp_path, monkeypatch, capsys):
    """By a promise that was once only kept at the start."""
    target = tmp_path / "theirs"

    save = Tokenizer.save

    def save_and_be_overtaken(tokenizer, aside):
        save(tokenizer, aside)
        target.mkdir()
        (target / "precious").write_text("mine")

    monkeypatch.setattr(Tokenizer, "save", save_and_be_overtaken)
    for command in (["export", str(run)], ["import", str(folder)]):
        assert main([*command, "--out", str(target)]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{target}: somebody else made it meanwhile, so it was left as it is" in error
        assert [path.name for path in target.iterdir()] == ["precious"]
        shutil.rmtree(target)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failed_import_leaves_nothing(folder, tmp_path):
    change_config(folder, hidden_size=80)
    with pytest.raises(InputError):
        import_model(folder, tmp_path / "runs" / "mine", Display())
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_the_name_is_that_of_the_folder_made_to_fit(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CUPOLA_RUNS", str(tmp_path / "runs"))
    odd = tmp_path / "my model (2)"
    shutil.move(folder, odd)
    report = import_model(odd, None, Display())
    assert report.run == str(tmp_path / "runs" / "mymodel2")
    assert open_run("mymodel2", Display()).recipe.name == "mymodel2"
    with pytest.raises(InputError, match="--name"):
        import_model(odd, tmp_path / "x", Display(), name="no good")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (
            lambda folder: ((folder / "tokenizer.json").unlink(), (folder / "tokenizer.model").touch()),
            "it has tokenizer.model",
        ),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors"),
    ],
)
def test_what_is_missing_is_said(folder, tmp_path, spoil, words):
    spoil(folder)
    with pytest.raises(InputError, match=words):
        import_model(folder, tmp_path / "run", Display())
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_its_own_and_one_too_large(folder, tmp_path):
    other = tmp_path / "tokenizer.json"
    shutil.move(folder / "tokenizer.json", other)
    import_model(folder, tmp_path / "run", Display(), tokenizer=other)
    assert open_run(tmp_path / "run", Display()).tokenizer.fingerprint == byte_tokenizer().fingerprint
    small = exported(tmp_path / "small", LLAMA, build(LLAMA, 200, 0))
    with pytest.raises(InputError, match="has 259 ids, the model's embedding only 200 rows"):
        import_model(small, tmp_path / "second", Display())


def test_rows_of_evaluation(tmp_path):
    folder = exported(tmp_path / "gpt2", GPT2, randomised("gpt2", GPT2))
    assert import_model(folder, tmp_path / "a", Display()).sequence_length == 64
    assert import_model(folder, tmp_path / "b", Display(), sequence_length=16).sequence_length == 16
    assert open_run(tmp_path / "b", Display()).sequence_length == 16
    with pytest.raises(InputError, match="the model has 64 learned positions"):
        import_model(folder, tmp_path / "c", Display(), sequence_length=65)


@pytest.mark.oracle
def test_a_trained_run_speaks_the_same_elsewhere_and_back(tiny_recipe, tmp_path, capsys):
    from transformers import AutoTokenizer

    assert main(["run", str(tiny_recipe), "--out", str(tmp_path / "run"), "--no-check", "--json"]) == 0
    stage = ["--stage", "pretrain"]
    assert main(["export", str(tmp_path / "run"), *stage, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert last_json(capsys)["kind"] == "llama"
    run = open_run(tmp_path / "run", Display(), "pretrain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    ids = run.tokenizer.encode(TEXT).tolist()
    assert tokenizer(TEXT)["input_ids"] == ids
    assert tokenizer.decode(ids) == TEXT
    tokens = torch.tensor([ids])[:, :40]
    theirs = opened(tmp_path / "out")(tokens).logits
    ours = run.module.logits(run.module.hidden(tokens))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    [continued] = continue_texts(run.module, run.tokenizer, ["The other"], 8, temperature=0.0)
    prompt = tokenizer(tokenizer.eos_token + "The other", return_tensors="pt")
    generated = opened(tmp_path / "out").generate(**prompt, do_sample=False, max_new_tokens=8)[0]
    assert generated[prompt["input_ids"].shape[1] :].tolist() == continued.tokens

    import_model(tmp_path / "out", tmp_path / "back", Display())
    back = open_run(tmp_path / "back", Display())
    assert back.sequence_length == run.sequence_length
    assert back.facts["weights_sha256"] == run.facts["weights_sha256"]
    assert back.tokenizer.fingerprint == run.tokenizer.fingerprint


@pytest.mark.parametrize("record", ["whole", "torn", "gone"])
def test_no_recipe_is_run_in_an_imported_model(run, tiny_recipe, capsys, record):
    if record == "gone":
        (run / "run.json").unlink()
    elif record == "torn":
        (run / "run.json").write_text("{")
    before = sorted(path for path in run.rglob("*") if path.name != ".lock")
    assert main(["run", str(tiny_recipe), "--out", str(run), "--set", "name=mine"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{run}: holds an imported model" in error
    assert "--out" in error
    assert sorted(path for path in run.rglob("*") if path.name != ".lock") == before


def test_damage_in_an_imported_model_is_not_promised_to_be_trained_again(run, capsys):
    [path] = run.glob("stages/*/checkpoints/step-*/weights.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for command in (["checkpoint", "verify", str(run)], ["generate", str(run), "--prompt", "a"]):
        assert main(command) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert str(path) in error
        assert "importing the model again" in error
        assert "cupola run" not in error
