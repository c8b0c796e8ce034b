"""JSON to its prose: what reads as text, under the keys that lead to it."""

import json
from collections.abc import Iterable
from typing import Any

from cupola.corpus.formats.html import html_to_text

PROSE_WORDS = 3


def json_to_text(source: str, text_field: str) -> str:
    """Every string of a JSON document that reads as prose, and whatever stands in `text_field`.

    Raises:
        ValueError: it is not JSON.
    """
    return "\n".join(_prose(json.loads(source), "", text_field))


def _prose(value: Any, label: str, text_field: str) -> Iterable[str]:
    if isinstance(value, dict):
        text = value.get(text_field)
        if isinstance(text, str) and text.strip():
            yield f"{label}: {plain(text)}" if label else plain(text)
        elif label and any(isinstance(item, dict) for item in value.values()):
            yield f"\n{label}"
        for key, item in value.items():
            if not (key == text_field and isinstance(item, str)):
                yield from _prose(item, str(key), text_field)
    elif isinstance(value, list):
        for item in value:
            yield from _prose(item, "", text_field)
    elif isinstance(value, str) and len(value.split()) >= PROSE_WORDS:
        yield f"{label}: {plain(value)}" if label else plain(value)


def plain(text: str) -> str:
    """A string of a JSON document without the HTML that it may be written in."""
    return html_to_text(text) if "<" in text and "</" in text else text
