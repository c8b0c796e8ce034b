"""A tokenizer.json as a tiktoken encoding, where that gives the same ids.

The two libraries define BPE differently. `tokenizers` applies a list of merges, each of one pair; tiktoken
merges any two neighbours whose bytes together are a token, lowest rank first. They agree if every token,
cut into bytes, is put together again by the file's merges: were X and Y ever neighbours that tiktoken
merges and the list does not, then the list would also leave X, Y when it encodes the token XY alone, since
what BPE makes of two neighbours does not depend on what stands around them (Berglund and van der Merwe
2023, "Formalizing BPE Tokenization"). Every trained vocabulary has the property; `build` checks it, and
whatever it finds otherwise is a reason to keep to `tokenizers`. Ids need not be in merge order: tiktoken
works with ranks, and a table turns these into ids.

The pattern is handed on as it is. Both libraries read `\\p{L}`, `\\p{N}` and `\\s` by tables of the same
version of Unicode in the versions pinned (a test compares all code points). As a last guard a short
difficult text must give the same ids in both.
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tiktoken
import tokenizers

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel(use_regex=True)` means (GPT-2)."""
PROBE = (
    "It's 12345.678 o'clock -- don't! we'LL I’ve\n\n  def f(x):\r\n\t\treturn x_1**2  # été 中文字"
    " مرحبا हिन्दी 😀👨\u200d👩 e\u0301 \u3000\u00a0\u2028 ²Ⅷ١ \x00\x1f\x85\x7f"
    " ======== aaaaaaaaaa   \n   "
)


class NotRepresentable(Exception):
    """Why a tokenizer can't be a tiktoken encoding."""


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2): printable bytes are themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


def to_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for; a foreign character is its UTF-8."""
    if all(character in BYTE_OF for character in token):
        return bytes(BYTE_OF[character] for character in token)
    return token.encode()


def is_byte_level(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer.json works on bytes in GPT-2's alphabet."""
    parts = [spec.get("pre_tokenizer"), spec.get("decoder")]
    return any('"ByteLevel"' in json.dumps(part) for part in parts)


@dataclass(frozen=True)
class TiktokenEngine:
    """Encodes by tiktoken.

    Attributes:
        plain: added tokens that are not special, which text may contain.
        ids: rank -> id, (tokens,) int32.
    """

    encoding: tiktoken.Encoding
    plain: frozenset[str]
    ids: np.ndarray

    def encode(self, text: str) -> np.ndarray | None:
        """The ids, (tokens,) int32; None if the pattern overflows tiktoken's stack on this text."""
        try:
            ranks = self.encoding.encode_to_numpy(text, allowed_special=self.plain, disallowed_special=())
        except ValueError:
            return None
        return self.ids[ranks]


def build(spec: dict[str, Any], reference: tokenizers.Tokenizer) -> tuple[TiktokenEngine | None, str]:
    """The engine, or None and the reason in a few words."""
    try:
        engine = _engine(spec, reference)
        _compare(engine, reference, spec)
    except NotRepresentable as reason:
        return None, str(reason)
    return engine, ""


def _engine(spec: dict[str, Any], reference: tokenizers.Tokenizer) -> TiktokenEngine:
    model = spec["model"]
    _check_model(spec)
    pattern = _pattern(spec.get("pre_tokenizer"))
    added = spec.get("added_tokens") or []
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    names = {token["content"] for token in added}
    vocabulary = {token: number for token, number in model["vocab"].items() if token not in names}
    if any(character not in BYTE_OF for token in vocabulary for character in token):
        raise NotRepresentable("its vocabulary is not byte-level")
    order = _merge_order(vocabulary, merges, bool(model.get("ignore_merges")))
    _check_merges(vocabulary, merges, reference)
    plain = _plain_tokens(added)
    ids = [vocabulary[token] for token in order] + list(plain.values())
    try:
        encoding = tiktoken.Encoding(
            "cupola",
            pat_str=pattern,
            mergeable_ranks={to_bytes(token): rank for rank, token in enumerate(order)},
            special_tokens={name: len(order) + i for i, name in enumerate(plain)},
        )
    except ValueError as error:
        raise NotRepresentable(f"tiktoken cannot read its pattern ({error})") from None
    return TiktokenEngine(encoding, frozenset(plain), np.array(ids, dtype=np.int32))


def _check_model(spec: dict[str, Any]) -> None:
    model = spec["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise NotRepresentable(f"its model is {model.get('type')}, not BPE")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise NotRepresentable(f"its BPE has {setting}")
    if spec.get("normalizer"):
        raise NotRepresentable(f"it normalises text ({spec['normalizer'].get('type')})")


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """The one pattern that cuts text into pieces before merging."""
    parts = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer]
    kinds = [part and part["type"] for part in parts]
    if not parts[-1] or kinds[-1] != "ByteLevel":
        raise NotRepresentable(f"its pre-tokenizer is {kinds[-1]}, not byte-level")
    if parts[-1].get("add_prefix_space", True):
        raise NotRepresentable("it puts a space before the text")
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return GPT2_PATTERN
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        split = parts[0]
        keeps = (split["behavior"], bool(split["invert"])) in {("Isolated", False), ("Removed", True)}
        if keeps and "Regex" in split["pattern"]:
            return str(split["pattern"]["Regex"])
    raise NotRepresentable(f"it cuts text in several steps ({', '.join(map(str, kinds))})")


def _merge_order(vocabulary: dict[str, int], merges: list[tuple[str, ...]], ignore_merges: bool) -> list[str]:
    """The tokens in tiktoken's order: single bytes, then as they are merged, then those only found whole."""
    single = sorted((t for t in vocabulary if len(t) == 1), key=vocabulary.__getitem__)
    if len(single) != 256:
        raise NotRepresentable(f"its vocabulary has {len(single)} of the 256 bytes")
    made = [token for token, _ in itertools.groupby(left + right for left, right in merges)]
    if len(set(made)) != len(made):
        raise NotRepresentable("the merges of one token do not follow each other")
    merged = set(made)
    found = [t for t in vocabulary if len(t) > 1 and t not in merged] if ignore_merges else []
    return single + made + sorted(found, key=vocabulary.__getitem__)


def _check_merges(
    vocabulary: dict[str, int], merges: list[tuple[str, ...]], reference: tokenizers.Tokenizer
) -> None:
    """Every token is what its own bytes are merged to, or else every way to put it together is listed."""
    model = reference.model
    ignored = model.ignore_merges
    model.ignore_merges = False
    try:
        apart = [token for token in vocabulary if len(token) > 1 and len(model.tokenize(token)) != 1]
    finally:
        model.ignore_merges = ignored
    if not ignored:
        made = {left + right for left, right in merges}
        apart = [token for token in apart if token in made]
    listed = set(merges)
    for token in apart:
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if not ignored or any(
            a in vocabulary and b in vocabulary and (a, b) not in listed for a, b in splits
        ):
            raise NotRepresentable(f"its merges do not make the token {token!r} of its bytes")


def _plain_tokens(added: list[dict[str, Any]]) -> dict[str, int]:
    """Added tokens that are found in text, by name; tiktoken finds them as it finds its special ones."""
    plain = {token["content"]: token["id"] for token in added if not token.get("special")}
    for token in added:
        if not token.get("special") and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            raise NotRepresentable(f"the added token {token['content']!r} takes the spaces around it")
    names = sorted(plain)
    for shorter, longer in itertools.pairwise(names):
        if longer.startswith(shorter):
            raise NotRepresentable(f"the added token {shorter!r} begins another, {longer!r}")
    return plain


def _compare(engine: TiktokenEngine, reference: tokenizers.Tokenizer, spec: dict[str, Any]) -> None:
    names = " ".join(token["content"] for token in spec.get("added_tokens") or [])
    for text in (PROBE, names):
        expected = reference.encode(text, add_special_tokens=False).ids
        ids = engine.encode(text)
        if ids is None or ids.tolist() != expected:
            raise NotRepresentable("tiktoken gives other ids on a text that compares them")
