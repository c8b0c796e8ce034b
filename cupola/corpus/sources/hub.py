"""`huggingface:` a dataset of the Hugging Face hub, or a folder in its layout, streamed by the `datasets`
library (extra `huggingface`).

The dataset's revision is looked up once and recorded; gathering again reads the cache and asks nobody. A
folder's files are looked at each time (path, size, modification time). Nothing but the text is kept. The
library's own errors become `SourceUnavailable`, so that a fallback is taken. The library rarely says which
file of a folder it could not read, so after a failure the files are read one by one until one fails.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupola.corpus.reading import Entry, Portion, Reading
from cupola.corpus.sources import Resolved, SourceUnavailable, Work
from cupola.corpus.sources.files import stamps
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.recipe.corpora import Corpus

TOGETHER_BYTES = 2_000_000
MEND_FILE = "mend or remove it, or name the folder by `files`, which passes over what cannot be read"
_DATASET = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
"""A dataset of the hub: a name, or an owner and a name. Anything else is a path."""


class HuggingFaceSource:
    """One split of a dataset, as a stream."""

    def __init__(self, corpus: Corpus) -> None:
        assert corpus.huggingface is not None, "made only for blocks that name a dataset"
        self.corpus, self.name = corpus, os.path.expanduser(corpus.huggingface)
        self.local = os.path.isdir(self.name)
        self.label = f"huggingface {self.name}"
        self.revision: str | None = None

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        if self.local:
            return Resolved({"files": stamps(Path(self.name))}, {self.label: "local"})
        if os.path.exists(self.name):
            raise SourceUnavailable(f"{self.name}: is no folder; a single file is given by `files`")
        if not _DATASET.fullmatch(self.name):
            raise SourceUnavailable(f"{self.name}: no such folder (looked from {Path.cwd()})")
        with self._available():
            import huggingface_hub

            self.revision = huggingface_hub.HfApi().dataset_info(self.name, timeout=30).sha
        return Resolved({"revision": self.revision}, {self.label: str(self.revision)})

    def open(self, workspace: Path, report: Reading) -> Work:
        with self._available():
            import datasets

            datasets.disable_progress_bars()
            rows = self._rows()
        if self.corpus.max_bytes is None and not self.local:
            report.warnings.append("without max_bytes the whole dataset is streamed")
        return Work(self._portions(rows, report), self.corpus.max_bytes)

    def _rows(self, **options: Any) -> Any:
        import datasets

        return datasets.load_dataset(
            self.name,
            self.corpus.subset,
            split=self.corpus.split,
            streaming=True,
            revision=self.revision,
            **options,
        )

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
            why = _one_line(error)
            if self.local and (file := self._unreadable_file()):
                raise SourceUnavailable(f"{file}: cannot be read by datasets ({why}); {MEND_FILE}") from None
            where = "be read by datasets" if self.local else "be had from the hub"
            raise SourceUnavailable(f"{self.name} cannot {where} ({why})") from None

    def _unreadable_file(self) -> str | None:
        """The first file of the folder that the library cannot read to its end; reads all before it again."""
        import datasets

        verbosity = datasets.logging.get_verbosity()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it says has been said
        try:
            builder = datasets.load_dataset_builder(self.name, self.corpus.subset)
            for file in builder.config.data_files[self.corpus.split]:
                try:
                    for _ in self._rows(data_files={self.corpus.split: [file]}):
                        pass
                except Exception:
                    return str(file)
        except Exception:
            return None  # it is no folder of files, or there is no such split: no file is to blame
        finally:
            datasets.logging.set_verbosity(verbosity)
        return None

    def _portions(self, rows: Any, report: Reading) -> Iterator[Portion]:
        source = f"huggingface:{self.name}"
        field = self.corpus.text_field
        entry = Entry(Path(), source, "text", source, self.corpus.licence or "see the dataset's page", 0)
        is_text = self.corpus.holds() == "text"
        ready: list[tuple[str, Any]] = []
        size = number = 0
        try:
            for number, row in enumerate(rows):
                content = row.get(field) if is_text else row
                if is_text and not isinstance(content, str):
                    report.dropped[f"no text in field {field!r}"] += 1
                    continue
                ready.append((f"{source}:{number}", content))
                size += len(str(content))
                if size >= TOGETHER_BYTES:
                    yield Portion([entry], size, ready=ready)
                    ready, size = [], 0
        except CupolaError:
            raise
        except Exception as error:
            if self.local and (file := self._unreadable_file()):
                raise InputError(
                    f"{file}: cannot be read by datasets ({_one_line(error)}); {MEND_FILE}"
                ) from error
            raise CupolaError(
                f"{self.label}: the stream broke off at row {number} ({_one_line(error)}); gather it again"
            ) from error
        if ready:
            yield Portion([entry], size, ready=ready)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
