"""The log-probabilities of what a microbatch learns: for preferences, for rewards, for their references."""

from typing import cast

from torch import Tensor, nn

from cupola.data.batch import Answers, Microbatch
from cupola.objectives.cross_entropy import token_log_probabilities


def answer_log_probabilities(
    module: nn.Module, hidden: Tensor, microbatch: Microbatch, temperature: float = 1.0
) -> Tensor:
    """The log-probability of every learnt target; the head is spared the others.

    Args:
        hidden: (B, T, width), what the module makes of the microbatch.
        microbatch: with answers.
        temperature: that logits are divided by.

    Returns:
        (N,) fp32, in the order of `Answers.places`.
    """
    places = cast(Answers, microbatch.answers).places
    chosen = hidden.flatten(0, 1)[places]
    if temperature != 1:
        chosen = chosen / temperature
    targets = microbatch.targets.flatten()[places]
    return token_log_probabilities(chosen, cast(Tensor, module.head_weight), targets)
