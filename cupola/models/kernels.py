"""The field's own kernels for recurrent layers on a GPU, where they are installed.

On a GPU `ssd.scan` hands over to mamba-ssm's and `delta_rule.scan` to flash-linear-attention's kernel; where
a package is missing, the chunked form of this project runs there as it does on a CPU. `in_use` says which,
for the run's record. The layouts are tested with stand-ins of the packages' signatures; nothing here has run
on a GPU (docs/gpu.md).
"""

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cupola.models.segments import Segments

SSD = ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
DELTA_RULE = ("fla.ops.generalized_delta_rule", "chunk_dplr_delta_rule")
SSD_CHUNK = 256
"""Tokens of a chunk of mamba-ssm's kernel, its own default."""


@lru_cache(maxsize=8)
def find(where: tuple[str, str]) -> Callable[..., Any] | None:
    """A kernel by (module, name), or None: the package isn't there or doesn't load."""
    module, name = where
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # a kernel package that doesn't fit the driver raises anything
        return None


def in_use(device: torch.device, mixers: set[str]) -> dict[str, str]:
    """Which form computes each kind of recurrent layer on this device."""
    named = {"mamba2": (SSD, "mamba-ssm"), "rwkv7": (DELTA_RULE, "flash-linear-attention")}
    return {
        kind: package if device.type == "cuda" and find(where) is not None else "cupola"
        for kind, (where, package) in named.items()
        if kind in mixers
    }


def ssd_scan(
    kernel: Callable[..., Any],
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    segments: Segments,
    state: Tensor | None,
    skip: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`ssd.scan` by mamba-ssm's kernel; it takes documents as a number for each token."""
    numbers = None
    if segments.columns is not None:  # counted from 0, to which the entering state belongs
        begins = segments.columns == 0
        begins[:, 0] = False
        numbers = begins.cumsum(1).to(torch.int32)
    y, last = kernel(
        x,
        dt,
        a,
        b,
        c,
        chunk_size=SSD_CHUNK,
        D=skip,
        initial_states=state,
        seq_idx=numbers,
        return_final_states=True,
    )
    return y, last.float()


def delta_rule_scan(
    kernel: Callable[..., Any],
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    segments: Segments,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`delta_rule.scan` by flash-linear-attention's kernel.

    It takes documents as one row cut at the given places, and its state is keys by values.
    """
    batch, length = r.shape[:2]
    entering = None if state is None else state.mT.contiguous()
    inputs, ends = [r, k, v, a, b, log_decay], None
    if segments.columns is not None:
        starts = segments.columns == 0
        starts[:, 0] = True
        begins = starts.flatten().nonzero().flatten()
        ends = torch.cat((begins, begins.new_tensor([batch * length])))
        inputs = [x.flatten(0, 1)[None] for x in inputs]
        if entering is not None:
            first = torch.zeros(len(begins), dtype=torch.bool, device=r.device)
            first[torch.searchsorted(begins, torch.arange(batch, device=r.device) * length)] = True
            spread = entering.new_zeros(len(begins), *entering.shape[1:])
            entering = spread.masked_scatter(first[:, None, None, None], entering)
    q, k, v, a, b, gk = inputs
    y, last = kernel(
        q=q,
        k=k,
        v=v,
        a=a,
        b=b,
        gk=gk,
        scale=1.0,
        initial_state=entering,
        output_final_state=True,
        cu_seqlens=ends,
    )
    if ends is not None:
        y = y.view(batch, length, *y.shape[2:])
        rows_end = torch.arange(1, batch + 1, device=r.device) * length
        last = last[torch.searchsorted(ends, rows_end) - 1]
    return y.to(v.dtype), last.mT.float()
