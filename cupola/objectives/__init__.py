"""What is learnt: each objective gives a sum and declares what it is divided by."""

from cupola.objectives.base import LossParts, Objective
from cupola.objectives.next_token import NextToken
from cupola.recipe.schema import Stage

__all__ = ["LossParts", "NextToken", "Objective", "build"]


def build(stage: Stage) -> Objective:
    """The objective of a stage."""
    return NextToken(stage.z_loss, stage.document_mask)
