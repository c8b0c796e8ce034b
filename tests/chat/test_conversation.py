"""Users' records to conversations: four formats, what each refuses and under which reason."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.chat.conversation import Conversation, Message, Unusable, as_json, from_json, read
from cupola.corpus.cleaning import clean

ASK, REPLY = Message("user", "How many?"), Message("assistant", "Two.")
RULES = Message("system", "Be brief.")


def turn(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def said(sender: str, value: object) -> dict:
    return {"from": sender, "value": value}


TWO = [turn("user", "How many?"), turn("assistant", "Two.")]

READ = {
    "messages": ({"messages": TWO}, (ASK, REPLY)),
    "messages with a system": ({"messages": [turn("system", "Be brief."), *TWO]}, (RULES, ASK, REPLY)),
    "system beside messages": ({"system": "Be brief.", "messages": TWO}, (RULES, ASK, REPLY)),
    "empty system kept": ({"messages": [turn("system", ""), *TWO]}, (Message("system", ""), ASK, REPLY)),
    "last word is the user's": (
        {"messages": [*TWO, turn("user", "Why?")]},
        (ASK, REPLY, Message("user", "Why?")),
    ),
    "parts of text": (
        {
            "messages": [
                turn("user", [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]),
                TWO[1],
            ]
        },
        (ASK, REPLY),
    ),
    "keys without value": (
        {"messages": [{**message, "tool_calls": None} for message in TWO], "chosen": None, "prompt": "x"},
        (ASK, REPLY),
    ),
    "weight 1": ({"messages": [TWO[0], {**TWO[1], "weight": 1}]}, (ASK, REPLY)),
    "sharegpt": ({"conversations": [said("human", "How many?"), said("gpt", "Two.")]}, (ASK, REPLY)),
    "sharegpt with tools": (
        {
            "conversations": [
                said("system", "Be brief."),
                said("human", "How many?"),
                said("gpt", "count()"),
                said("tool", "1"),
                said("observation", "2"),
                said("gpt", "Two."),
            ]
        },
        (RULES, ASK, Message("assistant", "count()"), Message("tool", "1"), Message("tool", "2"), REPLY),
    ),
    "roles under conversations": ({"conversations": TWO}, (ASK, REPLY)),
    "alpaca": ({"instruction": "How many?", "output": "Two."}, (ASK, REPLY)),
    "alpaca without input": ({"instruction": "How many?", "input": "", "output": "Two."}, (ASK, REPLY)),
    "alpaca in full": (
        {
            "instruction": "How many?",
            "input": "a b",
            "output": "Two.",
            "system": "Be brief.",
            "history": [["Who?", "I."]],
        },
        (
            RULES,
            Message("user", "Who?"),
            Message("assistant", "I."),
            Message("user", "How many?\n\na b"),
            REPLY,
        ),
    ),
    "prompt and completion": ({"prompt": "How many?", "completion": "Two."}, (ASK, REPLY)),
    "lists of prompt and completion": (
        {"prompt": [turn("system", "Be brief."), TWO[0]], "completion": [TWO[1]]},
        (RULES, ASK, REPLY),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_reads(name: str) -> None:
    record, messages = READ[name]
    conversation = read(record)
    assert conversation == Conversation(messages)
    assert from_json(as_json(conversation)) == conversation


REFUSED = {
    "no object": ["text"],
    "unknown format": {"text": "words"},
    "preference pair": {"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"},
    "preference label": {"prompt": "a", "completion": "b", "label": False},
    "two formats at once": {"messages": TWO, "instruction": "a", "output": "b"},
    "messages that are no list": {"messages": "How many?"},
    "message that is no object": {"messages": ["How many?"]},
    "missing role": {"messages": [{"content": "How many?"}, TWO[1]]},
    "unknown role": {"messages": [turn("narrator", "Once"), TWO[1]]},
    "missing content": {"messages": [{"role": "user"}, TWO[1]]},
    "content that is no text": {"messages": [turn("user", 2), TWO[1]]},
    "empty answer": {"messages": [TWO[0], turn("assistant", " \n\u200b")]},
    "empty question": {"messages": [turn("user", "\n"), TWO[1]]},
    "no assistant message": {"messages": [TWO[0]]},
    "roles that do not alternate": {"messages": [TWO[0], *TWO]},
    "message with more than text": {"messages": [TWO[0], {**TWO[1], "tool_calls": [{"name": "f"}]}]},
    "weighted message": {"messages": [TWO[0], {**TWO[1], "weight": 0}]},
    "history of no pairs": {"instruction": "a", "output": "b", "history": ["c"]},
    "tools that are no JSON": {"messages": TWO, "tools": "[{"},
    "tools that are no list of objects": {"messages": TWO, "tools": ["f"]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        read(REFUSED[reason])
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


MORE_REFUSED = {
    "two ways in one message": ({"messages": [{**TWO[0], "value": "x"}, TWO[1]]}, "two formats at once"),
    "a picture": (
        {"messages": [turn("user", [{"type": "text", "text": "See"}, {"type": "image"}]), TWO[1]]},
        "content that is no text",
    ),
    "a mixed prompt": ({"prompt": "a", "completion": [TWO[1]]}, "messages that are no list"),
    "an empty list": ({"messages": []}, "no assistant message"),
    "the answer first": ({"messages": [TWO[1], *TWO]}, "roles that do not alternate"),
    "system in the middle": ({"messages": [*TWO, turn("system", "x"), *TWO]}, "roles that do not alternate"),
    "two systems": (
        {"system": "x", "messages": [turn("system", "y"), *TWO]},
        "roles that do not alternate",
    ),
    "a tool first": ({"messages": [TWO[0], turn("tool", "1"), TWO[1]]}, "roles that do not alternate"),
    "a role that is no text": ({"messages": [turn(7, "x"), TWO[1]]}, "unknown role"),  # type: ignore[arg-type]
    "not a number": ({"messages": TWO, "tools": [{"x": float("nan")}]}, "tools that are no JSON"),
}


@pytest.mark.parametrize("name", MORE_REFUSED)
def test_refuses_the_same_faults_elsewhere(name: str) -> None:
    record, reason = MORE_REFUSED[name]
    with pytest.raises(Unusable) as caught:
        read(record)
    assert caught.value.reason == reason


def test_a_line_that_is_no_json() -> None:
    with pytest.raises(Unusable, match="no JSON"):
        from_json("{")


def test_content_is_cleaned_at_its_ends_and_kept_inside() -> None:
    code = "def f():\n\n\n\n    return  1   \n\tx"
    conversation = read({"prompt": f"\n{code}\n\n", "completion": "cafe\u0301\x00\r\n  ok"})
    assert [message.content for message in conversation.messages] == [code, "café\n  ok"]


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_the_line_is_canonical(question: str, answer: str) -> None:
    question, answer = f"qq{question}", f"{answer}a"  # a backspace takes the one letter
    conversation = read({"prompt": question, "completion": answer})
    line = as_json(conversation)
    line.encode("utf-8")
    assert "\n" not in line
    assert from_json(line) == conversation
    assert as_json(from_json(line)) == line
    assert clean(conversation.messages[0].content) == clean(question)


def test_tools_as_a_list_or_a_string_are_one() -> None:
    tools = [{"name": "f", "b": 1, "a": {"é": ["\ud800"]}}]
    first = read({"messages": TWO, "tools": tools})
    second = read({"tools": json.dumps(tools), "messages": TWO})
    assert first == second
    assert as_json(first) == as_json(second)
    as_json(first).encode("utf-8")
    assert from_json(as_json(first)) == first
    assert first.tools[0]["name"] == "f"
    assert read({"messages": TWO, "tools": []}).tools == ()
