"""Learning from rewards with a critic: against a plain loop over single answers, and as a stage."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cupola.checkpoint import folder as checkpoint
from cupola.display import Display
from cupola.errors import InputError
from cupola.generate.decode import Completion
from cupola.models import build
from cupola.models.stack import LanguageModel
from cupola.models.table import SCORE
from cupola.objectives import build as build_objective
from cupola.parallel.engine import LocalEngine
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.opening import open_run
from cupola.pipeline.plan import final_checkpoint
from cupola.pipeline.prepare import prepare
from cupola.pipeline.run import run
from cupola.pipeline.stage import stage_clock, stage_order
from cupola.recipe.loading import load
from cupola.train.answering import Answerer
from cupola.train.critic import Critic
from cupola.train.questions import Question
from cupola.train.rewards import Rewards
from cupola.train.rollouts import Rollouts, _seed
from tests.displays import Heard
from tests.pipeline.test_resume import Crash, Saboteur, final_weights, steps_in_metrics
from tests.pipeline.test_reward import FAMILIES, STAGES, write_recipe
from tests.pipeline.test_sft import rows_of

PPO = {
    **STAGES["rl"],
    "objective": "ppo",
    "tokens": "16 steps",
    "policy": {
        "prompts": 8,
        "completions": 4,
        "updates": 2,
        "max_completion_length": 12,
        "rewards": {"stage:rm": 1, "finished": 0.5},
    },
    "ppo": {"value_from": "rm", "target_kl": 0.5, "kl_horizon": 40, "missing_eos_penalty": 0.5},
    "learning_rate": {"peak": 0.005, "decay": "constant"},
}


@pytest.fixture
def recipe_path(tiny_recipe: Path) -> Path:
    return write_recipe(tiny_recipe, {**STAGES, "rl": PPO})


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ppo") / "run"


@pytest.fixture
def trained(recipe_path: Path, tmp_path: Path, trained_once: Path) -> Path:
    if not trained_once.exists():
        display = Heard()
        assert run(load(recipe_path), trained_once, None, display).status == "done"
        assert any("its critic begins with the head of rm" in line for line in display.said)
    return shutil.copytree(trained_once, tmp_path / "trained", symlinks=True)


class Plain:
    """Every answer of a round by itself, in float64."""

    def __init__(self, module: LanguageModel, reference: LanguageModel, limit: int) -> None:
        self.module, self.reference, self.limit = module.double(), reference.double(), limit

    def read(self, module: LanguageModel, question: Question, answer: Completion) -> tuple:
        """(log-probabilities, values) of the answer's tokens."""
        ids = torch.tensor([[*question.ids.tolist(), *answer.tokens]])
        hidden = module.hidden(ids)[0, len(question.ids) - 1 : -1]
        log_probs = (hidden @ module.head_weight.T).log_softmax(-1)
        return log_probs.gather(1, ids[0, len(question.ids) :, None])[:, 0], hidden @ module.score.weight[0]

    def worth(self, asked: list, answers: list, scores: list, kl_coef: float, gamma: float, lam: float):
        """Old log-probabilities, values, advantages and returns of each answer; the KL of each."""
        found, kls = [], []
        for question, answer, score in zip(asked, answers, scores, strict=True):
            with torch.no_grad():
                old, values = self.read(self.module, question, answer)
                reference, _ = self.read_words(self.reference, question, answer)
            rewards = (-kl_coef * (old - reference)).tolist()
            rewards[-1] += score
            gains, returns, later, following = [], [], 0.0, 0.0
            for reward, value in zip(reversed(rewards), reversed(values.tolist()), strict=True):
                later = reward + gamma * following - value + gamma * lam * later
                following = value
                gains.insert(0, later)
                returns.insert(0, later + value)
            found.append([old, values, torch.tensor(gains).double(), torch.tensor(returns).double()])
            kls.append(float((old - reference).sum()))
        return found, kls

    def read_words(self, module: LanguageModel, question: Question, answer: Completion) -> tuple:
        ids = torch.tensor([[*question.ids.tolist(), *answer.tokens]])
        log_probs = module.logits(module.hidden(ids))[0, len(question.ids) - 1 : -1].log_softmax(-1)
        return log_probs.gather(1, ids[0, len(question.ids) :, None])[:, 0], None


def noisy(module: LanguageModel, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_is_that_of_a_plain_loop(tiny_recipe: Path, family: str) -> None:
    """Returns, advantages, losses and gradients after the policy has moved, so that both clips count."""
    path = write_recipe(tiny_recipe, {**STAGES, "rl": PPO}, FAMILIES[family])
    changes = ['policy.rewards={"finished": 1}', "ppo.gamma=0.98", "ppo.lam=0.9", "ppo.vf_coef=0.7"]
    changes += ["policy.epsilon_high=0.3", "ppo.kl_coef=0.3", "policy.prompts=4", "policy.completions=2"]
    recipe = load(path, [f"stages.rl.{change}" for change in changes])
    stage, prepared = recipe.stages["rl"], prepare(recipe, Display())
    policy, settings, row = stage.policy, stage.ppo, stage.longest_row()
    questions = prepared.questions(stage, "train")
    order = stage_order(recipe, "rl", stage, questions, stage_clock(stage, questions))
    module = build(recipe.model, prepared.vocabulary, seed=3, scores=True)
    noisy(module, 0.05)
    reference = build(recipe.model, prepared.vocabulary, seed=3)
    answerer = Answerer(module, prepared.tokenizer, prepared.template, "fp32")
    critic = Critic(settings)
    rewards = Rewards(policy.rewards)
    source = Rollouts(order, questions, policy, rewards, answerer, reference, row, 2 * row, critic=critic)
    with source as batches:
        found = [next(batches), next(batches)]

    asked = [q for r in order.rows(0, 4) for q in [questions["counting"].questions[r["offset"]]] * 2]
    answers = answerer.sample(asked, policy.max_completion_length, 1.0, _seed(order.seed, "rl", 0))
    finished = [answer.finish_reason == "stop" for answer in answers]
    scores = [1.0 if done else -0.5 for done in finished]
    plain = Plain(copy.deepcopy(module), copy.deepcopy(reference), policy.max_completion_length)
    parts, kls = plain.worth(asked, answers, scores, 0.3, 0.98, 0.9)
    gains = torch.cat([part[2] for part in parts])
    returns, values = (torch.cat([part[n] for part in parts]) for n in (3, 1))
    figures = found[0].figures
    assert figures["kl_per_answer"] == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-5)
    assert figures["returns"] == pytest.approx(float(returns.mean()), rel=1e-4, abs=1e-6)
    explained = 1 - float((returns - values).var() / returns.var())
    assert figures["explained_variance"] == pytest.approx(explained, abs=1e-4)
    assert figures["kl_coef"] == 0.3
    error = min(max(np.mean(kls) / settings.target_kl - 1, -0.2), 0.2)
    assert critic.kl_coef == pytest.approx(0.3 * (1 + error * 8 / 40), rel=1e-4)

    noisy(module, 0.04)
    with torch.no_grad():  # towards the returns, which are above 0, beyond what the critic may profit from
        module.score.weight.mul_(-2)
    moved = copy.deepcopy(module).double()
    objective, engine = build_objective(stage), LocalEngine(module, "fp32", "cpu")
    clipped = torch.zeros(2)
    for number, batch in enumerate(found):
        module.zero_grad(set_to_none=True)
        moved.zero_grad(set_to_none=True)
        normaliser = objective.normaliser(batch)
        result = engine.forward_backward(batch.microbatches, objective, normaliser, batch.valid_tokens)
        share = slice(4 * number, 4 * number + 4)
        tokens = sum(len(answer.tokens) for answer in answers[share])
        assert batch.valid_tokens == normaliser == tokens
        loss, value_loss = torch.zeros(()).double(), torch.zeros(()).double()
        for question, answer, (old, before, gain, later) in zip(
            asked[share], answers[share], parts[share], strict=True
        ):
            log_probs, values = plain.read(moved, question, answer)
            gain = (gain - gains.mean()) / gains.std()
            ratio = (log_probs - old).exp()
            loss -= torch.minimum(ratio * gain, ratio.clamp(0.8, 1.3) * gain).sum() / tokens
            held = torch.maximum(torch.minimum(values, before + 0.2), before - 0.2)
            value_loss += 0.5 * torch.maximum((values - later) ** 2, (held - later) ** 2).sum() / tokens
            clipped[0] += (ratio * gain > ratio.clamp(0.8, 1.3) * gain).sum()
            clipped[1] += ((held - later) ** 2 > (values - later) ** 2).sum()
        (loss + 0.7 * value_loss).backward()
        assert float(result.loss) == pytest.approx(loss.item(), abs=1e-4)
        assert float(result.metrics["value_loss"]) == pytest.approx(value_loss.item(), rel=1e-3)
        theirs = dict(moved.named_parameters())
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                expected = theirs[name].grad.float()
                scale = float(expected.abs().max())
                torch.testing.assert_close(parameter.grad, expected, rtol=2e-3, atol=2e-3 * scale + 1e-7)
    assert (clipped > 0).all(), "the policy has not moved far enough for the clips to count"


def test_a_stage_learns_and_says_how(trained: Path) -> None:
    rows = rows_of(RunFolder(trained).stage(3, "rl").metrics)
    wanted = {"value_loss", "value_clip", "explained_variance", "kl", "kl_per_answer", "kl_coef", "entropy"}
    wanted |= {"clip_low", "clip_high", "reward", "reward_stage:rm", "returns", "value", "reward_std"}
    assert wanted <= set(rows[0])
    assert rows[0]["kl_per_answer"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["kl_coef"] == rows[1]["kl_coef"] != rows[2]["kl_coef"], "one round feeds two steps"
    assert rows[1]["approximate_kl"] > 0
    rewards = [row["reward"] for row in rows[::2]]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3, rewards
    facts = RunFolder(trained).stage(3, "rl").facts()["metrics"]
    assert facts["questions"] > 5


def test_what_it_leaves_writes_without_its_critic(trained: Path) -> None:
    opened = open_run(trained, Display())
    assert opened.stage == "rl"
    assert opened.module.score is None
    weights = checkpoint.load(final_checkpoint(RunFolder(trained).stage(3, "rl"))).weights
    assert weights[SCORE].abs().max() > 0


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_a_broken_off_stage_ends_the_same_to_the_last_bit(
    recipe_path: Path, trained: Path, tmp_path: Path, how: str
) -> None:
    """Between the two updates of a round: a stop waits for the second, a kill loses the first. The KL's
    coefficient, which every round moves, goes on from where it was."""
    folder = shutil.copytree(trained, tmp_path / "broken", symlinks=True)
    shutil.rmtree(RunFolder(folder).stage(3, "rl").path)
    saboteur = Saboteur([6], how)
    try:
        broken = run(load(recipe_path), folder, None, saboteur, check_first=False)
        assert broken.status == "interrupted"
        assert broken.stages[-1].steps % 2 == 0
    except Crash:
        pass
    assert not saboteur.at, "the run was not broken off"
    assert run(load(recipe_path), folder, None, Display(), check_first=False).status == "done"
    assert final_weights(folder) == final_weights(trained)
    assert steps_in_metrics(folder, 3, "rl") == list(range(1, 17))


@pytest.mark.parametrize("family", ["mamba2", "rwkv7"])
def test_every_family_trains(tiny_recipe: Path, tmp_path: Path, family: str) -> None:
    """From fresh weights, with one answer to a question and nothing to be held to."""
    policy = {**PPO["policy"], "completions": 1, "rewards": {"finished": 1}}
    stage = {**PPO, "policy": policy, "ppo": {"kl_coef": 0, "whiten_rewards": True}, "tokens": "2 steps"}
    del stage["parent"]
    path = write_recipe(tiny_recipe, {"rl": stage}, FAMILIES[family])
    assert run(load(path), tmp_path / "run", None, Display()).status == "done"
    assert "kl" not in rows_of(RunFolder(tmp_path / "run").stage(1, "rl").metrics)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rl.policy.advantages=none", "has no effect on ppo: its critic says what they are"),
        ("rl.policy.beta=0.1", "ppo.kl_coef is the weight of the KL"),
        ("rl.ppo.value_from=sft", "sft is no stage of objective reward before this one"),
        ("rl.carry=[]", "the KL is to the weights of a stage before it"),
        ("rl.ppo.kl_coef=0", "target_kl: steers kl_coef, which is 0"),
        ("rl.ppo.kl_horizon=31", "kl_horizon=31: 31 is less than the 32 answers of a round"),
        ("sft.ppo.lam=1", "stages.sft.ppo: has no effect without objective ppo"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(recipe_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(recipe_path, [f"stages.{change}"])
    assert message in str(error.value)
