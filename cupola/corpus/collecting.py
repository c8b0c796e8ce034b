"""From documents as they were read to the two sides of a source: repeats out, split, limit, counts.

One process does this, in the order of reading. It keeps the hashes of what has been taken, fingerprints of
the package being read, and the few documents that the minimum of held-out text may still need.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from cupola.corpus.documents import Document, DocumentWriter
from cupola.corpus.reading import Read
from cupola.corpus.splitting import Section, is_heldout

REPEATED_FORMAT = 0.5
"""Share of a document's anchors found in better formats of its package from which it is that text again."""
REPEATED_PAGE = 0.8
"""The same for a page of over `WHOLE_MANUAL` characters in the format itself: the manual on one page."""
WHOLE_MANUAL = 100_000
FEW_ANCHORS = 8


@dataclass(frozen=True, slots=True)
class _Taken:
    """A document without its repeated sections: (number of the section, section) of the rest."""

    read: Read
    sections: list[tuple[int, Section]]

    @property
    def lowest(self) -> int:
        return min(section.key for _, section in self.sections)


class _Repeats:
    """Finds text that its package holds in a better format already; formats come in order of preference."""

    def __init__(self) -> None:
        self.source = self.format = ""
        self.better: set[int] = set()
        self.same: set[int] = set()

    def found(self, read: Read) -> str | None:
        """The reason why this document is a repeat, or None; then it is remembered."""
        if read.source != self.source:
            self.source, self.format, self.better, self.same = read.source, read.format, set(), set()
        if read.format != self.format:
            self.better |= self.same
            self.format, self.same = read.format, set()
        marks = read.anchors
        if len(marks) >= FEW_ANCHORS:
            if len(marks & self.better) > REPEATED_FORMAT * len(marks):
                return "same text in another format"
            long = sum(len(section.text) for section in read.sections) > WHOLE_MANUAL
            if long and len(marks & self.same) > REPEATED_PAGE * len(marks):
                return "whole manual repeated on one page"
        self.same |= marks
        return None


class Collector:
    """Takes documents one by one; `finish` once at the end."""

    def __init__(
        self, heldout_share: float, max_bytes: int | None, train: DocumentWriter, heldout: DocumentWriter
    ) -> None:
        self.share, self.max_bytes = heldout_share, max_bytes
        self.writers: dict[Literal["train", "heldout"], DocumentWriter] = {"train": train, "heldout": heldout}
        self.dropped: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self.taken_bytes = 0
        self.seen: set[int] = set()
        self.repeats = _Repeats()
        self.candidates: list[_Taken] = []
        """The documents with the lowest key so far, kept back while nothing is held out."""
        self.any_heldout = heldout_share == 0

    @property
    def full(self) -> bool:
        """Is `max_bytes` reached?"""
        return self.max_bytes is not None and self.taken_bytes >= self.max_bytes

    def add(self, read: Read) -> None:
        """Take a document, unless it is a repeat."""
        reason = self.repeats.found(read)
        if reason:
            self.dropped[reason] += 1
            return
        sections = []
        for number, section in enumerate(read.sections):
            if section.hash not in self.seen:
                self.seen.add(section.hash)
                sections.append((number, section))
        if not sections:
            self.dropped["exact duplicate"] += 1
            return
        if len(sections) < len(read.sections):
            self.dropped["exact duplicate (section)"] += len(read.sections) - len(sections)
        self.taken_bytes += sum(len(section.text.encode("utf-8")) for _, section in sections)
        self.licences[read.licence] += 1
        self._place(_Taken(read, sections))

    def _place(self, taken: _Taken) -> None:
        if self.any_heldout:
            self._write(taken)
        elif is_heldout(taken.lowest, self.share):
            self.any_heldout = True
            self._write(taken)
            self._write_candidates()
        elif self.candidates and taken.lowest == self.candidates[0].lowest:
            self.candidates.append(taken)
        elif not self.candidates or taken.lowest < self.candidates[0].lowest:
            self._write_candidates()
            self.candidates = [taken]
        else:
            self._write(taken)

    def finish(self) -> None:
        """Write what was kept back; hold its lowest section out if there is any other text."""
        if self.candidates:
            alone = (
                len(self.seen)
                == sum(len(taken.sections) for taken in self.candidates)
                == len(self.candidates)
            )
            self._write_candidates(None if alone else self.candidates[0].lowest)

    def _write_candidates(self, forced: int | None = None) -> None:
        for taken in self.candidates:
            self._write(taken, forced)
        self.candidates = []

    def _write(self, taken: _Taken, forced: int | None = None) -> None:
        run: list[tuple[int, Section]] = []
        for number, section in taken.sections:
            out = section.key == forced or is_heldout(section.key, self.share)
            if run and (out or number != run[-1][0] + 1):
                self._document(taken.read, run, "train")
                run = []
            if out:
                self._document(taken.read, [(number, section)], "heldout")
            else:
                run.append((number, section))
        if run:
            self._document(taken.read, run, "train")

    def _document(
        self, read: Read, run: list[tuple[int, Section]], side: Literal["train", "heldout"]
    ) -> None:
        name, first, last = read.id, run[0][0], run[-1][0]
        if len(run) < len(read.sections):
            name += f"#{first}" if first == last else f"#{first}-{last}"
        text = "".join(section.text for _, section in run).strip("\n")
        self.writers[side].write(Document(text, name, read.source, read.licence))
