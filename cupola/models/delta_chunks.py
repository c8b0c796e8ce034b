"""One group of chunks of the generalised delta rule, forward and backward: see `delta_rule` for the formulas.

Everything here works on N = chunks * rows * heads matrices at once, in this order; only the two `recur`
functions go from chunk to chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cupola.models.segments import Chunks

Part = tuple[slice, slice]
"""(chunks, rows) of a batch that are processed together."""


@dataclass(frozen=True)
class Masks:
    """What a group's documents allow, 0 or 1; the last three are None where nothing is masked."""

    products: Tensor
    """(2 size, 2 size), or (chunks, rows, 1, 2 size, 2 size): the products that count."""
    seen: Tensor | None = None
    """(chunks, rows, 1, 2 size, 1): the readers that see the entering state."""
    contributed: Tensor | None = None
    """The same of the writers that reach the leaving state."""
    survives: Tensor | None = None
    """(chunks, rows, 1, 1): the chunks that the entering state outlives."""


def masks(size: int, chunks: Chunks | None, part: Part, like: Tensor) -> Masks:
    """The masks of a part of a batch, in like's dtype and on its device."""
    causal = _causal(size).to(like)
    if chunks is None:
        return Masks(causal)

    def cut(x: Tensor) -> Tensor:
        return x[part[1], part[0]].transpose(0, 1)[:, :, None].to(like.dtype)

    return Masks(
        cut(chunks.same).repeat(1, 1, 1, 2, 2).mul_(causal),
        cut(chunks.seen).repeat(1, 1, 1, 2)[..., None],
        cut(chunks.contributed).repeat(1, 1, 1, 2)[..., None],
        cut(chunks.survives)[..., None],
    )


@dataclass(frozen=True)
class Group:
    """Some consecutive chunks of some rows, ready for the recurrence.

    Where a product goes into half of a tensor it is made apart and copied: torch multiplies matrix by matrix
    into what is not contiguous, which takes a third longer.
    """

    masks: Masks
    decay: Tensor
    """F: (chunks, rows, heads, size + 1, width), relative to the middle, before the first token and after
    each."""
    readers: Tensor
    """R: (N, 2 size, width)."""
    writers: Tensor
    """W: the same."""
    products: Tensor
    """P: (N, 2 size, 2 size)."""
    inverse: Tensor
    """(I - A_ab)^-1: (N, size, size)."""
    seeing: Tensor
    """readers, zero where they don't see the entering state."""
    contributing: Tensor
    """writers, zero where they don't reach the leaving state."""

    @property
    def size(self) -> int:
        """Tokens of a chunk."""
        return self.inverse.shape[-1]

    @property
    def half(self) -> Tensor:
        """(chunks, rows * heads, 1, width): the decay of half a chunk, from its beginning to its middle and
        from there to its end."""
        return self.decay[..., -1:, :].flatten(1, 2)

    def by_chunk(self, x: Tensor) -> Tensor:
        """(N, ...) -> (chunks, rows * heads, ...)."""
        return x.view(self.decay.shape[0], -1, *x.shape[1:])

    def outer(self, x: Tensor) -> Tensor:
        """(N, ...) -> (chunks, rows, heads, ...)."""
        return x.view(*self.decay.shape[:3], *x.shape[1:])

    def surviving(self, state: Tensor, chunk: int) -> Tensor:
        """(rows * heads, width, width) -> the same, zero in rows where it ends within the chunk."""
        if self.masks.survives is None:
            return state
        survives = self.masks.survives[chunk]
        return (state.unflatten(0, (len(survives), -1)) * survives[..., None]).flatten(0, 1)


def group(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    a: Tensor,
    b: Tensor,
    masks: Masks,
    inverse: Tensor | None = None,
) -> Group:
    """All inputs (chunks, rows, heads, size, width); an `inverse` that is known already is not made again."""
    *outer, size, width = r.shape
    from_middle = _from_middle(size).to(log_decay)
    tokens_first = log_decay.permute(3, 0, 1, 2, 4).reshape(size, -1)
    decay = (from_middle @ tokens_first).exp_().view(size + 1, *outer, width).permute(1, 2, 3, 0, 4)
    before, after = decay[..., :-1, :], decay[..., 1:, :]
    readers, writers = (log_decay.new_empty(*outer, 2 * size, width) for _ in range(2))
    torch.mul(a, before, out=readers[..., :size, :])
    torch.mul(r, after, out=readers[..., size:, :])
    torch.div(b, after, out=writers[..., :size, :])
    torch.div(k, after, out=writers[..., size:, :])
    seeing = readers if masks.seen is None else readers * masks.seen
    contributing = writers if masks.contributed is None else writers * masks.contributed
    readers, writers = readers.flatten(0, 2), writers.flatten(0, 2)
    products = torch.bmm(readers, writers.transpose(1, 2))
    products.view(*outer, 2 * size, 2 * size).mul_(masks.products)
    if inverse is None:
        identity = torch.eye(size, dtype=products.dtype, device=products.device).expand(len(products), -1, -1)
        inverse = torch.linalg.solve_triangular(
            -products[:, :size, :size], identity, upper=False, unitriangular=True
        )
    return Group(
        masks, decay, readers, writers, products, inverse, seeing.flatten(0, 2), contributing.flatten(0, 2)
    )


def recur(group: Group, written: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Fill in U, chunk after chunk.

    Args:
        written: Z, (N, 2 size, width): the second half is V, the first becomes U.
        state: (rows, heads, width, width), before the first chunk.

    Returns:
        M, (N, width, width), and the state after the last chunk.
    """
    size, half, shape = group.size, group.half, state.shape
    queries = group.by_chunk(torch.bmm(group.inverse, group.seeing[:, :size]))
    own = torch.bmm(group.products[:, :size, size:], written[:, size:])
    written[:, :size] = torch.bmm(group.inverse, own)
    by_chunk, writers = group.by_chunk(written), group.by_chunk(group.contributing)
    middles = written.new_empty(*half.shape[:2], *shape[-2:])
    torch.mul(state.flatten(0, 1), half[0], out=middles[0])
    to_next = half[:-1] * half[1:]  # from middle to middle
    for c in range(len(half)):
        by_chunk[c, :, :size] += torch.bmm(queries[c], middles[c].transpose(1, 2))
        left = torch.baddbmm(group.surviving(middles[c], c), by_chunk[c].transpose(1, 2), writers[c])
        if c + 1 < len(half):
            torch.mul(left, to_next[c], out=middles[c + 1])
    return middles.flatten(0, 1), left.mul_(half[-1]).view(shape)


def outputs(group: Group, written: Tensor, middles: Tensor) -> Tensor:
    """Y: (chunks, rows, heads, size, width)."""
    y = torch.bmm(group.products[:, group.size :], written)
    return group.outer(y.baddbmm_(group.seeing[:, group.size :], middles.transpose(1, 2)))


def backward(
    group: Group,
    written: Tensor,
    middles: Tensor,
    d_y: Tensor,
    d_state: Tensor,
    along: Tensor,
    into: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The gradients of a group.

    Args:
        d_y: (chunks, rows, heads, size, width).
        d_state: that of the state after the group, (rows, heads, width, width).
        along: that state times its gradient, summed over values, (rows, heads, width).
        into: where those of r, log_decay, k, v, a, b go, all of d_y's shape.

    Returns:
        d_state and along of the state before the group.
    """
    size = group.size
    read = torch.empty_like(written)  # the gradients of (I - A_ab) U and of Y
    group.outer(read)[..., size:, :] = d_y
    d_solved = torch.bmm(group.products[:, size:, :size].transpose(1, 2), read[:, size:])
    d_middles, d_left, d_state = recur_backward(group, read, d_solved, d_state)
    d_v = torch.bmm(group.products[:, :, size:].transpose(1, 2), read)
    d_v.baddbmm_(group.contributing[:, size:], d_left.transpose(1, 2))

    d_products = torch.bmm(read, written.transpose(1, 2))
    group.outer(d_products).mul_(group.masks.products)
    d_readers, d_writers = torch.bmm(read, middles), torch.bmm(written, d_left)
    if group.masks.seen is not None and group.masks.contributed is not None:
        group.outer(d_readers).mul_(group.masks.seen)
        group.outer(d_writers).mul_(group.masks.contributed)
    d_readers.baddbmm_(d_products, group.writers)
    d_writers.baddbmm_(d_products.transpose(1, 2), group.readers)

    sums = group.outer(d_middles.mul_(middles).sum(-2))
    d_half = sums + torch.cat([sums[1:], along[None]])
    before, after = group.decay[..., :-1, :], group.decay[..., 1:, :]
    into_r, into_log_decay, into_k, into_v, into_a, into_b = into
    into_v.copy_(group.outer(d_v))
    into_log_decay.copy_(_decay_backward(group, d_readers, d_writers, d_half))
    d_a, d_r = group.outer(d_readers).split(size, dim=-2)
    d_b, d_k = group.outer(d_writers).split(size, dim=-2)
    torch.mul(d_r, after, out=into_r)
    torch.mul(d_a, before, out=into_a)
    torch.div(d_k, after, out=into_k)
    torch.div(d_b, after, out=into_b)
    return d_state, sums[0]


def recur_backward(
    group: Group, read: Tensor, d_solved: Tensor, d_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`recur` in reverse: fills in the first half of `read`.

    Args:
        d_solved: (N, size, width), the gradient of U by way of Y.
        d_state: that of the state after the group.

    Returns:
        The gradients of M and of M + Z^T W, (N, width, width), and of the state before the group.
    """
    size, half, shape = group.size, group.half, d_state.shape
    transposed = group.inverse.transpose(1, 2)
    read[:, :size] = torch.bmm(transposed, d_solved)
    keys = group.by_chunk(torch.bmm(transposed, group.contributing[:, :size]))
    by_chunk, readers = group.by_chunk(read), group.by_chunk(group.seeing)
    d_middles, d_left = (read.new_empty(*half.shape[:2], *shape[-2:]) for _ in range(2))
    torch.mul(d_state.flatten(0, 1), half[-1], out=d_left[-1])
    to_next = half[:-1] * half[1:]
    for c in reversed(range(len(half))):
        by_chunk[c, :, :size] += torch.bmm(keys[c], d_left[c].transpose(1, 2))
        kept = group.surviving(d_left[c], c)
        torch.baddbmm(kept, by_chunk[c].transpose(1, 2), readers[c], out=d_middles[c])
        if c > 0:
            torch.mul(d_middles[c], to_next[c - 1], out=d_left[c - 1])
    return d_middles.flatten(0, 1), d_left.flatten(0, 1), (d_middles[0] * half[0]).view(shape)


def _decay_backward(group: Group, d_readers: Tensor, d_writers: Tensor, d_half: Tensor) -> Tensor:
    """The gradient of log_decay; d_half: (chunks, rows, heads, width), that of the logarithm of `half`."""
    *outer, rows, width = group.decay.shape
    d_logs = d_half.new_empty(rows, *outer, width)
    by_token = d_logs.permute(1, 2, 3, 0, 4)
    before, after = by_token[..., :-1, :], by_token[..., 1:, :]
    (a, r), (d_a, d_r) = (group.outer(x).split(group.size, dim=-2) for x in (group.readers, d_readers))
    (b, k), (d_b, d_k) = (group.outer(x).split(group.size, dim=-2) for x in (group.writers, d_writers))
    d_logs[0] = 0
    torch.mul(d_r, r, out=after)
    after.addcmul_(d_b, b, value=-1).addcmul_(d_k, k, value=-1)
    before.addcmul_(d_a, a)
    d_logs[-1] += d_half
    summed = _from_middle(group.size).to(d_logs).t() @ d_logs.view(rows, -1)
    return summed.view(group.size, *outer, width).permute(1, 2, 3, 0, 4)


@lru_cache(maxsize=8)
def _causal(size: int) -> Tensor:
    """(2 size, 2 size) mask of products: a token's a reads what earlier tokens wrote, its r also its own."""
    with torch.inference_mode(False):
        own = torch.ones(size, size).tril()
        return torch.cat([own.tril(-1), own]).repeat(1, 2)


@lru_cache(maxsize=8)
def _from_middle(size: int) -> Tensor:
    """(size + 1, size): row i times the log decays is their sum from the chunk's middle to before token i.

    The middle is where half of the chunk's decay is done, in each channel.
    """
    with torch.inference_mode(False):
        return torch.ones(size + 1, size).tril(-1) - 0.5
