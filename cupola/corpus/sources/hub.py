"""`huggingface:` a dataset of the Hugging Face hub, streamed by the `datasets` library (extra
`huggingface`).

The dataset's revision is looked up once and recorded; gathering again reads the cache and asks nobody.
Nothing but the text is kept. The library's own errors become `SourceUnavailable`, so that a fallback is
taken.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cupola.corpus.reading import Entry, Portion, Reading
from cupola.corpus.sources import Resolved, SourceUnavailable, Work
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.recipe.schema import Corpus

TOGETHER_BYTES = 2_000_000


class HuggingFaceSource:
    """One split of a dataset, as a stream."""

    local = False

    def __init__(self, corpus: Corpus) -> None:
        assert corpus.huggingface is not None, "made only for blocks that name a dataset"
        self.corpus, self.name = corpus, corpus.huggingface
        self.label = f"huggingface {self.name}"
        self.revision: str | None = None
        self.rows: Any = None

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        try:
            import datasets
            import huggingface_hub
        except ImportError:
            raise SourceUnavailable(
                "the datasets library is not installed (pip install 'cupola[huggingface]')"
            ) from None
        datasets.disable_progress_bars()
        try:
            if not os.path.isdir(self.name):
                self.revision = huggingface_hub.HfApi().dataset_info(self.name, timeout=30).sha
            with display.task(f"opening {self.label}"):
                self.rows = datasets.load_dataset(
                    self.name,
                    self.corpus.subset,
                    split=self.corpus.split,
                    streaming=True,
                    revision=self.revision,
                )
        except Exception as error:
            # The library raises many kinds, of several packages, for the same few reasons.
            line = " ".join(str(error).split())[:200]
            raise SourceUnavailable(
                f"{self.name} cannot be had from the hub ({line or type(error).__name__})"
            ) from None
        if self.corpus.max_bytes is None:
            display.warn(f"{self.label}: without max_bytes the whole dataset is streamed")
        return Resolved({"revision": self.revision}, {self.label: self.revision or "local"})

    def open(self, workspace: Path, report: Reading) -> Work:
        return Work(self._portions(report), self.corpus.max_bytes)

    def _portions(self, report: Reading) -> Iterator[Portion]:
        source = f"huggingface:{self.name}"
        field = self.corpus.text_field
        entry = Entry(Path(), source, "text", source, self.corpus.licence or "see the dataset's page", 0)
        texts: list[tuple[str, str]] = []
        size = number = 0
        try:
            for number, row in enumerate(self.rows):
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
            line = " ".join(str(error).split())[:200]
            raise CupolaError(
                f"{self.label}: the stream broke off at row {number} ({line}); gather it again"
            ) from error
        if texts:
            yield Portion([entry], size, texts=texts)
