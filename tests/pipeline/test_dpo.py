"""Learning from preferences as a stage: pairs in, a model that ranks them out."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

from cupola.cli import main
from cupola.corpus import documents
from cupola.display import Display
from cupola.errors import InputError
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.opening import open_run
from cupola.pipeline.prepare import prepare
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.displays import Heard
from tests.pipeline.test_resume import Crash, Saboteur, final_weights
from tests.pipeline.test_sft import chat_recipe, rows_of  # noqa: F401

ROW = 96
DPO = {
    "objective": "dpo",
    "data": {"pairs": 1},
    "tokens": "3 epochs",
    "sequence_length": ROW,
    "batch_tokens": 6 * ROW,
    "learning_rate": {"peak": 0.002, "warmup": "10%"},
}


def pair(number: int) -> dict:
    return {
        "prompt": f"What comes after {number}?",
        "chosen": f"After it comes {number + 1}.",
        "rejected": f"{number} it is." if number % 2 else "No idea.",
    }


@pytest.fixture
def recipe_path(chat_recipe: Path, tmp_path: Path) -> Path:  # noqa: F811
    lines = [json.dumps(pair(number)) for number in range(120)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = yaml.safe_load(chat_recipe.read_text())
    recipe["corpora"]["pairs"] = {"files": "pairs.jsonl", "format": "preference", "heldout": 0.15}
    recipe["stages"]["sft"]["tokens"] = "1 epoch"
    recipe["stages"]["dpo"] = DPO
    path = tmp_path / "dpo.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpo") / "run"


@pytest.fixture
def trained(recipe_path: Path, tmp_path: Path, trained_once: Path) -> Path:
    if not trained_once.exists():
        report = run(load(recipe_path), trained_once, None, Display())
        assert [stage.status for stage in report.stages] == ["done", "done", "done"]
        assert report.as_json()["stages"][2]["preference_accuracy"] > 0.9
    return shutil.copytree(trained_once, tmp_path / "trained", symlinks=True)


def test_starts_at_ln_2_and_learns_to_rank(trained: Path) -> None:
    rows = rows_of(RunFolder(trained).stage(3, "dpo").metrics)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["loss"] < 0.5
    assert rows[-1]["accuracy"] > 0.9
    facts = RunFolder(trained).stage(3, "dpo").facts()["metrics"]
    assert facts["preference_pairs"] > 5
    assert facts["preference_accuracy"] > 0.9


def test_held_out_ranking_is_that_of_a_plain_loop(trained: Path, recipe_path: Path) -> None:
    """Every held-out pair by itself, policy and reference by two models and no packing."""
    policy, reference = (open_run(trained, Display(), stage) for stage in ("dpo", "sft"))
    folder = RunFolder(trained)
    facts = folder.facts()["sources"]["pairs"]
    assert facts["format"] == "preference"

    gathered = prepare(load(recipe_path), Display()).gathered["pairs"]
    losses, right = [], 0
    held_out = [json.loads(document.text) for document in documents(gathered, "heldout")]
    for record in held_out:
        sums = {
            (name, side): _answer_log_prob(opened, record, side)
            for name, opened in (("policy", policy), ("reference", reference))
            for side in ("chosen", "rejected")
        }
        margin = 0.1 * (
            sums["policy", "chosen"]
            - sums["reference", "chosen"]
            - sums["policy", "rejected"]
            + sums["reference", "rejected"]
        )
        losses.append(-functional.logsigmoid(torch.tensor(margin)).item())
        right += margin > 0
    found = folder.stage(3, "dpo").facts()["metrics"]
    assert found["preference_pairs"] == len(held_out)
    assert found["preference_accuracy"] == pytest.approx(right / len(held_out))
    assert found["preference_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def _answer_log_prob(opened, record: dict, side: str) -> float:
    tokenizer = opened.tokenizer
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    ids, learnt = [tokenizer.delimiter], [False]
    for said in [*record["prompt"], *record[side]]:
        head = [start, *tokenizer.encode(f"{said['role']}\n")]
        body = [*tokenizer.encode(said["content"]), end]
        tail = tokenizer.encode("\n")
        ids += [*head, *body, *tail]
        learnt += [False] * len(head) + [said["role"] == "assistant"] * len(body) + [False] * len(tail)
    with torch.no_grad():
        logits = opened.module.logits(opened.module.hidden(torch.tensor([ids])))[0, :-1]
    log_probs = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return float(log_probs[torch.tensor(learnt[1:])].sum())


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_a_broken_off_stage_ends_the_same_to_the_last_bit(
    recipe_path: Path, trained: Path, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "broken"
    saboteur = Saboteur([14], how)
    for _ in range(2):
        try:
            run(load(recipe_path), folder, None, saboteur, check_first=False)
        except Crash:
            continue
    assert run(load(recipe_path), folder, None, Display(), check_first=False).status == "done"
    assert not saboteur.at, "the run was not broken off"
    assert final_weights(folder) == final_weights(trained)


def test_another_parent_trains_the_stage_anew_and_the_same_one_does_not(
    recipe_path: Path, trained: Path
) -> None:
    recipe = load(recipe_path, ["stages.dpo.parent=sft"])
    assert [stage.status for stage in run(recipe, trained, None, Display()).stages] == ["unchanged"] * 3
    display = Heard()
    report = run(load(recipe_path, ["stages.dpo.parent=pretrain"]), trained, None, display)
    assert [stage.status for stage in report.stages] == ["unchanged", "unchanged", "done"]
    assert any("takes weights from pretrain" in line for line in display.said)


@pytest.mark.parametrize("loss", ["ipo", "robust", "hinge", "sigmoid_norm", "simpo", "orpo"])
def test_every_loss_trains(recipe_path: Path, trained: Path, loss: str) -> None:
    smoothing = ["stages.dpo.preference.label_smoothing=0.1"] if loss == "robust" else []
    changes = [f"stages.dpo.preference.loss={loss}", "stages.dpo.tokens=4 steps", *smoothing]
    assert run(load(recipe_path, changes), trained, None, Display()).status == "done"
    rows = rows_of(RunFolder(trained).stage(3, "dpo").metrics)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.dpo.preference.simpo_gamma=1", "stages.dpo.preference.simpo_gamma"),
        ("stages.sft.preference.beta=0.3", "stages.sft.preference: has no effect without objective dpo"),
        ("stages.dpo.data={counting: 1}", "documents are chat, and dpo reads preference"),
        ("stages.dpo.parent=dppo", "stages.dpo.parent"),
        ("stages.dpo.sequence_length={0%: 48, 50%: 96}", "pairs are packed into rows of one length"),
        ("stages.dpo.carry=[]", "compares with the weights of a stage before it"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(recipe_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(recipe_path, [change])
    assert message in str(error.value)


def test_pairs_that_do_not_fit_are_left_out_and_counted(
    recipe_path: Path, trained: Path, tmp_path: Path
) -> None:
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    long = {"prompt": "Tell me all.", "chosen": "word " * 60, "rejected": "No."}
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines, json.dumps(long)]))
    display = Heard()
    assert run(load(recipe_path), trained, None, display).status == "done"
    assert any("1 pairs were dropped: both answers" in line for line in display.warnings)


def test_json_of_the_command_has_the_stages_own_metrics(
    recipe_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe_path), "--out", str(trained), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert "preference_accuracy" not in stages[1]
    assert 0.9 < stages[2]["preference_accuracy"] <= 1
