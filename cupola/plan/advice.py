"""How well a model's size and its tokens go together, by the scaling laws: figures to judge a plan by."""

from dataclasses import dataclass

from cupola.errors import InputError
from cupola.plan.scaling import CORRECTED, REPEATED, Choice

WORTHWHILE = 4.0
"""Passes that are nearly as good as fresh text (Muennighoff et al. 2023); `data.order` warns at the same."""
MOST_PASSES = 40.0
"""Beyond so many, more add nothing (the same, section 6)."""


@dataclass(frozen=True)
class Advice:
    """Of a model of N parameters on D tokens.

    Attributes:
        optimal_tokens: for which N parameters are the best use of the compute.
        best: the best N and D for the run's compute, 6 N D.
        passes: over the corpus; None where its size isn't known.
        worth: fresh tokens that D are worth then.
        source: of the law.
    """

    optimal_tokens: float
    ratio: float
    best: Choice
    passes: float | None
    worth: float | None
    source: str = CORRECTED.source


def advise(parameters: float, tokens: float, corpus: float | None) -> Advice:
    """What the laws say.

    Args:
        parameters: that a token meets; the laws are of dense models.
        corpus: different tokens that there are; None: nobody knows.

    Raises:
        InputError: the corpus is repeated more often than anything comes of.
    """
    optimal = CORRECTED.optimum_of(parameters).tokens
    best = CORRECTED.optimum(6.0 * parameters * tokens)
    if corpus is None:
        return Advice(optimal, tokens / optimal, best, None, None)
    passes = tokens / corpus
    if passes > MOST_PASSES:
        raise InputError(
            f"--tokens {tokens:.0f}: {passes:.0f} passes over a corpus of {corpus:.0f} tokens, and"
            f" nothing comes of more than {MOST_PASSES:.0f} (Muennighoff et al. 2023); up to"
            f" {WORTHWHILE:.0f}, that is --tokens {WORTHWHILE * corpus:.0f}, are well spent"
        )
    return Advice(optimal, tokens / optimal, best, passes, REPEATED.tokens(tokens, corpus))
