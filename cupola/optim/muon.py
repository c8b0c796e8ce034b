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
from torch.optim import Optimizer
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Groups of role "matrix" by Muon, all others by AdamW.

    A matrix is a 2-D parameter; one of three axes is a batch of matrices (a mixture's experts), each of which
    is orthogonalised by itself.

    Args:
        groups: each with `params`, `role`, `weight_decay`, and what else overrides the defaults below.
        lr: learning rate of both.
        momentum: decay of Muon's average of gradients; used with Nesterov's look-ahead.
        betas, eps: AdamW's.
        dtype: of the Newton-Schulz iteration; by default bf16 where the processor multiplies it fast.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0}
        )
        self.dtype = dtype
        for group in self.param_groups:
            if group["role"] == "matrix" and any(p.ndim not in (2, 3) for p in group["params"]):
                raise ValueError("Muon orthogonalises matrices: parameters of that role must be 2-D or 3-D")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if group["role"] == "matrix":
                self._orthogonal_step(group, parameters)
            else:
                self._adamw_step(group, parameters)

    def _orthogonal_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, members in by_shape.items():
            averages = []
            for parameter in members:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                averages.append(state["momentum"])
            gradients = _gradients(members)
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
            matrices = torch.stack(ahead).view(-1, *shape[-2:])
            updates = orthogonalise(matrices, self.dtype or iteration_dtype(members[0].device))
            updates = updates.unflatten(0, (len(members), *shape[:-2]))
            size = 0.2 * max(shape[-2:]) ** 0.5
            torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(members, list(updates.to(members[0].dtype)), alpha=-group["lr"] * size)

    def _adamw_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            _gradients(parameters),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=parameters[0].device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


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
