"""Causal attention that never crosses a document, on CPU and GPU, with grouped queries and sliding windows.

`attend` is what a layer calls; `plan` is made once for each forward pass and shared by all layers.

On CPU the work is cut into tiles: some consecutive queries against just the keys that they can see. A
tile is two batched products and a softmax, so that what lies above the diagonal or in another document
is mostly never computed. `bench/attention.py` prints the times that the constants are read off; forward
and backward of 2048 tokens, 6 heads of 64, one thread, milliseconds, torch's kernel in brackets (called
once a document where there are documents, here of about 128 tokens and others in each round):

                8 x 256      4 x 512      2 x 1024     1 x 2048
    fp32        39 (40)      65 (68)      110 (105)    184 (163)
    bf16        19 (36)      29 (46)      48 (58)      123 (132)
    fp32, docs  45 (97)      52 (85)      40 (82)      49 (76)
    bf16, docs  36 (246)     41 (140)     31 (103)     33 (97)

The trade-off is memory: the probabilities are kept for the backward pass (half of batch * heads *
length^2 numbers a layer). Above `KEPT_BYTES` they are computed again instead, which costs a fifth; fp32
rows without documents of `SDPA_LENGTH` and more then go to torch's kernel, which is faster than that.

In bf16 the scores are rounded to bf16 before the softmax (itself in fp32 inside its kernel), as in the
plain formula. Measured error against fp32, output and gradients: 0.3-0.5% at scores of deviation 1
(torch's kernel 0.2-0.5%), 1% at 9 (0.2%); fp32 scores would cost a quarter of attention's time.

On a GPU: torch's flash kernel without documents, flex_attention with them. `docs/gpu.md` lists what has
never been run there. `attend_reference` is the plain formula.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cupola.models import probe
from cupola.recipe.strict import round_up

TILE = {torch.float32: 64, torch.bfloat16: 128}
"""Queries of a tile."""
KEYS = 64
"""A tile with documents takes a multiple of so many keys, and masks those that it doesn't see."""
SDPA_LENGTH = 2048
"""From this length on, fp32 rows without documents go to torch's kernel."""
KEPT_BYTES = 32 * 2**20
"""Probabilities of one layer up to this size are kept for the backward pass."""


@dataclass(frozen=True)
class Tile:
    """Queries [start, end) of the rows [row, row_end) against the keys [first_key, end)."""

    row: int
    row_end: int
    start: int
    end: int
    first_key: int
    mask: Tensor
    """Added to the scores of the last mask.shape[1] keys: (end - start, some keys), 0 or -inf, fp32."""


@dataclass(frozen=True)
class Plan:
    """How one forward pass attends: rows, length and how far back each token sees."""

    batch: int
    length: int
    begins: Tensor | None
    """(batch, length) int64: the first column that each token sees; None: column 0."""
    tilings: dict[int, list[Tile]] = field(default_factory=dict)
    """Tiles by size, made at the first use of that size."""
    block_mask: Any = None
    """flex_attention's mask, on a GPU with documents."""

    def tiles(self, size: int) -> list[Tile]:
        """The tiles of at most `size` queries."""
        if size not in self.tilings:
            if self.begins is None:
                self.tilings[size] = _causal_tiles(self.batch, self.length, size)
            else:
                begins = self.begins.tolist()
                self.tilings[size] = [
                    t for row in range(self.batch) for t in _row_tiles(row, begins[row], size)
                ]
        return self.tilings[size]


def document_begins(documents: Tensor) -> Tensor:
    """(batch, length) document numbers -> int64 column at which each token's document begins.

    A document begins wherever the number changes; equal numbers that do not touch are different documents.
    """
    columns = torch.arange(documents.shape[1], device=documents.device)
    changes = torch.zeros_like(documents, dtype=torch.bool)
    changes[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return torch.where(changes, columns, 0).cummax(dim=1).values


def plan(
    batch: int, length: int, documents: Tensor | None, device: torch.device, window: int | None = None
) -> Plan:
    """Prepare one forward pass.

    Args:
        documents: (batch, length), or None: each row is one document.
        window: tokens that a token sees, its own included; None: all of its document.
    """
    if window is not None and window >= length:
        window = None
    if documents is None and window is None:
        return Plan(batch, length, None)
    begins = torch.zeros(batch, length, dtype=torch.int64, device=device)
    if documents is not None:
        begins = document_begins(documents)
    if window is not None:
        begins = torch.maximum(begins, torch.arange(length, device=device) - window + 1)
    if device.type == "cuda":
        return Plan(batch, length, begins, block_mask=_flex_mask(begins))
    if not bool(begins.any()):
        return Plan(batch, length, None)
    return Plan(batch, length, begins)


@lru_cache(maxsize=16)
def _causal_tiles(batch: int, length: int, size: int) -> list[Tile]:
    tiles = []
    with torch.inference_mode(False):
        for start in range(0, length, size):
            end = min(start + size, length)
            mask = torch.full((end - start, end - start), -math.inf).triu(1)
            tiles.append(Tile(0, batch, start, end, 0, mask))
    return tiles


def _row_tiles(row: int, begins: list[int], size: int) -> Iterator[Tile]:
    """Tiles of one row, on a grid, and each with as many keys as some other tiles have."""
    length = len(begins)
    for start in range(0, length, size):
        end = min(start + size, length)
        first_key = max(0, end - _rounded(end - begins[start]))
        queries = torch.arange(start, end)[:, None]
        if begins[end - 1] == first_key:  # one document: only the diagonal square is masked
            masked = torch.arange(start, end) > queries
        else:
            keys = torch.arange(first_key, end)
            masked = (keys > queries) | (keys < torch.tensor(begins[start:end])[:, None])
        mask = torch.zeros(masked.shape).masked_fill_(masked, -math.inf)
        yield Tile(row, row + 1, start, end, first_key, mask)


def _rounded(keys: int) -> int:
    """Up, to one of a few numbers: multiples of 64, of at least a sixteenth of the number.

    oneDNN makes code for each shape of a bf16 product that it meets, in 0.3 to 5 ms and half a megabyte, six
    times for a tile there and back. Documents end anywhere: were tiles cut where they do, every step would
    meet shapes that no step met before, which took 7 to 10% of it.
    """
    return round_up(keys, max(KEYS, 1 << keys.bit_length() >> 4))


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Causal attention within documents, scaled by head_width^-0.5.

    Args:
        query: (batch, length, heads, head_width).
        key, value: (batch, length, key_value_heads, head_width), of query's dtype; query head h uses
            key/value head h // (heads / key_value_heads).
        plan: of this batch and length.

    Returns:
        (batch, length, heads, head_width), of value's dtype.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    probe.show("attention", query, key, plan)
    if query.device.type == "cuda":
        return _attend_gpu(query, key, value, plan)
    if plan.begins is None and value.dtype == torch.float32 and plan.length >= SDPA_LENGTH:
        return attend_sdpa(query, key, value)
    return attend_tiled(query, key, value, plan)


def attend_reference(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """`attend` as the formula softmax(q k^T / sqrt(head_width) + mask) v, in the dtype given."""
    group = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(group, dim=2) for x in (key, value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    columns = torch.arange(plan.length, device=query.device)
    visible = columns <= columns[:, None]
    if plan.begins is not None:
        visible = visible & (columns >= plan.begins[:, None, :, None])
    probabilities = scores.masked_fill(~visible, -math.inf).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", probabilities, value)


def attend_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` without documents by torch's fused kernel; it keeps no probabilities."""
    grouped = query.shape[2] != key.shape[2]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return out.transpose(1, 2)


@torch.compiler.disable
def attend_tiled(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """`attend` by tiles, on CPU. A compiled block calls it as it is: its shape follows the documents."""
    size = TILE[torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float32]
    return _Tiled.apply(query, key, value, plan.tiles(size))


class _Tiled(torch.autograd.Function):
    """Inside, queries are (batch * key_value_heads, length * group, head_width), keys and values
    (batch * key_value_heads, length, head_width): the queries that share a key/value head are rows of
    one matrix, so that keys and values are never repeated."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile]) -> Tensor:
        batch, length, heads, width = query.shape
        key_heads = key.shape[2]
        group = heads // key_heads
        q = _head_rows(query, key_heads).mul_(width**-0.5)
        k, v = _head_rows(key, key_heads), _head_rows(value, key_heads)
        out = q.new_empty(batch, length, key_heads, group, width)
        keep = any(ctx.needs_input_grad) and _numbers(tiles, heads) * q.element_size() <= KEPT_BYTES
        kept: list[Tensor] = []
        for tile in tiles:
            heads_of, queries, keys = _slices(tile, key_heads, group)
            probabilities = _probabilities(q[heads_of, queries], k[heads_of, keys], tile.mask, group)
            part = torch.bmm(probabilities, v[heads_of, keys])
            part = part.view(tile.row_end - tile.row, key_heads, tile.end - tile.start, group, width)
            out[tile.row : tile.row_end, tile.start : tile.end] = part.transpose(1, 2)
            if keep:
                kept.append(probabilities)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.tiles, ctx.shape, ctx.key_heads = tiles, query.shape, key_heads
        return out.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        batch, length, heads, width = ctx.shape
        group = heads // ctx.key_heads
        g = _head_rows(gradient, ctx.key_heads)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # From the last tile back: the widest products come first, into zeros.
        for index in reversed(range(len(ctx.tiles))):
            tile = ctx.tiles[index]
            heads_of, queries, keys = _slices(tile, ctx.key_heads, group)
            q_tile, k_tile, g_tile = q[heads_of, queries], k[heads_of, keys], g[heads_of, queries]
            p = kept[index] if kept else _probabilities(q_tile, k_tile, tile.mask, group)
            dv[heads_of, keys] += torch.bmm(p.transpose(1, 2), g_tile)
            dp = torch.bmm(g_tile, v[heads_of, keys].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[heads_of, queries] = torch.bmm(ds, k_tile)
            dk[heads_of, keys] += torch.bmm(ds.transpose(1, 2), q_tile)
        dq.mul_(width**-0.5)  # q was scaled on the way in, so dk already holds the factor
        dq = dq.view(batch, ctx.key_heads, length, group, width).transpose(1, 2).reshape(ctx.shape)
        dk, dv = (x.view(batch, ctx.key_heads, length, width).transpose(1, 2) for x in (dk, dv))
        return dq, dk, dv, None


def _head_rows(x: Tensor, key_heads: int) -> Tensor:
    """(batch, length, heads, width) -> a copy (batch * key_heads, length * heads / key_heads, width)."""
    batch, length, heads, width = x.shape
    grouped = x.reshape(batch, length, key_heads, heads // key_heads, width).transpose(1, 2)
    return grouped.clone(memory_format=torch.contiguous_format).view(batch * key_heads, -1, width)


def _numbers(tiles: list[Tile], heads: int) -> int:
    return heads * sum((t.row_end - t.row) * (t.end - t.start) * (t.end - t.first_key) for t in tiles)


def _slices(tile: Tile, key_heads: int, group: int) -> tuple[slice, slice, slice]:
    heads = slice(tile.row * key_heads, tile.row_end * key_heads)
    return heads, slice(tile.start * group, tile.end * group), slice(tile.first_key, tile.end)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor, group: int) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2))
    masked = scores.view(scores.shape[0], -1, group, scores.shape[-1])[
        ..., scores.shape[-1] - mask.shape[1] :
    ]
    masked += mask[:, None].to(scores.dtype)
    return torch.softmax(scores, dim=-1)


def attend_cached(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of new queries over a filled cache, without gradients.

    Args:
        query: (batch, new, heads, head_width).
        keys, values: (batch, key_value_heads, filled, head_width).
        visible: (batch or 1, new, filled) bool, or None when every query sees every key.

    Returns:
        (batch, new, heads, head_width).
    """
    batch, new, heads, width = query.shape
    key_heads, filled = keys.shape[1:3]
    group = heads // key_heads
    q = _head_rows(query.to(keys.dtype), key_heads).mul_(width**-0.5)
    scores = torch.bmm(q, keys.flatten(0, 1).transpose(1, 2)).view(batch, key_heads, new, group, filled)
    if visible is not None:
        scores.masked_fill_(~visible[:, None, :, None, :], -math.inf)
    probabilities = torch.softmax(scores, dim=-1).view(batch * key_heads, new * group, filled)
    out = torch.bmm(probabilities, values.flatten(0, 1)).view(batch, key_heads, new, group, width)
    return out.transpose(1, 2).reshape(query.shape)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex_mask(begins: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= begins[batch, query])

    batch, length = begins.shape
    return create_block_mask(visible, batch, None, length, length, device=str(begins.device))


def _attend_gpu(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Never run on this project's machines: see docs/gpu.md."""
    if plan.block_mask is None:
        return attend_sdpa(query, key, value)
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[2] != key.shape[2]
    return _compiled_flex()(*heads_first, block_mask=plan.block_mask, enable_gqa=grouped).transpose(1, 2)
