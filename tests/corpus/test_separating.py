"""What one source holds out, no other source trains on."""

from pathlib import Path

import pytest

from cupola import storage
from cupola.corpus import documents, gather
from cupola.corpus.documents import Document, DocumentWriter, totals
from cupola.corpus.separating import separate
from cupola.corpus.splitting import sections
from cupola.display import Display
from cupola.errors import InputError
from cupola.recipe.corpora import Corpus

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
    left = texts(separate({"a": a, "b": b}, Display())["a"], "train")
    assert left == [parts[0].text, "".join(part.text for part in parts[2:])]


def test_other_shares_of_the_same_books_leave_nothing_held_out_in_training_text(tmp_path):
    """Two sources of the same long files: whatever either holds out, no trained text holds its words."""
    folder = tmp_path / "books"
    folder.mkdir()
    for book in range(12):
        paragraphs = [f"Book {book}, paragraph {n}: " + f"words {n * book} and {n} " * 30 for n in range(450)]
        (folder / f"{book}.txt").write_text("\n\n".join(paragraphs)[: 220_000 + 3_000 * book])
    shares = {"a": 0.3, "b": 0.1}
    gathered = {n: gather(n, Corpus(files=str(folder), heldout=s), Display()).path for n, s in shares.items()}
    separated = separate(gathered, Display())
    assert separated != gathered
    trained = "\n".join(" ".join(t.split()) for path in separated.values() for t in texts(path, "train"))
    heldout = [" ".join(t.split()) for path in gathered.values() for t in texts(path, "heldout")]
    assert len(heldout) > 5
    for text in heldout:
        assert text not in trained


def test_a_source_of_which_nothing_is_left_is_refused(tmp_path):
    a = source(tmp_path / "a", ["something"], ["common"])
    b = source(tmp_path / "b", ["common"], ["other"])
    with pytest.raises(InputError, match=r"corpora\.b"):
        separate({"a": a, "b": b}, Display())


@pytest.mark.parametrize("whole_sections", [2, 4])
@pytest.mark.parametrize("extra", [0, 30_000, 55_000, 60_000, 70_000])
def test_a_copy_of_a_books_beginning_loses_what_is_held_out_and_gains_nothing(
    tmp_path, whole_sections, extra
):
    paragraphs = [f"Paragraph {n}. " + f"words {n * n} and {n} " * 20 for n in range(1200)]
    book = "\n\n".join(paragraphs)
    parts = [part.text for part in sections(book)]
    beginning = book[: len("".join(parts[:whole_sections])) + extra]
    beginning = beginning[: beginning.rfind("\n\n")]
    a = source(tmp_path / "a", [beginning, "xx begins this one"], ["something else"])
    b = source(tmp_path / "b", ["other"], [parts[1], parts[whole_sections]])
    left = texts(separate({"a": a, "b": b}, Display())["a"], "train")
    kept = [line for text in left for line in text.split("\n\n") if line.strip()]
    held = {line.strip() for line in parts[1].split("\n\n")}
    assert not held & {line.strip() for line in kept}
    assert {line.strip() for line in kept} <= {*map(str.strip, paragraphs), "xx begins this one"}
    assert "xx begins this one" in kept


def test_a_part_that_begins_like_the_filler_is_kept(tmp_path):
    book = "\n\n".join("xx" + f" paragraph {n} of many words " * 60 for n in range(300))
    parts = [part.text for part in sections(book)]
    a = source(tmp_path / "a", [book], ["something else"])
    b = source(tmp_path / "b", ["other"], [parts[2]])
    left = texts(separate({"a": a, "b": b}, Display())["a"], "train")
    assert "".join(left) == "".join(parts[:2] + parts[3:])
