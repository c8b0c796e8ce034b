"""Pairs of answers in the formats that people keep them in."""

import pytest

from cupola.chat.conversation import Message, Unusable
from cupola.chat.preference import Preference, as_json, from_json, read
from cupola.chat.records import opening

ASKED = Message("user", "Which is larger, 3 or 5?")
GOOD, BAD = Message("assistant", "5."), Message("assistant", "3.")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


WANTED = Preference((ASKED,), (GOOD,), (BAD,))
PROMPT = message("user", ASKED.content)
CHOSEN, REJECTED = message("assistant", "5."), message("assistant", "3.")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": ASKED.content, "chosen": "5.", "rejected": "3."},
        {"prompt": [PROMPT], "chosen": [CHOSEN], "rejected": [REJECTED]},
        {"chosen": [PROMPT, CHOSEN], "rejected": [PROMPT, REJECTED]},
        # UltraFeedback: the prompt as text beside whole conversations.
        {
            "prompt": ASKED.content,
            "chosen": [PROMPT, CHOSEN],
            "rejected": [PROMPT, REJECTED],
            "score_chosen": 8,
        },
        # LLaMA-Factory's ShareGPT pairs.
        {
            "conversations": [{"from": "human", "value": ASKED.content}],
            "chosen": {"from": "gpt", "value": "5."},
            "rejected": {"from": "gpt", "value": "3."},
        },
    ],
)
def test_formats_in_use_give_the_same_pair(record: dict) -> None:
    assert read(record) == WANTED
    assert from_json(as_json(WANTED)) == WANTED
    assert opening(as_json(WANTED)) == ASKED.content


def test_what_both_conversations_begin_with_is_the_prompt() -> None:
    said = [message("system", "Be brief."), PROMPT, CHOSEN, message("user", "Sure?")]
    pair = read(
        {"chosen": [*said, message("assistant", "Yes.")], "rejected": [*said, message("assistant", "No.")]}
    )
    assert [m.role for m in pair.prompt] == ["system", "user", "assistant", "user"]
    assert [m.content for m in pair.chosen + pair.rejected] == ["Yes.", "No."]
    whole = pair.conversations()
    assert [len(conversation.messages) for conversation in whole] == [5, 5]


def test_answers_of_one_conversation_that_begin_alike_are_cut_at_the_last_question() -> None:
    """One answer is the beginning of the other's conversation: the prompt must not end with an answer."""
    more = [CHOSEN, message("user", "Sure?"), message("assistant", "Yes.")]
    pair = read({"chosen": [PROMPT, *more], "rejected": [PROMPT, CHOSEN, message("user", "Why?"), REJECTED]})
    assert pair.prompt == (ASKED,)
    assert pair.chosen[0] == pair.rejected[0] == GOOD


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [PROMPT, CHOSEN]}, "no pair"),
        ({"chosen": "5.", "rejected": "3."}, "missing prompt"),
        ({"prompt": ASKED.content, "chosen": "5.", "rejected": "5.\n"}, "identical chosen and rejected"),
        ({"prompt": ASKED.content, "chosen": "", "rejected": "3."}, "empty answer"),
        ({"prompt": ASKED.content, "chosen": [CHOSEN], "rejected": []}, "no answer after the prompt"),
        ({"prompt": [PROMPT, CHOSEN], "chosen": "5.", "rejected": "3."}, "roles that do not alternate"),
        (
            {"prompt": "Another?", "chosen": [PROMPT, CHOSEN], "rejected": [PROMPT, REJECTED]},
            "prompt that differs",
        ),
        ({"prompt": ASKED.content, "chosen": {"role": "assistant"}, "rejected": "3."}, "missing content"),
        (["prompt"], "no object"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_reason(record, reason: str) -> None:
    with pytest.raises(Unusable) as error:
        read(record)
    assert error.value.reason.startswith(reason)
