"""Rewards by name: weights, what they are called in the metrics, and those with an argument in their name, a
form and brevity; the form beside TRL's own function."""

from types import SimpleNamespace

import numpy as np
import pytest

from cupola.chat.conversation import Message
from cupola.errors import CupolaError, InputError
from cupola.train.questions import Question, Questions
from cupola.train.rewards import Given, Rewards, find, identity

THINK = r"format:<think>(?!.*<think>).*?</think>.*"
SAID = [
    "<think>2 and 2</think>4",
    "<think>\n2 and 2\n</think>\n4\n",
    "<think>2 and 2</think>",
    "<think>2 <think>and</think> 2</think>4",
    "4 <think>2 and 2</think>",
    "<think>2 and 2",
    "4",
    "",
]


def said(*texts: str, tokens: int = 1) -> list[SimpleNamespace]:
    return [SimpleNamespace(text=text, tokens=[0] * tokens) for text in texts]


@pytest.mark.oracle
def test_format_is_trls() -> None:
    trl = pytest.importorskip("trl.rewards")
    expected = trl.think_format_reward([[{"content": text}] for text in SAID])
    assert set(expected) == {0.0, 1.0}
    assert find(THINK)(said(*SAID)) == expected  # type: ignore[arg-type]


def test_format_is_of_the_whole_answer() -> None:
    form = find(r"format:\d+")
    assert form(said("42", " 42\n", "42.", "it is 42", "")) == [1, 1, 0, 0, 0]  # type: ignore[arg-type]


def test_length_falls_evenly() -> None:
    brief = find("length:200")
    assert [brief(said("x", tokens=n))[0] for n in (0, 50, 100, 200, 500)] == [1, 0.75, 0.5, 0, 0]  # type: ignore[arg-type]


def test_they_add_up_with_others_and_are_known_by_their_names() -> None:
    weights = {THINK: 0.2, "length:10": 1.0}
    totals, parts = Rewards(weights).of(said(SAID[0], "4", tokens=5))  # type: ignore[arg-type]
    assert totals == pytest.approx([0.7, 0.5])
    assert set(parts) == set(weights)
    assert identity(weights) == [[THINK, 0.2], ["length:10", 1.0]]
    assert identity({"length:10": 1.0}) != identity({"length:20": 1.0})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("format:(", "rewards: format:( is no regular expression (missing ), unterminated subpattern"),
        ("length:0", "rewards: length:0 names no number of tokens; write length:200"),
        ("length:-3", "rewards: length:-3 names no number of tokens"),
        ("length:short", "rewards: length:short names no number of tokens"),
        ("length", "rewards: 'length' is none of check, finished, random, format:REGEX, length:TOKENS, "),
    ],
)
def test_what_is_no_reward(name: str, line: str) -> None:
    for use in (find, lambda name: identity({name: 1.0})):
        with pytest.raises(InputError) as caught:
            use(name)
        assert str(caught.value).startswith(line)


FILE = """
def long(prompts, completions, answers):
    return [len(text) for text in completions]

def bad(prompts, completions, answers):
    return [float("nan") for text in completions]

def huge(prompts, completions, answers):
    return [1e300 for text in completions]

def text(prompts, completions, answers):
    return "0" * len(completions)

def leaves(prompts, completions, answers):
    raise SystemExit(3)

def two(prompt, completion):
    return 1.0

number = 3
"""


def given(text: str, finished: bool = True) -> Given:
    question = Question((Message("user", "Say"),), "yes", np.array([0, 1]))
    return Given(Questions("talks", [question], None), question, text, finished, (0, 0), [2])


def test_they_are_weighted_added_and_known_by_short_names(tmp_path):
    (tmp_path / "own.py").write_text(FILE)
    rewards = Rewards({"finished": 2, f"{tmp_path}/own.py:long": 0.5})
    totals, parts = rewards.of([given("four"), given("seventh", finished=False)])
    assert totals == [2 + 2, 3.5]
    assert parts == {"finished": [1, 0], "long": [4, 7]}


def test_two_functions_of_one_name_keep_their_files(tmp_path):
    names = [f"{tmp_path}/{file}.py:long" for file in ("one", "two")]
    for file in ("one", "two"):
        (tmp_path / f"{file}.py").write_text(FILE)
    _, parts = Rewards(dict.fromkeys(names, 1.0)).of([given("four")])
    assert parts == {name: [4] for name in names}


@pytest.mark.parametrize(
    ("function", "line"),
    [("bad", "gave nan.*four"), ("huge", "gave 1e.300"), ("text", "gave '0'"), ("leaves", "SystemExit: 3")],
)
def test_what_is_no_reward_is_refused_by_name(function, line, tmp_path):
    (tmp_path / "own.py").write_text(FILE)
    with pytest.raises(CupolaError, match=rf"own\.py:{function}.*{line}"):
        Rewards({f"{tmp_path}/own.py:{function}": 1}).of([given("four")])


def test_a_file_that_ends_the_process_is_refused(tmp_path):
    (tmp_path / "own.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError, match=r"own\.py can't be run \(SystemExit: 3\)"):
        find(f"{tmp_path}/own.py:any")


@pytest.mark.parametrize(
    ("name", "why"), [("two", "too many positional arguments"), ("number", "not a callable")]
)
def test_what_takes_other_arguments_is_refused_before_anything_is_trained(name, why, tmp_path):
    (tmp_path / "own.py").write_text(FILE)
    with pytest.raises(InputError, match=rf"own\.py:{name} has to be a function of .*{why}"):
        find(f"{tmp_path}/own.py:{name}")
