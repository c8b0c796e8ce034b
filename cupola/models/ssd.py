"""Mamba-2's recurrence (state space duality; Dao and Gu 2024, arXiv 2405.21060).

Each head carries a matrix S of (head_width, state_width) through the tokens of a document:

    S_t = exp(dt_t a) S_{t-1} + dt_t x_t b_t^T,        y_t = S_t c_t + skip x_t

`scan` is for whole rows (`ssd_chunks` says how), `step` for one token of decoding, `scan_reference` the
plain formula.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cupola.models import kernels
from cupola.models.segments import Segments
from cupola.models.ssd_chunks import CHUNK, Scan


@torch.compiler.disable
def scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    segments: Segments,
    state: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over whole rows. A compiled block calls it as it is.

    Args:
        x: (batch, length, heads, head_width), fp32 or bf16; the products are computed in its dtype, decays
            and the carried state in fp32.
        dt: (batch, length, heads) fp32, not negative.
        a: (heads,) fp32, negative.
        b, c: (batch, length, groups, state_width) of x's dtype; head h uses group h // (heads / groups).
        segments: of these rows; the state is dropped where a document begins.
        state: (batch, heads, head_width, state_width) fp32, before the first token; None: zero.
        skip: (heads,) fp32, or None: zero.

    Returns:
        y, as x; the state after the last token, fp32.
    """
    if x.is_cuda and (kernel := kernels.find(kernels.SSD)) is not None:
        return kernels.ssd_scan(kernel, x, dt, a, b, c, segments, state, skip)
    length = x.shape[1]
    size = min(CHUNK.get(x.dtype, CHUNK[torch.float32]), length)
    padding = -length % size
    if padding:
        x, b, c = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (x, b, c))
        dt = F.pad(dt, (0, 0, 0, padding))
    y, last = Scan.apply(x, dt, a, b, c, state, skip, segments.chunks(size), size)
    return y[:, :length], last


def scan_reference(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    segments: Segments,
    state: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scan` as the formula, token by token."""
    batch, length, heads, width = x.shape
    b, c = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (b, c))
    s = x.new_zeros(batch, heads, width, b.shape[3]) if state is None else state
    columns, out = segments.columns, []
    for t in range(length):
        if columns is not None and t > 0:
            s = s * (columns[:, t] > 0)[:, None, None, None]
        decay, entering = torch.exp(dt[:, t] * a), dt[:, t, :, None] * x[:, t]
        s = decay[..., None, None] * s + entering[..., None] * b[:, t, :, None]
        y = (s * c[:, t, :, None]).sum(dim=-1)
        out.append(y if skip is None else y + skip[:, None] * x[:, t])
    return torch.stack(out, dim=1), s


def step(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, skip: Tensor | None = None
) -> Tensor:
    """One token of decoding; the state is changed in place. Shapes are `scan`'s without length.

    Returns:
        (batch, heads, head_width), of x's dtype.
    """
    batch, heads, width, columns = state.shape
    groups = b.shape[1]
    grouped = state.view(batch, groups, -1, columns)
    state.mul_(torch.exp(dt * a)[..., None, None])
    entering = (dt[..., None] * x).view(batch, groups, -1, 1)
    grouped.addcmul_(entering, b.to(state.dtype)[:, :, None])
    y = (grouped @ c.to(state.dtype)[..., None]).view(batch, heads, width)
    return (y if skip is None else y.addcmul_(skip[:, None], x.to(y.dtype))).to(x.dtype)
