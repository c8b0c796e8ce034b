"""The command contract that scripts rely on: what `--json` prints, exit statuses, one line for an error."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cupola.cli import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text_folder, session_cache):
    """A finished run of the tiny recipe, made by the command itself in a process of its own."""
    import os

    import yaml

    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("commands")
    corpora = {name: {"files": str(text_folder / name), "heldout": 0.1} for name in ("manual", "reference")}
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, "corpora": corpora}, sort_keys=False))
    environment = {**os.environ, "CUPOLA_CACHE": str(session_cache)}
    command = [sys.executable, "-m", "cupola", "run", str(recipe), "--out", str(folder / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return recipe, folder / "run", json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture
def cache(session_cache, monkeypatch):
    monkeypatch.setenv("CUPOLA_CACHE", str(session_cache))


def last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_run_reports_every_stage(finished):
    _, folder, report, said = finished
    assert report["run"] == str(folder)
    assert [stage["name"] for stage in report["stages"]] == ["pretrain", "midtrain"]
    for stage in report["stages"]:
        assert set(stage) >= {
            "name",
            "status",
            "tokens",
            "steps",
            "seconds",
            "final_loss",
            "heldout_bits_per_byte",
        }
        assert stage["status"] == "done"
        assert 0 < stage["final_loss"] < math.log(512)
        assert 0 < stage["heldout_bits_per_byte"] < 8
    for words in ("check pretrain: first loss", "next:", "cupola generate"):
        assert words in said


def test_final_loss_is_the_mean_of_the_last_twentieth(finished):
    _, folder, report, _ = finished
    rows = [
        json.loads(line) for line in (folder / "stages/01-pretrain/metrics.jsonl").read_text().splitlines()
    ]
    end = rows[-1]["tokens"]
    last = [row for row in rows if row["tokens"] - row["batch_tokens"] >= 0.95 * end] or rows[-1:]
    expected = sum(row["loss"] * row["batch_tokens"] for row in last) / sum(
        row["batch_tokens"] for row in last
    )
    assert report["stages"][0]["final_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_second_run_is_unchanged(finished, cache, capsys):
    recipe, folder, report, _ = finished
    assert main(["run", str(recipe), "--out", str(folder), "--json"]) == 0
    out, said = capsys.readouterr()
    again = json.loads(out.splitlines()[-1])
    assert [stage["status"] for stage in again["stages"]] == ["unchanged", "unchanged"]
    assert [stage["final_loss"] for stage in again["stages"]] == [s["final_loss"] for s in report["stages"]]
    assert "nothing to do" in said


def test_checkpoints_are_listed_and_verified(finished, capsys):
    _, folder, _, _ = finished
    for verb in ("list", "verify"):
        assert main(["checkpoint", verb, str(folder), "--json"]) == 0
        rows = last_json(capsys)["checkpoints"]
        assert {row["stage"] for row in rows} == {"pretrain", "midtrain"}
        for row in rows:
            assert row["verified"] is (True if verb == "verify" else None)
            assert Path(row["path"]).is_dir()
            assert len(row["weights_sha256"]) == 64
        steps = [row["global_step"] for row in rows]
        assert len(set(steps)) == len(steps)
        assert steps == sorted(steps)


def test_eval_of_the_heldout_split_and_of_files(finished, cache, tmp_path, capsys):
    _, folder, report, _ = finished
    assert main(["eval", str(folder), "--json"]) == 0
    result = last_json(capsys)
    assert result["bits_per_byte"] == pytest.approx(report["stages"][1]["heldout_bits_per_byte"], rel=1e-4)
    assert result["bytes"] == sum(source["bytes"] for source in result["sources"].values())
    text = tmp_path / "mine.txt"
    text.write_text("A module opens with what it guarantees. Ünïcödé too.\n", encoding="utf-8")
    assert main(["eval", str(folder), "--stage", "pretrain", "--text", str(text), "--json"]) == 0
    row = last_json(capsys)["texts"][str(text)]
    assert row["bytes"] == len(text.read_bytes())
    assert 0 < row["bits_per_byte"] < 20


def test_generate_is_repeatable(finished, capsys):
    _, folder, _, _ = finished
    command = ["generate", str(folder), "--prompt", "The ", "--max-tokens", "12", "--seed", "5", "--json"]
    texts = []
    for _ in range(2):
        assert main([*command, "--temperature", "0.9"]) == 0
        texts.append(last_json(capsys))
    assert texts[0] == texts[1]


def test_check_without_data_expects_ln_v(finished, capsys):
    recipe, _, _, _ = finished
    assert main(["check", "--no-data", str(recipe), "--set", "model.vocabulary=32768", "--json"]) == 0
    result = last_json(capsys)
    assert result["order_fingerprint"] is None
    for stage in result["stages"]:
        assert stage["expected_loss"] == pytest.approx(math.log(32768))
        assert stage["first_loss"] == pytest.approx(math.log(32768), rel=0.03)
        assert stage["peak_bytes"] > 0
        assert stage["seconds"] > 0


def test_check_with_data_prints_the_order(finished, cache, capsys):
    recipe, _, _, _ = finished
    fingerprints = []
    for change in ([], ["--set", "stages.pretrain.batch_tokens=512"], ["--set", "seed=9"]):
        assert main(["check", str(recipe), *change, "--json"]) == 0
        fingerprints.append(last_json(capsys)["order_fingerprint"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_runs_lists_the_run(finished, capsys):
    _, folder, _, _ = finished
    assert main(["runs", "--in", str(folder.parent), "--json"]) == 0
    [row] = last_json(capsys)["runs"]
    assert [stage["status"] for stage in row["stages"]] == ["done", "done"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stages.pretrain.sequense_length=4", "sequence_length"),
        ("stages.pretrain.tokens=5 parsecs", "parsecs"),
        ("model.heads=5", "heads"),
        ("stages.pretrain.data={nothing: 1}", "nothing"),
        ("tokenizer.vocabulary=200000", "131072"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(finished, capsys, change, words):
    recipe, _, _, _ = finished
    assert main(["run", str(recipe), "--set", change]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("error:")
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "no/such/recipe.yaml"],
        ["eval", "no-such-run"],
        ["generate", "no-such-run", "--prompt", "x"],
        ["checkpoint", "list", "no-such-run"],
        ["run"],
        ["frobnicate"],
    ],
)
def test_bad_arguments_are_one_line_and_status_2(arguments, capsys):
    assert main(arguments) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("error:")
    assert said.count("\n") == 1


def test_more_tokens_than_the_corpus_holds_says_how_many_epochs(finished, cache, capsys, tmp_path):
    recipe, _, _, _ = finished
    tokens = "stages.pretrain.tokens=2000k"
    assert main(["check", str(recipe), "--set", tokens, "--json"]) == 0
    said = capsys.readouterr().err
    assert "epochs" in said


def test_an_empty_corpus_and_one_smaller_than_a_row_are_refused(finished, cache, capsys, tmp_path):
    recipe, _, _, _ = finished
    (tmp_path / "empty").mkdir()
    assert main(["check", str(recipe), "--set", f"corpora.manual.files={tmp_path / 'empty'}"]) == 2
    assert "manual" in capsys.readouterr().err
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.txt").write_text("A few words are not enough to train on. " * 6)
    (tmp_path / "small" / "b.txt").write_text("Neither are a few words more, whatever they say. " * 6)
    assert (
        main(
            [
                "check",
                str(recipe),
                "--set",
                f"corpora.reference.files={tmp_path / 'small'}",
                "--set",
                "stages.midtrain.sequence_length=1024",
                "--set",
                "stages.midtrain.batch_tokens=1024",
                "--set",
                "scale.microbatch_tokens=auto",
            ]
        )
        == 2
    )
    assert "reference" in capsys.readouterr().err


def test_a_checkpoint_whose_manifest_is_torn_is_listed_as_damaged(finished, tmp_path, capsys):
    _, folder, _, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(folder, copy, symlinks=True)
    manifest = next((copy / "stages" / "02-midtrain" / "checkpoints").glob("step-*/manifest.json"))
    manifest.write_text(manifest.read_text()[:40])
    assert main(["checkpoint", "list", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "DAMAGED" in shown
    assert "not read" in shown
    assert main(["checkpoint", "verify", str(copy)]) == 1
    shown, said = capsys.readouterr()
    assert "verified" in shown
    error = next(line for line in said.splitlines() if line.startswith("error:"))
    assert error.partition("; `mv ")[0].count(str(manifest.parent)) == 1


def test_listing_checkpoints_does_not_claim_to_verify(finished, capsys):
    _, folder, _, _ = finished
    for verb, claims in (("list", False), ("verify", True)):
        assert main(["checkpoint", verb, str(folder)]) == 0
        shown, said = capsys.readouterr()
        assert ("verif" in shown + said) is claims


def test_a_torn_run_is_shown_as_damaged_among_the_others(finished, tmp_path, capsys):
    _, folder, _, _ = finished
    for name in ("torn", "whole"):
        shutil.copytree(folder, tmp_path / name, symlinks=True)
    (tmp_path / "torn" / "run.json").write_text("{")
    assert main(["runs", "--in", str(tmp_path), "--json"]) == 0
    torn, whole = last_json(capsys)["runs"]
    assert str(tmp_path / "torn" / "run.json") in torn["error"]
    assert "error" not in whole
    assert main(["runs", "--in", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "is damaged" in shown
    assert f"{tmp_path / 'whole'}: pretrain done" in shown
