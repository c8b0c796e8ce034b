"""What objectives share whose sequences come in twos: a chosen and a rejected answer, or an answer and
another's after the same prompt. There is one loss for each two."""

from typing import Self

from torch import Tensor, nn

from cupola.data.batch import Batch, Microbatch
from cupola.models.stack import Output
from cupola.objectives.base import LossParts
from cupola.recipe.clock import StepValues


class InTwos:
    """A loss for each two sequences of a microbatch; reported is the mean over them."""

    def at(self, values: StepValues) -> Self:
        """The same: no schedule changes it."""
        return self

    def normaliser(self, batch: Batch) -> int:
        """Twos of the whole batch, over all workers."""
        return max(1, batch.sequences // 2)

    def forward(self, module: nn.Module, microbatch: Microbatch) -> Output:
        """The hidden states of a microbatch."""
        output: Output = module(microbatch.tokens, microbatch.documents)
        return output

    def parts(
        self,
        losses: Tensor,
        metrics: dict[str, Tensor],
        output: Output,
        microbatch: Microbatch,
        extremes: dict[str, Tensor] | None = None,
    ) -> LossParts:
        """The sums of `losses`, (S,) one for each two, with what keeps a mixture's loads even."""
        total, loss = losses.sum(), losses.detach().sum()
        if output.balance is not None:
            # A sum over tokens: here each two count as often as a loss.
            balance = output.balance * (len(losses) / microbatch.targets.numel())
            total = total + balance
            metrics = {**metrics, "balance": balance.detach()}
        return LossParts(total, loss, metrics, output.loads, extremes=extremes or {})
