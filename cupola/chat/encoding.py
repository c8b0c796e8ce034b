"""Conversations to tokens, and which of them an assistant says.

Guarantees:
- The tokens are those of Hugging Face's `apply_chat_template`, and the mask is its assistant mask, wherever
  no message names a special token. (It leaves out the last bytes of a character that several tokens share,
  where an answer ends in one without a stop token; here they are in.)
- Only what the template itself writes becomes a special token. A content that says `<|im_end|>` is encoded
  as those ten characters, by the same merges as any text: nobody's words can end their turn and open
  another's. Nor can the end of a content and what the template writes after it join to one. A template that
  writes half of a special token before a content has itself to blame.
- What ends an answer is learnt, or the template is refused: a model that never learns to stop never does.

How: a copy of the tokenizer knows the special tokens by other names, the same with a character in front that
no text has. What the template writes is renamed so; until then the first characters of such names in the
contents are disguised by further characters of that kind. Costs a second loading of the tokenizer, and the
speed of the `tokenizers` library: with the template, about 2 MB/s.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import tokenizers

from cupola.characters import valid_text
from cupola.chat.conversation import Conversation, Message, Unusable
from cupola.chat.template import DEFAULT, NONCHARACTERS, ChatTemplate, cut_marks, in_texts, without_marks
from cupola.errors import InputError

ARMED = chr(NONCHARACTERS[2])
DISGUISES = list(map(chr, NONCHARACTERS[3:]))
PROBE = (Message("user", "Hello"), Message("assistant", "Hi"))
_TOKEN_LIKE = re.compile(r"<[^\s<>]+>")


class Tokenizer(Protocol):
    """What is asked of `corpus.tokenizer.Tokenizer`, which reads conversations by this package and so stands
    above it."""

    spec: dict[str, Any]
    origin: str
    special: dict[str, int]
    delimiter: int

    def encode(self, text: str) -> np.ndarray: ...

    def token_bytes(self, number: int) -> bytes: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        ids: (tokens,) int32.
        mask: (tokens,) bool; True for what an assistant says and the token that ends it: what to learn.
    """

    ids: np.ndarray
    mask: np.ndarray


def encode(
    template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation, answers_given: int = 0
) -> Encoded:
    """The tokens of a conversation, none added at either end, and which of them to learn.

    Args:
        answers_given: the first so many messages of the assistant are given, and not learnt.

    Raises:
        Unusable: the template refuses the conversation, does not write its tools, or marks nothing in it.
        InputError: as `stop_ids`.
    """
    stop_ids(template, tokenizer)
    if conversation.tools and not template.reads_tools:
        raise Unusable("tools that the template does not write", f"{template.origin} does not name them")
    pieces = _write(template, tokenizer, conversation.messages, conversation.tools)
    mask = pieces.covered(answers_given)
    if not mask.any():
        raise Unusable("nothing to learn", f"{template.origin} marks no answer in it")
    return Encoded(pieces.ids, mask)


def prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] = (),
) -> np.ndarray:
    """The tokens of messages and of what opens an answer to them, (tokens,) int32.

    Raises:
        Unusable, InputError: as `ChatTemplate.render`.
    """
    return _write(template, tokenizer, messages, tools, add_generation_prompt=True).ids


@lru_cache(maxsize=4)
def stop_ids(template: ChatTemplate, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an assistant's turn, as the template writes them: the last token of a generation
    block, blanks after it set aside.

    Raises:
        InputError: the template has no generation block, ends no answer with a special token inside it, or
            writes special tokens that the tokenizer lacks.
    """
    template.require_marks()
    pieces = _write(template, tokenizer, PROBE * 2, ())
    special = frozenset(tokenizer.special.values())
    ends = [pieces.last_word(span) for span in pieces.spans]
    stops = bool(ends) and ends[-1] in special
    lacking = _lacking(pieces.text, tokenizer)
    if lacking and (template.source == DEFAULT or not stops):
        known = ", ".join(list(tokenizer.special)[:20]) or "none"
        raise InputError(
            f"{tokenizer.origin}: lacks {', '.join(lacking)}, which {template.origin} writes; take a chat"
            f" template that writes this one's ({known}), or have it get them:"
            f" `tokenizer: {{add: {json.dumps(lacking)}}}`"
        )
    if not stops:
        raise InputError(
            f"{template.origin}: no special token ends an answer inside its generation block, so a model"
            " would not learn to stop; write the token that ends an answer before {% endgeneration %}"
        )
    return frozenset(end for end in ends if end in special)


@dataclass(frozen=True)
class _Pieces:
    """Tokens with the ranges of characters that they stand for.

    Attributes:
        ids: (tokens,) int32.
        starts, ends: (tokens,) int64, in characters of `text`.
        text: what was encoded, with the tokens' other names.
        spans: the ranges of it that are an assistant's.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    text: str
    spans: tuple[tuple[int, int], ...]

    def covered(self, first: int = 0) -> np.ndarray:
        """Which tokens have a character in one of the spans from the `first` on, (tokens,) bool."""
        mask = np.zeros(len(self.ids), dtype=bool)
        for begin, end in self.spans[first:]:
            mask |= (self.ends > begin) & (self.starts < end)
        return mask

    def last_word(self, span: tuple[int, int]) -> int | None:
        """The last token in a span that is not blank."""
        for place in np.flatnonzero((self.ends > span[0]) & (self.starts < span[1]))[::-1]:
            if self.text[self.starts[place] : self.ends[place]].strip():
                return int(self.ids[place])
        return None


class _Names:
    """A tokenizer's special tokens, told apart by who writes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.names = tuple(sorted(filter(None, tokenizer.special), key=len, reverse=True))
        self.longest = len(self.names[0]) if self.names else 0
        firsts = sorted({name[0] for name in self.names})
        if len(firsts) > len(DISGUISES):
            raise InputError(
                f"{tokenizer.origin}: its special tokens begin with {len(firsts)} different characters, more"
                f" than the {len(DISGUISES)} that can be kept apart from text; no chat template can use it"
            )
        self.disguises = dict(zip(firsts, DISGUISES, strict=False))
        self.faces = str.maketrans({disguise: first for first, disguise in self.disguises.items()})
        never = r"(?!)"
        self.written = re.compile("|".join(map(re.escape, self.names)) or never)
        self.first = re.compile("|".join(map(re.escape, firsts)) or never)
        self.library = _renamed(tokenizer)

    def disguise(self, text: str) -> str:
        """A content in which no special token is found, nor one that begins at its end."""
        end = len(text.rstrip())

        def changed(found: re.Match[str]) -> str:
            at = found.start()
            rest = text[at:end] if end - at < self.longest else None
            if text.startswith(self.names, at) or (
                rest and any(name.startswith(rest) for name in self.names)
            ):
                return self.disguises[found[0]]
            return found[0]

        return self.first.sub(changed, text)

    def arm(self, text: str) -> str:
        """What a template wrote, its special tokens renamed and the contents' characters shown again."""
        return self.written.sub(lambda found: ARMED + found[0], text).translate(self.faces)


@lru_cache(maxsize=4)
def _names_of(tokenizer: Tokenizer) -> _Names:
    return _Names(tokenizer)


def _renamed(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer with `ARMED` before the names of its special tokens, which it finds in text."""
    spec, special = tokenizer.spec, tokenizer.special
    model = dict(spec["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, Mapping):
        model["vocab"] = {_armed(token, special): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: pieces with their scores
        model["vocab"] = [[_armed(piece, special), score] for piece, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = _armed(model["unk_token"], special)
    added = [
        {**token, "content": _armed(token["content"], special)} for token in spec.get("added_tokens") or []
    ]
    # A post-processor adds tokens, which a template does itself, and may move the ranges of characters.
    left_out = {"post_processor": None, "truncation": None, "padding": None}
    library = tokenizers.Tokenizer.from_str(
        json.dumps({**spec, **left_out, "model": model, "added_tokens": added})
    )
    moved = [name for name, number in special.items() if library.token_to_id(ARMED + name) != number]
    if moved:
        raise InputError(
            f"{tokenizer.origin}: gives its special tokens other ids than it states: {moved[:5]}"
        )
    return library


def _armed(token: str, special: Mapping[str, int]) -> str:
    return ARMED + token if token in special else token


def _write(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    add_generation_prompt: bool = False,
) -> _Pieces:
    names = _names_of(tokenizer)

    def guard(value: Any) -> Any:
        return in_texts(value, lambda text: names.disguise(without_marks(valid_text(text))))

    plain = [guard({"role": message.role, "content": message.content}) for message in messages]
    end_of_text = tokenizer.token_bytes(tokenizer.delimiter).decode()
    variables = {"eos_token": end_of_text, **template.variables, "tools": guard(tools) or None}
    marked = template.marked(plain, add_generation_prompt, variables)
    rendered = cut_marks(names.arm(marked), template.origin)
    encoding = names.library.encode(rendered.text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    ids = np.array(encoding.ids, dtype=np.int32)
    return _Pieces(ids, offsets[:, 0], offsets[:, 1], rendered.text, rendered.spans)


def _lacking(text: str, tokenizer: Tokenizer) -> list[str]:
    """What looks like a special token in an encoded text and is no token, in order."""
    found = dict.fromkeys(_TOKEN_LIKE.findall(text))
    return [name for name in found if name not in tokenizer.special and len(tokenizer.encode(name)) > 1]
