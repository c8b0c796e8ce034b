"""Pairs of answers to one prompt, of which one is preferred, and the formats that people keep them in.

Guarantees: prompt and either answer together are a `Conversation` by its rules; the two answers differ. What
can't be read so is refused with a reason to count; nothing is repaired by guessing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from cupola.chat import conversation
from cupola.chat.conversation import Conversation, Message, Unusable, shown


@dataclass(frozen=True)
class Preference:
    """A prompt and two ways to go on from it.

    Attributes:
        prompt: what was said before; the last message is no answer.
        chosen, rejected: the answers; each begins with the assistant's.
        tools: JSON schemas of what the assistant may call.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def conversations(self) -> tuple[Conversation, Conversation]:
        """The whole of what the chosen and the rejected answer belong to."""
        chosen, rejected = (
            Conversation((*self.prompt, *side), self.tools) for side in (self.chosen, self.rejected)
        )
        return chosen, rejected


def read(record: Mapping[str, Any]) -> Preference:
    """The pair of a record: `chosen` and `rejected`, each a text, a message, or a list of messages.

    The prompt is `prompt` (a text or a list of messages) or `conversations` (ShareGPT), with an optional
    `system`; or, where the answers are whole conversations, what both begin with. Where both are given, they
    must agree. `tools` as of conversations. Other keys are not read.

    Raises:
        Unusable: no such record, or one whose answers are empty or the same.
    """
    if not isinstance(record, Mapping):
        raise Unusable("no object", f"a record has to be a JSON object, not {shown(record)}")
    given = {key: value for key, value in record.items() if value is not None}
    if "chosen" not in given or "rejected" not in given:
        keys = ", ".join(sorted(map(str, given))) or "none"
        raise Unusable("no pair", f"its keys are {keys}; a pair has chosen and rejected")
    prompt = _prompt(given)
    chosen, rejected = (_side(given[key], prompt) for key in ("chosen", "rejected"))
    if not prompt or not _answers(chosen):
        same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        shared = [message for message, _ in same]
        while shared and shared[-1].role == "assistant":
            shared.pop()
        if prompt and [m for m in shared if m.role != "system"] != [m for m in prompt if m.role != "system"]:
            raise Unusable("prompt that differs from its answers'", shown(prompt[-1].content))
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    if not prompt:
        raise Unusable("missing prompt", "give prompt, or answers that are whole conversations")
    pair = Preference(
        tuple(prompt), tuple(chosen), tuple(rejected), conversation.tools_of(given.get("tools"))
    )
    for answer in (chosen, rejected):
        if not _answers(answer):
            raise Unusable(
                "no answer after the prompt", shown(answer[0].content if answer else prompt[-1].content)
            )
    for side in pair.conversations():
        conversation.check_order(list(side.messages))
    if pair.chosen == pair.rejected:
        raise Unusable("identical chosen and rejected", shown(chosen[0].content))
    return pair


def as_json(pair: Preference) -> str:
    """One canonical line of JSON, without newline: equal pairs give equal lines."""
    turns = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return conversation.line_of(turns, pair.tools)


def from_json(line: str) -> Preference:
    """The inverse of `as_json`.

    Raises:
        Unusable: the line is no JSON, or no pair.
    """
    return read(conversation.record_of(line))


def _prompt(given: dict[str, Any]) -> list[Message]:
    value = given.get("prompt", given.get("conversations"))
    if value is None:
        return []
    turns = [conversation.said("user", value)] if isinstance(value, str) else conversation.messages_of(value)
    return [*conversation.system_message(given), *turns]


def _side(value: Any, prompt: list[Message]) -> list[Message]:
    """An answer, or a whole conversation; the prompt, where it is repeated, taken off."""
    if isinstance(value, str):
        return [conversation.said("assistant", value)]
    if isinstance(value, Mapping):
        return [conversation.message_of(value)]
    messages = conversation.messages_of(value)
    return messages[len(prompt) :] if prompt and messages[: len(prompt)] == prompt else messages


def _answers(messages: list[Message]) -> bool:
    return bool(messages) and messages[0].role == "assistant"
