"""`generate:` conversations, pairs of answers, or texts that a program makes, from its seed alone or from
what another source holds; or a package that makes them, whose version is part of the text's address.

The files that a program reads come by the ordinary keys beside `generate` (`npm: ..., files: ...`), or from
the program's own package where the recipe names none. Only their text is taken, as it stands; what the
program can't read is skipped and counted. Items are made one after the other, in the order of their numbers,
by the process that gathers: 6,000 to 20,000 conversations, or some 250,000 words of text, a second.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cupola.corpus.cleaning import decode
from cupola.corpus.generators import TEXT_PROGRAMS, Facts, Items, Turns, document_id, program_of
from cupola.corpus.generators.gym import MISSING
from cupola.corpus.generators.items import number_below
from cupola.corpus.reading import Entry, Portion, Reading, UnreadableFile, whole
from cupola.corpus.sources import Resolved, Source, SourceUnavailable, Work
from cupola.display import Display
from cupola.recipe.corpora import Corpus

ITEMS = 10_000
"""How many of those programs that have no end of them."""
TRIES = 20
"""Other questions that are asked for a wrong answer."""
TOGETHER_ITEMS, TOGETHER_TEXTS = 4096, 256
ITEM_BYTES, WORD_BYTES = 200, 6
"""What a conversation, and a word of a text, count for in the progress."""


class GeneratedSource:
    """The program that the block names, and the source of its facts."""

    def __init__(self, corpus: Corpus, source_of: Callable[[Corpus], Source]) -> None:
        assert corpus.generate is not None, "made only for blocks that name a program"
        self.name, self.program = corpus.generate, program_of(corpus)
        self.seed, self.wanted, self.licence = corpus.seed, corpus.items, corpus.licence
        self.words = corpus.length_in_words()
        self.pairs = corpus.holds() == "preference"
        block = self.program.facts if self.program else None
        if corpus.read_from():
            block = corpus.model_copy(update={"generate": None})
        self.facts = None if block is None else source_of(block)
        self.local = self.facts is None or self.facts.local
        self.label = " ".join(["generate", self.name, *([corpus.task] if corpus.task else [])])
        self.label += f" from {self.facts.label}" if self.facts else ""

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        if self.program and self.program.requires:
            version = _installed(self.program.requires)
            return Resolved({self.program.requires: version}, {self.program.requires: version})
        return self.facts.resolve(display, refresh) if self.facts else Resolved({})

    def open(self, workspace: Path, report: Reading) -> Work:
        facts, licence = self._facts(workspace, report)
        items: Items[Any]
        if self.program:
            items, each = self.program.items(self.seed, facts), ITEM_BYTES
        else:
            items, each = TEXT_PROGRAMS[self.name](self.seed, self.words), sum(self.words) // 2 * WORD_BYTES
        report.dropped.update(items.unasked)
        number = self.wanted or items.usual or items.size or ITEMS
        if items.size is not None and number > items.size:
            report.warnings.append(f"{number:,} items are asked for, and there are {items.size:,}")
            number = items.size
        return Work(self._portions(items, number, each, licence), number * each)

    def _portions(self, items: Items[Any], number: int, each: int, licence: str) -> Iterator[Portion]:
        source = f"generate:{self.name}"
        entry = Entry(Path(), source, "ready", source, licence, 0)
        together = TOGETHER_ITEMS if self.program else TOGETHER_TEXTS
        for first in range(0, number, together):
            places = range(first, min(first + together, number))
            records = [(document_id(self.name, place), self._ready(items, place)) for place in places]
            yield Portion([entry], len(places) * each, ready=records)

    def _facts(self, workspace: Path, report: Reading) -> tuple[list[Facts], str]:
        """What the program reads, and its licence."""
        if self.facts is None or self.program is None:
            return [], self.licence or "made by a program, no rights claimed"
        pieces: dict[str, list[bytes]] = {}
        licences: dict[str, None] = {}
        for portion in self.facts.open(workspace, report).portions:
            for entry in portion.entries:
                if portion.ready is not None or entry.format != self.program.reads:
                    report.skipped[f"not {self.program.reads}, which {self.name} reads"] += 1
                    continue
                try:
                    data = portion.data if portion.data is not None else whole(entry)
                except UnreadableFile as error:
                    report.skipped[error.reason] += 1
                    report.warnings.append(f"{entry.id}: skipped, {error}")
                    continue
                pieces.setdefault(entry.id, []).append(data)
                licences[entry.licence] = None
        facts = [(name, decode(b"".join(parts)).text) for name, parts in pieces.items()]
        return facts, self.licence or ", ".join(licences)

    def _ready(self, items: Items[Any], place: int) -> Any:
        """An item as a text or a record."""
        if self.program is None:
            return items.make(place)
        if not self.pairs:
            return {"messages": _messages(items.make(place))}
        *turns, right = items.make(place)
        mistake = self.program.mistake
        wrong = mistake(turns[-1], right) if mistake else _other(items, place, right)
        return {"prompt": _messages(turns), "chosen": right, "rejected": wrong}


def _installed(package: str) -> str:
    """The version of a package that an extra of its name installs."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise SourceUnavailable(MISSING.format(package=package)) from None


def _other(items: Items[Turns], place: int, answer: str) -> str:
    """What is answered to another question; where all answers are the same, that one, and it is dropped."""
    size = items.size or ITEMS
    for attempt in range(TRIES):
        other = items.make(number_below(size, "other", place, attempt))[-1]
        if other != answer:
            return other
    return answer


def _messages(turns: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
