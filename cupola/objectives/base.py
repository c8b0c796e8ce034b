"""What every objective is to the training step: a sum to differentiate and a number to divide it by.

The one loss rule: `loss` gives the sum over a microbatch, `normaliser` is counted over the whole batch
before the backward pass, and the step differentiates sum / normaliser. So accumulation, data parallelism
and packing give the gradient of the same mean, however the batch is cut.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from cupola.data.batch import Batch, Microbatch
from cupola.recipe.clock import StepValues


@dataclass(frozen=True)
class LossParts:
    """Sums over one microbatch, as fp32 scalars on its device.

    Attributes:
        sum: what is differentiated.
        loss: what is reported as the loss, without regularisers; detached.
        metrics: further sums to report, divided by the normaliser like the loss; detached.
        loads: of each mixture of experts, how many tokens each expert got: (experts,) int64.
        by_token: sums to report, divided by the targets of the batch that count, whatever divides the loss.
        extremes: (2,) each, the smallest and the largest of something; of the batch's are reported `NAME_min`
            and `NAME_max`.
    """

    sum: Tensor
    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    loads: tuple[Tensor, ...] = ()
    by_token: dict[str, Tensor] = field(default_factory=dict)
    extremes: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What is learnt from a batch."""

    def at(self, values: StepValues) -> "Objective":
        """The objective of one step, whose weights the schedules give."""

    def normaliser(self, batch: Batch) -> int:
        """What the sums of the whole batch are divided by, at least 1."""

    def forward(self, module: nn.Module, microbatch: Microbatch) -> Any:
        """What of `loss` runs the module: its output."""

    def loss(self, module: nn.Module, microbatch: Microbatch) -> LossParts:
        """The sums over one microbatch, from one forward pass."""

    def expected_first_loss(self, vocabulary: int) -> float | None:
        """The reported loss of freshly initialised weights; None where it has no one value."""
