# ruff: noqa: E501 (tables read best with one case to a line)
"""`cupola eval` with --probe, --by-position and --tasks: figures, tables, pictures, bad input."""

from types import SimpleNamespace

import pytest
import tokenizers
import torch

from cupola.chat.template import load_template
from cupola.cli import main
from cupola.corpus.tokenizer import Tokenizer
from cupola.evaluate import loss_by_position, probe
from cupola.evaluate.tasks import Question
from cupola.models import build
from cupola.recipe.model import Model
from cupola.recipe.schema import Recipe
from tests.cli.test_reading_commands import last_object

HELDOUT = {"speeches": ["Fellow citizens. " * 9, "We the people. " * 8], "manuals": ["ls -l\r\n"]}


def tokenizer() -> Tokenizer:
    """One token a byte, the delimiter, and what the default chat template writes."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(made.to_str())


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """What `open_run` gives: a fresh tiny model with learned positions, and two sources of held-out text."""
    model = Model(layers=1, width=32, heads=2, positions="learned", max_positions=700)
    recipe = {"name": "tiny", "model": {"layers": 1, "width": 32, "heads": 2}, "stages": {}}
    run = SimpleNamespace(
        folder=tmp_path / "tiny",
        stage="pretrain",
        checkpoint="runs/tiny/stages/01-pretrain/checkpoints/step-9",
        recipe=Recipe.model_validate(recipe),
        tokenizer=tokenizer(),
        template=load_template(None),
        module=build(model, 320, seed=1, device=torch.device("cpu")).eval(),
        sequence_length=32,
        precision="fp32",
        device=torch.device("cpu"),
        heldout_texts=lambda display: {name: iter(texts) for name, texts in HELDOUT.items()},
        asked=[],
    )

    def open_run(path, display, stage=None):
        run.asked.append((path, stage))
        return run

    monkeypatch.setattr("cupola.pipeline.opening.open_run", open_run)
    return run


def test_probes(opened, capsys, tmp_path):
    options = [
        "--probe",
        "needle",
        "--probe",
        "passkey",
        "--length",
        "450",
        "--length",
        "500",
        "--depths",
        "3",
    ]
    plot = tmp_path / "new" / "probes.svg"
    assert main(["eval", "tiny", *options, "--samples", "2", "--plot", str(plot), "--json"]) == 0
    captured = capsys.readouterr()
    result = last_object(captured.out)
    assert (result["run"], result["stage"], result["seed"]) == (str(opened.folder), "pretrain", 0)
    assert list(result["probes"]) == ["needle", "passkey"]
    for kind, cells in result["probes"].items():
        expected = probe(opened.module, opened.tokenizer, kind, [450, 500], [0, 0.5, 1], 2)
        assert cells == [pytest.approx(cell.facts()) for cell in expected]
        assert len(cells) == 6
    assert plot.read_text().startswith("<svg")
    assert f"{plot}: written" in captured.err
    assert main(["eval", "tiny", *options, "--samples", "2", "--seed", "1", "--json"]) == 0
    other = last_object(capsys.readouterr().out)["probes"]["needle"][0]["log_probability"]
    assert other != result["probes"]["needle"][0]["log_probability"]


def test_probes_as_a_table(opened, capsys):
    assert (
        main(["eval", "tiny", "--probe", "passkey", "--length", "400", "--samples", "1", "--depths", "1"])
        == 0
    )
    out = capsys.readouterr().out
    assert "depth 50%" in out
    assert "share of 1 found" in out


def test_by_position(opened, capsys, tmp_path):
    plot = tmp_path / "curve.svg"
    assert main(["eval", "tiny", "--by-position", "--length", "16", "--plot", str(plot), "--json"]) == 0
    result = last_object(capsys.readouterr().out)
    assert result["length"] == 16
    rows = {}
    for name, texts in HELDOUT.items():
        expected = loss_by_position(opened.module, opened.tokenizer, texts, 16)
        assert result["sources"][name]["rows"] == expected.rows
        assert result["sources"][name]["buckets"] == [pytest.approx(b.facts()) for b in expected.buckets()]
        rows[name] = expected.rows
    assert rows["manuals"] == 0
    assert result["rows"] == rows["speeches"] == 9 + 7
    assert [bucket["first"] for bucket in result["buckets"]] == [1, 2, 3, 5, 9]
    assert "loss (nats per token)" in plot.read_text()


def test_by_position_of_files_and_by_default_of_the_stages_row(opened, capsys, tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 40)
    assert main(["eval", "tiny", "--by-position", "--text", str(tmp_path / "a.txt"), "--json"]) == 0
    result = last_object(capsys.readouterr().out)
    assert (result["length"], result["rows"]) == (32, 5)
    assert list(result["texts"]) == [str(tmp_path / "a.txt")]
    assert main(["eval", "tiny", "--by-position"]) == 0
    out = capsys.readouterr().out
    assert "17 to 32" in out
    assert "rows of 32 tokens" in out


def test_tasks(opened, capsys, monkeypatch):
    """The model's answers come through its own tokenizer and template; a fresh one knows none."""
    options = ["eval", "tiny", "--tasks", "addition, sorting", "--samples", "4", "--json"]
    assert main([*options, "--pass-at", "2"]) == 0
    result = last_object(capsys.readouterr().out)
    assert list(result["tasks"]) == ["addition", "sorting"]
    nothing = {"accuracy": 0.0, "count": 4, "standard_error": 0.0}
    assert result["tasks"]["addition"] == {
        "source": "addition, seed 0",
        **nothing,
        "score": 0.0,
        "sampled": {"attempts": 2, **nothing},
        "pass_at": {"2": nothing},
    }
    said = []
    from cupola.generate.answering import answer as real

    def answer(*given, **sampling):
        said.extend(real(*given, **sampling))
        for done in said:
            assert "<|im_end|>" not in done.text
        return said[-len(given[3]) :]

    monkeypatch.setattr("cupola.evaluate.tasks.answer", answer)
    assert main([*options, "--attempts", "0"]) == 0
    assert len(said) == 8
    assert last_object(capsys.readouterr().out)["tasks"]["sorting"]["sampled"] is None


def test_tasks_that_a_model_solves(opened, capsys, monkeypatch):
    from cupola.corpus.generators import PROGRAMS

    items = PROGRAMS["addition"].items(0, [])
    solved = {question.text: question.answer for question in (Question(*items.make(n)) for n in range(6))}

    def answer(module, tokenizer, template, conversations, *given, **sampling):
        assert (tokenizer, template) == (opened.tokenizer, opened.template)
        return [SimpleNamespace(text=solved[message.content]) for (message,) in conversations]

    monkeypatch.setattr("cupola.evaluate.tasks.answer", answer)
    assert (
        main(["eval", "tiny", "--tasks", "addition", "--samples", "6", "--attempts", "3", "--pass-at", "3"])
        == 0
    )
    out = capsys.readouterr().out
    assert "pass@3" in out
    assert out.count("100.0% ± 0.0%") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probe", "passkey", "--tasks", "addition"], "--probe and --tasks: one of them at a time"),
        (["--depths", "3"], "--depths: has no effect on bits per byte, only on --probe; remove it"),
        (["--seed", "0"], "--seed: has no effect on bits per byte, only on --probe or --tasks"),
        (["--tasks", "addition", "--plot", "a.svg"], "--plot: has no effect on --tasks, only on --probe or"),
        (
            ["--probe", "needle", "--text", "a"],
            "--text: has no effect on --probe, only on bits per byte or --by",
        ),
        (["--by-position", "--samples", "3"], "--samples: has no effect on --by-position"),
        (
            ["--by-position", "--length", "8", "--length", "9"],
            "--length 9: --by-position reads rows of one length",
        ),
        (
            ["--tasks", "addition", "--attempts", "2", "--pass-at", "3"],
            "--pass-at 3: takes at least 3 attempts",
        ),
        (["--tasks", "addition,"], "--tasks 'addition,': give names with commas between them"),
        (["--probe", "needle", "--plot", "a.png"], "--plot a.png: an SVG is drawn"),
        (["--probe", "haystack"], "--probe"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_opened(opened, capsys, options, message):
    assert main(["eval", "tiny", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert opened.asked == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probe", "passkey", "--length", "300", "--length", "701"], "a length of 701 tokens is beyond the model's 700"),
        (["--by-position", "--length", "701"], "a length of 701 tokens is beyond the model's 700 learned positions"),
        (["--probe", "passkey"], "a length of 32 tokens is too short for a probe of kind passkey"),
        (["--by-position", "--length", "600"], "--length 600: no text is so long; take a shorter length"),
        (["--tasks", "subtraction"], "subtraction is no corpus of this run, and no program that can check answers"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_one_line(opened, capsys, options, message):
    assert main(["eval", "tiny", *options, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"error: {message}")
    assert captured.out == ""
