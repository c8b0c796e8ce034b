"""A policy's own answers as batches: questions in the stage's order, answers sampled from the weights as they
are, rewards, advantages, and rows to learn from.

Guarantees: what is sampled is a pure function of weights, seed, stage and position, so a stage that goes on
from a checkpoint asks, answers and learns what it would have. The tokens that are learnt are the very ones
that were sampled, never text that was encoded again. One round of answers may feed several steps (`updates`);
between them the stage can't be left, since its answers are kept nowhere.
Costs: sampling, which takes most of the time; one more forward pass where the ratio of probabilities is
needed, and one of the weights that the stage began with where the KL to them is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cupola.data.batch import Answers, Batch, Microbatch
from cupola.data.order import Order
from cupola.data.packing import fill, pack
from cupola.generate.decode import Completion
from cupola.models.stack import LanguageModel
from cupola.objectives import advantages
from cupola.objectives.answer_log_probabilities import answer_log_probabilities
from cupola.objectives.policy import ADVANTAGE, OLD, REFERENCE, SAMPLED
from cupola.parallel.device import autocast
from cupola.recipe.alignment import Policy
from cupola.train.answering import Answerer
from cupola.train.questions import Question, Questions
from cupola.train.rewards import Given, Rewards


@dataclass(frozen=True)
class Sampled:
    """An answer: what was asked, what was said, and what it is worth."""

    source: int
    question: Question
    completion: Completion
    advantage: float


class Rollouts:
    """The batches of a stage that learns from rewards, from a position on; a context manager.

    Args:
        order: of the questions; its clock counts them.
        questions: source -> its questions.
        answerer: samples with the module that is trained.
        reference: the weights that the stage began with, where the KL to them is wanted.
        row_length: tokens of a row into which answers are packed with their questions.
        microbatch_tokens: as of `data.Loader`.
    """

    def __init__(
        self,
        order: Order,
        questions: dict[str, Questions],
        policy: Policy,
        rewards: Rewards,
        answerer: Answerer,
        reference: LanguageModel | None,
        row_length: int,
        microbatch_tokens: int,
        position: int = 0,
    ) -> None:
        self.order, self.policy, self.rewards, self.answerer = order, policy, rewards, answerer
        self.sources = [questions[name] for name in order.names]
        self.reference, self.row_length = reference, row_length
        self.microbatch_tokens, self.position = microbatch_tokens, position

    def __enter__(self) -> Iterator[Batch]:
        return self._batches()

    def __exit__(self, *exception: object) -> None:
        pass

    def _batches(self) -> Iterator[Batch]:
        waiting: list[tuple[int, int]] = []
        for step in self.order.clock.steps(self.position):
            waiting.append(step)
            if may_be_left(self.order, self.policy, step[1]):
                yield from self._round(waiting)
                waiting = []

    def _round(self, steps: list[tuple[int, int]]) -> Iterator[Batch]:
        """The batches of some steps, all from one round of answers."""
        first, last = steps[0][0], steps[-1][1]
        rows = self.order.rows(first, last)
        asked = [(int(row["source"]), self.sources[row["source"]].questions[row["offset"]]) for row in rows]
        sampled, figures = self._answers(asked, first)
        done = []
        for start, end in steps:
            share = slice((start - first) * self.policy.completions, (end - first) * self.policy.completions)
            done.append(self._batch(start, end, sampled[share], figures))
        yield from done

    def _answers(
        self, asked: Sequence[tuple[int, Question]], position: int
    ) -> tuple[list[Sampled], dict[str, float]]:
        """`completions` answers to each question, one question after the other, and what they came to."""
        policy = self.policy
        repeated = [pair for pair in asked for _ in range(policy.completions)]
        seed = _seed(self.order.seed, self.order.stage, position)
        completions = self.answerer.sample(
            [question for _, question in repeated], policy.max_completion_length, policy.temperature, seed
        )
        given = [
            Given(
                self.sources[source],
                question,
                self.answerer.text(done),
                done.finish_reason == "stop",
                (seed, n),
            )
            for n, ((source, question), done) in enumerate(zip(repeated, completions, strict=True))
        ]
        totals, parts = self.rewards.of(given)
        lengths = torch.tensor([len(done.tokens) for done in completions])
        rewards = torch.tensor(totals, dtype=torch.float32)
        figures = {"reward": float(rewards.mean())}
        if len(parts) > 1:
            figures |= {f"reward_{name}": float(np.mean(values)) for name, values in parts.items()}
        if policy.overlong_buffer:
            rewards += advantages.soft_overlong_punishment(
                lengths, policy.max_completion_length, policy.overlong_buffer
            )
        groups = rewards.view(-1, policy.completions)
        figures |= {
            "reward_std": float(groups.std(1).mean()),
            "zero_spread": float(advantages.zero_spread(groups).float().mean()),
            "completion_length": float(lengths.float().mean()),
            "truncated": float(np.mean([not answer.finished for answer in given])),
        }
        gains = _advantages(groups, policy).flatten().tolist()
        return [
            Sampled(source, question, done, gain)
            for (source, question), done, gain in zip(repeated, completions, gains, strict=True)
        ], figures

    def _batch(self, start: int, end: int, sampled: Sequence[Sampled], figures: dict[str, float]) -> Batch:
        names = self.order.names
        by_source = dict.fromkeys(names, 0)
        for answer in sampled:
            by_source[names[answer.source]] += 1
        # Where none counts, a step without a gradient is taken all the same: the clock goes on.
        learnt = [answer for answer in sampled if self._counts(answer)] or [
            replace(answer, advantage=0.0) for answer in sampled
        ]
        microbatches = list(self._microbatches(learnt))
        valid = sum(len(cast(Answers, part.answers).places) for part in microbatches)
        share = self.policy.completions
        return Batch(
            start=start,
            end=end,
            microbatches=microbatches,
            tokens_by_source={name: count // share for name, count in by_source.items()},
            valid_tokens=valid,
            sequences=len(learnt) if self.policy.dynamic_sampling else len(sampled),
            figures=figures,
        )

    def _counts(self, answer: Sampled) -> bool:
        """Is the answer learnt from?"""
        if self.policy.mask_truncated and answer.completion.finish_reason != "stop":
            return False
        return answer.advantage != 0 or not self.policy.dynamic_sampling

    def _microbatches(self, sampled: Sequence[Sampled]) -> Iterator[Microbatch]:
        items = [[_sequence(answer)] for answer in sampled]
        lengths = np.array([len(ids) + 1 for ((ids, _),) in items], dtype=np.int64)
        delimiter = self.answerer.tokenizer.delimiter
        rows = pack(lengths, self.row_length)
        at_once = max(1, self.microbatch_tokens // self.row_length)
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            filled = fill(some, items, self.row_length, delimiter)
            order = [sampled[index] for row in some for index in row]
            opened = np.full((len(some), 1), delimiter)
            learnt = np.concatenate([np.zeros((len(some), 1), dtype=bool), filled.learnt], axis=1)
            figures = {ADVANTAGE: np.zeros(filled.owners.shape, dtype=np.float32)}
            here = filled.owners >= 0
            gains = np.array([answer.advantage for answer in order], dtype=np.float32)
            figures[ADVANTAGE][here] = gains[filled.owners[here]]
            figures[SAMPLED] = np.zeros_like(figures[ADVANTAGE])
            log_probs = [p for answer in order for p in answer.completion.log_probabilities]
            figures[SAMPLED][here] = log_probs  # row after row, as they were filled
            tokens = np.concatenate([opened, filled.tokens], axis=1)
            yield self._with_probabilities(
                Microbatch.of_rows(tokens, delimiter, np.zeros(len(some), dtype=np.int64), learnt, figures)
            )

    def _with_probabilities(self, microbatch: Microbatch) -> Microbatch:
        """With what the answers' tokens are worth to the weights as they are, and as they were at first."""
        found: dict[str, Tensor] = {}
        if self.policy.updates > 1:
            found[OLD] = self._log_probs(self.answerer.module, microbatch)
        if self.reference is not None:
            found[REFERENCE] = self._log_probs(self.reference, microbatch)
        answers = cast(Answers, microbatch.answers)
        return replace(microbatch, answers=replace(answers, figures={**answers.figures, **found}))

    @torch.no_grad()
    def _log_probs(self, module: LanguageModel, microbatch: Microbatch) -> Tensor:
        device = next(module.parameters()).device
        with autocast(device, self.answerer.precision):
            there = microbatch.to(device)
            hidden = module.hidden(there.tokens, there.documents)
            return answer_log_probabilities(module, hidden, there, self.policy.temperature).cpu()


def may_be_left(order: Order, policy: Policy, position: int) -> bool:
    """Whether a round of answers ends at a position."""
    clock = order.clock
    return position >= clock.end or clock.step_at(position) % policy.updates == 0


def _sequence(answer: Sampled) -> tuple[np.ndarray, np.ndarray]:
    """Question and answer without the delimiter before them, and what of it is learnt."""
    question = answer.question.ids[1:]
    ids = np.concatenate([question, np.array(answer.completion.tokens, dtype=np.int64)])
    mask = np.arange(len(ids)) >= len(question)
    return ids, mask


def _advantages(rewards: Tensor, policy: Policy) -> Tensor:
    if policy.advantages == "leave_one_out":
        return advantages.leave_one_out_advantages(rewards)
    return advantages.group_advantages(rewards, policy.advantages)


def _seed(seed: int, stage: str, position: int) -> int:
    """Of the answers of one round."""
    key = blake2b(f"{seed}/{stage}/{position}".encode(), digest_size=8, person=b"cupola rollouts")
    return int.from_bytes(key.digest(), "big") >> 1
