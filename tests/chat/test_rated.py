"""Answers with a label, as records and as what a pair comes to."""

import pytest

from cupola.chat import preference
from cupola.chat.conversation import Message, Unusable
from cupola.chat.rated import Rated, as_json, from_json, read
from cupola.chat.records import LINES, opening

ASKED, SAID = Message("user", "Which is larger, 3 or 5?"), Message("assistant", "5.")
PROMPT, ANSWER = vars(ASKED), vars(SAID)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": ASKED.content, "completion": "5.", "label": True},
        {"prompt": [PROMPT], "completion": [ANSWER], "label": True, "score": 3},
        {"prompt": [PROMPT], "completion": "5.\n", "label": True, "tools": None},
    ],
)
def test_records_of_trl_give_the_same_answer(record: dict) -> None:
    wanted = Rated((ASKED,), (SAID,), True)
    assert read(record) == wanted
    assert from_json(as_json(wanted)) == (wanted,)
    assert LINES["rated"](record) == as_json(wanted)
    assert opening(as_json(wanted)) == ASKED.content
    assert [m.content for m in wanted.conversation().messages] == [ASKED.content, "5."]


def test_a_pair_is_two_rated_answers() -> None:
    line = preference.as_json(
        preference.read({"prompt": ASKED.content, "chosen": "5.", "rejected": "3.", "system": "Be brief."})
    )
    chosen, rejected = from_json(line)
    assert (chosen.desirable, rejected.desirable) == (True, False)
    assert chosen.prompt == rejected.prompt == (Message("system", "Be brief."), ASKED)
    assert (chosen.answer[0].content, rejected.answer[0].content) == ("5.", "3.")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Hi", "completion": "Ho"}, "missing label"),
        ({"completion": "Ho", "label": True}, "missing prompt"),
        ({"prompt": "Hi", "completion": None, "label": True}, "missing completion"),
        ({"prompt": "Hi", "completion": "Ho", "label": 1}, "label that is neither true nor false"),
        ({"prompt": "Hi", "completion": " ", "label": False}, "empty answer"),
        ({"prompt": " ", "completion": "Ho", "label": False}, "empty question"),
        ({"prompt": "Hi", "completion": [], "label": False}, "no answer after the prompt"),
        ({"prompt": [PROMPT, ANSWER], "completion": "Ho", "label": True}, "roles that do not alternate"),
        ({"prompt": [{"content": "Hi"}], "completion": "Ho", "label": True}, "missing role"),
        ("Hi", "no object"),
    ],
)
def test_what_is_no_rated_answer_is_refused_with_its_reason(record, reason: str) -> None:
    with pytest.raises(Unusable) as error:
        read(record)
    assert error.value.reason == reason
