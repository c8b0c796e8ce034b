"""What lies on a device all the time: weights, their gradients, fp32 masters, the optimizer's states.

bf16, fp16 and fp8 keep 16-bit weights (2 bytes), masters (4), gradients (4, or 2) and states (AdamW 8);
fp32 keeps weights, gradients and states. Each is cut by tensor and expert parallelism, and over data x
context from the stage of sharding on that says so. Sharded parameters (stage 3) have no 16-bit copy of
their own, but for the layers that are gathered just then.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cupola.models.table import Parameter
from cupola.models.table.states import state_bytes
from cupola.plan.execution import Execution
from cupola.plan.layout import Layout
from cupola.recipe.schema import Optimizer


@dataclass(frozen=True)
class Held:
    """Numbers that a device holds of some parameters before anything is sharded.

    Attributes:
        weights: all of them.
        trained: those with a gradient.
        states: bytes of the optimizer.
    """

    weights: float = 0.0
    trained: float = 0.0
    states: float = 0.0

    def plus(self, other: "Held") -> "Held":
        """Both."""
        return Held(self.weights + other.weights, self.trained + other.trained, self.states + other.states)

    def over(self, ways: float) -> "Held":
        """Cut so many ways."""
        return Held(self.weights / ways, self.trained / ways, self.states / ways)

    def times(self, number: int) -> "Held":
        """So many alike."""
        return Held(self.weights * number, self.trained * number, self.states * number)


@dataclass(frozen=True)
class Group:
    """Parameters that are gathered together: experts, which expert parallelism has cut already, and the
    rest."""

    dense: Held = Held()
    experts: Held = Held()

    def plus(self, other: "Group") -> "Group":
        """Both."""
        return Group(self.dense.plus(other.dense), self.experts.plus(other.experts))

    def times(self, number: int) -> "Group":
        """So many alike."""
        return Group(self.dense.times(number), self.experts.times(number))

    @property
    def whole(self) -> Held:
        """Unsharded."""
        return self.dense.plus(self.experts)

    def sharded(self, layout: Layout) -> Held:
        """Cut over data x context; experts over those workers that have the same."""
        return self.dense.over(layout.shards).plus(self.experts.over(layout.shards / layout.expert))


def held(
    parameters: Iterable[Parameter], layout: Layout, optimizer: Optimizer, frozen: Collection[str] = ()
) -> Group:
    """What tensor and expert parallelism leave on a device of some parameters. What is cut by rows of the
    vocabulary is padded; SOAP's covariances, which are of whole matrices, are shared out like these."""
    found = Group()
    for parameter in parameters:
        ways = 1 if parameter.cut.startswith("replicate") else layout.tensor
        numbers = parameter.size / ways
        if parameter.cut == "vocabulary":
            numbers = float(-(-parameter.shape[0] // ways) * parameter.shape[1])
        own = Held(numbers, numbers, state_bytes(parameter, optimizer) / ways)
        if parameter.role == "buffer" or parameter.name in frozen:
            own = Held(numbers)
        is_expert = len(parameter.shape) == 3
        found = found.plus(Group(experts=own.over(layout.expert)) if is_expert else Group(dense=own))
    return found


def standing(
    group: Group, layout: Layout, execution: Execution, references: int = 0
) -> tuple[float, float, float, float]:
    """Bytes of parameters, gradients, master weights and optimizer states, after sharding."""
    whole, cut = group.whole, group.sharded(layout)
    shard, mixed = layout.shard, execution.precision != "fp32"
    copies = 0 if mixed and layout.sharded and shard == 3 and not execution.copies else 1
    return (
        execution.element * (cut if shard == 3 else whole).weights * (copies + references),
        (execution.gradients if mixed else 4) * (cut if shard >= 2 else whole).trained,
        4 * (cut if shard >= 1 else whole).weights if mixed else 0.0,
        (cut if shard >= 1 else whole).states,
    )
