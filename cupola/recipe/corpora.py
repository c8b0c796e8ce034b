"""The recipe's `corpora:`, where text comes from, one block for each source."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from cupola.recipe.strict import Share, Strict
from cupola.recipe.variables import escaped, unescaped

PythonText = Literal["documentation", "docstrings", "code"]
PACKAGES = ("apt", "npm", "pypi")
"""Kinds of source beside which `files` are patterns inside the package."""
KINDS = ("files", "huggingface", *PACKAGES, "python")
"""Kinds of source: the keys of a corpus, of which it names one."""


class Corpus(Strict):
    """One source of text. Exactly one of files, huggingface, apt, npm, pypi, python."""

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
        named = [kind for kind in KINDS if getattr(self, kind)]
        if any(kind in PACKAGES for kind in named):
            named = [kind for kind in named if kind != "files"]
        return named
