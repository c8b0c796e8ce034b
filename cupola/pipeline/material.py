"""What a stage learns from, and what it is judged by, by its objective: rows of text or of answers, pairs
beside what they are worth to the stage's parent, or answers of its own.

A stage asks no more than `Rows` has; its weights, its clock and its files are its own affair.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch

from cupola import json_lines
from cupola.checkpoint import folder as checkpoint
from cupola.checkpoint.verifying import read_facts
from cupola.data.batch import LEARNT, REJECTED, Batch, Microbatch
from cupola.data.loader import Figures, Loader, Reader
from cupola.data.order import Order
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.errors import InputError
from cupola.models import build, lora
from cupola.models.stack import LanguageModel
from cupola.models.table import SCORE
from cupola.objectives import Objective, PreferencePairs, RatedAnswers
from cupola.objectives.preference import REFERENCE
from cupola.pipeline.decisions import Decisions
from cupola.pipeline.folder import StageFolder, final_checkpoint
from cupola.pipeline.judging import Judge, PairsJudge, RatedJudge, RewardJudge, ScoresJudge
from cupola.pipeline.plan import PlannedStage
from cupola.pipeline.prepare import Prepared
from cupola.pipeline.reference import References
from cupola.recipe.alignment import STAGE
from cupola.recipe.corpora import CALLED
from cupola.recipe.schema import Recipe, Stage
from cupola.train.answering import Answerer
from cupola.train.critic import Critic
from cupola.train.questions import Questions
from cupola.train.rewards import Reward, Rewards
from cupola.train.rollouts import Rollouts, may_be_left
from cupola.train.scoring import Scorer


class Rows:
    """Rows of text, of answers in conversations, or of pairs of them.

    Args:
        module: the model that the stage trains.

    Attributes:
        sources: what the data order draws from.
    """

    unit = "tokens"

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        decisions: Decisions,
        planned: PlannedStage,
        module: LanguageModel,
        display: Display,
    ) -> None:
        self.recipe, self.prepared, self.decisions = recipe, prepared, decisions
        self.planned, self.stage, self.module, self.display = planned, planned.stage, module, display
        self.heldout = prepared.heldout_stores(self.stage)
        self.figures: Figures = {}
        self.sources: Mapping[str, TokenStore | Questions] = self._sources()

    def _sources(self) -> Mapping[str, TokenStore | Questions]:
        return self.prepared.train_stores(self.stage)

    @property
    def stores(self) -> Mapping[str, TokenStore]:
        """The sources, where they are rows."""
        return cast(Mapping[str, TokenStore], self.sources)

    def refer(self) -> None:
        """Find what the stage compares with, before its own weights are loaded."""

    def begin(self) -> None:
        """What the weights begin with beside those of the parent, which are loaded."""

    def remarks(self, metrics: Path) -> list[str]:
        """What a person should hear of a stage that is done.

        Args:
            metrics: the file with a row for each of its steps.
        """
        return []

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must hold of it."""
        return {}

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on from what `facts` gave."""

    def last_microbatch(self, order: Order) -> Microbatch | None:
        """One of the stage's last batch, whose rows are its longest; None where it is not known before."""
        clock = order.clock
        reader = Reader(order, self.stores, self.decisions.microbatch_tokens, 0, 1, self.figures)
        return reader.batch(clock.boundary(clock.step_count - 1), clock.end).microbatches[0]

    def batches(self, order: Order, position: int) -> AbstractContextManager[Iterator[Batch]]:
        """What is learnt from a position on."""
        size = self.decisions.microbatch_tokens
        return Loader(order, self.stores, position, microbatch_tokens=size, figures=self.figures)

    def may_be_left(self, order: Order, position: int) -> bool:
        """Whether training can go on from a position."""
        return True

    def judge(self, objective: Objective) -> Judge:
        """What the stage is judged by."""
        return ScoresJudge(self.heldout) if self.stage.objective == "reward" else Judge(self.heldout)

    def _model_of(self, name: str, folder: StageFolder, scores: bool) -> LanguageModel:
        """A model of its own with the weights that another stage left, to be read only."""
        device = torch.device(self.decisions.device)
        vocabulary, seed = self.prepared.vocabulary, self.recipe.seed
        module = build(self.recipe.model_of(name), vocabulary, seed, device, scores=scores)
        weights = checkpoint.load(final_checkpoint(folder), with_optimizer=False).weights
        lora.load(module, weights, with_score=scores)
        return module.eval().requires_grad_(False)


class ComparedAnswers(Rows):
    """Pairs of answers or rated ones, and what they were worth to the weights that the stage begins with."""

    references: References | None = None

    def refer(self) -> None:
        """Compute that, or find it in the cache."""
        if not self.stage.refers_by_answers:
            return
        if self.stage.objective == "kto":
            _require_both_kinds(self.planned.name, self.stores)
        assert self.planned.parent is not None, "the recipe's checks see to it"
        path, called = final_checkpoint(self.planned.parent), CALLED[self.stage.reads]
        weights = read_facts(path)["weights_sha256"]
        model = self.recipe.model_of(self.planned.name)
        parts = (self.decisions.precision, self.decisions.microbatch_tokens)
        self.references = References(weights, model, *parts)
        if self.references.missing([*self.stores.values(), *self.heldout.values()]):
            lora.load(self.module, checkpoint.load(path, with_optimizer=False).weights)
            for stores, what in ((self.stores, called), (self.heldout, f"held-out {called}")):
                for source, store in stores.items():
                    title = f"{what} of {source} under the weights of {self.planned.parent.name}"
                    self.references.make(self.module, store, self.display, title)
        self.figures = {REFERENCE: {name: self.references.load(store) for name, store in self.stores.items()}}

    def judge(self, objective: Objective) -> Judge:
        """By how held-out pairs are ranked, or what rated answers are worth."""
        find = self.references.load if self.references else None
        if isinstance(objective, RatedAnswers):
            assert find is not None, "it always compares"
            return RatedJudge(objective, self.heldout, find)
        assert isinstance(objective, PreferencePairs)
        return PairsJudge(objective, self.heldout, find)


def _require_both_kinds(stage: str, stores: Mapping[str, TokenStore]) -> None:
    """KTO weighs answers that are wanted against others that are not."""
    for kind, called in ((LEARNT, "is wanted"), (REJECTED, "is unwanted")):
        if not any(store.learnt is not None and (store.learnt == kind).any() for store in stores.values()):
            raise InputError(
                f"stages.{stage}: no answer of {', '.join(stores)} {called}, and kto learns from both kinds;"
                " add some, or take objective sft for wanted ones alone"
            )


class OwnAnswers(Rows):
    """Answers that the model gives itself, their rewards, and with objective ppo a critic of them."""

    unit = "questions"
    reference: LanguageModel | None = None
    critic: Critic | None = None

    def _sources(self) -> Mapping[str, TokenStore | Questions]:
        return self.prepared.questions(self.stage, "train", self.display)

    def refer(self) -> None:
        """Load the reward models, and the parent where the KL to it counts."""
        parts = (self.prepared.tokenizer, self.prepared.template, self.decisions.precision)
        self.answerer = Answerer(self.module, *parts)
        self.critic = Critic(self.stage.ppo) if self.stage.objective == "ppo" else None
        models: dict[str, Reward] = {}
        for name in self.stage.policy.reward_stages():
            models[f"{STAGE}{name}"] = Scorer(
                self._model_of(name, self.planned.beside[name], scores=True),
                self.decisions.precision,
                self.prepared.tokenizer.delimiter,
                self.decisions.microbatch_tokens,
            )
        self.rewards = Rewards(self.stage.policy.rewards, models)
        if self.stage.refers:
            assert self.planned.parent is not None, "the recipe's checks see to it"
            # With the rotary positions of this stage, as the weights that are compared with it.
            self.reference = self._model_of(self.planned.name, self.planned.parent, scores=False)

    def begin(self) -> None:
        """The critic's head may be that of a reward model."""
        if unlearnt := [name for name, weight in self.stage.policy.rewards.items() if weight == 0]:
            self.display.say(
                f"stage {self.planned.name}: {', '.join(unlearnt)}: of weight 0,"
                " so measured and not learnt from"
            )
        if self.critic is None or (name := self.stage.ppo.value_from) is None:
            return
        weights = checkpoint.load(final_checkpoint(self.planned.beside[name]), with_optimizer=False).weights
        with torch.no_grad():
            self.module.get_parameter(SCORE).copy_(weights[SCORE])
        self.display.say(f"stage {self.planned.name}: its critic begins with the head of {name}")

    def remarks(self, metrics: Path) -> list[str]:
        """How many steps had nothing to learn from. A critic learns from every answer."""
        if self.critic is not None:
            return []
        rows = json_lines.read_whole(metrics)
        spreads = [row["zero_spread"] for row in rows if "zero_spread" in row]
        if not (idle := spreads.count(1.0)):
            return []
        return [
            f"stage {self.planned.name}: in {idle} of {len(spreads)} steps all answers to each question"
            " were rewarded alike, so that no reward was learnt from; ask easier or harder questions, take"
            " more completions or other rewards"
        ]

    def facts(self) -> dict[str, Any]:
        """The coefficient of the KL, where it is steered."""
        return {"kl_coef": self.critic.kl_coef} if self.critic else {}

    def resume(self, facts: Mapping[str, Any]) -> None:
        """With the coefficient of the KL as it was."""
        if self.critic:
            self.critic.kl_coef = facts["kl_coef"]

    def last_microbatch(self, order: Order) -> Microbatch | None:
        """Nobody knows what will be answered."""
        return None

    def batches(self, order: Order, position: int) -> AbstractContextManager[Iterator[Batch]]:
        """Answers to the questions from a position on."""
        return Rollouts(
            order,
            cast(dict[str, Questions], self.sources),
            self.stage.policy,
            self.rewards,
            self.answerer,
            self.reference,
            self.stage.longest_row(),
            self.decisions.microbatch_tokens,
            position,
            self.critic,
        )

    def may_be_left(self, order: Order, position: int) -> bool:
        """Between the rounds of answers."""
        return may_be_left(order, self.stage.policy, position)

    def judge(self, objective: Objective) -> Judge:
        """By the rewards of answers to held-out questions."""
        questions = self.prepared.questions(self.stage, "heldout")
        return RewardJudge(self.answerer, questions, self.rewards, self.stage.policy, self.heldout)


def material_of(stage: Stage) -> type[Rows]:
    """What a stage learns from."""
    if stage.samples:
        return OwnAnswers
    return ComparedAnswers if stage.objective in ("dpo", "kto") else Rows
