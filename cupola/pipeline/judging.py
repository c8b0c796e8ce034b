"""What a stage is judged by, beside text: the answers in held-out conversations, or pairs of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cupola.corpus.tokenizer import Tokenizer
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.evaluate import (
    BitsPerByte,
    PairScores,
    Ranking,
    Rating,
    answer_bits,
    rank_pairs,
    read_ratings,
    score_pairs,
)
from cupola.models.stack import LanguageModel
from cupola.objectives import PreferencePairs, RatedAnswers
from cupola.parallel.device import Precision
from cupola.recipe.alignment import Policy
from cupola.train.answering import Answerer
from cupola.train.questions import Question, Questions
from cupola.train.rewards import Rewards

LOOKED_AT, AT_THE_END = 64, 1000
"""Held-out questions of each source that are answered in the course of a stage, and at its end."""
PREFERENCE = {name: f"preference_{name}" for name in ("pairs", "accuracy", "loss")}
"""Figures of a reward model that have the names which they have for a policy that learns from pairs."""


@dataclass(frozen=True)
class Subject:
    """Who is judged, and how.

    Attributes:
        most_tokens: of each source; None: all.
        display: shows the progress; None where it is short.
    """

    module: LanguageModel
    tokenizer: Tokenizer
    precision: Precision
    most_tokens: int | None
    display: Display | None


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        bits: source -> code length of its answers; of pairs, of the chosen ones.
        metrics: the objective's own figures, over all sources.
        said: the same for people; "" where there is nothing beside the bits.
    """

    bits: dict[str, BitsPerByte]
    metrics: dict[str, float] = field(default_factory=dict)
    said: str = ""


class Judge:
    """By the answers in held-out conversations.

    Args:
        stores: source -> its held-out rows; empty for a stage that learns from text.

    Attributes:
        writes: whether what the model writes says anything about what it has learnt.
    """

    writes = True

    def __init__(self, stores: Mapping[str, TokenStore]) -> None:
        self.stores = stores

    def judge(self, subject: Subject) -> Judgement:
        """Read the held-out rows, or the first of them."""
        return Judgement(self._bits(subject, chosen_only=False))

    def _bits(self, subject: Subject, chosen_only: bool) -> dict[str, BitsPerByte]:
        return {
            source: answer_bits(
                subject.module,
                store,
                subject.tokenizer,
                most_tokens=subject.most_tokens,
                chosen_only=chosen_only,
                precision=subject.precision,
                display=subject.display,
                title=f"held-out answers of {source}",
            )
            for source, store in self.stores.items()
        }


class PairsJudge(Judge):
    """By how held-out pairs are ranked.

    Args:
        objective: what the stage learns by.
        reference: a store's log-probabilities under the reference; None where the loss needs none.
    """

    def __init__(
        self,
        objective: PreferencePairs,
        stores: Mapping[str, TokenStore],
        reference: Callable[[TokenStore], np.ndarray] | None,
    ) -> None:
        super().__init__(stores)
        self.objective, self.reference = objective, reference

    def judge(self, subject: Subject) -> Judgement:
        """Read the held-out rows, or the first of them."""
        bits = self._bits(subject, chosen_only=True)
        rankings = [self._rank(subject, source, store) for source, store in self.stores.items()]
        whole = Ranking.of(rankings)
        if not whole.pairs:
            return Judgement(bits)
        metrics = {f"preference_{name}": value for name, value in whole.facts().items()}
        said = f"preference accuracy {whole.accuracy:.3f} of {whole.pairs:,} pairs, loss {whole.loss:.3f}"
        return Judgement(bits, metrics, said)

    def _rank(self, subject: Subject, source: str, store: TokenStore) -> Ranking:
        return rank_pairs(
            subject.module,
            self.objective,
            store,
            self.reference(store) if self.reference else None,
            most_tokens=subject.most_tokens,
            precision=subject.precision,
            display=subject.display,
            title=f"held-out pairs of {source}",
        )


class ScoresJudge(Judge):
    """By how a reward model scores held-out pairs. It writes nothing; the bits of chosen answers say how much
    of the language model is left below its head."""

    writes = False

    def judge(self, subject: Subject) -> Judgement:
        """Read the held-out rows, or the first of them."""
        bits = self._bits(subject, chosen_only=True)
        whole = PairScores.of(
            [
                score_pairs(
                    subject.module,
                    store,
                    most_tokens=subject.most_tokens,
                    precision=subject.precision,
                    display=subject.display,
                    title=f"held-out pairs of {source}",
                )
                for source, store in self.stores.items()
            ]
        )
        if not len(whole.rewards):
            return Judgement(bits)
        facts = whole.facts()
        metrics = {PREFERENCE.get(name, name): value for name, value in facts.items()}
        said = (
            f"preference accuracy {facts['accuracy']:.3f} of {facts['pairs']:,} pairs,"
            f" loss {facts['loss']:.3f}, calibration error {facts['calibration_error']:.3f}"
        )
        return Judgement(bits, metrics, said)


class RatedJudge(Judge):
    """By what held-out answers are worth that are wanted, and others that are not.

    Args:
        objective: what the stage learns by.
        reference: a store's log-probabilities under the reference.
    """

    def __init__(
        self,
        objective: RatedAnswers,
        stores: Mapping[str, TokenStore],
        reference: Callable[[TokenStore], np.ndarray],
    ) -> None:
        super().__init__(stores)
        self.objective, self.reference = objective, reference

    def judge(self, subject: Subject) -> Judgement:
        """Read the held-out rows, or the first of them."""
        bits = self._bits(subject, chosen_only=True)
        parts = [
            part
            for source, store in self.stores.items()
            for part in read_ratings(
                subject.module,
                self.objective,
                store,
                self.reference(store),
                most_tokens=subject.most_tokens,
                precision=subject.precision,
                display=subject.display,
                title=f"held-out answers of {source}",
            )
        ]
        whole = Rating.of(parts, self.objective.settings)
        if not whole.answers:
            return Judgement(bits)
        metrics = {f"preference_{name}": value for name, value in whole.facts().items()}
        said = f"preference accuracy {whole.accuracy:.3f} of {whole.answers:,} answers, loss {whole.loss:.3f}"
        return Judgement(bits, metrics, said)


class RewardJudge(Judge):
    """By the rewards of answers to held-out questions, the likeliest and one sampled at temperature 1."""

    def __init__(
        self,
        answerer: Answerer,
        questions: Mapping[str, Questions],
        rewards: Rewards,
        policy: Policy,
        stores: Mapping[str, TokenStore],
    ) -> None:
        super().__init__(stores)
        self.answerer, self.questions, self.rewards, self.policy = answerer, questions, rewards, policy

    def judge(self, subject: Subject) -> Judgement:
        """Answer held-out questions, or the first of them."""
        bits = self._bits(subject, chosen_only=False)
        number = AT_THE_END if subject.most_tokens is None else LOOKED_AT
        asked = [(s, question) for s in self.questions.values() for question in s.questions[:number]]
        if not asked:
            return Judgement(bits)
        greedy, sampled = (self._reward(asked, temperature) for temperature in (0.0, 1.0))
        metrics = {"reward": greedy, "reward_sampled": sampled, "questions": len(asked)}
        said = f"reward {greedy:.3f}, sampled {sampled:.3f}, of {len(asked):,} held-out questions"
        return Judgement(bits, metrics, said)

    def _reward(self, asked: list[tuple[Questions, Question]], temperature: float) -> float:
        done = self.answerer.sample(
            [question for _, question in asked], self.policy.max_completion_length, temperature, seed=0
        )
        given = [
            self.answerer.given(source, question, answer, (0, number))
            for number, ((source, question), answer) in enumerate(zip(asked, done, strict=True))
        ]
        totals, _ = self.rewards.of(given)
        return sum(totals) / len(totals)
