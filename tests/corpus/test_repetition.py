"""Texts that say passages again and again: of the length wanted, of words alone or of words and numbers."""

from itertools import groupby

import pytest

from cupola.corpus.generators import TEXT_PROGRAMS
from cupola.corpus.generators.repetition import (
    FEWEST,
    LONGEST,
    MOST,
    MOST_KEY,
    MOST_PAIRS,
    SHARE,
    SHORTEST,
    WORDS_A_PAIR,
)
from cupola.corpus.generators.word_lists import WORDS

Text = list[str]


def made(number: int, seed: int = 0, words: tuple[int, int] = (100, 300), by: str = "repetition") -> Text:
    return TEXT_PROGRAMS[by](seed, words).make(number).split(" ")


def passages(words: list[str]) -> list[tuple[int, int]]:
    """(words, times) of each passage but the last, which may be cut off."""
    found = []
    while words:
        size = next((p for p in range(SHORTEST, LONGEST + 1) if words[:p] == words[p : 2 * p]), len(words))
        times = 1
        while words[times * size : (times + 1) * size] == words[:size]:
            times += 1
        left = words[times * size :]
        if left == words[:size][: len(left)]:
            break
        found.append((size, times))
        words = left
    return found


@pytest.mark.parametrize("by", ["repetition", "recall"])
def test_a_text_is_a_function_of_seed_and_number(by: str) -> None:
    forward = [made(number, by=by) for number in range(20)]
    assert [made(number, by=by) for number in reversed(range(20))] == forward[::-1]
    assert [made(number, seed=1, by=by) for number in range(20)] != forward


@pytest.mark.parametrize("words", [(100, 100), (100, 300), (1500, 1500)])
def test_passages_are_said_three_to_eight_times(words: tuple[int, int]) -> None:
    sizes = set()
    for number in range(100):
        text = made(number, words=words)
        assert words[0] <= len(text) <= words[1]
        whole = passages(text)
        assert all(FEWEST <= times <= MOST for _, times in whole)
        assert all(SHORTEST <= size <= min(LONGEST, len(text) // SHARE) for size, _ in whole)
        sizes |= {size for size, _ in whole}
    assert len(sizes) >= (3 if words[1] == 100 else 10)


def test_there_are_words_alone_so_no_number_of_a_probe() -> None:
    assert {word for number in range(50) for word in made(number)} <= set(WORDS)


def test_what_is_recalled_are_numbers_behind_words_and_none_is_of_a_probe() -> None:
    counts = set()
    for number in range(100):
        text = made(number, by="recall")
        assert 100 <= len(text) <= 300
        runs = [(digits, list(run)) for digits, run in groupby(text, str.isdecimal)]
        pairs = list(zip(runs[::2], runs[1::2], strict=False))[:-1]  # the last one may be cut off
        for (digits, key), (_, value) in pairs:
            assert not digits
            assert 1 <= len(key) <= MOST_KEY
            assert set(key) <= set(WORDS)
            assert len(value) == 6
            assert sum(map(int, value)) % 10 != 0
        said = [(*key, *value) for (_, key), (_, value) in pairs]
        times = next(
            p for p in range(1, MOST_PAIRS + 1) if said[:p] == said[p : 2 * p] == said[2 * p : 3 * p]
        )
        assert times <= len(text) // WORDS_A_PAIR
        counts.add(times)
    assert counts == set(range(1, MOST_PAIRS + 1))
