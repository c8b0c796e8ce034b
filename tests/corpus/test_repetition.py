"""Texts that say a passage again and again: their period, their length, and no number that a probe hides."""

import re

import pytest

from cupola.corpus.generators import TEXT_PROGRAMS
from cupola.corpus.generators.repetition import LONGEST, SHORTEST, TIMES
from cupola.corpus.generators.word_lists import WORDS


def made(number: int, seed: int = 0, words: tuple[int, int] = (100, 300)) -> list[str]:
    return TEXT_PROGRAMS["repetition"](seed, words).make(number).split(" ")


def period(words: list[str]) -> int:
    """The least shift under which a text is like itself."""
    return next(p for p in range(1, len(words)) if words[p:] == words[:-p])


def test_a_text_is_a_function_of_seed_and_number() -> None:
    forward = [made(number) for number in range(20)]
    assert [made(number) for number in reversed(range(20))] == forward[::-1]
    assert [made(number, seed=1) for number in range(20)] != forward


@pytest.mark.parametrize("words", [(100, 100), (100, 300), (1000, 1000)])
def test_a_passage_is_said_three_times_or_more(words: tuple[int, int]) -> None:
    texts = [made(number, words=words) for number in range(200)]
    assert {words[0] <= len(text) <= words[1] for text in texts} == {True}
    periods = [period(text) for text in texts]
    assert min(periods) >= SHORTEST
    assert max(periods) <= min(LONGEST, words[1] // TIMES)
    assert len(set(periods)) > 20


def test_every_third_text_has_numbers_and_none_is_as_long_as_what_a_probe_hides() -> None:
    for number in range(150):
        words = made(number)
        assert any(word.isdigit() for word in words) == (number % 3 == 2)
        assert {word for word in words if not word.isdigit()} <= set(WORDS)
        assert not re.search(r"(?:\d ){5}\d", " ".join(words))
