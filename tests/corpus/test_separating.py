"""What one source holds out, no other source trains on."""

from pathlib import Path

import pytest

from cupola import storage
from cupola.corpus import documents
from cupola.corpus.documents import Document, DocumentWriter, totals
from cupola.corpus.separating import separate
from cupola.corpus.splitting import sections
from cupola.display import Display

pytestmark = pytest.mark.usefixtures("cache")


def size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def source(folder: Path, train: list[str], heldout: list[str]) -> Path:
    facts = {
        "documents": {"train": len(train), "heldout": len(heldout)},
        "bytes": {
            "train": sum(len(t.encode()) for t in train),
            "heldout": sum(len(t.encode()) for t in heldout),
        },
    }
    with storage.new_folder(folder, facts) as aside:
        for split, texts in (("train", train), ("heldout", heldout)):
            with DocumentWriter(aside / f"{split}.parquet") as writer:
                for number, text in enumerate(texts):
                    writer.write(Document(text, f"{split}{number}", "test", "none"))
    return folder


def texts(folder: Path, split: str) -> list[str]:
    return [document.text for document in documents(folder, split)]


def test_sources_that_share_nothing_are_left_as_they_are(tmp_path):
    given = {
        "a": source(tmp_path / "a", ["one", "two"], ["three"]),
        "b": source(tmp_path / "b", ["four"], ["five"]),
    }
    assert separate(given, Display()) == given


def test_what_another_source_holds_out_is_not_trained_on(tmp_path, heard):
    a = source(tmp_path / "a", ["Common  text here", "only in a"], ["held by a"])
    b = source(tmp_path / "b", ["only in b", "HELD by a"], ["common text\nhere"])
    for _ in range(2):  # the second time from the cache
        separated = separate({"a": a, "b": b}, heard)
        assert texts(separated["a"], "train") == ["only in a"]
        assert texts(separated["b"], "train") == ["only in b"]
        assert texts(separated["a"], "heldout") == ["held by a"]
        assert texts(separated["b"], "heldout") == ["common text\nhere"]
        assert totals(separated["a"], "train") == (1, len(b"only in a"))
        storage.verify(separated["a"])
    assert sum("held out by another source" in text for text in heard.warnings) == 4


def test_a_section_of_a_long_document_is_taken_out_alone(tmp_path):
    book = "\n\n".join(f"Paragraph {number} of a long book. " * 40 for number in range(200))
    parts = sections(book)
    assert len(parts) > 3
    a = source(tmp_path / "a", [book], ["something else"])
    b = source(tmp_path / "b", ["other"], [parts[1].text])
    [left] = texts(separate({"a": a, "b": b}, Display())["a"], "train")
    assert left == "".join(part.text for number, part in enumerate(parts) if number != 1)
