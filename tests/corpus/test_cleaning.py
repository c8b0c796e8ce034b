"""Decoding and cleaning: what each kind of bytes becomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.corpus.cleaning import clean, decode, is_binary


@pytest.mark.parametrize(
    ("data", "declared", "text", "rule"),
    [
        ("café".encode(), None, "café", "utf-8"),
        (b"\xef\xbb\xbfcaf\xc3\xa9", None, "café", "utf-8"),
        (b"\xff\xfe" + "café".encode("utf-16-le"), None, "café", "utf-16-le mark"),
        (b"\xfe\xff" + "café".encode("utf-16-be"), None, "café", "utf-16-be mark"),
        (b"caf\xe9 \x93quoted\x94", None, "café “quoted”", "windows-1252"),
        (b"caf\xe9 \x81", None, "café \x81", "latin-1"),
        ("тест".encode("koi8-r"), "koi8-r", "тест", "declared koi8-r"),
        (b"caf\xe9", "no-such-charset", "café", "windows-1252"),
        ("é".encode() * 20 + b"\xff", None, "é" * 20 + "\ufffd", "utf-8 with broken bytes replaced"),
    ],
)
def test_decode(data: bytes, declared: str | None, text: str, rule: str) -> None:
    found = decode(data, declared)
    assert (found.text, found.rule) == (text, rule)


@pytest.mark.parametrize(
    ("data", "binary"),
    [
        (b"plain text\n", False),
        (b"", False),
        (b"\x89PNG\r\n\x1a\n\x00\x00", True),
        (bytes(range(1, 32)) * 10, True),
        (b"\xff\xfe" + "text".encode("utf-16-le"), False),
        (b"caf\xe9 " * 50, False),
        (b"b\x08bo\x08old\n", False),
    ],
)
def test_is_binary(data: bytes, binary: bool) -> None:
    assert is_binary(data) is binary


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("a  \n\n\n\n\nb\t\n", "a\n\nb"),
        ("\n\n  indented\n", "  indented"),
        ("N\bNA\bAM\bME\bE", "NAME"),
        ("so\u00adft zero\u200bwidth\ufeff\x07", "soft zerowidth"),
        ("no\u00a0break", "no break"),
        ("e\u0301", "é"),
        ("a\tb", "a\tb"),
        ("broken \ud800 half", "broken \ufffd half"),
        (" \n\t\n ", ""),
    ],
)
def test_clean(dirty: str, cleaned: str) -> None:
    assert clean(dirty) == cleaned


@given(st.text(alphabet=st.characters(), max_size=200))
def test_clean_text_is_encodable_and_stays_as_it_is(text: str) -> None:
    once = clean(text)
    once.encode("utf-8")
    assert clean(once) == once
    assert "\n\n\n" not in once
    assert all(ord(character) >= 32 or character in "\t\n" for character in once)
