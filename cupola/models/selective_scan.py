"""The recurrence of the first Mamba (Gu and Dao 2023, eq. 2): a decay for each channel and number of state.

    h_t = exp(dt_t a) h_(t-1) + dt_t x_t b_t,    y_t = h_t c_t

Guarantees: exact in fp32 (every factor is a decay of at most 1; nothing is divided); documents are a decay of
0 at their first token. Costs: decays differ by channel and state, so no matrix product does the work of a
chunk as in Mamba-2; each number of state is carried through log2(CHUNK) rounds of multiply and add, and
autograd keeps them all: 2 log2(CHUNK) * batch * length * channels * state numbers. It is here to read and
go on from published models; train Mamba-2 instead.
"""

import torch
from torch import Tensor

from cupola.models.segments import Segments

CHUNK = 16
"""Tokens that the rounds of doubling span; between chunks a loop carries the state."""


def scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, segments: Segments, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence over whole rows.

    Args:
        x, dt: (batch, length, channels), dt above 0, fp32.
        a: (channels, states) below 0, fp32.
        b, c: (batch, length, states), fp32.
        state: (batch, channels, states) before the first token, fp32; None: zero.

    Returns:
        y (batch, length, channels) fp32, and the state after the last token.
    """
    batch, length, channels = x.shape
    decay = torch.exp(dt[..., None] * a)
    if segments.columns is not None:
        begins = segments.columns == 0
        begins[:, 0] = False  # what enters with the row is of its first document
        decay = decay * ~begins[..., None, None]
    added = (dt * x)[..., None] * b[:, :, None]
    padding = -length % CHUNK
    decay = torch.nn.functional.pad(decay, (0, 0, 0, 0, 0, padding), value=1.0)
    added = torch.nn.functional.pad(added, (0, 0, 0, 0, 0, padding))
    shape = (batch, -1, CHUNK, channels, b.shape[-1])
    within, through = _doubling(added.view(shape), decay.view(shape))
    h = within.new_zeros(batch, channels, b.shape[-1]) if state is None else state
    entering = []
    for chunk in range(within.shape[1]):
        entering.append(h)
        h = within[:, chunk, -1] + through[:, chunk, -1] * h
    states = within + through * torch.stack(entering, dim=1)[:, :, None]
    states = states.flatten(1, 2)[:, :length]
    return torch.einsum("blcn,bln->blc", states, c), h


def _doubling(added: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Along axis 2: the state of each token if none entered its chunk, and what is left of one that did
    (Hillis and Steele 1986)."""
    reach = 1
    while reach < added.shape[2]:
        earlier = added[:, :, :-reach]
        added = torch.cat((added[:, :, :reach], added[:, :, reach:] + decay[:, :, reach:] * earlier), dim=2)
        decay = torch.cat((decay[:, :, :reach], decay[:, :, reach:] * decay[:, :, :-reach]), dim=2)
        reach *= 2
    return added, decay


def scan_reference(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, segments: Segments, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scan` token by token, as the equations stand; in any dtype."""
    h = x.new_zeros(x.shape[0], x.shape[2], b.shape[-1]) if state is None else state
    ys = []
    for t in range(x.shape[1]):
        if segments.columns is not None and t > 0:
            h = h * (segments.columns[:, t] != 0)[:, None, None]
        h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        ys.append((h * c[:, t, None]).sum(-1))
    return torch.stack(ys, dim=1), h
