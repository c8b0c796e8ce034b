"""What a stage does beside training, and what it takes: evaluation, samples, checkpoints, answers of its own.

Each is done once in small, as the stage does it, and reckoned up by what there is to do: tokens that are
read, answers that are made, checkpoints that are saved.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cupola import optim
from cupola.checkpoint import folder as checkpoint
from cupola.data.store import TokenStore
from cupola.evaluate import bits_per_byte
from cupola.evaluate.heldout import DOCUMENTS_AT_LEAST
from cupola.generate import generate
from cupola.models.stack import LanguageModel
from cupola.objectives.cross_entropy import token_losses
from cupola.parallel.device import autocast, synchronize
from cupola.pipeline.judging import AT_THE_END, LOOKED_AT
from cupola.pipeline.observing import QUESTIONS
from cupola.pipeline.prepare import Prepared, heldout_texts
from cupola.pipeline.rehearsing import Rehearsal, random_rows
from cupola.recipe.schema import Stage
from cupola.train.answering import Answerer
from cupola.train.pace import Pace

READ_TOKENS = 12_288
"""Of held-out text, by which reading is timed; in windows that overlap by half about twice as many inputs."""
FEW, MORE = 1, 9
"""Tokens of answers, by which answering is timed."""
READ_TWICE = {"dpo", "kto", "reward"}
"""Objectives whose held-out rows are read once for the bits and once to judge by."""
TWICE_UNDER = 5.0
"""Seconds under which a measurement is made a second time, warm, and that one counts."""


def _warm(work: Callable[[], object], pace: Pace) -> float:
    """Seconds of some work."""
    seconds, before = 0.0, pace.probe()
    for _ in range(2):
        begun = time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        around = before, (before := pace.probe())
        if seconds > TWICE_UNDER:
            break
    return pace.levelled(seconds, *around)


def inputs_of(targets: np.ndarray, length: int) -> int:
    """Tokens that the model reads of documents with so many targets each, in windows that move by half of
    their length (`evaluate.bits.windows`)."""
    stride = max(1, length // 2)
    further = -(-np.maximum(0, targets - length) // stride)
    return int((np.minimum(targets, length) + further * length).sum())


def chosen_inputs(targets: np.ndarray, tokens: int, length: int) -> float:
    """About the same of a fixed choice of so many tokens (`evaluate.heldout.choose_texts`)."""
    capped = np.minimum(targets, max(1, tokens // DOCUMENTS_AT_LEAST))
    return inputs_of(capped, length) * min(1.0, tokens / max(1, capped.sum()))


class Reading:
    """How long held-out tokens take to read, and how many a stage reads.

    Attributes:
        rate: seconds of a token that is read.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.subject, self.module, self.pace = rehearsal.subject, rehearsal.module, rehearsal.pace
        self.length = self.subject.stage.longest_row()
        self.rate = self._of_text() or self._of_rows()

    def _of_text(self) -> float:
        """By the first held-out documents; 0 where there are none."""
        prepared = self.subject.prepared
        if prepared is None:
            return 0.0
        texts: list[str] = []
        sizes: list[int] = []
        for source in prepared.stores:
            for text in heldout_texts(prepared.gathered[source]):
                if sum(sizes) >= READ_TOKENS:
                    break
                size = len(prepared.tokenizer.encode(text))
                left = READ_TOKENS - sum(sizes)
                if size > left:
                    text, size = text[: max(1, len(text) * left // size)], left
                texts.append(text)
                sizes.append(size + 1)
        if not texts:
            return 0.0
        precision, tokenizer = self.subject.decisions.precision, prepared.tokenizer
        seconds = _warm(
            lambda: bits_per_byte(self.module, tokenizer, texts, self.length, precision=precision), self.pace
        )
        return seconds / inputs_of(np.array(sizes), self.length)

    def _of_rows(self) -> float:
        rows = random_rows(self.subject, max(1, READ_TOKENS // self.length), self.length)
        device = next(self.module.parameters()).device

        @torch.no_grad()
        def read() -> None:
            with autocast(device, self.subject.decisions.precision):
                there = rows.to(device)
                hidden = self.module.hidden(there.tokens, there.documents)
                counted = there.targets >= 0
                token_losses(hidden[counted], self.module.head_weight, there.targets[counted]).sum().item()

        return _warm(read, self.pace) / rows.tokens.numel()

    def tokens(self, at_end: bool) -> float:
        """Read by one evaluation."""
        prepared, stage = self.subject.prepared, self.subject.stage
        if prepared is None:
            return 0.0
        limit = self.subject.recipe.evaluate.tokens
        found = 0.0
        for folder in prepared.stores.values():
            targets = _lengths(TokenStore(folder / "heldout"))
            if at_end:
                found += inputs_of(targets, self.length)
            else:
                found += chosen_inputs(targets, limit, self.length)
        times = 2 if stage.objective in READ_TWICE else 1
        for store in prepared.heldout_stores(stage).values():
            length = store.row_length or self.length
            rows = store.documents if at_end else min(store.documents, max(1, limit // length))
            found += times * rows * length
        return found

    def referred(self) -> float:
        """Tokens that the weights read which the stage begins with."""
        prepared, stage = self.subject.prepared, self.subject.stage
        if prepared is None or not stage.refers_by_answers:
            return 0.0
        stores = [*prepared.train_stores(stage).values(), *prepared.heldout_stores(stage).values()]
        return float(sum(store.length for store in stores))


def _lengths(store: TokenStore) -> np.ndarray:
    """Tokens of each document, its delimiter included."""
    return np.diff(np.append(store.document_starts, store.length))


class Answering:
    """How long answers take to make.

    Args:
        rows: answers at a time.
        asked: tokens of a question.
    """

    def __init__(self, rehearsal: Rehearsal, rows: int, asked: int) -> None:
        self.rows = rows
        device, precision = rehearsal.device, rehearsal.subject.decisions.precision
        prompts = [[1] * max(1, asked)] * rows

        def make(tokens: int) -> None:
            with autocast(device, precision):
                generate(rehearsal.module, prompts, tokens)
            synchronize(device)

        few, more = (_warm(partial(make, tokens), rehearsal.pace) for tokens in (FEW, MORE))
        self.each = max(0.0, more - few) / (MORE - FEW)
        self.first = few

    def seconds(self, number: float, tokens: int) -> float:
        """Of so many answers of so many tokens each; those that are made together take as long as one."""
        return number / self.rows * (self.first + (tokens - 1) * self.each)


def samples_seconds(rehearsal: Rehearsal) -> float:
    """Of what is written at an evaluation."""
    subject = rehearsal.subject
    prepared, settings = subject.prepared, subject.recipe.evaluate
    if prepared is None or subject.stage.objective == "reward":
        return 0.0
    judged = prepared.heldout_stores(subject.stage)
    rows = QUESTIONS * len(judged) if judged else len(settings.prompts)
    return (
        Answering(rehearsal, rows, 16 if judged else 4).seconds(rows, settings.sample_tokens) if rows else 0.0
    )


def checkpoint_seconds(rehearsal: Rehearsal, scratch: Path) -> tuple[float, float]:
    """Of a save and of a load, timed in a folder that is made for it and goes again."""
    subject = rehearsal.subject
    facts = {
        "stage": subject.name,
        "step": 0,
        "global_step": 0,
        "tokens": 0,
        "seconds": 0.0,
        "vocabulary": subject.decisions.vocabulary,
        "tokenizer": "",
    }
    try:
        before, begun = rehearsal.pace.probe(), time.perf_counter()
        state = optim.optimizer_state(rehearsal.optimizer, rehearsal.module)
        path = checkpoint.save(scratch, rehearsal.module.state_dict(), state, facts)
        saved = time.perf_counter()
        checkpoint.load(path)
        spent = saved - begun, time.perf_counter() - saved
        around = before, rehearsal.pace.probe()
        return rehearsal.pace.levelled(spent[0], *around), rehearsal.pace.levelled(spent[1], *around)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class OwnAnswers:
    """What a stage's own answers take, with answers at their full length.

    Args:
        asked: tokens of a question, on average.
    """

    def __init__(self, rehearsal: Rehearsal, asked: float) -> None:
        stage = rehearsal.subject.stage
        self.policy, self.stage, self.asked = stage.policy, stage, asked
        self.most = stage.policy.max_completion_length
        together = stage.policy.prompts * stage.policy.completions
        self.answering = Answering(rehearsal, min(Answerer.at_once, together), round(asked))

    def rows(self, questions: int) -> int:
        """Into which a step's answers are packed, each with its question."""
        answers = questions * self.policy.completions
        fit = max(1, int(self.stage.longest_row() // max(1.0, self.asked + self.most)))
        return -(-answers // fit)

    def seconds(self, questions: int, reading: Reading) -> float:
        """Of a step, beside what is learnt of it."""
        answers = questions * self.policy.completions
        passes = self.policy.updates > 1 or self.stage.objective == "ppo"
        more = int(passes) + int(self.stage.refers) + len(self.policy.reward_stages())
        tokens = more * self.rows(questions) * self.stage.longest_row()
        return self.answering.seconds(answers, self.most) + tokens * reading.rate

    def judged(self, prepared: Prepared, at_end: bool) -> float:
        """Seconds of answering held-out questions, the likeliest answer and one that is sampled."""
        questions = prepared.questions(self.stage, "heldout").values()
        most = AT_THE_END if at_end else LOOKED_AT
        return 2 * self.answering.seconds(sum(min(most, each.length) for each in questions), self.most)


def weights_beside(module: LanguageModel, stage: Stage) -> int:
    """Bytes of the further models that a stage with answers of its own holds: the one that it began with, and
    reward models."""
    if not stage.samples:
        return 0
    held = sum(p.numel() * p.element_size() for p in module.parameters())
    return held * (int(stage.refers) + len(stage.policy.reward_stages()))
