"""Supervised fine-tuning as a stage: conversations in, a model that answers out."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from cupola.cli import main
from cupola.data.loader import Reader
from cupola.display import Display
from cupola.errors import InputError
from cupola.models import build
from cupola.objectives import build as build_objective
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.opening import open_run
from cupola.pipeline.prepare import prepare
from cupola.pipeline.run import run
from cupola.pipeline.stage import stage_clock, stage_order
from cupola.recipe.loading import load
from tests.displays import Heard
from tests.pipeline.test_resume import Crash, Saboteur, final_weights, steps_in_metrics

ROW = 96
SFT = {
    "objective": "sft",
    "data": {"counting": 1},
    "tokens": "2 epochs",
    "sequence_length": ROW,
    "batch_tokens": 4 * ROW,
    "optimizer": "adamw",
    "learning_rate": {"peak": 0.003, "decay": "linear"},
}


def conversation(number: int) -> dict:
    said = [
        {"role": "user", "content": f"What comes after {number}?"},
        {"role": "assistant", "content": f"After it comes {number + 1}."},
    ]
    if number % 3 == 0:
        said += [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "The next."}]
    return {"messages": said}


@pytest.fixture
def chat_recipe(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe, a short pre-training, and a stage that learns to answer."""
    lines = [json.dumps(conversation(number)) for number in range(120)]
    (tmp_path / "counting.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["corpora"]["counting"] = {"files": "counting.jsonl", "format": "chat", "heldout": 0.1}
    recipe["stages"] = {"pretrain": {**recipe["stages"]["pretrain"], "tokens": 4000}, "sft": SFT}
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sft") / "run"


@pytest.fixture
def trained(chat_recipe: Path, tmp_path: Path, trained_once: Path) -> Path:
    if not trained_once.exists():
        report = run(load(chat_recipe), trained_once, None, Display())
        assert [stage.status for stage in report.stages] == ["done", "done"]
    return shutil.copytree(trained_once, tmp_path / "trained", symlinks=True)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_is_judged_by_held_out_answers_and_learns_them(trained: Path) -> None:
    stage = RunFolder(trained).stage(2, "sft")
    first, *_, last = rows_of(stage.evaluations)
    assert set(last["sources"]) == {"manual", "reference", "counting"}
    assert last["bits_per_byte"] == last["sources"]["counting"]["bits_per_byte"]
    assert last["bits_per_byte"] < first["bits_per_byte"]
    asked = {f"What comes after {number}?" for number in range(120)}
    assert {sample["prompt"] for sample in rows_of(stage.samples)} < asked
    before = rows_of(RunFolder(trained).stage(1, "pretrain").evaluations)[-1]
    assert set(before["sources"]) == {"manual", "reference"}


def test_loss_is_that_of_the_answers_alone(chat_recipe: Path) -> None:
    """Against a loop over the conversations of the first batch, each by itself."""
    recipe = load(chat_recipe)
    prepared = prepare(recipe, Display())
    stage = recipe.stages["sft"]
    stores = prepared.train_stores(stage)
    clock = stage_clock(stage, stores)
    order = stage_order(recipe, "sft", stage, stores, clock)
    batch = Reader(order, stores, 2 * ROW, rank=0, ranks=1).batch(0, clock.boundary(1))
    module = build(recipe.model, prepared.vocabulary, seed=1)
    objective = build_objective(stage)
    with torch.no_grad():
        total = sum(float(objective.loss(module, micro).loss) for micro in batch.microbatches)

    tokenizer = prepared.tokenizer
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    nats, count = 0.0, 0
    texts = [t for m in batch.microbatches for row in m.tokens for t in _conversations(tokenizer, row)]
    assert len(texts) > len(batch.microbatches)
    for messages in map(_messages, texts):
        ids, learnt = [tokenizer.delimiter], [False]
        for role, content in messages:
            head = [start, *tokenizer.encode(f"{role}\n")]
            body = [*tokenizer.encode(content), end]
            tail = tokenizer.encode("\n")
            ids += [*head, *body, *tail]
            learnt += [False] * len(head) + [role == "assistant"] * len(body) + [False] * len(tail)
        with torch.no_grad():
            logits = module.logits(module.hidden(torch.tensor([ids])))[0, :-1]
        targets = torch.where(torch.tensor(learnt[1:]), torch.tensor(ids[1:]), -100)
        nats += float(functional.cross_entropy(logits, targets, reduction="sum"))
        count += sum(learnt)
    assert batch.valid_tokens == count
    assert total == pytest.approx(nats, rel=1e-5)


def _conversations(tokenizer, row: torch.Tensor) -> list[str]:
    return [text for text in tokenizer.decode(row.tolist()).split("<|endoftext|>") if text]


def _messages(text: str) -> list[tuple[str, str]]:
    parts = [part.removesuffix("<|im_end|>\n") for part in text.split("<|im_start|>")[1:]]
    return [tuple(part.split("\n", 1)) for part in parts]


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_a_broken_off_stage_ends_the_same_to_the_last_bit(
    chat_recipe: Path, trained: Path, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "broken"
    saboteur = Saboteur([16, 19], how)
    for _ in range(2):
        try:
            run(load(chat_recipe), folder, None, saboteur, check_first=False)
        except Crash:
            continue
    assert run(load(chat_recipe), folder, None, Display(), check_first=False).status == "done"
    assert not saboteur.at, "the run was not broken off"
    assert final_weights(folder) == final_weights(trained)
    steps = steps_in_metrics(folder, 2, "sft")
    assert steps == steps_in_metrics(trained, 2, "sft") == list(range(1, len(steps) + 1))


def test_another_template_trains_again(chat_recipe: Path, trained: Path, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}: "
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    overrides = [f"tokenizer.chat_template={template}"]
    report = run(load(chat_recipe, overrides), trained, None, Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged", "done"]
    assert open_run(trained, Display()).template.source == template.read_text()


def test_is_talked_with(trained: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    question = "What comes after 7?"
    arguments = ["chat", str(trained), "--temperature", "0"]
    assert main([*arguments, "--prompt", question, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["stage"] == "sft"
    assert found["text"]
    assert "<|im_end|>" not in found["text"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n\n/undo\n{question}\n/clear\n"))
    assert main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == found["text"].splitlines()[0]
    assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages.sft.data": "{manual: 1}"}, "manual.*sft reads chat"),
        ({"stages.pretrain.data": "{counting: 1}"}, "counting.*next_token reads text"),
        ({"stages.sft.sequence_length": "{0%: 32, 50%: 64}"}, "sequence_length"),
        ({"stages.sft.document_mask": "false"}, "document_mask"),
        ({"tokenizer.chat_template": "missing.jinja"}, "missing.jinja"),
    ],
)
def test_what_cannot_be_learnt_is_refused(chat_recipe: Path, tmp_path: Path, changes, message) -> None:
    overrides = [f"{key}={value}" for key, value in changes.items()]
    with pytest.raises(InputError, match=message):
        run(load(chat_recipe, overrides), tmp_path / "run", None, Display(), check_first=False)
    assert not (tmp_path / "run" / "stages").exists()


def test_what_is_learnt_belongs_to_the_stage(chat_recipe: Path, trained: Path) -> None:
    """Another choice trains the stage anew, on as many rows of which other tokens are targets."""
    recipes = {
        learn: load(chat_recipe, [f"stages.sft.supervised={learn}"])
        for learn in ("last_answer", "answers", "all")
    }
    stores = {
        learn: prepare(recipe, Display()).train_stores(recipe.stages["sft"])["counting"]
        for learn, recipe in recipes.items()
    }
    learnt = [int(np.asarray(store.learnt).sum()) for store in stores.values()]
    assert learnt == sorted(learnt)
    assert learnt[0] < learnt[1] < learnt[2] < stores["all"].length
    assert len({store.length for store in stores.values()}) == 1
    statuses = {
        learn: [s.status for s in run(recipes[learn], trained, None, Display(), check_first=False).stages]
        for learn in ("answers", "last_answer")
    }
    assert statuses == {"answers": ["unchanged", "unchanged"], "last_answer": ["unchanged", "done"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.pretrain.supervised=all", "supervised=all: has no effect without objective sft"),
        ("stages.sft.supervised.learn=questions", "answers, last_answer, all are possible, not 'questions'"),
        (
            "stages.sft.packing=best_fit",
            "stages.sft.packing=best_fit: has no effect without objective next_token",
        ),
    ],
)
def test_settings_without_effect_are_refused(chat_recipe: Path, change: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(chat_recipe, [change])
    assert message in str(error.value)


def test_a_template_that_marks_no_answer_is_one_line(
    chat_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    arguments = ["run", str(chat_recipe), "--set", f"tokenizer.chat_template={template}"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error:")
    assert "generation" in last


def test_conversations_longer_than_a_row_are_counted(chat_recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "counting.jsonl"
    long = {
        "messages": [
            {"role": "user", "content": "Count. " + "Please. " * 100},
            {"role": "assistant", "content": "One."},
        ]
    }
    cut = {
        "messages": [
            {"role": "user", "content": "Count to a hundred."},
            {"role": "assistant", "content": " ".join(map(str, range(100)))},
        ]
    }
    path.write_text(path.read_text() + "\n" + json.dumps(long) + "\n" + json.dumps(cut), encoding="utf-8")
    heard = Heard()
    prepared = prepare(load(chat_recipe, ["corpora.counting.heldout=0"]), heard)
    told = " ".join(heard.warnings)
    assert "1 conversations are longer than a row of 96 tokens and lost their end" in told
    assert "1 conversations were dropped: no answer begins within a row of 96 tokens" in told
    store = prepared.train_stores(load(chat_recipe).stages["sft"])["counting"]
    assert store.source["items"] == 121
    assert int(np.asarray(store.learnt).sum()) > 0
    prepare(
        load(chat_recipe, ["corpora.counting.heldout=0", "stages.sft.supervised.too_long=leave_out"]), heard
    )
    assert "counting: 2 conversations are longer than a row of 96 tokens and were left out" in heard.warnings


def test_where_nothing_is_held_out_no_figure_is_said(chat_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "counting.jsonl").write_text(json.dumps(conversation(1)))
    heard = Heard()
    assert run(load(chat_recipe), tmp_path / "run", None, heard, check_first=False).error is None
    said = [line for line in heard.said if "bits per byte" in line and "counting" in line]
    assert said
    assert all("counting –)" in line and "nan" not in line for line in said)
