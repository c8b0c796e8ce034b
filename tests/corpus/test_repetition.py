"""Texts that say passages again and again: of the length wanted, and of words alone."""

import pytest

from cupola.corpus.generators import TEXT_PROGRAMS
from cupola.corpus.generators.repetition import FEWEST, LONGEST, MOST, SHARE, SHORTEST
from cupola.corpus.generators.word_lists import WORDS


def made(number: int, seed: int = 0, words: tuple[int, int] = (100, 300)) -> list[str]:
    return TEXT_PROGRAMS["repetition"](seed, words).make(number).split(" ")


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


def test_a_text_is_a_function_of_seed_and_number() -> None:
    forward = [made(number) for number in range(20)]
    assert [made(number) for number in reversed(range(20))] == forward[::-1]
    assert [made(number, seed=1) for number in range(20)] != forward


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
