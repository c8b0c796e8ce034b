"""A published row as a model of ours, or the reason why it can't be one.

Rows state sizes; what else a model is made of (biases, positions, tied head, experts of a token) follows
from its family, which the row's name and notes tell, and from the public configurations that `MIXTURES`
names. Nothing is taken from the number of parameters that a row states: that is what is predicted.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bench.planner.rows import Row
from cupola.recipe.model import Model
from cupola.recipe.model_checks import model_problems

GPT = {
    "activation": "gelu_tanh",
    "norm": "layernorm",
    "attention_bias": True,
    "output_bias": True,
    "feedforward_bias": True,
    "positions": "learned",
    "tied": True,
}
"""GPT-2 and what follows it: Megatron's models, OPT, llm-foundry's benchmarks of MPT."""
LLAMA: dict[str, Any] = {}
"""Our own defaults: RMSNorm, a gated feed-forward layer, rotary positions, no bias, a head of its own."""
ALIBI = {"positions": "none"}
"""Positions by a slope added to the scores: no parameters, and no matrix."""

MLA = r"\bmla\b|deepseek.?(v[23]|r1)|kimi"
INEXPRESSIBLE = (
    (MLA, "multi-head latent attention can't be expressed"),
    (r"\b(chinchilla|gopher)\b", "relative positions of Transformer-XL can't be expressed"),
    (r"\b(t5|ul2|bert|flan)\b", "encoders can't be expressed"),
    (r"\b(vit|clip|dit|stable.?diffusion|vl|vlm)\b", "models of images can't be expressed"),
)
"""Patterns in a row's name, and why such a row has no model here."""

FAMILIES: tuple[tuple[str, dict[str, Any], str], ...] = (
    (r"\bbloom\b", GPT | ALIBI | {"embedding_norm": True}, "GPT style with alibi"),
    (r"\bpythia\b|neox", GPT | {"positions": "rope", "tied": False}, "GPT style, rotary, untied"),
    (r"\bpalm\b(?!.table)", {"tied": True}, "PaLM; its blocks are counted as one after the other"),
    (r"\bmpt\b.*learned positions", GPT, "MPT as llm-foundry benchmarks it"),
    (r"\bmpt\b", {"activation": "gelu_tanh", "tied": True} | ALIBI, "MPT as released: alibi, no biases"),
    (r"\bolmo", LLAMA, "OLMo; its norms stand elsewhere"),
    (r"qwen\W?_?3", {"qk_norm": True}, "Qwen3"),
    (r"qwen\W?_?(2|1\.5)|qwen\b", {"attention_bias": True}, "Qwen2"),
    (r"gpt.?oss", {"attention_bias": True, "output_bias": True}, "gpt-oss; sinks, experts' biases left out"),
    (r"\bgemma", {"tied": True}, "Gemma"),
    (r"llama|mistral|mixtral|deepseek|\byi\b|smollm|nanotron|titan|\bphi.?3", LLAMA, "Llama style"),
    (r"gpt|megatron|mt-nlg|\bopt\b|megascale|korthikanti|zero|turing|mcore|galactica", GPT, "GPT style"),
)
"""Patterns in a row's name (and notes, of positions), what such models have, and what to call them; the first
that is found."""

TIED = r"llama.?_?3\.2.?(1|3)b|qwen\W?_?2(\.5)?.?(0\.5|1\.5|3)b|qwen\W?_?3.?(0\.6|1\.7|4)b\b|smollm"
"""Llama-like models whose head is the embedding, where the row doesn't say."""
HEAD_WIDTHS = ((r"qwen\W?_?3", 128), (r"gpt.?oss", 64), (r"mistral.nemo", 128))
"""Heads that aren't width / heads wide, where the row doesn't say."""

MIXTURES = (
    (r"mixtral", (8, 2)),
    (r"qwen\W?_?3.*(30b.?a3b|235b.?a22b)", (128, 8)),
    (r"gpt.?oss.?120b", (128, 4)),
    (r"gpt.?oss.?20b", (32, 4)),
    (r"olmoe", (64, 8)),
    (r"dbrx", (16, 4)),
    (r"phi.?3\.5.?moe", (16, 2)),
)
"""Routed experts, and those of a token, by the public configurations: rows name the model only."""
SLIDING = ((r"gpt.?oss", ("sliding_attention", "attention"), 128),)
"""Patterns of blocks, and their window."""

PADDED = ((r"pythia.?12b", 50688), (r"pythia.?6\.9b", 50432))
"""Vocabularies of public configurations that were padded for tensor parallelism; rows state the
tokenizer's."""


@dataclass(frozen=True)
class Expressed:
    """A row as a model.

    Attributes:
        vocabulary: rows of embedding and head.
        routed: the experts of a token are known, so FLOPs can be counted.
        notes: what was taken for granted.
    """

    model: Model
    vocabulary: int
    routed: bool = True
    notes: tuple[str, ...] = field(default=())


class Inexpressible(Exception):
    """Why a row can't be a model of ours: one line."""


def express(row: Row) -> Expressed:
    """The model of a row.

    Raises:
        Inexpressible: with the reason.
    """
    for pattern, reason in INEXPRESSIBLE:
        if re.search(pattern, row.named) or (pattern == MLA and re.search(pattern, row.words)):
            raise Inexpressible(reason)
    for key in ("layers", "d_model", "heads", "vocab"):
        if key in row.odd:
            raise Inexpressible(row.odd[key])
        if row.facts.get(key) is None:
            raise Inexpressible(f"the row states no {key}")
    style, note = _style(row)
    notes = [note]
    settings = style | _sizes(row, notes) | _said(row)
    experts, routed = _experts(row)
    settings["experts"] = experts
    if experts is not None:
        settings["activation"], settings["feedforward"] = "swiglu", None
    if settings.get("positions") == "learned":
        settings["max_positions"] = _positions(row)
    for pattern, blocks, window in SLIDING:
        if re.search(pattern, row.named):
            settings |= {"pattern": blocks, "window": window}
    vocabulary = row.whole("vocab") or 0
    for pattern, padded in PADDED:
        if re.search(pattern, row.named):
            vocabulary = padded
            notes.append(f"vocabulary padded to {padded}")
    return Expressed(_checked(settings), vocabulary, routed, tuple(notes))


def _style(row: Row) -> tuple[dict[str, Any], str]:
    for pattern, style, note in FAMILIES:
        if re.search(pattern, row.words if "learned" in pattern else row.named):
            return style, note
    width, hidden = row.whole("d_model"), row.whole("ffn")
    if width and hidden and hidden != 4 * width:
        return LLAMA, "family not recognised; Llama style by its feed-forward width"
    raise Inexpressible("family not recognised by the row's name, and its sizes don't tell")


def _sizes(row: Row, notes: list[str]) -> dict[str, Any]:
    width, heads = row.whole("d_model") or 0, row.whole("heads") or 0
    if (hidden := row.whole("ffn")) is None:
        raise Inexpressible(row.odd.get("ffn", "the row states no ffn"))
    head = row.extra.get("head_dim")
    if not isinstance(head, int | float):
        head = next((size for pattern, size in HEAD_WIDTHS if re.search(pattern, row.named)), None)
    if head is None and width % heads and "gpt-3" in row.named:
        printed = width
        width, heads = _mended(width, heads)
        hidden = round(hidden / printed * width)
        notes.append(f"misprinted: width {width} and {heads} heads are meant")
    stated = row.whole("kv_heads")
    kv_heads = heads if stated in (None, row.whole("heads")) else stated
    return {
        "layers": row.whole("layers"),
        "width": width,
        "heads": heads,
        "key_value_heads": kv_heads,
        "head_width": None if head is None else int(head),
        "feedforward": hidden,
    }


def _mended(width: int, heads: int) -> tuple[int, int]:
    """Sizes as they were meant where heads don't divide the width, for heads of 128.

    GPT-3's table prints 5140 for a width of 5120, and 24 heads for the 16 of a width of 2048.
    """
    meant = heads * 128
    if abs(meant - width) <= width / 100:
        return meant, heads
    if width % 128:
        raise Inexpressible(
            f"width {width} is not divisible by {heads} heads, and the row states no head_dim"
        )
    return width, width // 128


def _said(row: Row) -> dict[str, Any]:
    """What the row says outright, before what its family would have."""
    found: dict[str, Any] = {}
    for key, setting in (("tied", "tied"), ("qkv_bias", "attention_bias"), ("qk_norm", "qk_norm")):
        if isinstance(row.extra.get(key), bool) and (row.extra[key] or setting != "attention_bias"):
            found[setting] = row.extra[key]
    if "tied" not in found and "untied" in row.words:
        found["tied"] = False
    elif "tied" not in found and re.search(TIED, row.named):
        found["tied"] = True
    if row.extra.get("swiglu"):
        found["activation"] = "swiglu"
    return found


def _experts(row: Row) -> tuple[dict[str, Any] | None, bool]:
    """Settings of the experts, and whether it is known how many a token meets."""
    known = next((sizes for pattern, sizes in MIXTURES if re.search(pattern, row.named)), None)
    stated = row.extra.get("experts")
    count = stated if isinstance(stated, int) and stated > 1 else known[0] if known else None
    if count is None:
        if re.search(r"\bmoe\b(?! (rows|tokens))|mixture", row.words):
            raise Inexpressible("a mixture whose experts the row doesn't state")
        return None, True
    stated = next((row.extra[key] for key in ("active_experts", "top_k") if key in row.extra), None)
    active = stated if isinstance(stated, int) else known[1] if known else None
    return {
        "count": count,
        "active": 1 if active is None else active,
        "width": row.whole("ffn"),
    }, active is not None


def _positions(row: Row) -> int:
    """Rows of a learned table: one for each token of a row of the batch, OPT's two more."""
    length = row.whole("seq") or (1024 if re.search(r"gpt-?2\b", row.named) else None)
    if length is None:
        raise Inexpressible("learned positions, and the row states no seq")
    return length + 2 if re.search(r"\bopt\b", row.named) else length


def _checked(settings: dict[str, Any]) -> Model:
    try:
        model = Model.model_validate({"family": "transformer", **settings})
    except ValidationError as fault:
        first = fault.errors()[0]
        raise Inexpressible(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from fault
    for problem in model_problems(model):
        raise Inexpressible(f"{'.'.join(map(str, problem.path))}: {problem.message}")
    return model
