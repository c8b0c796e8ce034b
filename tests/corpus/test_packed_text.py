"""Rows of whole documents, and the long documents of a source by themselves."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cupola.corpus.packed_text import by_length, in_rows
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import train
from cupola.data.loader import packed_rows
from cupola.data.store import StoreWriter, TokenStore
from tests.displays import Heard

ROW = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["some words to train on"], 300).tokenizer


@pytest.fixture
def heard() -> Heard:
    return Heard()


def stored(folder: Path, tokenizer: Tokenizer, lengths: list[int]) -> Path:
    """A text's store of documents of different words, as many as the lengths."""
    random = np.random.default_rng(1)
    with StoreWriter(folder / "train", tokenizer, {"text": "made in a test"}) as writer:
        for length in lengths:
            ids = random.integers(40, 250, length)
            writer.append([ids], int(tokenizer.text_bytes[ids].sum()))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "cache"))
    lengths = [5, 31, 12, 70, 3, 62, 32, 0, 8, 20, 93, 1]
    return stored(tmp_path / "cache" / "stores" / "text", tokenizer, lengths)


def documents(store: TokenStore) -> list[list[int]]:
    return [store.document(number)[:-1].tolist() for number in range(store.documents)]


def test_every_document_is_whole_or_cut_into_rows(folder: Path, tokenizer: Tokenizer, heard: Heard) -> None:
    text = TokenStore(folder / "train")
    packed = TokenStore(in_rows(folder, tokenizer, ROW, heard, "mine") / "train", tokenizer)
    packed.verify()
    assert packed.row_length == ROW
    expected = Counter(
        tuple(document[first : first + ROW - 1])
        for document in documents(text)
        for first in range(0, len(document), ROW - 1)
    )
    rows = [packed.document(number).tolist() for number in range(packed.documents)]
    pieces: Counter[tuple[int, ...]] = Counter()
    for row in rows:
        piece: list[int] = []
        for token in row:
            if token != tokenizer.delimiter:
                piece.append(token)
            elif piece:
                pieces[tuple(piece)] += 1
                piece = []
    assert pieces == expected
    # No packing has fewer rows: 9 pieces fill rows of their own, and the others have 66 tokens.
    assert packed.documents == 12
    assert "12 documents of mine into 12 rows of 32 tokens" in heard.said[-1]
    assert heard.said[-1].endswith("4 cut")


def test_what_is_learnt_is_every_token_that_follows_its_own_document(
    folder: Path, tokenizer: Tokenizer, heard: Heard
) -> None:
    """Against the documents: each of their tokens, and each end, once; but not what a cut makes up."""
    text = TokenStore(folder / "train")
    packed = TokenStore(in_rows(folder, tokenizer, ROW, heard, "mine") / "train")
    batch = packed_rows(packed, 0, packed.documents)
    targets = batch.targets.flatten()[batch.answers.places]
    wanted: Counter[int] = Counter()
    for document in documents(text):
        for place, token in enumerate(document):
            if place == 0 or place % (ROW - 1):
                wanted[token] += 1
        wanted[tokenizer.delimiter] += bool(document)
    assert Counter(targets.tolist()) == wanted
    # What a token is predicted from is what stood before it in its document.
    before = batch.tokens.flatten()[batch.answers.places]
    pairs = Counter(zip(before.tolist(), targets.tolist(), strict=True))
    real: Counter[tuple[int, int]] = Counter()
    for document in documents(text):
        if document:
            steps = [tokenizer.delimiter, *document, tokenizer.delimiter]
            real.update(pairwise(steps))
    assert not pairs - real
    assert packed.bytes < text.bytes


def test_rows_are_made_once_and_anew_of_other_text(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer, heard: Heard
) -> None:
    first = in_rows(folder, tokenizer, ROW, heard, "mine")
    assert in_rows(folder, tokenizer, ROW, heard, "mine") == first
    assert len(heard.said) == 1
    assert in_rows(folder, tokenizer, 2 * ROW, heard, "mine") != first
    other = stored(tmp_path / "other", tokenizer, [9, 9])
    assert in_rows(other, tokenizer, ROW, heard, "mine") != first


def test_long_documents_are_stored_by_themselves(folder: Path, tokenizer: Tokenizer, heard: Heard) -> None:
    parts = by_length(folder, tokenizer, 31, ROW, heard, "mine")
    assert list(parts) == ["mine", "mine.long"]
    short, long = (TokenStore(path / "train", tokenizer) for path in parts.values())
    whole = TokenStore(folder / "train")
    assert documents(long) == [d for d in documents(whole) if len(d) >= 31]
    assert documents(short) == [d for d in documents(whole) if len(d) < 31]
    assert short.bytes + long.bytes == whole.bytes
    for store in (short, long):
        store.verify()
    assert by_length(folder, tokenizer, 31, ROW, heard, "mine") == parts
    assert heard.said[0] == "mine: 5 documents of at least 31 tokens, 84.0% of its text"


@pytest.mark.parametrize(("over", "which"), [(90, "long"), (2000, "long"), (1, "short")])
def test_what_is_less_than_a_row_is_not_read_by_itself(
    folder: Path, tokenizer: Tokenizer, heard: Heard, over: int, which: str
) -> None:
    row = 95 if over == 90 else ROW
    assert by_length(folder, tokenizer, over, row, heard, "mine") == {"mine": folder}
    assert f"its {which} ones are less than one row, and no document is raised" in heard.warnings[0]
