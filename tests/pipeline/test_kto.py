"""Learning from answers that are wanted and others that are not, as a stage."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from cupola.corpus import documents
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.errors import InputError
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.opening import open_run
from cupola.pipeline.prepare import prepare
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.displays import Heard
from tests.pipeline.test_dpo import _answer_log_prob, pair
from tests.pipeline.test_resume import Crash, Saboteur, final_weights
from tests.pipeline.test_sft import chat_recipe, rows_of  # noqa: F401

ROW = 96
KTO = {
    "objective": "kto",
    "data": {"rated": 1, "pairs": 1},
    "tokens": "2 epochs",
    "sequence_length": ROW,
    "batch_tokens": 8 * ROW,
    "kto": {"beta": 0.2},
    "learning_rate": {"peak": 0.003, "warmup": "10%"},
}


def rating(number: int) -> dict:
    found = pair(number)
    side = "chosen" if number % 2 else "rejected"
    return {"prompt": found["prompt"], "completion": found[side], "label": side == "chosen"}


@pytest.fixture
def recipe_path(chat_recipe: Path, tmp_path: Path) -> Path:  # noqa: F811
    for name, records in (("rated", map(rating, range(80))), ("pairs", map(pair, range(80, 120)))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    recipe = yaml.safe_load(chat_recipe.read_text())
    recipe["corpora"]["rated"] = {"files": "rated.jsonl", "format": "rated", "heldout": 0.15}
    recipe["corpora"]["pairs"] = {"files": "pairs.jsonl", "format": "preference", "heldout": 0.15}
    del recipe["corpora"]["counting"]
    recipe["stages"] = {"pretrain": recipe["stages"]["pretrain"], "kto": KTO}
    path = tmp_path / "kto.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kto") / "run"


@pytest.fixture
def trained(recipe_path: Path, tmp_path: Path, trained_once: Path) -> Path:
    if not trained_once.exists():
        report = run(load(recipe_path), trained_once, None, Display())
        assert [stage.status for stage in report.stages] == ["done", "done"]
        assert report.as_json()["stages"][1]["preference_accuracy"] > 0.8
    return shutil.copytree(trained_once, tmp_path / "trained", symlinks=True)


def test_starts_at_a_half_and_learns_what_is_wanted(trained: Path) -> None:
    rows = rows_of(RunFolder(trained).stage(2, "kto").metrics)
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert 0 < rows[0]["desirable"] < 1
    assert rows[-1]["loss"] < 0.45
    assert rows[-1]["reward_margin"] > 0
    assert rows[-1]["accuracy"] > 0.8
    facts = RunFolder(trained).stage(2, "kto").facts()["metrics"]
    assert facts["preference_desirable_reward"] > facts["preference_undesirable_reward"]


def test_held_out_figures_are_those_of_a_plain_loop(trained: Path, recipe_path: Path) -> None:
    """Every held-out answer by itself, policy and reference by two models and no packing."""
    policy, reference = (open_run(trained, Display(), stage) for stage in ("kto", "pretrain"))
    prepared = prepare(load(recipe_path), Display())
    rewards, ratios, labels = [], [], []
    for name in ("pairs", "rated"):
        records = [json.loads(document.text) for document in documents(prepared.gathered[name], "heldout")]
        answers = [(r["prompt"], r["completion"], r["label"]) for r in records if "label" in r]
        for side in ("chosen", "rejected"):
            answers += [(r["prompt"], r[side], side == "chosen") for r in records if side in r]
        for number, (prompt, answer, label) in enumerate(answers):
            other = answers[(number + 1) % len(answers)][1]  # every prompt here is another
            for said, found in ((answer, rewards), (other, ratios)):
                record = {"prompt": prompt, "said": said}
                both = [_answer_log_prob(opened, record, "said") for opened in (policy, reference)]
                found.append(both[0] - both[1])
            labels.append(label)
    kl = max(0.0, sum(ratios) / len(ratios))
    signed = [ratio if label else -ratio for ratio, label in zip(rewards, labels, strict=True)]
    losses = [
        1 - float(torch.sigmoid(torch.tensor(0.2 * (ratio - kl if label else kl - ratio))))
        for ratio, label in zip(rewards, labels, strict=True)
    ]
    found = RunFolder(trained).stage(2, "kto").facts()["metrics"]
    assert found["preference_answers"] == len(labels)
    assert found["preference_kl"] == pytest.approx(kl, abs=1e-3)
    assert found["preference_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["preference_accuracy"] == pytest.approx(sum(s > 0 for s in signed) / len(signed))
    wanted = [0.2 * ratio for ratio, label in zip(rewards, labels, strict=True) if label]
    assert found["preference_desirable_reward"] == pytest.approx(sum(wanted) / len(wanted), abs=1e-3)


def test_a_broken_off_stage_ends_the_same_to_the_last_bit(
    recipe_path: Path, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    saboteur = Saboteur([13], "crash")
    for _ in range(2):
        try:
            run(load(recipe_path), folder, None, saboteur, check_first=False)
        except Crash:
            continue
    assert run(load(recipe_path), folder, None, Display(), check_first=False).status == "done"
    assert not saboteur.at, "the run was not broken off"
    assert final_weights(folder) == final_weights(trained)


def test_other_weights_of_answers_train_again(recipe_path: Path, trained: Path) -> None:
    assert [s.status for s in run(load(recipe_path), trained, None, Display()).stages] == ["unchanged"] * 2
    changed = load(recipe_path, ["stages.kto.kto.desirable_weight=1.5", "stages.kto.tokens=3 steps"])
    assert [s.status for s in run(changed, trained, None, Display()).stages] == ["unchanged", "done"]
    rows = rows_of(RunFolder(trained).stage(2, "kto").metrics)
    share = rows[0]["desirable"]
    assert rows[0]["loss"] == pytest.approx(0.75 * share + 0.5 * (1 - share), abs=1e-4)
    assert not math.isnan(rows[-1]["loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.pretrain.kto.beta=0.3", "stages.pretrain.kto: has no effect without objective kto"),
        ("stages.kto.preference.beta=0.3", "stages.kto.preference: has no effect without objective dpo"),
        ("stages.kto.data={manual: 1}", "documents are text, and kto reads rated and preference"),
        ("stages.kto.carry=[]", "kto compares with the weights of a stage before it"),
        ("stages.kto.sequence_length={0%: 48, 50%: 96}", "answers are packed into rows of one length"),
        ("corpora.more={generate: addition, format: rated}", "no program makes answers with a label"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(recipe_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(recipe_path, [change])
    assert message in str(error.value)


def test_answers_to_one_prompt_are_refused_with_the_reason(recipe_path: Path, tmp_path: Path) -> None:
    same = [{**rating(number), "prompt": "What comes next?"} for number in range(20)]  # "No idea." 10 times
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, same)), encoding="utf-8")
    with pytest.raises(InputError) as error:
        prepare(load(recipe_path, ["corpora.rated.heldout=0"]), Heard())
    assert "corpora.rated: none of its answers is left to learn from (11 were dropped: all are to one" in str(
        error.value
    )


def test_a_pair_is_read_by_dpo_and_by_kto(recipe_path: Path) -> None:
    """Two stages, two kinds of rows, one corpus."""
    dpo = (
        "stages.dpo={objective: dpo, data: pairs, tokens: 2 steps, sequence_length: 96, learning_rate: 1e-3}"
    )
    recipe = load(recipe_path, [dpo])
    prepared = prepare(recipe, Display())
    found = {
        name: prepared.train_stores(recipe.stages[name])["pairs"].source["items"] for name in ("kto", "dpo")
    }
    assert found["kto"] == 2 * found["dpo"]
    assert all(isinstance(s, TokenStore) for s in prepared.heldout_stores(recipe.stages["dpo"]).values())


def test_answers_of_one_kind_alone_are_refused(recipe_path: Path, tmp_path: Path) -> None:
    wanted = [rating(number) for number in range(1, 80, 2)]
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, wanted)), encoding="utf-8")
    recipe = load(recipe_path, ["stages.kto.data=rated", "stages.pretrain.tokens=1 steps"])
    report = run(recipe, tmp_path / "run", None, Display(), check_first=False)
    assert "stages.kto: no answer of rated is unwanted, and kto learns from both kinds" in str(report.error)
