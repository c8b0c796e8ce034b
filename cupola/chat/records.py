"""What a record of users' files becomes, by the format of its corpus: a canonical line of JSON."""

import json
from collections.abc import Callable
from typing import Any

from cupola.chat import conversation, preference, rated

VERSION = 2
"""Raised whenever the same records would give other lines, or another split."""


def _conversation(record: Any) -> str:
    return conversation.as_json(conversation.read(record))


def _preference(record: Any) -> str:
    return preference.as_json(preference.read(record))


def _rated(record: Any) -> str:
    return rated.as_json(rated.read(record))


LINES: dict[str, Callable[[Any], str]] = {
    "chat": _conversation,
    "preference": _preference,
    "rated": _rated,
}
"""Format (`recipe.corpora.Format`) -> a record's line; raises `conversation.Unusable`."""


def opening(line: str) -> str:
    """What the user says first in a line of `LINES`: by it a record is held out or not, so that no corpus
    trains on a question that another one is judged by, whatever the answer."""
    record = json.loads(line)
    messages = record.get("messages") or record["prompt"]
    first = next((message for message in messages if message["role"] == "user"), messages[0])
    return str(first["content"])
