"""The split: decided by the text alone, for whole documents and for sections of long ones."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.corpus.splitting import (
    LONG_DOCUMENT,
    SECTION,
    cut_at_breaks,
    is_heldout,
    sections,
    text_hash,
)


def test_hash_is_the_first_eight_bytes_of_blake2b_of_the_lower_case_words() -> None:
    expected = hashlib.blake2b(b"hello wide world", digest_size=8).digest()
    assert text_hash("Hello\n\n  wide\tWORLD ") == int.from_bytes(expected, "big")


def test_a_share_of_hashes_is_held_out() -> None:
    held = sum(is_heldout(text_hash(f"document {number}"), 0.1) for number in range(5000))
    assert 400 < held < 600  # 500 expected, standard deviation 21
    assert not is_heldout(0, 0.0)
    assert is_heldout(0, 0.01)


@given(
    st.lists(st.sampled_from(["word ", "line\n", "end\n\n", "x" * 37]), max_size=300), st.integers(20, 200)
)
def test_pieces_join_to_the_text_and_are_of_about_the_length(parts: list[str], length: int) -> None:
    text = "".join(parts)
    pieces = list(cut_at_breaks(text, length))
    assert "".join(pieces) == text
    assert all(length // 2 <= len(piece) <= length * 3 // 2 for piece in pieces[:-1])
    assert len(pieces[-1]) <= length * 3 // 2


@pytest.mark.parametrize(("between", "ends"), [("\n\n", "\n\n"), ("\n", "\n")])
def test_cuts_fall_behind_blank_lines_else_behind_lines(between: str, ends: str) -> None:
    text = between.join(f"This is paragraph {number} of the text." for number in range(500))
    pieces = list(cut_at_breaks(text, 1000))
    assert len(pieces) > 10
    assert all(piece.endswith(ends) for piece in pieces[:-1])


def test_only_long_documents_have_sections() -> None:
    paragraph = "word " * 99 + "\n\n"
    short = paragraph * (LONG_DOCUMENT // len(paragraph))
    assert [section.text for section in sections(short)] == [short]
    long = paragraph * (LONG_DOCUMENT // len(paragraph) + 2)
    assert len(sections(long)) == pytest.approx(len(long) / SECTION, abs=1.5)
    assert sections(long)[1].hash == text_hash(sections(long)[1].text)
