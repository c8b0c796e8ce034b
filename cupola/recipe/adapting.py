"""Which of the weights a stage trains: `stages.NAME.freeze` and `stages.NAME.lora`.

Here stand LoRA's settings and what a stage's keys must agree on; what the names in them mean is
`cupola.models.table.trained`'s to say, which knows the parameters.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from cupola.recipe.strict import Strict

if TYPE_CHECKING:
    from cupola.recipe.schema import Stage


class Lora(Strict):
    """Low-rank updates of linear layers (Hu et al. 2021): W x + scale B A x, of which A and B alone are
    trained; at the end of the stage scale B A is added to W."""

    shorthand = "rank"
    rank: int = Field(default=16, ge=1)
    """Rows of A, columns of B."""
    alpha: float | None = Field(default=None, gt=0)
    """The scale is alpha / rank; by default it is twice the rank."""
    rslora: bool = False
    """The scale is alpha / sqrt(rank), with which a learning rate serves every rank (Kalajdzievski 2023)."""
    targets: list[str] = Field(default=[])
    """Linear layers by name, or by its ending: `query`, `mixer.*`, `blocks.0.mixer.query`; by default all
    matrices of the blocks but a mixture's experts and routers."""
    train: list[str] = Field(default=[])
    """Parameters that are trained in full as well, by role or name as in `freeze`, such as `embedding`."""

    def scale(self) -> float:
        """What B A x is multiplied by."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def faults(stage: "Stage", before: "Stage | None") -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of a stage that follows another."""
    if stage.lora is not None and stage.freeze:
        yield "freeze", "has no effect with lora, which leaves alone all that it does not name; remove it"
    if "optimizer" not in stage.carry or before is None:
        return
    if stage.lora is not None or before.lora is not None:
        which = "this stage" if stage.lora is not None else "the stage before"
        yield "carry", f"LoRA's matrices and their state belong to {which} alone; remove optimizer"
    elif set(stage.freeze) != set(before.freeze):
        yield "carry", "the state is of other parameters: freeze differs; remove optimizer"
