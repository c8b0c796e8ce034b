"""The packages' kernels by stand-ins that follow their documented signatures, token by token: layouts,
documents and states are handed over as they take them. The kernels themselves need a GPU."""

import pytest
import torch
from torch import Tensor

from cupola.models import delta_rule, kernels, ssd
from cupola.models.segments import Segments

BATCH, LENGTH, HEADS, WIDTH, STATES = 2, 11, 4, 3, 5
DOCUMENTS = torch.tensor(
    [[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3], [4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]], dtype=torch.int32
)


def fake_ssd(
    x, dt, A, B, C, chunk_size, D=None, initial_states=None, seq_idx=None, return_final_states=False
):
    """mamba_ssm's: x (batch, seqlen, nheads, headdim), states (batch, nheads, headdim, dstate), seq_idx
    (batch, seqlen) int32; the initial state belongs to sequence 0."""
    assert return_final_states
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32
        assert not seq_idx[:, 0].any()
    B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], dim=2) for t in (B, C))
    state = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[3]) if initial_states is None else initial_states
    out = []
    for t in range(x.shape[1]):
        if seq_idx is not None and t > 0:
            state = state * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        written = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        state = (dt[:, t] * A).exp()[..., None, None] * state + written
        out.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]) + D[:, None] * x[:, t])
    return torch.stack(out, dim=1), state


def fake_delta_rule(q, k, v, a, b, gk, scale, initial_state, output_final_state, cu_seqlens):
    """fla's: all (batch, tokens, heads, width), batch 1 with cu_seqlens, whose sequences have states
    (sequences, heads, keys, values)."""
    assert output_final_state
    if cu_seqlens is not None:
        assert q.shape[0] == 1
        parts, states = [], []
        for number, (begin, end) in enumerate(
            zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)
        ):
            entering = None if initial_state is None else initial_state[number : number + 1]
            inputs = (x[:, begin:end] for x in (q, k, v, a, b, gk))
            y, last = fake_delta_rule(*inputs, scale, entering, True, None)
            parts.append(y)
            states.append(last)
        return torch.cat(parts, dim=1), torch.cat(states)
    state = initial_state
    if state is None:
        state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out = []
    for t in range(q.shape[1]):
        replaced = torch.einsum("bhkv,bhk->bhv", state, a[:, t])
        state = gk[:, t].exp()[..., None] * state
        state = (
            state + b[:, t, ..., None] * replaced[..., None, :] + k[:, t, ..., None] * v[:, t, ..., None, :]
        )
        out.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(out, dim=1), state


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("entering", [False, True])
def test_ssd(documents, entering):
    x, b, c = (
        random(BATCH, LENGTH, HEADS, WIDTH),
        random(BATCH, LENGTH, 2, STATES),
        random(BATCH, LENGTH, 2, STATES),
    )
    dt, a, skip = random(BATCH, LENGTH, HEADS).exp(), -random(HEADS).exp(), random(HEADS)
    state = random(BATCH, HEADS, WIDTH, STATES) if entering else None
    given = (x, dt, a, b, c.flip(1), Segments(documents), state, skip)
    for found, expected in zip(kernels.ssd_scan(fake_ssd, *given), ssd.scan_reference(*given), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("entering", [False, True])
def test_delta_rule(documents, entering):
    r, k, v, a, b = (random(BATCH, LENGTH, HEADS, WIDTH + 0 * n).roll(n, 1) for n in range(5))
    log_decay = -0.6 * torch.sigmoid(random(BATCH, LENGTH, HEADS, WIDTH).roll(6, 1))
    state = random(BATCH, HEADS, WIDTH, WIDTH) if entering else None
    given = (r, log_decay, k, v, -a / 3, b / 3, Segments(documents), state)
    found = kernels.delta_rule_scan(fake_delta_rule, *given)
    for one, other in zip(found, delta_rule.scan_reference(*given), strict=True):
        torch.testing.assert_close(one, other)


def test_a_missing_package_is_no_kernel():
    assert kernels.find(("no_such_package.ops", "scan")) is None
    assert kernels.in_use(torch.device("cpu"), {"mamba2", "attention"}) == {"mamba2": "cupola"}
