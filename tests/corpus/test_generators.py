"""The programs that make conversations: each item from its number alone, asked once, rightly answered."""

import json
import re
import subprocess
import sys
from typing import get_args

import pytest

from cupola.corpus.generators import PROGRAMS, TEXT_PROGRAMS, Items
from cupola.corpus.generators.items import whole_sentences
from cupola.errors import InputError
from cupola.recipe.corpora import GYM, READING_GENERATORS, TEXT_GENERATORS, Generator


def country(name: str, **more: object) -> dict[str, object]:
    return {
        "Introduction": {"Background": {"text": f"{name} is old. " + "It was a kingdom. " * 40}},
        "Geography": {
            "Area": {"total": {"text": "83,871 sq km; without lakes"}},
            "Location": {"text": "Central Europe, north of Italy"},
            "Elevation extremes": {
                "lowest point": {"text": "Baltic Sea -2 m"},
                "highest point": {"text": "Mount High 3,798 m"},
            },
            "Land boundaries": {
                "border countries": {"text": "Italy 404 km, Russia (part) 7 km, Mali 1,359 km"}
            },
            "Climate": {"text": "mild; <b>wet</b>"},
        },
        "Government": {
            "Country name": {"conventional short form": {"text": name}},
            "Capital": {"name": {"text": "<p>Vienna</p> (since 1900); note - moved"}},
            "Independence": {"text": "none (a territory)"},
            **more,
        },
        "Economy": {"Exports - commodities": {"text": "x" * 200}},
    }


COUNTRIES = [
    *((f"{name}.json", json.dumps(country(name))) for name in ("Austria", "The Bahamas", "Cook Islands")),
    ("broken.json", "{"),
    ("ocean.json", json.dumps({"Geography": {}})),
]
DICTIONARY = """
00-database-short
     A dictionary
The original data is at:
     http://example.org

foo
 /foo/, n.

    [from {bar}] 1. A sample name for {absolutely
    anything}, e.g. a file. Another sentence.

    2. Second sense.

bar

    See {foo}.

long
 n.

    LONG

foo
 v.

    To foo.
""".replace("LONG", "word " * 80 + "end.")


def items(name: str, seed: int = 0) -> Items:
    facts = {"country_questions": COUNTRIES, "capitals": COUNTRIES, "definitions": [("a.dict", DICTIONARY)]}
    return PROGRAMS[name].items(seed, facts.get(name, []))


def test_the_recipe_knows_the_programs() -> None:
    assert set(get_args(Generator)) == set(PROGRAMS) | set(TEXT_PROGRAMS) | {GYM}
    assert set(TEXT_GENERATORS) == set(TEXT_PROGRAMS)
    assert {name for name, program in PROGRAMS.items() if program.reads} == set(READING_GENERATORS)
    assert all((program.reads is None) == (program.facts is None) for program in PROGRAMS.values())


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_item_is_a_function_of_seed_and_number(name: str) -> None:
    made = items(name)
    numbers = range(min(made.size or 40, 40))
    forward = [made.make(number) for number in numbers]
    again = items(name)
    assert [again.make(number) for number in reversed(numbers)] == forward[::-1]
    assert all(len(turns) % 2 == 0 and all(turns) for turns in forward)
    if made.size != 1:
        assert [items(name, seed=1).make(number) for number in numbers] != forward


def test_items_are_the_same_in_another_process() -> None:
    code = (
        "from cupola.corpus.generators import PROGRAMS\n"
        "print([PROGRAMS[name].items(3, []).make(5) for name in ('addition', 'sorting')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str([items(name, 3).make(5) for name in ("addition", "sorting")])


@pytest.mark.parametrize("name", ["addition", "reversed_addition"])
def test_every_sum_is_asked_once_and_answered_rightly(name: str) -> None:
    made = items(name)
    assert made.size is not None
    pairs = set()
    for number in range(made.size):
        question, answer = made.make(number)
        first, second = (int(found.replace(" ", "")) for found in re.findall(r"\d(?: ?\d)*", question))
        right = str(first + second)
        assert answer == (" ".join(right[::-1]) if name == "reversed_addition" else right)
        assert ("last digit first" in question) == (name == "reversed_addition")
        pairs.add(frozenset((first, second)))
    assert pairs == {frozenset((a, b)) for a in range(10, 100) for b in range(10, 100)}
    assert len(pairs) == made.size


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.check])
def test_checks_tell_right_from_wrong(name: str) -> None:
    check, made = PROGRAMS[name].check, items(name)
    assert check is not None
    for number in range(200):
        question, answer = made.make(number)
        assert check(question, answer)
        assert check(question, f" {answer}\n")
        for wrong in ("", answer + answer[-1], answer[1:], f"{answer}.", question):
            assert not check(question, wrong)
    with pytest.raises(InputError, match="is no question"):
        check("Who are you?", "5")


@pytest.mark.parametrize(
    ("name", "order"),
    [("copying", list), ("reversing", lambda words: list(reversed(words))), ("sorting", sorted)],
)
def test_lists_of_words(name: str, order) -> None:  # type: ignore[no-untyped-def]
    lengths = set()
    for number in range(300):
        question, answer = items(name).make(number)
        words = question.rpartition(": ")[2].split(", ")
        assert answer.split(", ") == order(words)
        assert len(set(words)) == len(words)
        lengths.add(len(words))
    assert lengths == {2, 3, 4, 5, 6}


def test_capitals() -> None:
    made = items("capitals")
    conversations = [made.make(number) for number in range(made.size or 0)]
    countries = ("Austria", "the Bahamas", "the Cook Islands")
    assert sorted(answer for _, answer in conversations) == [
        f"The capital of {country} is Vienna." for country in countries
    ]


def test_countries() -> None:
    made = items("country_questions")
    assert made.size is not None
    conversations = [made.make(number) for number in range(made.size)]
    assert {len(turns) for turns in conversations} == {2, 4}
    answers = [answer for turns in conversations for answer in turns[1::2]]
    assert len(set(answers)) == len(answers) == 3 * 8  # every fact once
    expected = {
        "The capital of Austria is Vienna.",
        "Austria has an area of 83,871 sq km.",
        "The Bahamas is in Central Europe.",
        "The capital of the Bahamas is Vienna.",
        "The lowest point of the Cook Islands is the Baltic Sea, at -2 m.",
        "The highest point of Austria is Mount High, at 3,798 m.",
        "Austria borders Italy, Russia and Mali.",
        "The climate of Austria is mild.",
    }
    assert expected <= set(answers)
    assert all(len(answer) < 320 for answer in answers)
    for turns in conversations:
        assert "Austria" in turns[0] or "the Bahamas" in turns[0] or "the Cook Islands" in turns[0]
        assert "{" not in "".join(turns)
    assert made.unasked == {
        "malformed JSON": 1,
        "profile without a country's name": 1,
        "fact that is not stated": 3 * 9,
        "fact of over 160 characters": 3,
    }


def test_definitions() -> None:
    made = items("definitions")
    assert made.size == 1
    question, answer = made.make(0)
    assert '"foo"' in question
    assert answer == "A sample name for absolutely anything, e.g. a file. Another sentence."
    assert made.unasked == {
        "entry that refers to another": 1,
        "definition of over 300 characters": 1,
        "second entry for a word": 1,
        "headword that is no word": 1,
    }


@pytest.mark.parametrize(
    ("text", "longest", "kept"),
    [
        ("One. Two. Three.", 9, "One. Two."),
        ("One. Two. Three.", 100, "One. Two. Three."),
        ("It is 3.5 m high. So it is.", 17, "It is 3.5 m high."),
        ("Cut, e.g. Here, by J. Smith. More.", 30, "Cut, e.g. Here, by J. Smith."),
        ("He said “Go!” And went.", 15, "He said “Go!”"),
        ("No end", 100, None),
        ("Too long a sentence.", 10, None),
    ],
)
def test_whole_sentences(text: str, longest: int, kept: str | None) -> None:
    assert whole_sentences(text, longest) == kept
