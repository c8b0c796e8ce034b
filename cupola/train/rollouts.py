"""A policy's own answers as batches: questions in the stage's order, answers sampled from the weights as they
are, rewards, advantages, and rows to learn from.

Guarantees: what is sampled is a pure function of weights, seed, stage and position, so a stage that goes on
from a checkpoint asks, answers and learns what it would have. The tokens that are learnt are the very ones
that were sampled, never text that was encoded again. One round of answers may feed several steps (`updates`);
between them the stage can't be left, since its answers are kept nowhere.
Costs: sampling, which takes most of the time; one more forward pass where the ratio of probabilities is
needed or a critic looks ahead, and one of the weights that the stage began with where the KL to them is.
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
from cupola.generate.decode import Completion
from cupola.models.stack import LanguageModel
from cupola.objectives import advantages
from cupola.objectives.answer_log_probabilities import answer_log_probabilities
from cupola.objectives.answer_scores import token_values
from cupola.objectives.policy import ADVANTAGE, OLD, REFERENCE, SAMPLED, VALUE
from cupola.parallel.device import autocast
from cupola.recipe.alignment import Policy
from cupola.train.answer_rows import answer_rows
from cupola.train.answering import Answerer
from cupola.train.critic import Critic
from cupola.train.questions import Question, Questions
from cupola.train.rewards import Rewards


@dataclass(frozen=True)
class Sampled:
    """An answer: what was asked, what was said, and what it is worth: its advantage over others to the same
    question, or with a critic its score."""

    source: int
    question: Question
    completion: Completion
    worth: float


class Rollouts:
    """The batches of a stage that learns from rewards, from a position on; a context manager.

    Args:
        order: of the questions; its clock counts them.
        questions: source -> its questions.
        answerer: samples with the module that is trained.
        reference: the weights that the stage began with, where the KL to them is wanted.
        row_length: tokens of a row into which answers are packed with their questions.
        microbatch_tokens: as of `data.Loader`.
        critic: what finds each token's advantage; None: an answer's is its advantage over its group.
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
        critic: Critic | None = None,
    ) -> None:
        self.order, self.policy, self.rewards, self.answerer = order, policy, rewards, answerer
        self.sources = [questions[name] for name in order.names]
        self.reference, self.row_length = reference, row_length
        self.microbatch_tokens, self.position, self.critic = microbatch_tokens, position, critic

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
        each = self.policy.completions
        shares = [sampled[(start - first) * each : (end - first) * each] for start, end in steps]
        learnt = [self._learnt(share) for share in shares]
        parts = [list(self._microbatches(answers)) for answers in learnt]
        if self.critic is not None:
            found, more = self.critic.worth([microbatch for part in parts for microbatch in part])
            whole = iter(found)
            parts, figures = [[next(whole) for _ in part] for part in parts], figures | more
        for (start, end), share, answers, part in zip(steps, shares, learnt, parts, strict=True):
            yield self._batch(start, end, share, len(answers), part, figures)

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
            self.answerer.given(self.sources[source], question, done, (seed, n))
            for n, ((source, question), done) in enumerate(zip(repeated, completions, strict=True))
        ]
        totals, parts = self.rewards.of(given)
        lengths = torch.tensor([len(done.tokens) for done in completions])
        rewards = torch.tensor(totals, dtype=torch.float32)
        figures = {"reward": float(rewards.mean())}
        if len(parts) > 1 or policy.reward_stages():
            figures |= {f"reward_{name}": float(np.mean(values)) for name, values in parts.items()}
        if "check" in parts:
            figures |= pass_rates(torch.tensor(parts["check"]).view(-1, policy.completions))
        if policy.overlong_buffer:
            rewards += advantages.soft_overlong_punishment(
                lengths, policy.max_completion_length, policy.overlong_buffer
            )
        cut_off = torch.tensor([not answer.finished for answer in given], dtype=torch.float32)
        figures |= {
            "completion_length": float(lengths.float().mean()),
            "truncated": float(cut_off.mean()),
        }
        groups = rewards.view(-1, policy.completions)
        if policy.completions > 1:
            figures |= {
                "reward_std": float(groups.std(1).mean()),
                "zero_spread": float(advantages.zero_spread(groups).float().mean()),
            }
        if self.critic is not None:
            gains = (rewards - self.critic.settings.missing_eos_penalty * cut_off).tolist()
        else:
            gains = _advantages(groups, policy).flatten().tolist()
        return [
            Sampled(source, question, done, gain)
            for (source, question), done, gain in zip(repeated, completions, gains, strict=True)
        ], figures

    def _batch(
        self,
        start: int,
        end: int,
        sampled: Sequence[Sampled],
        learnt: int,
        microbatches: list[Microbatch],
        figures: dict[str, float],
    ) -> Batch:
        """A step's batch.

        Args:
            learnt: answers that count.
        """
        names = self.order.names
        by_source = dict.fromkeys(names, 0)
        for answer in sampled:
            by_source[names[answer.source]] += 1
        valid = sum(len(cast(Answers, part.answers).places) for part in microbatches)
        share = self.policy.completions
        return Batch(
            start=start,
            end=end,
            microbatches=microbatches,
            tokens_by_source={name: count // share for name, count in by_source.items()},
            valid_tokens=valid,
            sequences=learnt if self.policy.dynamic_sampling else len(sampled),
            figures=figures,
        )

    def _learnt(self, sampled: Sequence[Sampled]) -> list[Sampled]:
        """The answers that count. Where none does, a step without a gradient is taken all the same: the clock
        goes on."""
        counting = [answer for answer in sampled if self._counts(answer)]
        return counting or [replace(answer, worth=0.0) for answer in sampled]

    def _counts(self, answer: Sampled) -> bool:
        """Is the answer learnt from?"""
        if self.policy.mask_truncated and answer.completion.finish_reason != "stop":
            return False
        return answer.worth != 0 or not self.policy.dynamic_sampling

    def _microbatches(self, sampled: Sequence[Sampled]) -> Iterator[Microbatch]:
        said = [(answer.question.ids, answer.completion.tokens) for answer in sampled]
        figures: dict[str, list[Sequence[float]]] = {
            ADVANTAGE: [[answer.worth] * len(answer.completion.tokens) for answer in sampled],
            SAMPLED: [answer.completion.log_probabilities for answer in sampled],
        }
        delimiter = self.answerer.tokenizer.delimiter
        for _, rows in answer_rows(said, figures, self.row_length, self.microbatch_tokens, delimiter):
            yield self._with_figures(rows)

    @torch.no_grad()
    def _with_figures(self, microbatch: Microbatch) -> Microbatch:
        """With what the answers' tokens are worth to the weights as they are, and as they were at first, and
        what the critic expects before them."""
        found: dict[str, Tensor] = {}
        module = self.answerer.module
        there = microbatch.to(next(module.parameters()).device)
        with autocast(there.tokens.device, self.answerer.precision):
            if self.policy.updates > 1 or self.critic is not None:
                hidden = module.hidden(there.tokens, there.documents)
                found[OLD] = answer_log_probabilities(module, hidden, there, self.policy.temperature)
                if self.critic is not None:
                    found[VALUE] = token_values(module, hidden, there)
            if self.reference is not None:
                hidden = self.reference.hidden(there.tokens, there.documents)
                found[REFERENCE] = answer_log_probabilities(
                    self.reference, hidden, there, self.policy.temperature
                )
        answers = cast(Answers, microbatch.answers)
        figures = {**answers.figures, **{name: figure.cpu() for name, figure in found.items()}}
        return replace(microbatch, answers=replace(answers, figures=figures))


def may_be_left(order: Order, policy: Policy, position: int) -> bool:
    """Whether a round of answers ends at a position."""
    clock = order.clock
    return position >= clock.end or clock.step_at(position) % policy.updates == 0


def pass_rates(marks: Tensor) -> dict[str, float]:
    """Of questions by answers: the share of answers that are right, and of questions with a right one among
    all (Chen et al. 2021)."""
    right = marks == 1
    return {
        "pass_at_1": float(right.float().mean()),
        f"pass_at_{marks.shape[1]}": float(right.any(1).float().mean()),
    }


def _advantages(rewards: Tensor, policy: Policy) -> Tensor:
    if policy.advantages == "leave_one_out":
        return advantages.leave_one_out_advantages(rewards)
    return advantages.group_advantages(rewards, policy.advantages)


def _seed(seed: int, stage: str, position: int) -> int:
    """Of the answers of one round."""
    key = blake2b(f"{seed}/{stage}/{position}".encode(), digest_size=8, person=b"cupola rollouts")
    return int.from_bytes(key.digest(), "big") >> 1
