"""Muon for matrices and AdamW for everything else, in one optimizer with one state.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the
nearest orthogonal matrix, roughly (`cupola.optim.newton_schulz`). Its size is scaled by
0.2 sqrt(max(rows, columns)), so that an update is as large as AdamW's and one learning rate serves both
(Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).

Guarantees: with `newton_schulz="quintic"` the arithmetic of
`torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` (momentum is the moving average, not the sum of its
docstring), which a test compares. The same state and gradients give the same step, bit for bit, on one
machine, whatever the number of threads.
Costs: `newton_schulz`'s products, and one read and write of momentum and parameter. One number of state for
each of a matrix, where AdamW has two.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cupola.optim import threads
from cupola.optim.adamw import AdamW, gradients
from cupola.optim.layout import WHOLE, Layout
from cupola.optim.newton_schulz import iteration_dtype, orthogonalise
from cupola.recipe.schema import NewtonSchulz


class Muon(AdamW):
    """Groups of role "matrix" by Muon, all others by AdamW.

    A matrix is a 2-D parameter; one of three axes is a batch of matrices (a mixture's experts), each of which
    is orthogonalised by itself; so is each matrix of those that are fused into one, row below row (query, key
    and value; gate and up): the factor of the whole is not made of theirs.

    Args:
        groups: each with `params`, `role`, `weight_decay`, and what else overrides the defaults below; also
            `fused`, by parameter the rows of each of the matrices in it.
        lr: learning rate of both.
        momentum: decay of Muon's average of gradients.
        nesterov: look ahead: orthogonalise the average with the gradient counted once more.
        newton_schulz, newton_schulz_steps: the iteration.
        betas, eps: AdamW's.
        dtype: of the Newton-Schulz iteration; by default bf16 where the processor multiplies it fast.
        layout: where a sharded matrix is whole.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        newton_schulz: NewtonSchulz = "polar_express",
        newton_schulz_steps: int | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        dtype: torch.dtype | None = None,
        layout: Layout = WHOLE,
    ) -> None:
        super().__init__(groups, lr, betas, eps, momentum=momentum, nesterov=nesterov, fused={})
        self.method: NewtonSchulz = newton_schulz
        self.steps = newton_schulz_steps
        self.dtype = dtype
        self.layout = layout
        for group in self.param_groups:
            if group["role"] == "matrix":
                _check(group)

    def parts(self, role: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of a matrix the momentum, of everything else AdamW's moments."""
        return {"momentum": shape} if role == "matrix" else super().parts(role, shape)

    def update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Matrices by Muon; everything else by AdamW."""
        if group["role"] != "matrix":
            super().update(group, parameters)
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        if self.layout is WHOLE and parameters[0].device.type == "cpu":
            # One after the other, so that a matrix stays in the processor's cache from first to last.
            threads.each(lambda parameter: self._update_alike(group, [parameter]), parameters)
            return
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for members in by_shape.values():
            self._update_alike(group, members)

    def _update_alike(self, group: dict[str, Any], members: list[Tensor]) -> None:
        """Matrices of one shape."""
        averages = self.layout.local([self.state[p]["momentum"] for p in members])
        fresh = self.layout.local(gradients(members))
        torch._foreach_lerp_(averages, fresh, 1 - group["momentum"])
        ahead = averages
        if group["nesterov"]:
            ahead = list(torch._foreach_lerp(fresh, averages, group["momentum"]))
        whole = self.layout.gather(ahead, members)
        rows = [group["fused"].get(members[index], ()) for index in self.layout.mine(len(members))]
        updates = self._orthogonal(whole, rows)
        local = self.layout.local(members)
        torch._foreach_mul_(local, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(local, self.layout.cut(updates, members), alpha=-group["lr"])

    def _orthogonal(self, whole: list[Tensor], rows: list[tuple[int, ...]]) -> list[Tensor]:
        """The update of each whole parameter, at AdamW's size.

        Args:
            rows: of the matrices that are fused in it, for each.
        """
        pieces = [_pieces(tensor, own) for tensor, own in zip(whole, rows, strict=True)]
        flat = [matrix for own in pieces for matrix in own]
        if not flat:
            return []
        found = orthogonalise(flat, self.dtype or iteration_dtype(flat[0].device), self.method, self.steps)
        torch._foreach_mul_(found, [0.2 * max(matrix.shape) ** 0.5 for matrix in flat])
        in_turn = iter(found)
        return [
            _joined([next(in_turn) for _ in own], tensor.shape)
            for tensor, own in zip(whole, pieces, strict=True)
        ]


def _check(group: dict[str, Any]) -> None:
    for parameter in group["params"]:
        if parameter.ndim not in (2, 3):
            raise ValueError("Muon orthogonalises matrices: parameters of that role must be 2-D or 3-D")
        rows = group["fused"].get(parameter)
        if rows and sum(rows) != parameter.shape[-2]:
            raise ValueError(f"the matrices that are fused have {sum(rows)} rows, not {parameter.shape[-2]}")


def _pieces(tensor: Tensor, rows: tuple[int, ...]) -> list[Tensor]:
    """The matrices (rows, columns) in a parameter; views."""
    matrices = list(tensor.unbind()) if tensor.ndim == 3 else [tensor]
    return [piece for matrix in matrices for piece in (matrix.split(list(rows)) if rows else [matrix])]


def _joined(pieces: list[Tensor], shape: torch.Size) -> Tensor:
    """The inverse of `_pieces`; without a copy where there is one piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces).view(shape)
