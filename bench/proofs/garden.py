"""A small world whose true score is known: lists of things, of which some are flowers.

An answer names some things; its true score is the number of different flowers in it, less the number of words
that it says again, less a part for each word beyond `LONGEST`. People's judgements (Bradley and Terry 1952)
prefer the answer with the higher score, with the probability that the difference of scores gives: so some are
the wrong way round, and what a model learns from them is not the score itself.
"""

import json
import math
import random
from pathlib import Path


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FLOWERS = _words("rose lily tulip daisy poppy iris violet orchid")
THINGS = _words(
    """stone bench path gate wall tree leaf root branch shed spade rake hose pond frog bird nest cat
    ball kite basket glove hat seed soil hedge fence lamp table chair bottle ladder bucket rope"""
)
WORDS = FLOWERS + THINGS
SHORTEST, LONGEST = 2, 8
PEOPLE = _words("baker captain doctor farmer hunter miller painter sailor soldier tailor")
QUALITIES = _words("calm clever friendly honest hungry lazy old patient quiet tall tired young")
PLACES = _words("garden park yard meadow village forest field harbour")
QUESTION = "Name things that the {} {} saw in the {}."
TOO_LONG = 0.5


def score(text: str) -> float:
    """The true score of an answer."""
    words = text.split()
    flowers = len(set(words) & set(FLOWERS))
    return flowers - (len(words) - len(set(words))) - TOO_LONG * max(0, len(words) - LONGEST)


def true_score(prompts: list[object], completions: list[str], answers: list[str]) -> list[float]:
    """The same as a reward."""
    return [score(text) for text in completions]


def write(folder: Path, seed: int, talks: int = 4000, pairs: int = 3000) -> None:
    """`talks.jsonl` to learn to answer at all; `pairs.jsonl`, judged; `chosen.jsonl`, their better halves."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)

    def question() -> str:
        return QUESTION.format(draw.choice(QUALITIES), draw.choice(PEOPLE), draw.choice(PLACES))

    def answer() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(SHORTEST, LONGEST)))

    def talk(asked: str, said: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}

    judged = []
    while len(judged) < pairs:
        asked, one, other = question(), answer(), answer()
        if one == other:
            continue
        if draw.random() > 1 / (1 + math.exp(score(other) - score(one))):
            one, other = other, one
        judged.append({"prompt": asked, "chosen": one, "rejected": other})
    files = {
        "talks": [talk(question(), answer()) for _ in range(talks)],
        "pairs": judged,
        "chosen": [talk(pair["prompt"], pair["chosen"]) for pair in judged],
    }
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
