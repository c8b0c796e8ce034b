"""What is learnt: each objective gives a sum and declares what it is divided by."""

from cupola.objectives.base import LossParts, Objective
from cupola.objectives.next_token import NextToken
from cupola.recipe.schema import Stage

__all__ = ["LossParts", "NextToken", "Objective", "build"]


def build(stage: Stage) -> Objective:
    """The objective of a stage, as it begins."""
    return NextToken(stage.z_loss.values[0], stage.document_mask)
