"""What both sides are given: the recipe's sources as the tokens that Cupola makes of them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cupola.corpus import documents
from cupola.corpus.items import Item, Writing
from cupola.display import Display
from cupola.parallel.device import Precision
from cupola.pipeline.prepare import Prepared, prepare
from cupola.recipe.loading import load
from cupola.recipe.schema import Recipe

RECIPE = Path(__file__).with_name("recipe.yaml")
PARENT = "warm"


@dataclass(frozen=True)
class Task:
    """A stage of the recipe, and what it reads.

    Attributes:
        items: what is learnt from, without delimiters; empty where answers are sampled.
        at_once: conversations, pairs or answers of a forward and backward pass, where they are padded.
        run: folder of the run whose stage `warm` everything begins from; exported in `exported`.
    """

    recipe: Recipe
    prepared: Prepared
    name: str
    items: list[Item]
    run: Path
    precision: Precision
    at_once: int

    @classmethod
    def of(cls, spec: dict[str, Any]) -> "Task":
        """From what a worker is told."""
        recipe = load(RECIPE, spec["settings"])
        prepared = prepare(recipe, Display())
        name = spec["stage"]
        stage = recipe.stages[name]
        items: list[Item] = []
        if not stage.samples:
            (source,) = stage.sources()
            rows = stage.reading().rows
            assert rows is not None, "conversations and pairs are packed"
            writing = Writing(prepared.tokenizer, prepared.template, rows)
            lines = (d.text for d in documents(prepared.gathered[source], "train"))
            items = list(writing.items(lines, Counter()))
        return cls(recipe, prepared, name, items, Path(spec["run"]), spec["precision"], spec["at_once"])

    @property
    def exported(self) -> Path:
        """The same weights for Hugging Face."""
        return self.run / "exported"

    @property
    def items_per_step(self) -> int:
        """As many as fill a batch on average, in whole passes."""
        batch = self.recipe.stages[self.name].batch_tokens
        assert batch is not None
        passes = batch.values[0] / self.tokens_of_item / self.at_once
        return self.at_once * max(1, round(passes))

    @property
    def tokens_of_item(self) -> float:
        """Mean, of all its sequences with the delimiter that each begins with."""
        return float(np.mean([sum(len(ids) + 1 for ids, _ in item) for item in self.items]))

    def sequences(self) -> list[list[tuple[list[int], list[bool]]]]:
        """Items as TRL takes them: each sequence's ids, the delimiter first, and what of it is learnt."""
        delimiter = self.prepared.tokenizer.delimiter
        return [
            [([delimiter, *ids.tolist()], [False, *(kinds != 0).tolist()]) for ids, kinds in item]
            for item in self.items
        ]
