"""The fields of a `config.json`: read with their types, refused by name where Cupola computes no such thing.

A format asks for the fields that it knows. A field that changes the function must have a value that Cupola
computes (`only`); one that matters in training alone is noted; any other is ignored, as Hugging Face's own
classes do.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn

from pydantic import ValidationError

from cupola.errors import InputError
from cupola.recipe.document import dotted

FILE = "config.json"
MOST = 2**24
"""No size of a model is above it; what is, is damaged."""
MOST_LAYERS, MOST_EXPERTS = 2**12, 2**14
"""Nor their numbers above these: a name is made for each before a file is held against them."""


class Config:
    """The settings of a file, by Hugging Face's names.

    Attributes:
        notes: what a person should hear about it, one line each.
    """

    def __init__(self, fields: dict[str, Any], origin: str = FILE) -> None:
        self.fields, self.origin = fields, origin
        self.notes: list[str] = []

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read a `config.json`.

        Raises:
            InputError: there is none, or it is no JSON object.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise InputError(f"{path.parent}: has no {FILE}, so it is no Hugging Face model") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        if not isinstance(fields, dict):
            raise InputError(f"{path}: is no JSON object")
        return cls(fields, str(path))

    def refuse(self, name: str, value: Any, why: str) -> NoReturn:
        """Raise the one line about a field."""
        raise InputError(f"{self.origin}: {name}: {json.dumps(value)} {why}; nothing was imported")

    def get(self, name: str, default: Any = None) -> Any:
        """A field; what is absent or null is the default."""
        value = self.fields.get(name)
        return default if value is None else value

    def layers(self, *names: str) -> int:
        """The number of layers; see `integer`."""
        return self.integer(*names, most=MOST_LAYERS)

    def integer(self, *names: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """A whole number under the first of the names that is there; required where there is no default."""
        for name in names:
            value = self.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                self.refuse(name, value, f"is not a whole number from {least} to {most}")
            return value
        if default is None:
            raise InputError(f"{self.origin}: {names[0]} is missing")
        return default

    def number(self, name: str, default: float | None, zero: bool = False) -> float:
        """A finite number above 0, or from 0 on; required where there is no default."""
        value = self.get(name, default)
        if value is None:
            raise InputError(f"{self.origin}: {name} is missing")
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not 0 <= value <= sys.float_info.max or (value == 0 and not zero):
            self.refuse(name, value, f"is not a number {'from 0 on' if zero else 'above 0'}, and finite")
        return float(value)

    def head_width(self, width: int, heads: int, usual: int | None = None) -> int:
        """`head_dim`, or what an architecture takes where that is absent: by default width / heads."""
        if usual is None and heads > width and self.get("head_dim") is None:
            self.refuse("num_attention_heads", heads, f"is more than the width, {width}")
        return self.integer("head_dim", default=usual or width // heads)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "is neither true nor false")
        return value

    def choice(self, name: str, default: str, meanings: dict[str, str]) -> str:
        """What a word means to us.

        Raises:
            InputError: it is not one of those that Cupola computes.
        """
        value = self.get(name, default)
        if not isinstance(value, str) or value not in meanings:
            self.refuse(name, value, f"is not computed by Cupola ({', '.join(meanings)})")
        return meanings[value]

    def only(self, name: str, computed: Any, default: Any = None) -> None:
        """Refuse a field that is there with any other value than the one that Cupola computes."""
        value = self.get(name, computed if default is None else default)
        if value != computed:
            self.refuse(name, value, f"is not computed by Cupola ({json.dumps(computed)} is)")

    def none(self, *names: str) -> None:
        """Refuse fields that are there with something else than null, false, 0 or nothing."""
        for name in names:
            if value := self.get(name):
                self.refuse(name, value, "is not computed by Cupola")

    def training_only(self, *names: str) -> None:
        """Note fields that change training but not the function."""
        for name in names:
            if value := self.get(name):
                self.notes.append(f"{name} {value} is not applied: Cupola trains without it")

    def list_of(self, name: str, kinds: dict[str, str], length: int) -> list[str] | None:
        """A list of words with their meanings to us, one for each layer, or None if it is absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            self.refuse(name, value, f"is not a list of {length} layers")
        for kind in value:
            if not isinstance(kind, str) or kind not in kinds:
                self.refuse(name, kind, f"is no layer that Cupola computes ({', '.join(kinds)})")
        return [kinds[kind] for kind in value]


@contextmanager
def refused_settings(origin: str) -> Iterator[None]:
    """What `cupola.recipe.model` does not take of a file's settings becomes one line that names them.

    Raises:
        InputError: the body made settings out of their bounds.
    """
    try:
        yield
    except ValidationError as error:
        found = [
            f"{error.title.lower()}.{dotted(one['loc'])}: {shorten(repr(one['input']), 60)}:"
            f" {one['msg'][:1].lower()}{one['msg'][1:]}"
            for one in error.errors(include_url=False)
        ]
        raise InputError(f"{origin}: {'; '.join(found)}; nothing was imported") from None


UNKNOWN_CODE = ("auto_map", "quantization_config")
"""The model is computed by code of its own, or its weights are not numbers."""


def refuse_foreign(config: Config, names: Sequence[str] = UNKNOWN_CODE) -> None:
    """Refuse what no format can read, whatever its `model_type`."""
    config.none(*names, "attn_logit_softcapping", "final_logit_softcapping")
    config.only("is_causal", True)
    config.none("is_encoder_decoder", "add_cross_attention", "per_layer_config")
