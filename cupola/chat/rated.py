"""Answers with a label: wanted or not. As records of their own, and as what a pair of answers comes to.

Guarantees: prompt and answer together are a `Conversation` by its rules. What can't be read so is refused
with a reason to count; nothing is repaired by guessing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupola.chat import conversation, preference
from cupola.chat.conversation import Conversation, Message, Unusable, shown

KEYS = ("prompt", "completion", "label")


@dataclass(frozen=True)
class Rated:
    """A prompt, a way to go on from it, and whether that is wanted.

    Attributes:
        prompt: what was said before; the last message is no answer.
        answer: begins with the assistant's.
        desirable: the label.
        tools: JSON schemas of what the assistant may call.
    """

    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    desirable: bool
    tools: tuple[dict[str, Any], ...] = ()

    def conversation(self) -> Conversation:
        """The whole of it."""
        return Conversation((*self.prompt, *self.answer), self.tools)


def read(record: Mapping[str, Any]) -> Rated:
    """The answer of a record as TRL has it: `prompt` and `completion`, each a text or a list of messages, and
    `label`, true or false; optional `system`; `tools` as of conversations. Other keys are not read.

    Raises:
        Unusable: no such record, or one whose prompt or answer is empty.
    """
    if not isinstance(record, Mapping):
        raise Unusable("no object", f"a record has to be a JSON object, not {shown(record)}")
    given = {key: value for key, value in record.items() if value is not None}
    missing = [key for key in KEYS if key not in given]
    if missing:
        keys = ", ".join(sorted(map(str, given))) or "none"
        raise Unusable(f"missing {missing[0]}", f"its keys are {keys}; a rated answer has {', '.join(KEYS)}")
    if not isinstance(given["label"], bool):
        raise Unusable("label that is neither true nor false", shown(given["label"]))
    prompt = [*conversation.system_message(given), *_turns("user", given["prompt"])]
    answer = _turns("assistant", given["completion"])
    if not answer or answer[0].role != "assistant":
        raise Unusable("no answer after the prompt", shown(given["completion"]))
    conversation.check_order([*prompt, *answer])
    tools = conversation.tools_of(given.get("tools"))
    return Rated(tuple(prompt), tuple(answer), given["label"], tools)


def as_json(rated: Rated) -> str:
    """One canonical line of JSON, without newline: equal answers give equal lines."""
    turns = {"prompt": rated.prompt, "completion": rated.answer}
    return conversation.line_of(turns, rated.tools, label=rated.desirable)


def from_json(line: str) -> tuple[Rated, ...]:
    """The one answer of a line of `as_json`, or the two of a pair's (`preference.as_json`), wanted one first.

    Raises:
        Unusable: the line is no JSON, or holds neither.
    """
    record = conversation.record_of(line)
    if not isinstance(record, Mapping) or "chosen" not in record:
        return (read(record),)
    pair = preference.read(record)
    return tuple(
        Rated(pair.prompt, answer, wanted, pair.tools)
        for answer, wanted in ((pair.chosen, True), (pair.rejected, False))
    )


def _turns(role: str, value: Any) -> list[Message]:
    if isinstance(value, str):
        return [conversation.said(role, value)]
    return conversation.messages_of(value)
