"""Rewards by name: weights, and what they are called in the metrics."""

import numpy as np
import pytest

from cupola.chat.conversation import Message
from cupola.errors import CupolaError
from cupola.train.questions import Question, Questions
from cupola.train.rewards import Given, Rewards

FILE = """
def long(prompts, completions, answers):
    return [len(text) for text in completions]

def bad(prompts, completions, answers):
    return [float("nan") for text in completions]
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


def test_what_is_no_number_is_refused_with_the_answer(tmp_path):
    (tmp_path / "own.py").write_text(FILE)
    with pytest.raises(CupolaError, match=r"own\.py:bad.*nan.*four"):
        Rewards({f"{tmp_path}/own.py:bad": 1}).of([given("four")])
