"""Texts that hide something and ask for it: rightly, never the same number twice, of the length wanted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cupola.corpus import documents, gather
from cupola.corpus.generators import TEXT_PROGRAMS, retrieval
from cupola.corpus.generators.retrieval import Haystack
from cupola.corpus.splitting import LONG_DOCUMENT
from cupola.recipe.corpora import Corpus
from tests.displays import Heard

HIDDEN = re.compile(r"The (pass key|number of the \w+ \w+) is ((?:\d ){5}\d)\.")
WORDS = (150, 400)


def made(number: int, seed: int = 0, words: tuple[int, int] = WORDS) -> str:
    return TEXT_PROGRAMS["retrieval"](seed, words).make(number)


def split_text(text: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What the body hides, and what the last paragraph asks and answers."""
    body, _, end = text.rpartition("\n\n")
    asked = re.findall(r"What is the (.+?)\? The \1 is ((?:\d ){5}\d)\.", end)
    assert len(HIDDEN.findall(end)) == len(asked) == end.count("?")
    return dict(HIDDEN.findall(body)), asked


def digits(text: str) -> set[str]:
    return set(re.findall(r"(?:\d ){5}\d", text))


def test_a_text_is_a_function_of_seed_and_number() -> None:
    forward = [made(number) for number in range(20)]
    assert [made(number) for number in reversed(range(20))] == forward[::-1]
    assert len(set(forward)) == 20
    assert [made(number, seed=1) for number in range(20)] != forward
    code = (
        "from cupola.corpus.generators import TEXT_PROGRAMS\n"
        "print(TEXT_PROGRAMS['retrieval'](0, (150, 400)).make(7))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == forward[7] + "\n"


def test_everything_hidden_is_asked_for_once_and_rightly() -> None:
    counts = set()
    for number in range(300):
        hidden, asked = split_text(made(number))
        assert dict(asked) == hidden
        assert len(asked) == len(hidden)
        counts.add(("pass key" in hidden, len(hidden)))
    assert counts == {(True, 1), (False, 2), (False, 3), (False, 4)}


def test_no_number_is_hidden_twice_nor_in_a_probe() -> None:
    numbers = [number for text in map(made, range(1500)) for number in digits(text)]
    assert len(set(numbers)) == len(numbers) > 2000
    assert not any(sum(map(int, number.split())) % 10 == 0 for number in numbers)
    for kind in ("passkey", "needle"):
        for number in range(50):
            probed = digits(Haystack(kind, 0, number).prompt(3, 0.5))
            assert len(probed) == (1 if kind == "passkey" else 4)
            assert all(sum(map(int, found.split())) % 10 == 0 for found in probed)


def test_the_last_document_of_a_seed_is_like_the_first() -> None:
    items = TEXT_PROGRAMS["retrieval"](3, WORDS)
    assert items.size == 225_000
    hidden, asked = split_text(items.make(items.size - 1))
    assert dict(asked) == hidden


@pytest.mark.parametrize("words", [(100, 100), (150, 150), (200, 200), (100, 900)])
def test_length_in_words(words: tuple[int, int]) -> None:
    lengths = [len(made(number, words=words).split()) for number in range(100)]
    assert words[0] <= min(lengths)
    assert max(lengths) <= words[1] + 20
    if words[0] < words[1]:
        assert min(lengths) < 250
        assert max(lengths) > 750


def test_the_longest_is_never_held_out_by_halves() -> None:
    assert max(len(made(number, words=(30_000, 30_000))) for number in range(4)) < LONG_DOCUMENT


@pytest.mark.parametrize("kind", ["passkey", "needle"])
def test_a_probe_lies_where_it_is_wanted(kind: str) -> None:
    for number in range(10):
        haystack = Haystack(kind, 5, number)  # type: ignore[arg-type]
        for sentences in (8, 40):
            places = []
            for depth in (0.0, 0.5, 1.0):
                prompt = haystack.prompt(sentences, depth)
                body, _, question = prompt.rpartition("\n\n")
                name = re.fullmatch(r"What is the (.+)\? The \1 is", question)
                assert name
                assert f"The {name[1]} is {haystack.answer}." in body
                before = body.partition(f"The {name[1]} is")[0]
                places.append(sum(filler in before for filler in haystack._filler[:sentences]))
            assert places == [0, sentences // 2, sentences]
    assert len({Haystack(kind, 5, number).answer for number in range(200)}) == 200  # type: ignore[arg-type]


def test_longer_probes_hold_the_sentences_of_shorter_ones() -> None:
    haystack = Haystack("needle", 0, 3)
    short, long = (set(re.split(r"(?<=\.)\s+", haystack.prompt(n, 0.5))) for n in (10, 30))
    assert short < long
    again = Haystack("needle", 0, 3)
    assert again.prompt(10, 0.5) == haystack.prompt(10, 0.5)


def test_gathered_as_text_and_split_without_a_number_on_both_sides(cache: Path, heard: Heard) -> None:
    block = Corpus(generate="retrieval", items=300, words=[100, 300], heldout=0.2, seed=4)
    found = gather("find", block, heard)
    texts = {
        split: [document.text for document in documents(found.path, split)] for split in ("train", "heldout")
    }
    assert sorted(texts["train"] + texts["heldout"]) == sorted(
        made(number, 4, (100, 300)) for number in range(300)
    )
    assert found.facts["format"] == "text"
    assert found.facts["dropped"] == {}
    assert 30 < len(texts["heldout"]) < 90
    train, heldout = (set().union(*map(digits, texts[split])) for split in ("train", "heldout"))
    assert not train & heldout
    assert gather("find", block, heard).path == found.path
    assert heard.warnings == []


def test_by_default_there_are_ten_thousand(
    monkeypatch: pytest.MonkeyPatch, cache: Path, heard: Heard
) -> None:
    monkeypatch.setattr(retrieval, "USUAL_DOCUMENTS", 12)
    assert sum(gather("find", Corpus(generate="retrieval"), heard).facts["documents"].values()) == 12
