"""Learning a reward from pairs as a stage, and learning from that reward."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from cupola.checkpoint import folder as checkpoint
from cupola.cli import main
from cupola.corpus import documents
from cupola.display import Display
from cupola.errors import InputError
from cupola.models import build, lora
from cupola.models.table import SCORE
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.plan import final_checkpoint
from cupola.pipeline.prepare import prepare
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.displays import Heard
from tests.pipeline.test_dpo import pair
from tests.pipeline.test_resume import Crash, Saboteur, final_weights
from tests.pipeline.test_sft import conversation, rows_of

ROW = 96
FAMILIES = {
    "transformer": {"layers": 1, "width": 32, "heads": 4},
    "mamba2": {"family": "mamba2", "layers": 1, "width": 32, "mamba2": {"head_width": 16, "state": 8}},
    "rwkv7": {"family": "rwkv7", "layers": 1, "width": 32, "rwkv7": {"head_width": 16}},
}
STAGES = {
    "sft": {
        "objective": "sft",
        "data": {"counting": 1},
        "tokens": "2 epochs",
        "sequence_length": ROW,
        "batch_tokens": 4 * ROW,
        "learning_rate": {"peak": 0.01, "decay": "linear"},
    },
    "rm": {
        "objective": "reward",
        "data": {"pairs": 1},
        "tokens": "20 steps",
        "sequence_length": ROW,
        "batch_tokens": 6 * ROW,
        "learning_rate": {"peak": 0.01, "warmup": "10%"},
    },
    "rl": {
        "objective": "grpo",
        "parent": "sft",
        "data": {"counting": 1},
        "tokens": "4 steps",
        "sequence_length": ROW,
        "policy": {
            "prompts": 4,
            "completions": 4,
            "max_completion_length": 12,
            "rewards": {"stage:rm": 1, "finished": 0.5},
        },
        "learning_rate": 0.01,
    },
}


def write_recipe(tiny: Path, stages: dict, model: dict | None = None) -> Path:
    """A recipe of some stages that learn from questions and pairs, beside the tiny one."""
    folder = tiny.parent
    for name, make in (("pairs", pair), ("counting", conversation)):
        lines = [json.dumps(make(number)) for number in range(120)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = yaml.safe_load(tiny.read_text())
    recipe["corpora"]["counting"] = {"files": "counting.jsonl", "format": "chat", "heldout": 0.1}
    recipe["corpora"]["pairs"] = {"files": "pairs.jsonl", "format": "preference", "heldout": 0.15}
    recipe["tokenizer"]["train_on"] = {"manual": 1}
    recipe["model"] = model or FAMILIES["transformer"]
    recipe["stages"] = stages
    path = folder / "heads.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def recipe_path(tiny_recipe: Path) -> Path:
    return write_recipe(tiny_recipe, STAGES)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reward") / "run"


@pytest.fixture
def trained(recipe_path: Path, tmp_path: Path, trained_once: Path) -> Path:
    if not trained_once.exists():
        assert run(load(recipe_path), trained_once, None, Display()).status == "done"
    return shutil.copytree(trained_once, tmp_path / "trained", symlinks=True)


def reward_model(path: Path, trained: Path) -> torch.nn.Module:
    recipe, folder = load(path), RunFolder(trained)
    module = build(recipe.model, folder.facts()["vocabulary"], seed=0, scores=True)
    loaded = checkpoint.load(final_checkpoint(folder.stage(2, "rm")), with_optimizer=False)
    lora.load(module, loaded.weights, with_score=True)
    return module.eval()


def tokens_of(messages: list[dict], tokenizer) -> list[int]:
    """A conversation in ChatML after a delimiter, up to the token that ends its last answer."""
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    ids = [tokenizer.delimiter]
    for said in messages:
        ids += [start, *tokenizer.encode(f"{said['role']}\n"), *tokenizer.encode(said["content"]), end]
        ids += tokenizer.encode("\n").tolist()
    return ids[: len(ids) - len(tokenizer.encode("\n"))]


def test_starts_at_ln_2_and_learns_to_rank(trained: Path) -> None:
    rows = rows_of(RunFolder(trained).stage(2, "rm").metrics)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["reward_max"] == rows[0]["reward_min"] == 0
    assert rows[-1]["loss"] < 0.4
    assert rows[-1]["accuracy"] > 0.9
    assert rows[-1]["reward_min"] < rows[-1]["reward_mean"] < rows[-1]["reward_max"]
    assert not rows_of_samples(trained)


def rows_of_samples(trained: Path) -> list[dict]:
    path = RunFolder(trained).stage(2, "rm").samples
    return rows_of(path) if path.exists() else []


def test_held_out_figures_are_those_of_a_plain_loop(trained: Path, recipe_path: Path) -> None:
    """Every answer by itself, without packing, the last token's hidden state times the head."""
    prepared, module = prepare(load(recipe_path), Display()), reward_model(recipe_path, trained)
    records = [json.loads(d.text) for d in documents(prepared.gathered["pairs"], "heldout")]
    rewards, lengths = [], []
    for record in records:
        for side in ("chosen", "rejected"):
            ids = tokens_of([*record["prompt"], *record[side]], prepared.tokenizer)
            with torch.no_grad():
                rewards.append(float(module.hidden(torch.tensor([ids]))[0, -1] @ module.score.weight[0]))
            lengths.append(1 + sum(len(prepared.tokenizer.encode(said["content"])) for said in record[side]))
    chosen, rejected = np.array(rewards[::2]), np.array(rewards[1::2])
    found = RunFolder(trained).stage(2, "rm").facts()["metrics"]
    margins = torch.tensor(chosen - rejected)
    assert found["preference_pairs"] == len(records) > 5
    assert found["preference_accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert found["preference_loss"] == pytest.approx(float(-functional.logsigmoid(margins).mean()), rel=1e-4)
    assert found["reward_min"] == pytest.approx(min(rewards), abs=1e-5)
    assert found["reward_max"] == pytest.approx(max(rewards), abs=1e-5)
    assert found["length_correlation"] == pytest.approx(np.corrcoef(rewards, lengths)[0, 1], abs=1e-4)


def test_a_broken_off_stage_ends_the_same_to_the_last_bit(
    recipe_path: Path, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "broken", symlinks=True)
    shutil.rmtree(RunFolder(folder).stage(2, "rm").path)
    saboteur = Saboteur([9], "crash")
    with pytest.raises(Crash):
        run(load(recipe_path), folder, "rm", saboteur, check_first=False)
    assert run(load(recipe_path), folder, "rm", Display(), check_first=False).status == "done"
    assert final_weights(folder)["rm"] == final_weights(trained)["rm"]


def test_learning_from_the_reward_model(trained: Path) -> None:
    rows = rows_of(RunFolder(trained).stage(3, "rl").metrics)
    assert all(np.isfinite(row["loss"]) for row in rows)
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward_stage:rm"] + 0.5 * row["reward_finished"], abs=1e-5)
    assert SCORE not in checkpoint.load(final_checkpoint(RunFolder(trained).stage(3, "rl"))).weights


def test_another_reward_model_trains_the_policy_anew(recipe_path: Path, trained: Path) -> None:
    recipe = load(recipe_path, ["stages.rm.tokens=4 steps", "stages.rl.tokens=2 steps"])
    assert [stage.status for stage in run(recipe, trained, None, Display()).stages] == [
        "unchanged",
        "done",
        "done",
    ]


def test_a_stage_after_it_takes_the_trunk_alone(recipe_path: Path, trained: Path) -> None:
    display = Heard()
    changes = [
        "stages.rl.parent=rm",
        "stages.rl.tokens=1 steps",
        "stages.rm.lora=2",
        "stages.rm.tokens=2 steps",
    ]
    assert run(load(recipe_path, changes), trained, None, display).status == "done"
    assert any("takes weights from rm, without its scalar head" in line for line in display.said)
    assert any("and 32 parameters in full" in line for line in display.said), "the head beside LoRA"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_scores(tiny_recipe: Path, tmp_path: Path, family: str) -> None:
    stages = {
        "rm": {**STAGES["rm"], "tokens": "2 steps", "lora": 2},
        "rl": {**STAGES["rl"], "tokens": "1 steps"},
    }
    del stages["rl"]["parent"]
    path = write_recipe(tiny_recipe, stages, FAMILIES[family])
    report = run(load(path), tmp_path / "run", None, Display(), check_first=family == "transformer")
    assert report.status == "done"
    assert report.as_json()["stages"][0]["preference_pairs"] > 5


def test_a_reward_model_writes_nothing_and_says_so(
    recipe_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["chat", "--prompt", "Hello"], ["export", "--out", str(trained / "out")]):
        name, *rest = command
        assert main([name, str(trained), "--stage", "rm", *rest]) != 0
        assert "is a reward model, which scores answers and writes none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "stages.rl.policy.rewards={stage:mr: 1}",
            "mr is no stage of objective reward before this one; there are rm",
        ),
        ("stages.rl.policy.rewards={stage:sft: 1}", "sft is no stage of objective reward"),
        ("stages.sft.reward.margin=1", "stages.sft.reward: has no effect without objective reward"),
        ("stages.rm.data={counting: 1}", "documents are chat, and reward reads preference"),
        ("stages.rm.carry=[weights, optimizer]", "one has a scalar head"),
        ("stages.rl.policy.completions=1", "grpo compares answers"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(recipe_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(recipe_path, [change])
    assert message in str(error.value)
