"""How well a model's size and its tokens go together, by the scaling laws: figures to judge a plan by."""

from dataclasses import dataclass, replace

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
        cheapest: the N and D that reach the same loss for the fewest FLOPs of training and use together; None
            where nobody said how much it is used.
        saved: the share of those FLOPs that it spares.
        source: of the law.
    """

    optimal_tokens: float
    ratio: float
    best: Choice
    passes: float | None
    worth: float | None
    source: str = CORRECTED.source
    cheapest: Choice | None = None
    saved: float | None = None


def advise(parameters: float, tokens: float, corpus: float | None, used: float | None = None) -> Advice:
    """What the laws say.

    Args:
        parameters: that a token meets; the laws are of dense models.
        corpus: different tokens that there are; None: nobody knows.
        used: tokens that the model will read and write in its life; None: nobody knows.

    Raises:
        InputError: the corpus is repeated more often than anything comes of.
    """
    optimal = CORRECTED.optimum_of(parameters).tokens
    passes = worth = None
    if corpus is not None:
        passes = tokens / corpus
        if passes > MOST_PASSES:
            raise InputError(
                f"--tokens {tokens:.0f}: {passes:.0f} passes over a corpus of {corpus:.0f} tokens, and"
                f" nothing comes of more than {MOST_PASSES:.0f} (Muennighoff et al. 2023); up to"
                f" {WORTHWHILE:.0f}, that is --tokens {WORTHWHILE * corpus:.0f}, are well spent"
            )
        worth = REPEATED.tokens(tokens, corpus)
    best = CORRECTED.optimum(6.0 * parameters * tokens)
    found = Advice(optimal, tokens / optimal, best, passes, worth)
    if used is None:
        return found
    cheapest = CORRECTED.cheapest(CORRECTED.loss(parameters, tokens), used)
    least, own = _life(cheapest.parameters, cheapest.tokens, used), _life(parameters, tokens, used)
    return replace(found, cheapest=cheapest, saved=1 - least / own)


def _life(parameters: float, tokens: float, used: float) -> float:
    """FLOPs of training and use (Sardana et al. 2023)."""
    return parameters * (6.0 * tokens + 2.0 * used)
