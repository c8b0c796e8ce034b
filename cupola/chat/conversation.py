"""Conversations, and the formats that people keep them in.

Guarantees: a `Conversation` has an optional system message first, then turns that alternate, each with text,
and at least one answer. Content is in Unicode NFC without control characters, by the rules that training text
is cleaned by, and without newlines at its ends; blanks inside it stay as they are, since indentation may be
what an answer is about. What can't be read so is refused with a reason to count; nothing is repaired by
guessing. Costs some 10 microseconds a message.

The trade-off: a message is a role and a text. What would be lost in that (tool calls as objects, reasoning
beside the answer, a weight of 0) is refused, not dropped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cupola.characters import normalise_characters, valid_text
from cupola.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"human": "user", "gpt": "assistant", "observation": "tool"} | {role: role for role in ROLES}
"""Names of roles in use -> ours: ShareGPT's human and gpt, its tool results as `observation`."""
BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "audio")
"""Fields of a message that say something which its content does not."""
FOLLOWERS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Role -> the roles that may follow it; "" is the beginning."""


class Unusable(InputError):
    """A record that cannot be trained on.

    Attributes:
        reason: a short noun phrase, the same for all records with this fault, to count by.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True)
class Message:
    """What one side says.

    Attributes:
        role: one of `ROLES`.
        content: its text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages in their order, and the tools that the assistant may call, as JSON schemas."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


def read(record: Mapping[str, Any]) -> Conversation:
    """The conversation of a record, whose format is recognised by its keys (a value of None is no key).

    - `messages` or `conversations`: a list of messages, each with `role` and `content` or, as in ShareGPT,
      `from` and `value`; optional `system`.
    - `instruction`, `output`, optional `input` (set after a blank line), `system` and `history` (pairs of
      question and answer): Alpaca.
    - `prompt` and `completion`: two texts or two lists of messages. All answers are trained on, those in the
      prompt too.

    `tools` is a list of JSON schemas, or such a list as a string of JSON. Other keys are not read.

    Raises:
        Unusable: it is in none of these formats, in two, or breaks a rule of theirs.
    """
    if not isinstance(record, Mapping):
        raise Unusable("no object", f"a record has to be a JSON object, not {shown(record)}")
    given = {key: value for key, value in record.items() if value is not None}
    if "chosen" in given or "rejected" in given:
        raise Unusable("preference pair", "a record with chosen or rejected answers is no conversation")
    found = [keys for keys in READERS if all(key in given for key in keys)]
    if not found:
        keys = ", ".join(sorted(map(str, given))) or "none"
        formats = "; ".join(" and ".join(keys) for keys in READERS)
        raise Unusable("unknown format", f"its keys are {keys}; a conversation has {formats}")
    if len(found) > 1:
        raise Unusable("two formats at once", " besides ".join(" and ".join(keys) for keys in found))
    messages = READERS[found[0]](given)
    check_order(messages)
    return Conversation(tuple(messages), tools_of(given.get("tools")))


def as_json(conversation: Conversation) -> str:
    """One canonical line of JSON, without newline: equal conversations give equal lines."""
    return line_of({"messages": conversation.messages}, conversation.tools)


def from_json(line: str) -> Conversation:
    """The inverse of `as_json`.

    Raises:
        Unusable: the line is no JSON, or no conversation.
    """
    return read(record_of(line))


def line_of(turns: Mapping[str, Sequence[Message]], tools: Sequence[Any], **others: Any) -> str:
    """A record of lists of messages, and of tools if there are any, as one canonical line of JSON."""
    record = {key: [vars(message) for message in messages] for key, messages in turns.items()} | others
    if tools:
        record["tools"] = list(tools)
    return json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False)


def record_of(line: str) -> Any:
    """What a line of JSON holds.

    Raises:
        Unusable: it is no JSON.
    """
    try:
        return json.loads(line)
    except ValueError as error:
        raise Unusable("no JSON", str(error)) from None


def _read_messages(given: dict[str, Any]) -> list[Message]:
    return system_message(given) + messages_of(given["messages"])


def _read_sharegpt(given: dict[str, Any]) -> list[Message]:
    return system_message(given) + messages_of(given["conversations"])


def _read_alpaca(given: dict[str, Any]) -> list[Message]:
    turns = system_message(given)
    for pair in _listed(given.get("history", []), "history"):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unusable("history of no pairs", f"{shown(pair)} is not a question with its answer")
        turns += [said("user", pair[0]), said("assistant", pair[1])]
    question, extra = text_of(given["instruction"]), text_of(given.get("input", ""))
    return [*turns, said("user", f"{question}\n\n{extra}"), said("assistant", given["output"])]


def _read_completion(given: dict[str, Any]) -> list[Message]:
    prompt, completion = given["prompt"], given["completion"]
    if isinstance(given.get("label"), bool):
        raise Unusable("preference label", "a prompt and completion with a label may be one not to learn")
    if isinstance(prompt, str) and isinstance(completion, str):
        return [*system_message(given), said("user", prompt), said("assistant", completion)]
    return system_message(given) + messages_of(prompt) + messages_of(completion)


READERS: dict[tuple[str, ...], Callable[[dict[str, Any]], list[Message]]] = {
    ("messages",): _read_messages,
    ("conversations",): _read_sharegpt,
    ("instruction", "output"): _read_alpaca,
    ("prompt", "completion"): _read_completion,
}
"""The keys that tell a format -> its reader."""


def system_message(given: dict[str, Any]) -> list[Message]:
    text = text_of(given.get("system", ""))
    return [Message("system", text)] if text else []


def messages_of(value: Any) -> list[Message]:
    return [message_of(entry) for entry in _listed(value, "messages")]


def _listed(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise Unusable(f"{what} that are no list", shown(value))
    return list(value)


def message_of(entry: Any) -> Message:
    """A message with role and content, or with from and value."""
    if not isinstance(entry, Mapping):
        raise Unusable("message that is no object", shown(entry))
    given = {key: value for key, value in entry.items() if value is not None}
    if ("role" in given or "content" in given) and ("from" in given or "value" in given):
        raise Unusable("two formats at once", f"a message has the keys {', '.join(sorted(given))}")
    lost = next((key for key in BESIDE_CONTENT if given.get(key)), None)
    if lost is not None:
        raise Unusable("message with more than text", f"{lost}; write it into the content")
    if given.get("weight", 1) != 1:
        raise Unusable("weighted message", f"weight {shown(given['weight'])}; every answer counts alike")
    if "role" not in given and "from" not in given:
        raise Unusable("missing role", shown(entry))
    if "content" not in given and "value" not in given:
        raise Unusable("missing content", shown(entry))
    return said(given.get("role", given.get("from")), given.get("content", given.get("value")))


def said(role: Any, content: Any) -> Message:
    known = ALIASES.get(role) if isinstance(role, str) else None
    if known is None:
        raise Unusable("unknown role", f"{shown(role)}; known are {', '.join(ALIASES)}")
    text = text_of(content)
    if known in ("user", "assistant") and not text.strip():
        # A system message or a tool's result may be empty and still mean something to a template.
        raise Unusable("empty answer" if known == "assistant" else "empty question", f"role {role}")
    return Message(known, text)


def text_of(content: Any) -> str:
    """The text of a content, cleaned: a string, or a list of parts that are all text."""
    if isinstance(content, list | tuple) and content:
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        texts = [part.get("text") for part in parts]
        if len(parts) == len(content) and all(isinstance(text, str) for text in texts):
            content = "".join(map(str, texts))
    if not isinstance(content, str):
        raise Unusable("content that is no text", shown(content))
    return normalise_characters(content).strip("\n")


def check_order(messages: list[Message]) -> None:
    if not any(message.role == "assistant" for message in messages):
        raise Unusable("no assistant message", f"{len(messages)} messages, none of them an answer")
    before = ""
    for number, message in enumerate(messages, 1):
        if message.role not in FOLLOWERS[before]:
            place = f"after {before}" if before else "at the beginning"
            raise Unusable("roles that do not alternate", f"message {number} is {message.role} {place}")
        before = message.role


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """Schemas of tools as plain JSON values."""
    try:
        if isinstance(value, str) and value:
            value = json.loads(value)
        plain = json.loads(valid_text(json.dumps(value or [], ensure_ascii=False, allow_nan=False)))
    except (TypeError, ValueError):
        raise Unusable("tools that are no JSON", shown(value)) from None
    if not isinstance(plain, list) or not all(isinstance(tool, dict) for tool in plain):
        raise Unusable("tools that are no list of objects", shown(value))
    return tuple(plain)


def shown(value: Any) -> str:
    """A value for a message of an error: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
