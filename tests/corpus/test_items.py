"""What of conversations, pairs and rated answers is packed, and what of it is learnt."""

import json
from collections import Counter
from pydoc_data import topics

import numpy as np
import pytest

from cupola.chat import preference, rated
from cupola.chat.conversation import as_json, read
from cupola.chat.records import LINES
from cupola.chat.template import load_template
from cupola.corpus.items import ALIKE, Item, Writing, length_of, next_of_another
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import train
from cupola.data.batch import LEARNT, MISMATCHED, REJECTED
from cupola.recipe.rows import Rows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(list(topics.topics.values())[:20], 600).tokenizer


def talk(*turns: str, system: str = "") -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return as_json(read({"messages": messages, "system": system}))


def made(tokenizer: Tokenizer, rows: Rows, *lines: str) -> tuple[list[Item], Counter[str]]:
    set_aside: Counter[str] = Counter()
    return list(Writing(tokenizer, load_template(None), rows).items(lines, set_aside)), set_aside


def said(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist())


TWO = talk("First?", "One.", "Second?", "Two.", system="Count.")
WHOLE = (
    "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nFirst?<|im_end|>\n"
    "<|im_start|>assistant\nOne.<|im_end|>\n<|im_start|>user\nSecond?<|im_end|>\n"
    "<|im_start|>assistant\nTwo.<|im_end|>\n"
)


@pytest.mark.parametrize(
    ("learn", "learnt"),
    [
        ("answers", "One.<|im_end|>Two.<|im_end|>"),
        ("last_answer", "Two.<|im_end|>"),
        ("all", WHOLE),
    ],
)
def test_what_is_learnt(tokenizer: Tokenizer, learn, learnt: str) -> None:
    [[(ids, mask)]], set_aside = made(tokenizer, Rows("chat", 200, learn), TWO)
    assert not set_aside
    assert said(tokenizer, ids) == WHOLE
    assert said(tokenizer, ids[mask == LEARNT]) == learnt
    assert set(mask.tolist()) <= {0, LEARNT}


def lengths_of_turns(tokenizer: Tokenizer) -> tuple[str, int, int]:
    """A conversation of three turns, its tokens, and those without its first turn."""
    turns = ["Where are you?", "Here I am.", "And now?", "Still here.", "And then?", "Gone away."]
    longest, _ = made(tokenizer, Rows("chat", 500), talk(*turns, system="Be brief."))
    shorter, _ = made(tokenizer, Rows("chat", 500), talk(*turns[2:], system="Be brief."))
    return talk(*turns, system="Be brief."), len(longest[0][0][0]), len(shorter[0][0][0])


@pytest.mark.parametrize("learn", ["answers", "last_answer", "all"])
def test_a_long_conversation_loses_its_first_turns_whole(tokenizer: Tokenizer, learn) -> None:
    line, whole, without_first = lengths_of_turns(tokenizer)
    fits, set_aside = made(tokenizer, Rows("chat", whole + 1, learn, "cut_start"), line)
    assert len(fits[0][0][0]) == whole
    assert not set_aside
    for row in (whole, without_first + 1):  # the last one is just long enough for the two turns
        [[(ids, mask)]], set_aside = made(tokenizer, Rows("chat", row, learn, "cut_start"), line)
        text = said(tokenizer, ids)
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAnd now?")
        assert text.endswith("Gone away.<|im_end|>\n")
        assert (said(tokenizer, ids[mask != 0]) == "Gone away.<|im_end|>") == (learn == "last_answer")
        assert set_aside == {f"are longer than a row of {row} tokens and lost their first turns": 1}
    [[(ids, _)]], _ = made(tokenizer, Rows("chat", without_first, learn, "cut_start"), line)
    assert said(tokenizer, ids).count("user") == 1
    none, set_aside = made(tokenizer, Rows("chat", 12, learn, "cut_start"), line)
    assert none == []
    assert set_aside == {"were dropped: their last turn is longer than a row of 12 tokens": 1}


def test_what_is_too_long_is_cut_or_left_out_and_counted(tokenizer: Tokenizer) -> None:
    line, whole, _ = lengths_of_turns(tokenizer)
    reference, _ = made(tokenizer, Rows("chat", 500), line)
    [[(ids, mask)]], set_aside = made(tokenizer, Rows("chat", whole), line, "{broken")
    assert ids.tolist() == reference[0][0][0][: whole - 1].tolist()
    assert len(ids) == len(mask) == whole - 1
    assert set_aside == {
        f"are longer than a row of {whole} tokens and lost their end": 1,
        "were dropped: no JSON": 1,
    }
    none, set_aside = made(tokenizer, Rows("chat", whole, "answers", "leave_out"), line)
    assert none == []
    assert set_aside == {f"are longer than a row of {whole} tokens and were left out": 1}
    none, set_aside = made(tokenizer, Rows("chat", 12), line)
    assert none == []
    assert set_aside == {"were dropped: no answer begins within a row of 12 tokens": 1}
    # What is learnt may lie beyond the cut where the conversation's first answers do not.
    none, set_aside = made(tokenizer, Rows("chat", whole // 2, "last_answer"), line)
    assert none == []
    assert sum(set_aside.values()) == 1


def rating(prompt: str, answer: str, label: bool) -> str:
    return LINES["rated"]({"prompt": prompt, "completion": answer, "label": label})


def test_rated_answers_go_with_the_next_prompts_answer(tokenizer: Tokenizer) -> None:
    lines = [rating("A?", "a1", True), rating("A?", "a2", False), rating("B?", "b", True)]
    items, set_aside = made(tokenizer, Rows("rated", 80), *lines)
    assert not set_aside
    learnt = [[said(tokenizer, ids[mask != 0]) for ids, mask in item] for item in items]
    assert learnt == [
        ["a1<|im_end|>", "b<|im_end|>"],
        ["a2<|im_end|>", "b<|im_end|>"],
        ["b<|im_end|>", "a1<|im_end|>"],
    ]
    asked = [[said(tokenizer, ids).split("user\n")[1][:2] for ids, _ in item] for item in items]
    assert asked == [["A?", "A?"], ["A?", "A?"], ["B?", "B?"]]
    kinds = [[int(mask.max()) for _, mask in item] for item in items]
    assert kinds == [[LEARNT, MISMATCHED], [REJECTED, MISMATCHED], [LEARNT, MISMATCHED]]


def test_of_pairs_a_wanted_answer_goes_with_a_wanted_one(tokenizer: Tokenizer) -> None:
    pairs = [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(3)]
    items, _ = made(tokenizer, Rows("rated", 80), *map(LINES["preference"], pairs))
    learnt = [[said(tokenizer, ids[mask != 0]).split("<")[0] for ids, mask in item] for item in items]
    assert learnt == [
        ["yes 0", "yes 1"],
        ["yes 1", "yes 2"],
        ["yes 2", "no 0"],
        ["no 0", "no 1"],
        ["no 1", "no 2"],
        ["no 2", "yes 0"],
    ]


def test_rated_answers_to_one_prompt_and_long_ones_are_dropped(tokenizer: Tokenizer) -> None:
    same = [rating("A?", f"a{n}", True) for n in range(4)]
    assert made(tokenizer, Rows("rated", 80), *same) == (
        [],
        {"were dropped: all are to one prompt, and kto compares with answers to others": 4},
    )
    items, set_aside = made(
        tokenizer, Rows("rated", 40), rating("A?", "a", True), rating("B?", "word " * 60, True),
        rating("C?", "c", False),
    )  # fmt: skip
    assert [length_of(item) <= 40 for item in items] == [True]
    assert list(set_aside.values()) == [2]  # itself, and the one that it would be compared with


def test_the_next_of_another_prompt_is_found() -> None:
    prompts = [rated.read(json.loads(rating(text, "x", True))).prompt for text in "AABACC"]
    found = next_of_another(prompts)
    assert found is not None
    for place, other in enumerate(found):
        ahead = [(place + step) % len(prompts) for step in range(1, len(prompts))]
        assert other == next(n for n in ahead if prompts[n] != prompts[place])
    assert next_of_another(prompts[:2]) is None
    assert next_of_another([]) == []


TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


@pytest.mark.parametrize(("format", "counted"), [("preference", 1), ("rated", 2)])
def test_pairs_that_the_template_makes_alike_are_dropped(tokenizer: Tokenizer, tmp_path, format, counted):
    (tmp_path / "trim.jinja").write_text(TRIMMING)
    lines = [
        preference.as_json(preference.read({"prompt": prompt, "chosen": chosen, "rejected": "No."}))
        for prompt, chosen in [("One?", "Yes."), ("Two?", " No."), ("Three?", "Yes.")]
    ]
    for template, dropped in [(None, 0), (tmp_path / "trim.jinja", counted)]:
        set_aside: Counter[str] = Counter()
        writing = Writing(tokenizer, load_template(template), Rows(format, 100))
        found = list(writing.items(lines, set_aside))
        assert len(found) == 3 * counted - dropped
        assert set_aside == ({f"were dropped: {ALIKE}": dropped} if dropped else {})
