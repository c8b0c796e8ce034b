"""`cupola corpus`: what each command prints, and how bad input ends."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cupola.cli import command_line, main

RECIPE = {
    "name": "small",
    "model": {"layers": 1, "width": 8, "heads": 1},
    "stages": {
        "pretrain": {
            "data": "mine",
            "tokens": 1000,
            "sequence_length": 8,
            "batch_tokens": 8,
            "learning_rate": 0.01,
        }
    },
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of two sources over files made here."""
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "cache"))
    for source, number in (("mine", 20), ("yours", 4)):
        (tmp_path / source).mkdir()
        for document in range(number):
            words = f"This is sentence {document} of {source}, and it is repeated. " * 5
            (tmp_path / source / f"{document}.txt").write_text(words)
    corpora = {name: {"files": str(tmp_path / name), "heldout": 0.2} for name in ("mine", "yours")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "corpora": corpora}))
    return path


def run_json(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(command_line, ["corpus", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_gather_tells_of_every_source(recipe: Path) -> None:
    sources = run_json("gather", str(recipe))["sources"]
    assert [(row["name"], sum(row["documents"].values())) for row in sources] == [("mine", 20), ("yours", 4)]
    assert all(Path(row["path"]).is_dir() and row["taken"]["fallback"] is False for row in sources)
    assert [row["name"] for row in run_json("gather", str(recipe), "--source", "yours")["sources"]] == [
        "yours"
    ]


def test_gather_prints_a_table(recipe: Path) -> None:
    result = CliRunner().invoke(command_line, ["corpus", "gather", str(recipe)])
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["source", "documents", "held", "out", "text", "taken", "from"]
    assert [row.split()[0] for row in rows] == ["mine", "yours"]


def test_overrides_are_heard(recipe: Path) -> None:
    row = run_json("gather", str(recipe), "--source", "mine", "--set", "corpora.mine.max_bytes=300")[
        "sources"
    ][0]
    assert row["cut_at_max_bytes"] is True
    assert sum(row["documents"].values()) < 20


def test_show_prints_documents_of_a_split(recipe: Path) -> None:
    shown = run_json("show", str(recipe), "--source", "mine", "--number", "5", "--characters", "30")
    assert len({item["id"] for item in shown["documents"]}) == 5
    assert all(len(item["text"]) == 30 for item in shown["documents"])
    held = run_json("show", shown["path"], "--heldout", "--number", "99")["documents"]
    train = run_json("show", shown["path"], "--number", "99")["documents"]
    assert len(held) + len(train) == 20
    assert not {item["id"] for item in held} & {item["id"] for item in train}
    result = CliRunner().invoke(command_line, ["corpus", "show", shown["path"], "--number", "1"])
    assert result.stdout.startswith("--- mine/")
    assert "This is sentence" in result.stdout


def test_list_and_verify(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json("list") == {"folders": []}
    assert main(["corpus", "list"]) == 0
    assert "no text yet" in capsys.readouterr().out
    path = Path(run_json("gather", str(recipe), "--source", "mine")["sources"][0]["path"])
    folder = run_json("verify")["folders"][0]
    assert (folder["path"], folder["kind"], folder["error"]) == (str(path), "text", None)
    data = bytearray((path / "train.parquet").read_bytes())
    data[100] ^= 1
    (path / "train.parquet").write_bytes(data)
    assert run_json("list")["folders"][0]["error"] is None  # names and sizes are those written
    capsys.readouterr()
    assert main(["corpus", "verify"]) == 1
    output = capsys.readouterr()
    assert "DAMAGED" in output.out
    assert output.err.startswith("error:")
    assert "train.parquet: is damaged" in output.err


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_a_torn_manifest_is_one_damaged_row_among_the_others(
    recipe: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, whole = (Path(row["path"]) for row in run_json("gather", str(recipe))["sources"])
    manifest = torn / "manifest.json"
    manifest.write_text(manifest.read_text()[:40])
    capsys.readouterr()
    assert main(["corpus", verb, "--json"]) == (1 if verb == "verify" else 0)
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["folders"]}
    assert str(manifest) in rows[str(torn)]["error"]
    assert (rows[str(torn)]["name"], rows[str(torn)]["documents"]) == (torn.name, None)
    assert rows[str(whole)]["error"] is None
    assert sum(rows[str(whole)]["documents"].values()) == 4
    main(["corpus", verb])
    assert f"DAMAGED         -  {torn.name}  {torn}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["gather", "{recipe}", "--source", "mien"], "there is no source 'mien'; the recipe has mine, yours"),
        (["show", "{recipe}"], "has several sources, name one of mine, yours"),
        (["gather", "{recipe}", "--set", "corpora.mine.files=nowhere/*.txt"], "corpora.mine: cannot be had"),
    ],
)
def test_bad_input_is_one_line(
    recipe: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["corpus", *(item.format(recipe=recipe) for item in arguments)]) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error:")]
    assert len(errors) == 1
    assert line in errors[0]
