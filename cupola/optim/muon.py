"""Muon for matrices and AdamW for everything else, in one optimizer with one state.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the
nearest orthogonal matrix, roughly: five steps of a quintic Newton-Schulz iteration. Its size is scaled by
0.2 sqrt(max(rows, columns)), so that an update is as large as AdamW's and one learning rate serves both
(Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).

Guarantees: the arithmetic of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` (momentum is the moving
average, not the sum of its docstring), which a test compares. The same state and gradients give the same
step, bit for bit, on one machine.
Costs: 5 (4 r^2 c + 2 r^3) FLOPs for a matrix of r <= c, in bf16 where the processor has it; all matrices of
one shape are one batch of products, so a GPU starts 15 kernels a shape and not 15 a matrix.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cupola.optim.adamw import AdamW, gradients
from cupola.optim.layout import WHOLE, Layout

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7


class Muon(AdamW):
    """Groups of role "matrix" by Muon, all others by AdamW.

    A matrix is a 2-D parameter; one of three axes is a batch of matrices (a mixture's experts), each of which
    is orthogonalised by itself.

    Args:
        groups: each with `params`, `role`, `weight_decay`, and what else overrides the defaults below.
        lr: learning rate of both.
        momentum: decay of Muon's average of gradients; used with Nesterov's look-ahead.
        betas, eps: AdamW's.
        dtype: of the Newton-Schulz iteration; by default bf16 where the processor multiplies it fast.
        layout: where a sharded matrix is whole.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        dtype: torch.dtype | None = None,
        layout: Layout = WHOLE,
    ) -> None:
        super().__init__(groups, lr, betas, eps, momentum=momentum)
        self.dtype = dtype
        self.layout = layout
        for group in self.param_groups:
            if group["role"] == "matrix" and any(p.ndim not in (2, 3) for p in group["params"]):
                raise ValueError("Muon orthogonalises matrices: parameters of that role must be 2-D or 3-D")

    def parts(self, role: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of a matrix the momentum, of everything else AdamW's moments."""
        return {"momentum": shape} if role == "matrix" else super().parts(role, shape)

    def update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Matrices of one shape together; everything else by AdamW."""
        if group["role"] != "matrix":
            super().update(group, parameters)
            return
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for members in by_shape.values():
            self._update_alike(group, members)

    def _update_alike(self, group: dict[str, Any], members: list[Tensor]) -> None:
        """Matrices of one shape."""
        for parameter in members:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        averages = self.layout.local([self.state[p]["momentum"] for p in members])
        fresh = self.layout.local(gradients(members))
        torch._foreach_lerp_(averages, fresh, 1 - group["momentum"])
        ahead = torch._foreach_lerp(fresh, averages, group["momentum"])
        whole = self.layout.gather(list(ahead), members)
        shape = members[0].shape
        updates: list[Tensor] = []
        if whole:
            matrices = torch.stack(whole).view(-1, *shape[-2:])
            orthogonal = orthogonalise(matrices, self.dtype or iteration_dtype(matrices.device))
            updates = list(orthogonal.unflatten(0, (len(whole), *shape[:-2])).to(members[0].dtype))
        size = 0.2 * max(shape[-2:]) ** 0.5
        local = self.layout.local(members)
        torch._foreach_mul_(local, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(local, self.layout.cut(updates, members), alpha=-group["lr"] * size)


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bf16 where matrix products in it are fast: on a GPU, and on CPUs with instructions for it."""
    if device.type != "cpu":
        return torch.bfloat16
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if capable else torch.float32


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """U S' V^T with all of S' near 1 for each matrix U S V^T, by Newton-Schulz.

    Args:
        matrices: (n, rows, columns).
        dtype: of the products.

    Returns:
        (n, rows, columns) in `dtype`.
    """
    a, b, c = COEFFICIENTS
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).clamp_(min=SMALLEST_NORM)
    x = (matrices / norms).to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
