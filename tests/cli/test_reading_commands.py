"""`cupola eval` and `cupola generate` on an opened run: results, files, streaming, bad input."""

import io
import json
import lzma
import sys
from types import SimpleNamespace

import pytest
import tokenizers
import torch

import cupola.cli.generate
from cupola.characters import shown
from cupola.cli import main
from cupola.corpus.tokenizer import Tokenizer
from cupola.evaluate import bits_per_byte
from cupola.models import build
from cupola.recipe.model import Model


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the delimiter."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(made.to_str())


HELDOUT = {"speeches": ["Fellow citizens. " * 9, "Zwölf Boxkämpfer"], "manuals": ["ls -l\r\n"]}


@pytest.fixture
def opened(monkeypatch):
    """What `open_run` gives: a fresh tiny model of 257 tokens and two sources of held-out text."""
    model = Model(layers=2, width=32, heads=2)
    run = SimpleNamespace(
        folder="runs/tiny",
        stage="pretrain",
        checkpoint="runs/tiny/stages/01-pretrain/checkpoints/step-9",
        tokenizer=byte_tokenizer(),
        module=build(model, 320, seed=1, device=torch.device("cpu")).eval(),
        sequence_length=32,
        precision="fp32",
        device=torch.device("cpu"),
        heldout_texts=lambda display: {name: iter(texts) for name, texts in HELDOUT.items()},
    )
    asked = []

    def open_run(path, display, stage=None):
        asked.append((path, stage))
        return run

    monkeypatch.setattr("cupola.pipeline.opening.open_run", open_run)
    run.asked = asked
    return run


def last_object(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_eval_of_the_heldout_split(opened, capsys):
    assert main(["eval", "tiny", "--stage", "pretrain", "--json"]) == 0
    result = last_object(capsys.readouterr().out)
    assert opened.asked == [("tiny", "pretrain")]
    assert set(result["sources"]) == set(HELDOUT)
    for name, texts in HELDOUT.items():
        facts = result["sources"][name]
        expected = bits_per_byte(opened.module, opened.tokenizer, texts, 32)
        assert facts["bytes"] == sum(len(text.encode()) for text in texts)
        assert facts["tokens"] == facts["bytes"] + len(texts)
        assert facts["bits_per_byte"] == pytest.approx(expected.bits_per_byte)
        packed = lzma.compress("".join(texts).encode(), preset=9)
        assert facts["xz_bits_per_byte"] == pytest.approx(8 * len(packed) / facts["bytes"])
    assert result["bytes"] == sum(facts["bytes"] for facts in result["sources"].values())
    weighted = sum(facts["bits_per_byte"] * facts["bytes"] for facts in result["sources"].values())
    assert result["bits_per_byte"] == pytest.approx(weighted / result["bytes"])
    assert "texts" not in result


def test_eval_of_files_counts_each_byte_once(opened, capsys, tmp_path):
    contents = {"a.txt": "one\r\ntwo\n", "b.txt": "東京\n" * 40}
    paths = []
    for name, text in contents.items():
        (tmp_path / name).write_bytes(text.encode())
        paths.append(str(tmp_path / name))
    options = [option for path in paths for option in ("--text", path)]
    assert main(["eval", "tiny", *options, "--json"]) == 0
    result = last_object(capsys.readouterr().out)
    assert list(result["texts"]) == paths
    assert [facts["bytes"] for facts in result["texts"].values()] == [9, 280]
    assert result["bytes"] == 289


def test_eval_shows_a_table(opened, capsys):
    assert main(["eval", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "speeches" in out
    assert "together" in out
    assert "xz -9" in out


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.txt", None, "cannot be read (No such file or directory)"),
        ("latin.txt", "Größe".encode("latin-1"), "is not UTF-8 text (byte 2: "),
        ("empty.txt", b"", "empty.txt: holds no text"),
        ("binary", b"\x7fELF\x02\x80\x81", "is not UTF-8 text (byte 5: "),
    ],
)
def test_eval_refuses_what_is_not_text(opened, capsys, tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert main(["eval", "tiny", "--text", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --text ")
    assert message in err
    assert err.count("\n") == 1
    assert opened.asked == []


def test_eval_refuses_a_file_given_twice(opened, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    for first, second in (("-", "-"), ("a.txt", "a.txt"), ("a.txt", str(tmp_path / "a.txt"))):
        assert main(["eval", "tiny", "--text", first, "--text", second]) == 2
        assert capsys.readouterr().err == f"error: --text {second}: is given twice; give each file once\n"
    assert opened.asked == []


def test_generate_refuses_what_is_not_text_and_standard_input_twice(opened, capsys):
    assert main(["generate", "tiny", "--prompt", "a", "--prompt", "\udcff", "--json"]) == 2
    assert capsys.readouterr().err == "error: --prompt '\\udcff': is not UTF-8 text\n"
    assert main(["generate", "tiny", "--prompt", "-", "--prompt", "-"]) == 2
    assert "--prompt -: is given twice" in capsys.readouterr().err
    assert opened.asked == []


def test_eval_reads_standard_input(opened, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe\n")))
    assert main(["eval", "tiny", "--text", "-", "--json"]) == 0
    assert last_object(capsys.readouterr().out)["texts"]["-"]["bytes"] == 12


def test_generate_streams_what_json_gives(opened, capsys):
    options = ["generate", "tiny", "--prompt", "We must ", "--max-tokens", "40", "--seed", "5"]
    assert main([*options, "--json"]) == 0
    result = last_object(capsys.readouterr().out)
    assert (result["prompt"], result["seed"], result["temperature"]) == ("We must ", 5, 0.8)
    assert result["completions"][0]["text"] == result["text"]
    assert 1 <= len(result["completions"][0]["tokens"]) <= 40
    assert main(options) == 0
    # A terminal is told nothing by what a model writes; JSON has it as it is.
    assert capsys.readouterr().out == "We must " + shown(result["text"]) + "\n"
    assert main([*options[:-1], "6", "--json"]) == 0
    assert last_object(capsys.readouterr().out)["text"] != result["text"]


def test_generate_warns_beyond_the_rows_of_training(opened, capsys):
    options = ["generate", "tiny", "--prompt", "abc", "--json", "--max-tokens"]
    assert main([*options, "28"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*options, "29"]) == 0
    assert "up to 33 tokens are asked for" in capsys.readouterr().err


def test_generate_several_prompts_each_as_alone(opened, capsys):
    prompts = ["--prompt", "The ", "--prompt", "In order to "]
    options = ["--max-tokens", "12", "--temperature", "0", "--json"]
    assert main(["generate", "tiny", *prompts, *options]) == 0
    together = last_object(capsys.readouterr().out)["completions"]
    assert [done["prompt"] for done in together] == ["The ", "In order to "]
    for place, done in enumerate(together):
        assert main(["generate", "tiny", *prompts[2 * place : 2 * place + 2], *options]) == 0
        assert last_object(capsys.readouterr().out)["completions"][0]["tokens"] == done["tokens"]


def test_generate_reads_a_prompt_from_standard_input(opened, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("Grüße\n".encode())))
    assert main(["generate", "tiny", "--prompt", "-", "--max-tokens", "3", "--json"]) == 0
    assert last_object(capsys.readouterr().out)["prompt"] == "Grüße"


def test_generate_begins_a_document_and_ends_at_its_delimiter(opened, capsys, monkeypatch):
    seen = {}
    delimiter = opened.tokenizer.delimiter

    def generate(module, prompts, max_tokens, stop, on_token, **sampling):
        seen.update(prompts=prompts, stop=stop)
        tokens = [*opened.tokenizer.encode("é!").tolist(), delimiter]
        for token in tokens:
            if on_token:
                on_token(0, token)
        return [SimpleNamespace(tokens=tokens, finish_reason="stop") for _ in prompts]

    monkeypatch.setattr("cupola.generate.continuing.generate", generate)
    assert main(["generate", "tiny", "--prompt", "a"]) == 0
    assert capsys.readouterr().out == "aé!\n"
    assert seen["prompts"] == [[delimiter, *opened.tokenizer.encode("a").tolist()]]
    assert seen["stop"] == {delimiter}
    assert main(["generate", "tiny", "--prompt", "a", "--json"]) == 0
    done = last_object(capsys.readouterr().out)["completions"][0]
    assert (done["text"], done["tokens"][-1], done["finish_reason"]) == ("é!", delimiter, "stop")


def test_stream_holds_back_the_bytes_of_an_unfinished_character(capsys):
    tokenizer = byte_tokenizer()
    stream = cupola.cli.generate.Stream(tokenizer)
    shown = []
    for token in tokenizer.encode("a🙂b").tolist():
        stream(0, token)
        shown.append(capsys.readouterr().out)
    assert shown == ["a", "", "", "", "🙂", "b"]
    stream(0, tokenizer.encode("🙂").tolist()[0])
    assert capsys.readouterr().out == ""
    assert stream.rest() == "\ufffd"
    stream(0, tokenizer.size + 3)
    assert capsys.readouterr().out == "\ufffd"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing option '--prompt'"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature"),
        (["--prompt", "a", "--top-p", "0"], "--top-p"),
        (["--prompt", "a", "--max-tokens", "0"], "--max-tokens"),
    ],
)
def test_generate_refuses_impossible_settings(opened, capsys, options, message):
    assert main(["generate", "tiny", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
