"""What is learnt: each objective gives a sum and declares what it is divided by."""

from cupola.objectives.base import LossParts, Objective
from cupola.objectives.next_token import NextToken
from cupola.objectives.policy import PolicyGradient
from cupola.objectives.preference import PreferencePairs
from cupola.objectives.rated import RatedAnswers
from cupola.objectives.reward import RewardPairs
from cupola.recipe.schema import Stage

__all__ = [
    "LossParts",
    "NextToken",
    "Objective",
    "PolicyGradient",
    "PreferencePairs",
    "RatedAnswers",
    "RewardPairs",
    "build",
]


def build(stage: Stage, dry_run: bool = False) -> Objective:
    """The objective of a stage, as it begins.

    Args:
        dry_run: what it compares the weights with is not there.
    """
    if stage.samples:
        return PolicyGradient(stage.policy, dry_run, stage.ppo if stage.objective == "ppo" else None)
    if stage.objective == "dpo":
        return PreferencePairs(stage.preference, own_reference=dry_run)
    if stage.objective == "kto":
        return RatedAnswers(stage.kto, own_reference=dry_run)
    if stage.objective == "reward":
        return RewardPairs(stage.reward)
    return NextToken(stage.z_loss.values[0], stage.document_mask)
