"""Cupola's side: the stages of the recipe by the loop, the loader and the decoder of `cupola run`."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from bench.posttraining.gate import Gate
from bench.posttraining.task import PARENT, Task
from cupola import objectives, optim
from cupola.data.batch import Answers, Batch, Microbatch
from cupola.data.loader import Loader, packed_rows
from cupola.data.packing import fill
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.objectives.preference import REFERENCE
from cupola.parallel.device import autocast
from cupola.parallel.engine import LocalEngine
from cupola.pipeline.decisions import CPU_MICROBATCH_TOKENS
from cupola.pipeline.opening import open_run
from cupola.pipeline.reference import References
from cupola.pipeline.stage import stage_clock, stage_order
from cupola.train.answering import Answerer
from cupola.train.loop import StageSetup, train_stage
from cupola.train.memory import keep_freed_memory
from cupola.train.questions import Questions
from cupola.train.rewards import Rewards
from cupola.train.rollouts import Rollouts

Batches = Callable[[int], AbstractContextManager[Iterator[Batch]]]


class Ours:
    """The parts of a stage, as `pipeline.stage` puts them together."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.stage = task.recipe.stages[task.name]
        self.sources = task.prepared.train_sources(self.stage)
        self.clock = stage_clock(self.stage, self.sources)
        self.order = stage_order(task.recipe, task.name, self.stage, self.sources, self.clock)
        self.opened = open_run(task.run, Display(), PARENT)
        self.module = self.opened.module
        self.objective = objectives.build(self.stage)
        prepared = task.prepared
        self.answerer = Answerer(self.module, prepared.tokenizer, prepared.template, task.precision)
        self.parameters = sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def store(self) -> TokenStore:
        """The one source's."""
        (store,) = self.sources.values()
        assert isinstance(store, TokenStore)
        return store

    def train(self, gate: Gate, batches: Batches) -> None:
        """Until the gate's other side has had enough."""

        @contextlib.contextmanager
        def gated(position: int) -> Iterator[Iterator[Batch]]:
            with batches(position) as inner:
                yield _between(inner, gate)

        with tempfile.TemporaryDirectory() as folder:
            setup = StageSetup(
                name=self.task.name,
                clock=self.clock,
                engine=LocalEngine(self.module, self.task.precision, self.opened.device),
                optimizer=optim.build(self.module, self.stage.optimizer),
                objective=self.objective,
                batches=gated,
                metrics=Path(folder) / "metrics.jsonl",
                save=lambda progress: None,
                save_every=self.task.recipe.checkpoint.every,
                evaluate=lambda progress, at_end: {},
                evaluate_every=self.task.recipe.evaluate.every,
                flops_per_token=lambda length: 0.0,
                peak_flops=1.0,
                unit="questions" if self.stage.samples else "tokens",
            )
            train_stage(setup, Display())

    @torch.no_grad()
    def first(self, microbatches: Iterable[Microbatch]) -> dict[str, float]:
        """What the weights make of microbatches, before the first step: mean loss, and metrics."""
        sums: dict[str, float] = {}
        counted = 0
        with autocast(self.opened.device, self.task.precision):
            for microbatch in microbatches:
                parts = self.objective.loss(self.module, microbatch)
                for name, value in {"loss": parts.loss, **parts.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                assert microbatch.answers is not None
                pairs = microbatch.answers.count // 2
                counted += pairs if self.task.name == "dpo" else len(microbatch.answers.places)
        names = ("loss", "chosen_log_prob", "rejected_log_prob")
        return {name: sums[name] / counted for name in names if name in sums}

    def stored(self, figures: dict[str, np.ndarray] | None = None) -> Iterator[Microbatch]:
        """The whole store, a microbatch at a time."""
        assert self.store.row_length is not None
        rows = CPU_MICROBATCH_TOKENS // self.store.row_length
        for start in range(0, self.store.documents, rows):
            yield packed_rows(self.store, start, min(start + rows, self.store.documents), figures)

    def units_of_batch(self) -> float:
        """Tokens that are not filler, on average."""
        rows = self.clock.boundary(1) / self.stage.longest_row()
        tokens = self.task.tokens_of_item * len(self.task.items)
        return rows * tokens / self.store.documents


def _between(batches: Iterator[Batch], gate: Gate) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        gate.done(**batch.figures)


def packed(task: Task, gate: Gate) -> None:
    """Supervised fine-tuning as `cupola run` does it."""
    ours = Ours(task)
    gate.units = ours.units_of_batch()
    gate.say(parameters=ours.parameters, first=ours.first(ours.stored()))
    gate.wait()
    ours.train(gate, lambda at: Loader(ours.order, ours.sources, at, microbatch_tokens=CPU_MICROBATCH_TOKENS))


def padded(task: Task, gate: Gate) -> None:
    """The same with a conversation a row, filled up to the longest of its microbatch."""
    ours = Ours(task)
    gate.units = task.items_per_step * task.tokens_of_item
    shuffled = np.random.default_rng(0).permutation(len(task.items))

    def rows(numbers: np.ndarray) -> Microbatch:
        items = [task.items[number] for number in numbers]
        longest = max(len(ids) for item in items for ids, _ in item)
        delimiter = task.prepared.tokenizer.delimiter
        # Without a delimiter after it a row is as long as its item, and with the one before it as TRL's.
        filled = fill([[index] for index in range(len(items))], items, longest, delimiter)
        opened = np.full((len(items), 1), delimiter)
        return Microbatch.of_rows(
            np.concatenate([opened, filled.tokens], axis=1),
            delimiter,
            learnt=np.concatenate([opened != delimiter, filled.learnt], axis=1),
        )

    def microbatches() -> Iterator[Microbatch]:
        for start in range(0, len(task.items), task.at_once):
            yield rows(shuffled[start : start + task.at_once])

    def batches() -> Iterator[Batch]:
        endless = itertools.chain.from_iterable(microbatches() for _ in itertools.count())
        for start, end in ours.clock.steps():
            found = list(itertools.islice(endless, task.items_per_step // task.at_once))
            learnt = sum(_learnt(part) for part in found)
            yield Batch(start, end, found, dict.fromkeys(ours.order.names, end - start), learnt)

    gate.say(parameters=ours.parameters, first=ours.first(microbatches()))
    gate.wait()
    ours.train(gate, lambda at: contextlib.nullcontext(batches()))


def _learnt(part: Microbatch) -> int:
    answers = part.answers
    assert isinstance(answers, Answers)
    return len(answers.places)


def pairs(task: Task, gate: Gate) -> None:
    """DPO, its reference read before."""
    ours = Ours(task)
    (source,) = ours.sources
    references = References(
        f"bench {task.run}", task.recipe.model_of(task.name), task.precision, CPU_MICROBATCH_TOKENS
    )
    references.make(ours.module, ours.store, Display(), "reference")
    known = references.load(ours.store)
    gate.units = ours.units_of_batch()
    gate.say(parameters=ours.parameters, first=ours.first(ours.stored({REFERENCE: known})))
    gate.wait()
    figures = {REFERENCE: {source: known}}
    ours.train(
        gate,
        lambda at: Loader(
            ours.order, ours.sources, at, microbatch_tokens=CPU_MICROBATCH_TOKENS, figures=figures
        ),
    )


def reference(task: Task, gate: Gate) -> None:
    """What the pairs are worth to the weights that DPO begins with: all of them, and again."""
    ours = Ours(task)
    keep_freed_memory()
    gate.units = task.tokens_of_item * len(task.items)
    gate.say(parameters=ours.parameters, first={})
    gate.wait()
    for number in itertools.count():
        references = References(
            f"bench {task.run} {number}",
            task.recipe.model_of(task.name),
            task.precision,
            CPU_MICROBATCH_TOKENS,
        )
        shutil.rmtree(references.folder(ours.store), ignore_errors=True)
        references.make(ours.module, ours.store, Display(), "reference")
        shutil.rmtree(references.folder(ours.store))
        gate.done()


def sampling(task: Task, gate: Gate) -> None:
    """Answers to the questions of a step, and nothing learnt from them."""
    ours = Ours(task)
    keep_freed_memory()
    policy = ours.stage.policy
    (questions,) = ours.sources.values()
    assert isinstance(questions, Questions)
    gate.units = policy.prompts * policy.completions
    gate.say(parameters=ours.parameters, first={})
    gate.wait()
    for seed, (start, end) in enumerate(ours.clock.steps()):
        asked = [questions.questions[row["offset"]] for row in ours.order.rows(start, end)]
        repeated = [question for question in asked for _ in range(policy.completions)]
        done = ours.answerer.sample(repeated, policy.max_completion_length, policy.temperature, seed)
        gate.done(
            completion_length=float(np.mean([len(answer.tokens) for answer in done])),
            truncated=float(np.mean([answer.finish_reason != "stop" for answer in done])),
        )


def rewards(task: Task, gate: Gate) -> None:
    """GRPO: sampling, rewards, update."""
    ours = Ours(task)
    policy = ours.stage.policy
    questions = {name: source for name, source in ours.sources.items() if isinstance(source, Questions)}
    gate.units = policy.prompts * policy.completions
    gate.say(parameters=ours.parameters, first={})
    gate.wait()
    ours.train(
        gate,
        lambda at: Rollouts(
            ours.order,
            questions,
            policy,
            Rewards(policy.rewards),
            ours.answerer,
            None,
            ours.stage.longest_row(),
            CPU_MICROBATCH_TOKENS,
            at,
        ),
    )
