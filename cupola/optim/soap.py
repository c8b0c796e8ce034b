"""SOAP for matrices (Adam in the eigenbasis of Shampoo's covariances), AdamW for everything else.

Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321, algorithm 3. For
a gradient G with covariances L and R and bases Q_L and Q_R (`cupola.optim.eigenbasis`):

    G' = Q_L^T G Q_R                                             the gradient in the basis
    M' <- beta_1 M' + (1 - beta_1) G',  V <- beta_2 V + (1 - beta_2) G'^2
    W <- W - rate Q_L (M' / (sqrt V + eps)) Q_R^T,               rate = lr sqrt(1 - beta_2^t) / (1 - beta_1^t)
    W <- (1 - lr decay) W
    L <- beta L + (1 - beta) G G^T,  R <- beta R + (1 - beta) G^T G
    every `precondition_every` steps: new bases; V follows the order of their columns, M' turns with them

Guarantees: the arithmetic of the authors' code, step by step, which tests compare with an independent
implementation and with the equations. As there, a matrix's first gradient only makes its first basis, and
a basis is renewed after the update, so that no gradient is measured in a basis of its own. The first moment
is kept in the basis (theirs turns it out and in at every step; the paper keeps it outside and turns it at
every step): it is linear in the gradients, so to turn it where the basis changes is the same mathematics,
for two products a step less. The second moment is of squares and can't be turned: it is only reordered.
When a matrix's basis is renewed is a function of its number of steps and of the model's shapes, so a
resumed run continues bit for bit.

Costs: for a matrix of r rows and c columns with both sides rotated, 6 r c (r + c) FLOPs a step, and
4.7 (r^3 + c^3) + 4 r c (r + c) for a renewal. The renewals of different matrices take turns within the
interval, shared out by cost: in a model of ten matrices or more no step is much dearer than another. The
first, which decomposes a covariance of every matrix, is about twice as long. Memory: 2 r c numbers of
moments, as AdamW, and 2 (r^2 + c^2) of covariances and bases, all in `dtype`: for a square matrix 6 numbers a
parameter, 24 bytes in fp32 and 12 in bf16, where AdamW takes 8. Temporaries of a step: the gradients of one
shape once, and a few times `CHUNK` numbers.
Trade-off: bf16 halves memory and, where the processor multiplies in it, time; bases are then orthogonal to
0.4%, and directions with less than 0.4% of a covariance's largest eigenvalue are lost in its rounding.
Averages in bf16 stand still where a change is below that, so decay rates above 0.99 are refused.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cupola.models.table.states import rotated_sides
from cupola.optim import eigenbasis
from cupola.optim.adamw import AdamW
from cupola.optim.layout import WHOLE, Layout
from cupola.recipe.schema import LARGEST_BF16_DECAY

CHUNK = 2**24
"""Numbers that are updated together: bounds the temporaries of a step."""
LEFT, RIGHT = ("left", "left_basis"), ("right", "right_basis")
BASES = ("left_basis", "right_basis")


class Soap(AdamW):
    """Groups of role "matrix" by SOAP, all others by AdamW.

    A matrix is a 2-D parameter; one of three axes is a batch of matrices (a mixture's experts).

    Args:
        groups: each with `params`, `role`, `weight_decay`, and what else overrides the defaults below.
        lr: learning rate of both.
        betas, eps: decay rates of the moments, and what is added to the root of the second; of both.
        precondition_every: steps from one renewal of a matrix's bases to the next.
        covariance_decay: of L and R; by default that of the second moment.
        largest_preconditioned, one_sided_above: which sides are rotated, see
            `models.table.states.rotated_sides`.
        dtype: of the state of matrices, and of the products with it; decompositions are in fp32.
        layout: where a sharded matrix is whole.

    Raises:
        ValueError: a parameter of role "matrix" is none; a decay rate is too near 1 for bf16.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        precondition_every: int = 10,
        covariance_decay: float | None = None,
        largest_preconditioned: int = 10_000,
        one_sided_above: float = 4.0,
        dtype: torch.dtype = torch.float32,
        layout: Layout = WHOLE,
    ) -> None:
        super().__init__(groups, lr, betas, eps)
        self.precondition_every = precondition_every
        self.covariance_decay = covariance_decay
        self.largest_preconditioned = largest_preconditioned
        self.one_sided_above = one_sided_above
        self.dtype = dtype
        self.layout = layout
        self.families = self._families()

    def _families(self) -> dict[Tensor, "Family"]:
        """The family of every matrix, with the renewals shared out over all of them."""
        families: dict[Tensor, Family] = {}
        for group in self.param_groups:
            if group["role"] != "matrix":
                continue
            decay = max(*group["betas"], self.covariance_decay or 0.0)
            if self.dtype == torch.bfloat16 and decay > LARGEST_BF16_DECAY:
                raise ValueError(f"averages in bf16 stand still with a decay rate of {decay}")
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.ndim not in (2, 3):
                    raise ValueError(
                        "SOAP preconditions matrices: parameters of that role must be 2-D or 3-D"
                    )
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for members in by_shape.values():
                family = Family(members, self.layout.mine(len(members)), self._sides(members[0].shape))
                families |= dict.fromkeys(members, family)
        kinds = list(dict.fromkeys(families.values()))
        costs = [family.renewal_cost for family in kinds for _ in range(family.matrices)]
        turns = eigenbasis.share_out(costs, self.precondition_every)
        for family in kinds:
            family.turns, turns = turns[: family.matrices], turns[family.matrices :]
        return families

    def _sides(self, shape: tuple[int, ...]) -> tuple[bool, bool]:
        return rotated_sides(shape, self.largest_preconditioned, self.one_sided_above)

    def parts(self, role: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of a matrix the moments in its basis, and covariance and basis of each rotated side."""
        parts = super().parts(role, shape)
        if role == "matrix":
            for rotated, names, length in zip(self._sides(shape), (LEFT, RIGHT), shape[-2:], strict=True):
                if rotated:
                    parts |= dict.fromkeys(names, (*shape[:-2], length, length))
        return parts

    def update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Matrices of one shape together; everything else by AdamW."""
        if group["role"] != "matrix":
            super().update(group, parameters)
            return
        for family in dict.fromkeys(self.families[p] for p in parameters):
            self._update_alike(group, family)

    def _update_alike(self, group: dict[str, Any], family: "Family") -> None:
        """Matrices of one shape; those without a gradient are left alone."""
        parameters = family.parameters
        self._take_state(family)
        present = [p.grad is not None for p in parameters]
        fresh = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = self.layout.gather(self.layout.local(fresh), parameters)
        updates: list[Tensor] = []
        for positions in family.runs(present):
            here = whole[positions.start : positions.stop]
            if present[family.mine[positions.start]]:
                here = self._update_run(group, family, positions, here)
            updates += here
        moved = [i for i, found in enumerate(present) if found and family.steps[i] >= 0]
        for i, found in enumerate(present):
            if found:
                family.steps[i] += 1
                self.state[parameters[i]] = family.states[i]
                family.states[i]["step"].fill_(family.steps[i])
        cut = self.layout.cut(updates, parameters)
        local = self.layout.local(parameters)
        if moved:
            torch._foreach_add_([local[i] for i in moved], [cut[i] for i in moved], alpha=-group["lr"])
            torch._foreach_mul_([local[i] for i in moved], 1 - group["lr"] * group["weight_decay"])

    def _update_run(
        self, group: dict[str, Any], family: "Family", positions: range, gradients: list[Tensor]
    ) -> list[Tensor]:
        """The updates of neighbours that have done as many steps, without the learning rate."""
        beta, beta_square = group["betas"]
        decay = beta_square if self.covariance_decay is None else self.covariance_decay
        step = family.steps[family.mine[positions.start]] + 1
        state = family.part(positions)
        shape = gradients[0].shape
        matrices = torch.stack(gradients).view(-1, *shape[-2:]).to(self.dtype)
        direction = torch.zeros_like(matrices)
        if step:
            bases = _bases(state)
            rotated = eigenbasis.rotate(matrices, *bases)
            state["exp_avg"].lerp_(rotated, 1 - beta)
            state["exp_avg_sq"].lerp_(rotated.square(), 1 - beta_square)
            scaled = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"])
            scaled *= (1 - beta_square**step) ** 0.5 / (1 - beta**step)
            direction = eigenbasis.rotate_back(scaled, *bases)
        else:
            sides = "left" in state, "right" in state
            for name, found in zip(BASES, eigenbasis.first_bases(matrices, sides), strict=True):
                if found is not None:
                    state[name].copy_(found)
        for covariance, side in (("left", matrices), ("right", matrices.mT)):
            if covariance in state:
                eigenbasis.accumulate(state[covariance], side, decay)
        if step:
            self._renew(state, family.due(positions, step % self.precondition_every))
        return list(direction.to(gradients[0].dtype).unflatten(0, (len(gradients), *shape[:-2])))

    def _renew(self, state: dict[str, Tensor], due: list[int]) -> None:
        """New bases for the matrices whose turn it is; the moments follow."""
        if not due:
            return
        index = torch.tensor(due, device=state["exp_avg"].device)
        chosen = {name: value[index] for name, value in state.items()}
        moment = eigenbasis.rotate_back(chosen["exp_avg"], *_bases(chosen))
        for (covariance, basis), axis in ((LEFT, -2), (RIGHT, -1)):
            if covariance in chosen:
                renewed, order = eigenbasis.next_basis(chosen[covariance], chosen[basis])
                chosen[basis] = renewed.to(self.dtype)
                along = order.unsqueeze(-1 if axis == -2 else -2)
                squares = chosen["exp_avg_sq"]
                chosen["exp_avg_sq"] = squares.gather(axis, along.expand_as(squares))
        chosen["exp_avg"] = eigenbasis.rotate(moment, *_bases(chosen))
        for name, value in chosen.items():
            if name not in ("left", "right"):
                state[name].index_copy_(0, index, value)

    def _take_state(self, family: "Family") -> None:
        """Have the state of a family in stacks, of which each parameter's state is a view.

        They are made at the first step, and again where another state has been put in the place of theirs.
        """
        found = [self.state.get(p) or None for p in family.parameters]
        known = [state if n >= 0 else None for state, n in zip(family.states, family.steps, strict=True)]
        if family.stacks and all(a is b for a, b in zip(found, known, strict=True)):
            return
        device = family.parameters[0].device
        shapes = self.parts("matrix", tuple(family.parameters[0].shape))
        del shapes["step"]
        family.steps = [int(state["step"]) if state else -1 for state in found]
        family.states = [{"step": torch.zeros((), device=device)} for _ in found]
        for name, shape in shapes.items():
            stack = torch.zeros((len(family.mine), *shape), dtype=self.dtype, device=device)
            family.stacks[name] = stack.view(-1, *shape[-2:])
            for part, i in zip(stack, family.mine, strict=True):
                family.states[i][name] = part
                if state := found[i]:
                    part.copy_(state.pop(name))
        for parameter, state, n in zip(family.parameters, family.states, family.steps, strict=True):
            if n >= 0:
                state["step"].fill_(n)
                self.state[parameter] = state


def _bases(state: dict[str, Tensor]) -> list[Tensor | None]:
    """Of rows and of columns; None where they are not rotated."""
    return [state.get(name) for name in BASES]


class Family:
    """All parameters of one shape in a group, and the state of their matrices in stacks.

    Args:
        parameters: (rows, columns) or (matrices, rows, columns) each, alike.
        mine: those that this process works on, by position.
        sides: whether rows and columns are rotated.
    """

    def __init__(self, parameters: list[Tensor], mine: list[int], sides: tuple[bool, bool]) -> None:
        *batch, rows, columns = parameters[0].shape
        self.parameters = parameters
        self.mine = mine
        self.batch = math.prod(batch)
        self.renewal_cost = float(rows**3 * sides[0] + columns**3 * sides[1])
        self.largest_run = max(1, CHUNK // parameters[0].numel())
        self.turns: list[int] = []
        """The step within the interval at which each matrix of `mine` is renewed."""
        self.steps = [-1] * len(parameters)
        """Updates made of each parameter; -1 where there has been no gradient."""
        self.states: list[dict[str, Tensor]] = [{} for _ in parameters]
        self.stacks: dict[str, Tensor] = {}

    @property
    def matrices(self) -> int:
        """How many are this process's."""
        return len(self.mine) * self.batch

    def runs(self, present: list[bool]) -> Iterator[range]:
        """Neighbours in `mine` that can be updated together: all with a gradient or none, as many steps."""
        start = 0
        for end in range(1, len(self.mine) + 1):
            first = self.mine[start]
            if (
                end == len(self.mine)
                or end - start == self.largest_run
                or (present[first], self.steps[first])
                != (present[self.mine[end]], self.steps[self.mine[end]])
            ):
                yield range(start, end)
                start = end

    def part(self, positions: range) -> dict[str, Tensor]:
        """The stacks' part of these positions in `mine`."""
        chosen = slice(positions.start * self.batch, positions.stop * self.batch)
        return {name: stack[chosen] for name, stack in self.stacks.items()}

    def due(self, positions: range, turn: int) -> list[int]:
        """Which matrices of such a part have their turn."""
        chosen = self.turns[positions.start * self.batch : positions.stop * self.batch]
        return [index for index, own in enumerate(chosen) if own == turn]
