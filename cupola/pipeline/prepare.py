"""From a recipe's corpora to token stores: gather, train the tokenizer, encode. All of it from the cache
when nothing has changed.

Text is stored once, and once more for each length that a stage tells its long documents by, and each length
of rows that it packs it into; records once for each kind of rows (`recipe.rows`).
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola.chat import conversation, rated
from cupola.chat.conversation import Message
from cupola.chat.template import ChatTemplate, load_template
from cupola.corpus import documents, gather
from cupola.corpus.documents import Split
from cupola.corpus.encoding import encode_source
from cupola.corpus.generators import Marks, marks_of
from cupola.corpus.items import Writing
from cupola.corpus.packed_text import by_length, in_rows
from cupola.corpus.records import encode_records
from cupola.corpus.separating import separate
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import train_for
from cupola.data.store import TokenStore
from cupola.display import Display, count
from cupola.errors import InputError
from cupola.paths import cache_root
from cupola.pipeline.asking import read_questions
from cupola.recipe.rows import Reading
from cupola.recipe.schema import Recipe, Stage
from cupola.storage import read_manifest
from cupola.train.questions import Questions


@dataclass(frozen=True)
class Prepared:
    """What training reads.

    Attributes:
        template: how conversations are written down.
        gathered: source -> folder of clean text.
        stores: source of text -> folder of its two token stores.
        read: source, and how a stage reads it -> what its data order draws from, by name (the source's, and
            one for its long documents) -> folder of token stores; of records their two, of text `train`.
        vocabulary: rows of embedding and head.
        facts: for the run's record: what each source took, documents, bytes, tokens, fingerprint.
        marks: source -> how answers to its questions are judged, where a program can tell.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    vocabulary: int
    gathered: dict[str, Path]
    stores: dict[str, Path]
    read: dict[tuple[str, Reading], dict[str, Path]]
    facts: dict[str, Any]
    marks: Mapping[str, Marks | None]

    def train_sources(self, stage: Stage) -> Mapping[str, TokenStore | Questions]:
        """What a stage's data order draws from, by source: stores, or the questions that it answers."""
        return self.questions(stage, "train") if stage.samples else self.train_stores(stage)

    def questions(self, stage: Stage, split: Split, display: Display | None = None) -> dict[str, Questions]:
        """The questions of a stage that answers them, by source; those that leave room for an answer."""
        longest = stage.longest_row() - stage.policy.max_completion_length
        return {
            source: read_questions(
                source,
                self.gathered[source],
                split,
                self.tokenizer,
                self.template,
                longest,
                self.marks[source],
                display,
            )
            for source in stage.sources()
        }

    def train_stores(self, stage: Stage) -> dict[str, TokenStore]:
        """The stores that a stage reads, by source; of long documents that are read by themselves another."""
        folders = [self.read[source, stage.reading()] for source in stage.sources()]
        return {name: TokenStore(path / "train") for each in folders for name, path in each.items()}

    def heldout_stores(self, stage: Stage) -> dict[str, TokenStore]:
        """The held-out rows of a stage that learns from records, by source."""
        records = [source for source in stage.sources() if source not in self.stores]
        folders = {source: self.read[source, stage.reading()][source] for source in records}
        return {source: TokenStore(path / "heldout") for source, path in folders.items()}

    def heldout_openings(self, source: str, number: int) -> list[tuple[Message, ...]]:
        """What is said before the first answer in the first held-out conversations of a source, or before
        the answers of its pairs and rated answers."""
        lines = [d.text for d in itertools.islice(documents(self.gathered[source], "heldout"), number)]
        if self.facts[source]["format"] != "chat":
            return [rated.from_json(line)[0].prompt for line in lines]
        found = []
        for line in lines:
            messages = conversation.from_json(line).messages
            first = next(i for i, message in enumerate(messages) if message.role == "assistant")
            found.append(messages[:first])
        return found

    def heldout_facts(self) -> dict[str, dict[str, str]]:
        """Of each source of text: its folder in the cache, and the SHA-256 of its held-out text."""
        return {
            name: {
                "folder": str(self.gathered[name].relative_to(cache_root())),
                "sha256": read_manifest(self.gathered[name])["files"]["heldout.parquet"]["sha256"],
            }
            for name in self.stores
        }


def heldout_texts(gathered: Path) -> Iterator[str]:
    """The held-out documents of a gathered source."""
    return (document.text for document in documents(gathered, "heldout"))


def _check_vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> None:
    rows = recipe.rows(tokenizer.size)
    if rows < tokenizer.size:
        raise InputError(
            f"model.vocabulary: {rows} is less than the tokenizer's {tokenizer.size}; leave it out, or lower"
            " tokenizer.vocabulary"
        )


def prepare(recipe: Recipe, display: Display) -> Prepared:
    """Gather, tokenize and store every source that a stage reads."""
    sources = recipe.sources()
    mixture = recipe.tokenizer_mixture()
    wanted = [*sources, *(name for name in mixture if name not in sources)]
    gathered = {name: gather(name, recipe.corpora[name], display) for name in wanted}
    formats = {name: corpus.holds() for name, corpus in recipe.corpora.items()}
    texts = {name: item.path for name, item in gathered.items() if formats[name] == "text"}
    records = {name: item.path for name, item in gathered.items() if formats[name] != "text"}
    texts, records = separate(texts, display), separate(records, display, in_parts=False)
    tokenizer = train_for(recipe.tokenizer, texts, mixture, display)
    _check_vocabulary(recipe, tokenizer)
    template = load_template(recipe.tokenizer.chat_template)
    stores = {name: encode_source(texts[name], tokenizer, display, name) for name in sources if name in texts}
    read: dict[tuple[str, Reading], dict[str, Path]] = {}
    for stage in recipe.stages.values():
        reading = stage.reading()
        for name in stage.sources():
            if (name, reading) in read:
                continue
            if name in records:
                assert reading.rows is not None, "records are packed"
                writing = Writing(tokenizer, template, reading.rows)
                read[name, reading] = {name: encode_records(records[name], writing, display, name)}
            else:
                read[name, reading] = _text_stores(name, stores[name], reading, tokenizer, display)
    folders = {**{name: each[name] for (name, _), each in read.items()}, **stores}
    facts = {}
    for name in sources:
        store = TokenStore(folders[name] / "train")
        facts[name] = {**gathered[name].facts, "tokens": store.length, "fingerprint": store.fingerprint}
        if store.row_length is None:
            each = store.bytes / store.length
            display.say(f"{name}: {count(store.length)} tokens, {each:.2f} bytes per token")
    rows = recipe.rows(tokenizer.size)
    taken = {name: not item.facts["taken"]["fallback"] for name, item in gathered.items()}
    marks = {name: marks_of(recipe.corpora[name]) if taken[name] else None for name in sources}
    return Prepared(tokenizer, template, rows, {**texts, **records}, stores, read, facts, marks)


def _text_stores(
    name: str, folder: Path, reading: Reading, tokenizer: Tokenizer, display: Display
) -> dict[str, Path]:
    """What a stage's data order draws from of a source of text."""
    rows, over, longest = reading
    parts = {name: folder}
    if over is not None and longest is not None:
        parts = by_length(folder, tokenizer, over, longest, display, name)
    if rows is not None:
        parts = {part: in_rows(path, tokenizer, rows.length, display, part) for part, path in parts.items()}
    return parts
