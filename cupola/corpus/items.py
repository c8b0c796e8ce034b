"""From records to what is packed into rows: conversations, pairs of answers, rated answers.

An item is a sequence of tokens, or several, each between delimiters, and stands whole in one row:

- of a conversation, itself;
- of a pair, the chosen answer with its prompt, and then the rejected one with the same prompt, of which the
  answers alone are learnt;
- of a rated answer, it with its prompt, and then the same prompt with the answer to another one, by whose
  likelihood KTO estimates how far the policy has gone. The other is the next in the order of the records
  whose prompt differs (TRL's is the one before in its batch); of pairs the chosen answers come first, so that
  a chosen one goes with a chosen one.

A conversation that is longer than a row is cut or left out, as the recipe says; a pair or a rated answer that
is longer is dropped, since what a cut leaves is none. All that is set aside is counted by its reason.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cupola.chat import conversation, preference, rated
from cupola.chat.conversation import Conversation, Unusable
from cupola.chat.encoding import encode
from cupola.chat.rated import Rated
from cupola.chat.template import ChatTemplate
from cupola.corpus.tokenizer import Tokenizer
from cupola.data.batch import LEARNT, MISMATCHED, REJECTED
from cupola.recipe.corpora import Format
from cupola.recipe.rows import Rows

VERSION = 4
"""Raised whenever the same records would give another store."""
ALIKE = "chosen and rejected are the same once the template has written them"
Sequence = tuple[np.ndarray, np.ndarray]
"""Ids, (tokens,) int32, and what of them is learnt, (tokens,) uint8 (`data.batch`)."""
Item = tuple[Sequence, ...]


@dataclass(frozen=True)
class Writing:
    """How records become rows."""

    tokenizer: Tokenizer
    template: ChatTemplate
    rows: Rows

    def facts(self) -> dict[str, str | int]:
        """Everything that the rows depend on, beside the records."""
        return {
            "version": VERSION,
            "tokenizer": self.tokenizer.fingerprint,
            "template": self.template.fingerprint,
            **self.rows._asdict(),
        }

    def items(self, lines: Iterable[str], set_aside: Counter[str]) -> Iterator[Item]:
        """The items of a split's lines (`chat.records`); what gives none is counted under its reason."""
        return ITEMS[self.rows.format](self, lines, set_aside)

    def sequence(self, whole: Conversation, answers_given: int = 0, kind: int = LEARNT) -> Sequence:
        """The tokens of a conversation, and `kind` for what is learnt of it.

        Raises:
            Unusable: nothing is.
        """
        found = encode(self.template, self.tokenizer, whole, answers_given)
        return found.ids, found.mask.astype(np.uint8) * np.uint8(kind)


def length_of(item: Item) -> int:
    """Tokens of an item, with a delimiter after each of its sequences."""
    return sum(len(ids) + 1 for ids, _ in item)


Maker = Callable[[Writing, str, Counter[str]], Item | None]


def _each(make: Maker) -> Callable[[Writing, Iterable[str], Counter[str]], Iterator[Item]]:
    """Of lines that have nothing to do with each other."""

    def items(writing: Writing, lines: Iterable[str], set_aside: Counter[str]) -> Iterator[Item]:
        for line in lines:
            try:
                item = make(writing, line, set_aside)
            except Unusable as error:
                set_aside[f"were dropped: {error.reason}"] += 1
                continue
            if item is not None:
                yield item

    return items


def _conversation(writing: Writing, line: str, set_aside: Counter[str]) -> Item | None:
    whole, rows = conversation.from_json(line), writing.rows
    found = _learnt_of(writing, whole)
    if len(found[0]) < rows.length:
        return (found,)
    longer = f"are longer than a row of {rows.length} tokens and"
    if rows.too_long == "leave_out":
        set_aside[f"{longer} were left out"] += 1
        return None
    if rows.too_long == "cut_start":
        shorter = _without_first_turns(writing, whole)
        if shorter is None:
            set_aside[f"were dropped: their last turn is longer than a row of {rows.length} tokens"] += 1
            return None
        set_aside[f"{longer} lost their first turns"] += 1
        return (shorter,)
    ids, learnt = (part[: rows.length - 1] for part in found)
    if not learnt.any():
        set_aside[f"were dropped: no answer begins within a row of {rows.length} tokens"] += 1
        return None
    set_aside[f"{longer} lost their end"] += 1
    return ((ids, learnt),)


def _learnt_of(writing: Writing, whole: Conversation) -> Sequence:
    answers = sum(message.role == "assistant" for message in whole.messages)
    learn = writing.rows.learn
    ids, learnt = writing.sequence(whole, answers - 1 if learn == "last_answer" else 0)
    return (ids, np.full_like(learnt, LEARNT)) if learn == "all" else (ids, learnt)


def _without_first_turns(writing: Writing, whole: Conversation) -> Sequence | None:
    """The most of a conversation's last turns that fits, behind what the system says; None where not even the
    last one does."""
    messages = whole.messages
    first = 1 if messages[0].role == "system" else 0
    last = max(n for n, message in enumerate(messages) if message.role == "assistant")
    starts = [n for n, message in enumerate(messages[:last]) if message.role == "user"]

    def from_turn(start: int) -> Sequence:
        return _learnt_of(writing, Conversation((*messages[:first], *messages[start:]), whole.tools))

    place = bisect_left(starts, True, key=lambda start: len(from_turn(start)[0]) < writing.rows.length)
    return from_turn(starts[place]) if place < len(starts) else None


def _pair(writing: Writing, line: str, set_aside: Counter[str]) -> Item | None:
    pair = preference.from_json(line)
    given = sum(message.role == "assistant" for message in pair.prompt)
    item = tuple(
        writing.sequence(whole, given, kind)
        for whole, kind in zip(pair.conversations(), (LEARNT, REJECTED), strict=True)
    )
    if _alike(item):
        set_aside[f"were dropped: {ALIKE}"] += 1
        return None
    if length_of(item) > writing.rows.length:
        set_aside[
            f"were dropped: both answers with their prompts are over a row of {writing.rows.length}"
        ] += 1
        return None
    return item


def _alike(sides: Item) -> bool:
    """Whether both have the same tokens: a template may strip blanks, by which alone the answers differed."""
    (one, _), (other, _) = sides
    return np.array_equal(one, other)


def _rated(writing: Writing, lines: Iterable[str], set_aside: Counter[str]) -> Iterator[Item]:
    sides: tuple[list[Rated], list[Rated]] = ([], [])
    for line in lines:
        found = rated.from_json(line)
        if len(found) == 2 and _alike(tuple(writing.sequence(one.conversation()) for one in found)):
            set_aside[f"were dropped: {ALIKE}"] += 2
            continue
        for side, one in zip(sides, found, strict=False):
            side.append(one)
    answers = [*sides[0], *sides[1]]
    others = next_of_another([one.prompt for one in answers])
    if others is None:
        if answers:
            set_aside["were dropped: all are to one prompt, and kto compares with answers to others"] += len(
                answers
            )
        return
    for one, other in zip(answers, others, strict=True):
        given = sum(message.role == "assistant" for message in one.prompt)
        mismatched = Conversation((*one.prompt, *answers[other].answer), one.tools)
        try:
            item = (
                writing.sequence(one.conversation(), given, LEARNT if one.desirable else REJECTED),
                writing.sequence(mismatched, given, MISMATCHED),
            )
        except Unusable as error:
            set_aside[f"were dropped: {error.reason}"] += 1
            continue
        if length_of(item) > writing.rows.length:
            set_aside[
                "were dropped: with their prompt, and another's answer to it, they are over a row of"
                f" {writing.rows.length}"
            ] += 1
            continue
        yield item


def next_of_another(prompts: list[tuple[conversation.Message, ...]]) -> list[int] | None:
    """Of each place the next one (the first follows the last) whose prompt differs; None where none does."""
    count = len(prompts)
    found: list[int] = [-1] * count
    for place in reversed(range(2 * count)):  # twice around, so that the last ones know the first ones
        here, following = place % count, (place + 1) % count
        found[here] = following if prompts[here] != prompts[following] else found[following]
    return None if -1 in found else found


ITEMS: dict[Format, Callable[[Writing, Iterable[str], Counter[str]], Iterator[Item]]] = {
    "chat": _each(_conversation),
    "preference": _each(_pair),
    "rated": _rated,
}
