"""How the documents of a stage's sources become its rows: what of them is learnt, what is too long, how they
are packed, and how much of a source is long."""

from collections.abc import Collection
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from cupola.recipe.corpora import Format
from cupola.recipe.curve import Piecewise
from cupola.recipe.strict import Strict

Learn = Literal["answers", "last_answer", "all"]
TooLong = Literal["cut", "cut_start", "leave_out"]
Packing = Literal["stream", "best_fit"]
LONG = ".long"
"""What is put behind a source's name for its long documents; no corpus has a point in its name."""


class Supervised(Strict):
    """What of conversations a stage of objective sft learns, and what it does with long ones."""

    shorthand: ClassVar[str | None] = "learn"
    learn: Learn = "answers"
    """answers: all that the assistant says (TRL's assistant_only_loss). last_answer: only what it says last,
    given the rest. all: the whole conversation, questions too."""
    too_long: TooLong = "cut"
    """Of conversations longer than a row. cut: they lose their end. cut_start: they lose their first turns,
    whole ones; what the system says stays. leave_out: they are left out."""


class LongDocuments(Strict):
    """Long documents raised within each source, while the mixture of sources stays (Fu et al. 2024)."""

    over: int = Field(default=4096, ge=2)
    """A document is long that has at least so many tokens."""
    share: float = Field(default=0.7, gt=0, lt=1)
    """Of each source's tokens, how many come from its long documents."""


class Rows(NamedTuple):
    """How documents are packed whole into rows.

    Attributes:
        format: what is packed: `rated` also of pairs, each of which is two rated answers.
        length: tokens of a row.
    """

    format: Format
    length: int
    learn: Learn = "answers"
    too_long: TooLong = "cut"


class Reading(NamedTuple):
    """How a stage reads each of its sources.

    Attributes:
        rows: None where text is read as a stream that is cut into rows.
        long_over: of sources whose long documents are read by themselves, how long those are.
        longest_row: of such sources; what is less is not read by itself.
    """

    rows: Rows | None = None
    long_over: int | None = None
    longest_row: int | None = None


def with_long(
    data: Piecewise[dict[str, float]], share: float, stores: Collection[str]
) -> Piecewise[dict[str, float]]:
    """A mixture in which each source whose long documents are stored by themselves gives `share` of its
    weight to them."""

    def divided(weights: dict[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for source, weight in weights.items():
            if source + LONG in stores:
                found |= {source: weight * (1 - share), source + LONG: weight * share}
            else:
                found[source] = weight
        return found

    return Piecewise(tuple((start, divided(weights)) for start, weights in data.steps))
