"""The generalised delta rule of RWKV-7 (Peng et al. 2025, "Goose"), token by token and chunk by chunk.

A head keeps a matrix S (values x keys). Token t lets each key channel fade, replaces what the state holds
along one direction, and writes a new value:

    S_t = S_{t-1} (diag(exp(log_decay_t)) + a_t b_t^T) + v_t k_t^T,        y_t = S_t r_t

`scan` is the form for training: rows are cut into chunks, each is a few matrix products, and only the
state is handed from chunk to chunk. Let F_t be the decay from the chunk's middle to token t, and

    readers  R = [a_t F_{t-1}; r_t F_t]     writers  W = [b_t / F_t; k_t / F_t]     M = the entering S at the
    products P = R W^T, of earlier tokens only = [A_ab A_ak; A_rb A_rk]                 chunk's middle
    U = (I - A_ab)^-1 (A_ak V + R_a M^T)    written Z = [U; V]
    Y = [A_rb A_rk] Z + R_r M^T             the leaving S at the chunk's middle: M + Z^T W

It is exact: (I - A_ab)^-1 is a triangular solve, not a series, which diverges when keys are nearly
parallel; relative to the middle no factor exceeds exp(0.61 CHUNK / 2), since log decays are above
-exp(-1/2).

The backward pass is the same recurrence in reverse. It keeps the inputs, U, M and the inverse, and makes
the rest again: 3.5 numbers for each token and channel beside the inputs. Products are fp32 also where inputs
are bf16: of a layer's time under bf16 the recurrence is a quarter, and keys that are nearly parallel leave
differences that bf16 would not hold. Measured error of bf16 inputs, output and gradients: below 1%.

Chunks are processed in groups whose temporaries stay in the cache. CPU milliseconds, forward and backward
of 2048 tokens, 4 heads of 64, fp32, one thread, by which the constants are chosen (the formula token by
token: 890; `bench/delta_rule.py` prints them):

    chunk              16      16      32      32      32      64      64
    group              32      64      16      32      64      16      32
    1 x 2048           57      57      60      57      70      67      78
    8 x 256            47      43      52      48      58      60      64
    8 x 256, docs      55      47      58      50      59      65      67

(docs: documents of about 128 tokens.) Chunks of 16 would keep twice the states, for no gain on long rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cupola.models import delta_chunks, kernels
from cupola.models.delta_chunks import Part
from cupola.models.segments import Chunks, Segments

P = ParamSpec("P")
T = TypeVar("T")

CHUNK = 32
"""Tokens of a chunk, at most 64."""
GROUP = 32
"""Chunks times heads times rows that are processed together."""


def _without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """The function with products in the dtype that it chooses: autocast would round them."""

    @wraps(function)
    def plain(*arguments: P.args, **named: P.kwargs) -> T:
        device = next(x.device.type for x in arguments if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*arguments, **named)

    return plain


@torch.compiler.disable
def scan(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    segments: Segments,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over whole rows.

    Args:
        r, k, v, a, b: (batch, length, heads, head_width), fp32 or bf16.
        log_decay: the same shape, fp32, each in [-0.61, 0].
        segments: of these rows; at the first token of a document the state is dropped.
        state: (batch, heads, head_width, head_width), values by keys, in log_decay's dtype: what rows
            begin with; None: zeros.

    Returns:
        y, the shape and dtype of v, and the state after the last token, in log_decay's dtype.
    """
    if r.is_cuda and (kernel := kernels.find(kernels.DELTA_RULE)) is not None:
        return kernels.delta_rule_scan(kernel, r, log_decay, k, v, a, b, segments, state)
    batch, length, heads, width = r.shape
    if state is None:
        state = log_decay.new_zeros(batch, heads, width, width)
    padding = -length % CHUNK
    inputs = [r, log_decay, k, v, a, b]
    if padding:  # tokens of zeros: they fade nothing and write nothing
        inputs = [F.pad(x, (0, 0, 0, 0, 0, padding)) for x in inputs]
    y, state = _Scan.apply(*inputs, state, segments.chunks(CHUNK))
    return y[:, :length], state


def scan_reference(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    segments: Segments,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scan` as the formula, token by token, differentiated by autograd."""
    batch, _, heads, width = r.shape
    if state is None:
        state = log_decay.new_zeros(batch, heads, width, width)
    continues = segments.reaches(1)
    outputs = []
    tokens = zip(*(x.unbind(1) for x in (r, log_decay, k, v, a, b)), strict=True)
    for t, (r_t, log_decay_t, k_t, v_t, a_t, b_t) in enumerate(tokens):
        if continues is not None and t > 0:
            state = state * continues[:, t, :, None, None]
        y, state = step(r_t, log_decay_t, k_t, v_t, a_t, b_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


@_without_autocast
def step(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: inputs (batch, heads, head_width), state as `scan`'s -> y in v's dtype, and the state."""
    r, k, a, b, value = (x.to(state.dtype) for x in (r, k, a, b, v))
    replaced = state @ a[..., None]
    state = state * log_decay.exp()[..., None, :]
    state = state + replaced * b[..., None, :] + value[..., None] * k[..., None, :]
    return (state @ r[..., None])[..., 0].to(v.dtype), state


class _Scan(torch.autograd.Function):
    """`scan` of rows that chunks fill. Kept for the backward pass: the inputs, M, U and (I - A_ab)^-1."""

    @staticmethod
    @_without_autocast
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, state, chunks = inputs
        v = tensors[3]
        batch, length, heads, _ = v.shape
        y, state = torch.empty_like(v), state.clone()
        kept: list[Tensor] = []
        for part in _parts(length // CHUNK, batch, heads):
            group, written = _prepare(tensors, chunks, part)
            middles, state[part[1]] = delta_chunks.recur(group, written, state[part[1]])
            _cut(y, part).copy_(delta_chunks.outputs(group, written, middles))
            if any(ctx.needs_input_grad):
                kept += [middles, written[:, :CHUNK].clone(), group.inverse]
        ctx.save_for_backward(*tensors, state, *kept)
        ctx.chunks = chunks
        return y, state

    @staticmethod
    @once_differentiable
    @_without_autocast
    def backward(ctx: Any, d_y: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        tensors, state, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6], ctx.saved_tensors[7:]
        batch, length, heads, _ = tensors[0].shape
        gradients = [torch.empty_like(x) for x in tensors]
        d_state, along = d_state.clone(), (d_state * state).sum(-2)
        for index, part in reversed(list(enumerate(_parts(length // CHUNK, batch, heads)))):
            rows = part[1]
            middles, solved, inverse = kept[3 * index : 3 * index + 3]
            group, written = _prepare(tensors, ctx.chunks, part, inverse)
            written[:, :CHUNK] = solved
            into = [_cut(x, part) for x in gradients]
            d_state[rows], along[rows] = delta_chunks.backward(
                group, written, middles, _cut(d_y, part), d_state[rows], along[rows], into
            )
        return *gradients, d_state, None


def _prepare(
    tensors: Sequence[Tensor], chunks: Chunks | None, part: Part, inverse: Tensor | None = None
) -> tuple[delta_chunks.Group, Tensor]:
    """A part's group, and Z with V filled in."""
    r, log_decay, k, v, a, b = (_cut(x, part) for x in tensors)
    masks = delta_chunks.masks(CHUNK, chunks, part, log_decay)
    group = delta_chunks.group(r, log_decay, k, a, b, masks, inverse)
    written = torch.empty_like(group.writers)
    group.outer(written)[..., CHUNK:, :] = v
    return group, written


def _parts(count: int, batch: int, heads: int) -> Iterator[Part]:
    """(chunks, rows) that are processed together, in order: all rows of some chunks, or some rows of one."""
    chunks = max(1, GROUP // (batch * heads))
    rows = batch if chunks > 1 else max(1, GROUP // heads)
    for chunk in range(0, count, chunks):
        for row in range(0, batch, rows):
            yield slice(chunk, min(chunk + chunks, count)), slice(row, min(row + rows, batch))


def _cut(x: Tensor, part: Part) -> Tensor:
    """(batch, length, heads, width) -> a view (chunks, rows, heads, CHUNK, width) of a part."""
    chunks, rows = part
    return x[rows].unflatten(1, (-1, CHUNK))[:, chunks].permute(1, 0, 3, 2, 4)
