"""Language modelling: the mean over tokens of -log p(next token); over all of them, or those that are learnt
(an assistant's words)."""

import math
from typing import cast

from torch import Tensor, nn

from cupola.data.batch import Batch, Microbatch
from cupola.models.stack import Output
from cupola.objectives.base import LossParts
from cupola.objectives.cross_entropy import linear_cross_entropy
from cupola.recipe.clock import StepValues


class NextToken:
    """Cross-entropy of the next token, in nats.

    Args:
        z_loss: weight of the squared log-normaliser (PaLM); not part of the reported loss.
        document_mask: attention never crosses a document.
    """

    def __init__(self, z_loss: float = 0.0, document_mask: bool = True) -> None:
        self.z_loss, self.document_mask = z_loss, document_mask

    def at(self, values: StepValues) -> "NextToken":
        """With the z-loss of one step."""
        return NextToken(values.z_loss, self.document_mask)

    def normaliser(self, batch: Batch) -> int:
        """Valid targets of the whole batch, over all workers."""
        return max(1, batch.valid_tokens)

    def forward(self, module: nn.Module, microbatch: Microbatch) -> Output:
        """The hidden states of a microbatch."""
        output: Output = module(microbatch.tokens, microbatch.documents if self.document_mask else None)
        return output

    def loss(self, module: nn.Module, microbatch: Microbatch) -> LossParts:
        """One forward pass; the head and the loss together, so that the logits are never all there."""
        output = self.forward(module, microbatch)
        weight = cast(Tensor, module.head_weight)
        hidden, targets = output.hidden.flatten(0, 1), microbatch.targets.flatten()
        if microbatch.answers is not None:  # the head is spared what is not learnt
            places = microbatch.answers.places
            hidden, targets = hidden[places], targets[places]
        total, cross_entropy, z = linear_cross_entropy(hidden, weight, targets, self.z_loss)
        metrics = {"z": z} if self.z_loss else {}
        if output.balance is not None:
            # A sum over all tokens, those that are not learnt too: here its mean counts as often as a loss.
            balance = output.balance * (microbatch.targets >= 0).float().mean()
            total = total + balance
            metrics["balance"] = balance.detach()
        return LossParts(total, cross_entropy, metrics, output.loads)

    def expected_first_loss(self, vocabulary: int) -> float:
        """Fresh weights know nothing: every token is as likely as any other."""
        return math.log(vocabulary)
