"""`huggingface:` a dataset of the Hugging Face hub, or a folder in its layout, streamed by the `datasets`
library (extra `huggingface`).

The dataset's revision is looked up once and recorded; gathering again reads the cache and asks nobody. A
folder's files are looked at each time (path, size, modification time). Nothing but the text is kept. The
library's own errors become `SourceUnavailable`, so that a fallback is taken.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupola.corpus.reading import Entry, Portion, Reading
from cupola.corpus.sources import Resolved, SourceUnavailable, Work
from cupola.corpus.sources.files import stamps
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.recipe.schema import Corpus

TOGETHER_BYTES = 2_000_000


class HuggingFaceSource:
    """One split of a dataset, as a stream."""

    def __init__(self, corpus: Corpus) -> None:
        assert corpus.huggingface is not None, "made only for blocks that name a dataset"
        self.corpus, self.name = corpus, corpus.huggingface
        self.local = os.path.isdir(self.name)
        self.label = f"huggingface {self.name}"
        self.revision: str | None = None

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        if self.local:
            return Resolved({"files": stamps(Path(self.name))}, {self.label: "local"})
        with self._available():
            import huggingface_hub

            self.revision = huggingface_hub.HfApi().dataset_info(self.name, timeout=30).sha
        return Resolved({"revision": self.revision}, {self.label: str(self.revision)})

    def open(self, workspace: Path, report: Reading) -> Work:
        with self._available():
            import datasets

            datasets.disable_progress_bars()
            rows = datasets.load_dataset(
                self.name,
                self.corpus.subset,
                split=self.corpus.split,
                streaming=True,
                revision=self.revision,
            )
        if self.corpus.max_bytes is None:
            report.warnings.append("without max_bytes the whole dataset is streamed")
        return Work(self._portions(rows, report), self.corpus.max_bytes)

    @contextmanager
    def _available(self) -> Iterator[None]:
        """Whatever fails inside is `SourceUnavailable`, and so is a library that is not installed."""
        if importlib.util.find_spec("datasets") is None:
            raise SourceUnavailable(
                "the datasets library is not installed (pip install 'cupola[huggingface]')"
            ) from None
        try:
            yield
        except Exception as error:
            # The library raises many kinds, of several packages, for the same few reasons.
            where = "be read by datasets" if self.local else "be had from the hub"
            raise SourceUnavailable(f"{self.name} cannot {where} ({_one_line(error)})") from None

    def _portions(self, rows: Any, report: Reading) -> Iterator[Portion]:
        source = f"huggingface:{self.name}"
        field = self.corpus.text_field
        entry = Entry(Path(), source, "text", source, self.corpus.licence or "see the dataset's page", 0)
        texts: list[tuple[str, str]] = []
        size = number = 0
        try:
            for number, row in enumerate(rows):
                text = row.get(field)
                if not isinstance(text, str):
                    report.dropped[f"no text in field {field!r}"] += 1
                    continue
                texts.append((f"{source}:{number}", text))
                size += len(text)
                if size >= TOGETHER_BYTES:
                    yield Portion([entry], size, texts=texts)
                    texts, size = [], 0
        except CupolaError:
            raise
        except Exception as error:
            raise CupolaError(
                f"{self.label}: the stream broke off at row {number} ({_one_line(error)}); gather it again"
            ) from error
        if texts:
            yield Portion([entry], size, texts=texts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
