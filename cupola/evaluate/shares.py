"""Shares of what was answered rightly, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values, from their own spread; None of fewer than two."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


@dataclass(frozen=True)
class Share:
    """A mean over questions.

    Attributes:
        count: how many questions.
        standard_error: as `standard_error`.
    """

    accuracy: float
    count: int
    standard_error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Share":
        """Of what each question's answers came to, 0 to 1; at least one."""
        return cls(math.fsum(values) / len(values), len(values), standard_error(values))


def pass_at(attempts: int, right: int, k: int) -> float:
    """The chance that one of k answers, taken out of so many attempts, is right: the unbiased estimate of
    Chen et al., "Evaluating Large Language Models Trained on Code" (2021), equation 1.

    Args:
        attempts: at least k.
        right: how many of them were right.
    """
    assert k <= attempts
    return 1.0 - math.comb(attempts - right, k) / math.comb(attempts, k)
