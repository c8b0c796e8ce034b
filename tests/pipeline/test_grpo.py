"""Learning from rewards as a stage: questions in, answers sampled, rewarded and learnt from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cupola.cli import main
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.models import build
from cupola.objectives import build as build_objective
from cupola.parallel.engine import LocalEngine
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.prepare import prepare
from cupola.pipeline.run import run
from cupola.pipeline.stage import stage_clock, stage_order
from cupola.recipe.loading import load
from cupola.train.answering import Answerer
from cupola.train.rewards import Rewards
from cupola.train.rollouts import Rollouts, pass_rates
from tests.displays import Heard
from tests.pipeline.test_resume import Crash, Saboteur, final_weights, steps_in_metrics
from tests.pipeline.test_sft import chat_recipe, rows_of  # noqa: F401

ROW = 96
GRPO = {
    "objective": "grpo",
    "data": {"counting": 1},
    "tokens": "12 steps",
    "sequence_length": ROW,
    "policy": {"prompts": 4, "completions": 6, "max_completion_length": 12, "rewards": {"finished": 1}},
    "learning_rate": {"peak": 0.01, "warmup": "10%", "decay": "constant"},
}


@pytest.fixture
def recipe_path(chat_recipe: Path, tmp_path: Path) -> Path:  # noqa: F811
    recipe = yaml.safe_load(chat_recipe.read_text())
    recipe["stages"]["sft"]["tokens"] = "1 epoch"
    recipe["stages"]["rl"] = GRPO
    path = tmp_path / "grpo.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grpo") / "run"


@pytest.fixture
def trained(recipe_path: Path, tmp_path: Path, trained_once: Path) -> Path:
    if not trained_once.exists():
        report = run(load(recipe_path), trained_once, None, Display())
        assert [stage.status for stage in report.stages] == ["done", "done", "done"]
    return shutil.copytree(trained_once, tmp_path / "trained", symlinks=True)


class Round:
    """The first round of answers of a fresh model."""

    def __init__(self, path: Path, *changes: str) -> None:
        recipe = load(path, list(changes))
        self.stage = recipe.stages["rl"]
        self.prepared = prepare(recipe, Display())
        self.questions = self.prepared.questions(self.stage, "train")
        clock = stage_clock(self.stage, self.questions)
        order = stage_order(recipe, "rl", self.stage, self.questions, clock)
        self.module = build(recipe.model, self.prepared.vocabulary, seed=3)
        with torch.no_grad():  # a fresh head finds all tokens alike
            self.module.head_weight.mul_(40)
        self.answerer = Answerer(self.module, self.prepared.tokenizer, self.prepared.template, "fp32")
        rewards = Rewards(self.stage.policy.rewards)
        policy, row = self.stage.policy, self.stage.longest_row()
        self.source = Rollouts(order, self.questions, policy, rewards, self.answerer, None, row, 2 * row)
        with self.source as batches:
            self.batch = next(iter(batches))


@pytest.fixture
def by_length(tmp_path: Path) -> str:
    """A reward that every answer gets another of."""
    path = tmp_path / "brief.py"
    path.write_text(
        "def brief(prompts, completions, answers):\n    return [-len(c) / 10 for c in completions]\n"
    )
    return f'stages.rl.policy.rewards={{"{path}:brief": 1}}'


def test_gradient_is_reinforce_of_each_answer_by_itself(recipe_path: Path, by_length: str) -> None:
    """Against a loop over the answers: no packing, no microbatches, the module's plain logits."""
    found = Round(recipe_path, by_length, "stages.rl.policy.advantages=none")
    objective = build_objective(found.stage)
    batch, module = found.batch, found.module
    assert batch.sequences == 24
    assert len(batch.microbatches) > 1
    engine = LocalEngine(module, "fp32", "cpu")
    result = engine.forward_backward(
        batch.microbatches, objective, objective.normaliser(batch), batch.valid_tokens
    )
    ours = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert float(result.metrics["sampling_gap"]) < 1e-5
    assert float(result.metrics["ratio"]) == pytest.approx(1)

    module.zero_grad(set_to_none=True)
    rows = found.source.order.rows(0, 4)
    asked = [found.questions["counting"].questions[row["offset"]] for row in rows for _ in range(6)]
    answers = found.answerer.sample(asked, 12, 1.0, seed=_seed_of(found))
    texts = [found.answerer.text(answer) for answer in answers]
    rewards = np.array([-len(text) / 10 for text in texts]).reshape(4, 6)
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)).ravel()
    tokens = sum(len(answer.tokens) for answer in answers)
    assert batch.valid_tokens == tokens
    assert batch.figures["reward"] == pytest.approx(rewards.mean())
    for question, answer, advantage in zip(asked, answers, advantages, strict=True):
        ids = torch.tensor([[*question.ids.tolist(), *answer.tokens]])
        logits = module.logits(module.hidden(ids))[0, len(question.ids) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, ids[0, len(question.ids) :, None])
        (-advantage * log_probs.sum() / tokens).backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=2e-4, atol=1e-7)


def _seed_of(found: Round) -> int:
    from cupola.train.rollouts import _seed

    return _seed(found.source.order.seed, "rl", 0)


def test_questions_come_in_the_stages_order_and_each_once_an_epoch(recipe_path: Path) -> None:
    found = Round(recipe_path)
    order, questions = found.source.order, found.questions["counting"].questions
    seen = order.rows(0, len(questions) // 16 * 16)["offset"].tolist()
    assert len(set(seen)) == len(seen)
    assert sorted(seen) != seen
    assert all(question.messages[-1].role == "user" for question in questions)


@pytest.mark.oracle
def test_the_reward_of_a_task_is_its_scorers(recipe_path: Path) -> None:
    package = pytest.importorskip("reasoning_gym")
    recipe = yaml.safe_load(recipe_path.read_text())
    task = {"task": "chain_sum", "settings": {"max_terms": 2, "max_digits": 1, "min_digits": 1}}
    recipe["corpora"]["counting"] = {"generate": "reasoning_gym", "items": 40, "heldout": 0.2, **task}
    for name in ("sft", "rl"):
        recipe["stages"][name]["sequence_length"] = 192
    recipe_path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    questions = Round(recipe_path, 'stages.rl.policy.rewards={check: 1, "length:24": 1}').questions[
        "counting"
    ]
    scorer = package.get_score_answer_fn("chain_sum")
    assert len(questions.questions) > 20
    for question in questions.questions:
        for text in (question.answer, f"= {question.answer}", f"about {question.answer}", "none"):
            assert questions.score(question, text) == scorer(text, {"answer": question.answer})


def test_passed_is_an_answer_and_a_question_with_one_that_is_right():
    marks = torch.tensor([[1.0, 0.5, 0.0, 1.0], [0.0, 0.9, 0.0, 0.0]])
    assert pass_rates(marks) == {"pass_at_1": 2 / 8, "pass_at_4": 1 / 2}


def test_where_answers_are_checked_it_is_measured_how_many_pass(recipe_path: Path, tmp_path: Path) -> None:
    changes = ["stages.rl.policy.rewards={check: 1}", "stages.rl.tokens=1 steps", "stages.sft.tokens=1 steps"]
    assert run(load(recipe_path, changes), tmp_path / "run", None, Display(), check_first=False).error is None
    (row,) = rows_of(RunFolder(tmp_path / "run").stage(3, "rl").metrics)
    assert 0 <= row["pass_at_1"] <= row["pass_at_6"] <= 1


def test_reward_rises(trained: Path) -> None:
    rows = rows_of(RunFolder(trained).stage(3, "rl").metrics)
    first, last = (np.mean([row["reward"] for row in part]) for part in (rows[:4], rows[-4:]))
    assert last > first + 0.1
    assert {"reward_std", "zero_spread", "completion_length", "truncated", "entropy", "ratio"} <= set(rows[0])
    assert rows[0]["tokens"] == 4, "the clock counts questions"
    facts = RunFolder(trained).stage(3, "rl").facts()
    assert facts["metrics"]["questions"] > 5
    assert 0 <= facts["metrics"]["reward"] <= 1


@pytest.mark.parametrize("how", ["crash", "signal"])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_broken_off_stage_ends_the_same_to_the_last_bit(
    recipe_path: Path, trained: Path, tmp_path: Path, how: str, updates: int
) -> None:
    """With two updates a round a stop falls between them: it waits for the second; a kill loses the first."""
    changes = [f"stages.rl.policy.updates={updates}", "checkpoint.every=3 steps", "stages.rl.policy.beta=0.1"]
    straight = shutil.copytree(trained, tmp_path / "straight", symlinks=True)
    assert run(load(recipe_path, changes), straight, None, Display(), check_first=False).status == "done"
    folder = shutil.copytree(trained, tmp_path / "broken", symlinks=True)
    saboteur = Saboteur([8], how)
    try:
        broken = run(load(recipe_path, changes), folder, None, saboteur, check_first=False)
        assert broken.status == "interrupted"
        assert broken.stages[-1].steps % updates == 0
    except Crash:
        pass
    assert not saboteur.at, "the run was not broken off"
    assert run(load(recipe_path, changes), folder, None, Display(), check_first=False).status == "done"
    assert final_weights(folder) == final_weights(straight)
    assert final_weights(folder) != final_weights(trained)
    assert steps_in_metrics(folder, 3, "rl") == list(range(1, 13))


@pytest.mark.parametrize(
    "changes",
    [
        ["loss=grpo", "advantages=batch"],
        ["loss=dr_grpo", "advantages=none", "dynamic_sampling=true"],
        ["loss=cispo", "epsilon_high=2", "updates=2"],
        ["advantages=leave_one_out", "mask_truncated=true", "temperature=0.8"],
        [
            "importance_sampling_level=sequence",
            "updates=4",
            "epsilon_high=0.28",
            "overlong_buffer=4",
            "beta=0.05",
        ],
    ],
)
def test_every_variant_trains(recipe_path: Path, trained: Path, changes: list[str]) -> None:
    settings = [f"stages.rl.policy.{change}" for change in changes]
    done = run(load(recipe_path, [*settings, "stages.rl.tokens=4 steps"]), trained, None, Display())
    assert done.status == "done"
    assert all(np.isfinite(row["loss"]) for row in rows_of(RunFolder(trained).stage(3, "rl").metrics))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.rl.tokens=200k tokens", "grpo counts steps"),
        ("stages.rl.policy.updates=3", "4 prompts can't be shared among 3 steps"),
        ("stages.rl.batch_tokens=512", "give policy.prompts"),
        ("stages.rl.policy.max_completion_length=96", "leaves no room for a question"),
        ("stages.rl.policy.loss=cispo", "epsilon_high"),
        ("stages.sft.policy.prompts=3", "has no effect without objective grpo"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(recipe_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(recipe_path, [change])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [float('nan')] * len(completions)", "gave nan for the answer"),
        ("return [None] * len(completions)", "gave None for the answer"),
        ("return [1.0]", "gave 1 values for 24 answers"),
        ("raise ValueError('no idea')", "failed with ValueError: no idea"),
    ],
)
def test_a_reward_that_fails_ends_the_stage_with_its_name(
    recipe_path: Path, tmp_path: Path, body: str, message: str
) -> None:
    path = tmp_path / "bad.py"
    path.write_text(f"def bad(prompts, completions, answers):\n    {body}\n")
    with pytest.raises(CupolaError) as error:
        Round(recipe_path, f'stages.rl.policy.rewards={{"{path}:bad": 1}}')
    assert message in str(error.value)
    assert "bad.py:bad" in str(error.value)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (
            "{chek: 1}",
            "'chek' is none of check, finished, random, format:REGEX, length:TOKENS, stage:NAME, nor",
        ),
        ("{check: 0, finished: 0}", "{check: 0, finished: 0}: every weight is 0"),
        ("{}", "{}: at least 1 value is expected, not 0"),
    ],
)
def test_useless_rewards_are_refused_before_anything_runs(
    recipe_path: Path, trained: Path, capsys: pytest.CaptureFixture[str], rewards: str, message: str
) -> None:
    change = f"stages.rl.policy.rewards={rewards}"
    assert main(["run", str(recipe_path), "--out", str(trained), "--set", change]) == 2
    assert message in capsys.readouterr().err


def test_json_of_the_command_has_the_reward(
    recipe_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe_path), "--out", str(trained), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["stages"][2]["reward"] <= 1


def test_steps_without_a_signal_and_rewards_of_no_weight_are_said(
    recipe_path: Path, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "same.py"
    path.write_text("def same(prompts, completions, answers):\n    return [1.0] * len(completions)\n")
    rewards = f'stages.rl.policy.rewards={{"{path}:same": 1, finished: 0}}'
    heard = Heard()
    changes = [rewards, "stages.rl.tokens=4 steps"]
    assert run(load(recipe_path, changes), trained, None, heard, check_first=False).status == "done"
    assert [line for line in heard.warnings if "in 4 of 4 steps" in line]
    assert "stage rl: finished: of weight 0, so measured and not learnt from" in heard.said
    rows = rows_of(RunFolder(trained).stage(3, "rl").metrics)
    assert all(1 < row["sequence_length"] <= ROW for row in rows)
