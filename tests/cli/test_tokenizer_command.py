"""`cupola tokenizer` end to end, as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest

from cupola.cli import main
from cupola.corpus.tokenizer import Tokenizer
from cupola.data.store import StoreWriter


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pydoc_data.topics import topics

    from cupola.corpus.tokenizer_training import train

    folder = tmp_path_factory.mktemp("tokenizer")
    train(topics.values(), 500).tokenizer.save(folder)
    return folder


def called(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict:
    """The JSON that a command prints last."""
    assert main(["tokenizer", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The line of a command that is refused."""
    assert main(["tokenizer", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_train(capsys: pytest.CaptureFixture[str], tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    facts = called(capsys, "train", tiny_recipe, "--set", "tokenizer.vocabulary=400", "--out", out)
    assert facts["size"] == 400
    assert facts["special"]["<|im_end|>"] == 3
    assert facts["engine"] == "tiktoken"
    assert facts["bytes_per_token"] > 1
    assert Tokenizer.load(out).fingerprint == facts["fingerprint"]
    again = called(capsys, "train", tiny_recipe, "--set", "tokenizer.vocabulary=400")
    assert again["fingerprint"] == facts["fingerprint"]


def test_show(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    facts = called(capsys, "show", trained)
    assert (facts["size"], facts["delimiter"], facts["measured_on"]) == (500, 0, ["Python's manual"])
    (tmp_path / "a.txt").write_text("the the the")
    measured = called(capsys, "show", trained / "tokenizer.json", "--file", tmp_path / "a.txt")
    assert measured["bytes_per_token"] == pytest.approx(11 / 3, abs=1e-3)
    assert main(["tokenizer", "show", str(trained)]) == 0
    assert "special                <|endoftext|> 0, <|pad|> 1," in capsys.readouterr().out


def test_show_of_a_run(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPOLA_RUNS", str(tmp_path))
    Tokenizer.load(trained).save(tmp_path / "mine" / "tokenizer")
    (tmp_path / "mine" / "run.json").write_text("{}")
    assert called(capsys, "show", "mine")["size"] == 500
    assert called(capsys, "show", tmp_path / "mine")["size"] == 500


def test_encode_and_decode(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    result = called(capsys, "encode", trained, "--text", "the <|endoftext|> é\n")
    assert "".join(result["pieces"]).startswith("the <|endoftext|> ")
    assert result["bytes"] == len("the <|endoftext|> é\n".encode())
    assert 0 not in result["ids"]
    assert called(capsys, "decode", trained, *map(str, result["ids"])) == {"text": "the <|endoftext|> é\n"}
    (tmp_path / "a.txt").write_bytes("the <|endoftext|> é\n".encode())
    assert called(capsys, "encode", trained, "--file", tmp_path / "a.txt") == result
    assert main(["tokenizer", "encode", str(trained), "--text", "中"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(r"b'\xe4'")


def test_what_is_refused(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    assert "is no tokenizer.json" in refused(capsys, "show", tmp_path / "none")
    assert "--text or by --file" in refused(capsys, "encode", trained)
    assert "--text or by --file" in refused(capsys, "encode", trained, "--text", "a", "--file", "b")
    assert "b: cannot be read" in refused(capsys, "encode", trained, "--file", "b")
    (tmp_path / "bad").write_bytes(b"ab\xff")
    assert "bad: is not UTF-8 text (byte 2:" in refused(capsys, "encode", trained, "--file", tmp_path / "bad")
    assert "--text '\\udcff': is not UTF-8" in refused(capsys, "encode", trained, "--text", "\udcff")
    assert "--file -: is given twice" in refused(capsys, "show", trained, "--file", "-", "--file", "-")
    assert "is no token store (it has no" in refused(capsys, "store", tmp_path)
    assert "500 is no id of" in refused(capsys, "decode", trained, "1", "500")


def test_store(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(trained)
    with StoreWriter(tmp_path / "s", tokenizer) as writer:
        writer.append([tokenizer.encode("the end"), np.array([40])], 8)
    facts = called(capsys, "store", tmp_path / "s")
    assert (facts["documents"], facts["bytes"], facts["dtype"]) == (2, 8, "uint16")
    foreign = called(capsys, "store", tmp_path / "s" / "tokens", "--tokenizer", trained)
    assert {**foreign, "path": ""} == {**facts, "path": ""}
    assert "give it by --tokenizer" in refused(capsys, "store", tmp_path / "s" / "tokens")
    assert "neither a folder nor the prefix" in refused(capsys, "store", tmp_path / "t")
    raw = bytearray((tmp_path / "s" / "tokens.bin").read_bytes())
    raw[0] ^= 1
    (tmp_path / "s" / "tokens.bin").write_bytes(raw)
    assert main(["tokenizer", "store", str(tmp_path / "s")]) == 1
    assert "tokens.bin: is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "show", "encode", "decode", "store"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["tokenizer", name, "--help"]) == 0
    assert f"Examples:\n    cupola tokenizer {name} " in capsys.readouterr().out


def test_the_page_names_the_special_tokens_as_they_are() -> None:
    from cupola.corpus.tokenizer_training import NAMED, RESERVED

    page = (Path(__file__).parents[2] / "docs/tokenizer.md").read_text(encoding="utf-8").replace("\\|", "|")
    table = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    named = [token for line in table[:-1] for token in line.split("`")[1::2]]
    assert tuple(named) == NAMED
    assert table[-1].startswith(f"| {len(NAMED)} to {len(RESERVED) - 1} ")
    assert f"`{RESERVED[-1]}`" in table[-1]
