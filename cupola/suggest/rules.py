"""Published rules for settings of pre-training, with their sources, units, and the range they were fitted in.

Every rule is for AdamW, the standard parametrisation and Transformers unless it says else. `checked` is how
its constants were compared with something beside the formula itself, as tests do; `NOT_CHECKED` that they
were not, nor with the paper's text.
"""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cupola.suggest.subject import Subject

Setting = Literal["learning_rate", "batch_tokens", "critical_batch", "weight_decay"]


@dataclass(frozen=True)
class Estimate:
    """What one rule says."""

    setting: Setting
    rule: str
    value: float
    source: str
    formula: str
    outside: str | None
    """How the model lies outside of the range in which the rule was fitted; None: it lies inside."""
    checked: str


@dataclass(frozen=True)
class Range:
    """Where a rule was fitted: a quantity of the subject, and its bounds."""

    quantity: str
    of: Callable[[Subject], float]
    low: float
    high: float

    def outside(self, subject: Subject) -> str | None:
        """How the subject lies outside of it, or None."""
        value = self.of(subject)
        if self.low <= value <= self.high:
            return None
        limit, word = (self.low, "below") if value < self.low else (self.high, "above")
        return f"{self.quantity} {value:.1e} is {word} {limit:.1e}"


@dataclass(frozen=True)
class Rule:
    """A rule: what it sets, and how."""

    setting: Setting
    name: str
    source: str
    formula: str
    value: Callable[[Subject], float]
    ranges: tuple[Range, ...]
    checked: str


def _parameters(low: float, high: float) -> Range:
    return Range("parameters in blocks", lambda s: s.body, low, high)


def _tokens(low: float, high: float) -> Range:
    return Range("tokens", lambda s: s.tokens, low, high)


def _flops(low: float, high: float) -> Range:
    return Range("FLOPs", lambda s: s.flops, low, high)


GPT3 = (
    (125e6, 6e-4, 0.5e6),
    (350e6, 3e-4, 0.5e6),
    (760e6, 2.5e-4, 0.5e6),
    (1.3e9, 2e-4, 1e6),
    (2.7e9, 1.6e-4, 1e6),
    (6.7e9, 1.2e-4, 2e6),
    (13e9, 1e-4, 2e6),
    (175e9, 0.6e-4, 3.2e6),
)
"""(parameters, learning rate, tokens of a batch) of table 2.1."""


def gpt3(subject: Subject, column: int) -> float:
    """Between the table's rows by a power law; 0 beyond its ends, where it says nothing."""
    sizes = [row[0] for row in GPT3]
    size = float(subject.parameters)
    if not sizes[0] * 0.95 <= size <= sizes[-1] * 1.05:
        return 0.0
    size = min(max(size, sizes[0]), sizes[-1])
    above = min(max(bisect.bisect_left(sizes, size), 1), len(GPT3) - 1)
    low, high = GPT3[above - 1], GPT3[above]
    share = math.log(size / low[0]) / math.log(high[0] / low[0])
    return low[column] * (high[column] / low[column]) ** share


STEP_LAW = "Li et al. 2025, arXiv 2503.04715"
STEP_LAW_RANGES = (_parameters(2.1e8, 1.1e9), _tokens(4e9, 1e11))
STEP_LAW_CHECK = "within a factor of 2 of the best of the runs that its authors published, at each size"
DEEPSEEK = "DeepSeek-AI 2024, arXiv 2401.02954"
DEEPSEEK_RANGES = (_flops(1e17, 1e24),)
DEEPSEEK_CHECK = "gives the batch and the rate of DeepSeek's own 7B and 67B within 10%"
BROWN = "Brown et al. 2020, arXiv 2005.14165, table 2.1"
BROWN_RANGES = (Range("parameters", lambda s: s.parameters, 1.2e8, 1.8e11), _tokens(3e10, 3e12))
POWER_LINES = "Bergsma et al. 2025, arXiv 2505.13738"
POWER_LINES_RANGES = (_parameters(1e8, 3.4e9),)
NOT_CHECKED = "constants not compared with the source"

RULES: tuple[Rule, ...] = (
    Rule(
        "learning_rate",
        "Step Law",
        STEP_LAW,
        "1.79 N^-0.713 D^0.307",
        lambda s: 1.79 * s.body**-0.713 * s.tokens**0.307,
        STEP_LAW_RANGES,
        STEP_LAW_CHECK,
    ),
    Rule(
        "learning_rate",
        "DeepSeek",
        DEEPSEEK,
        "0.3118 C^-0.1250",
        lambda s: 0.3118 * s.flops**-0.125,
        DEEPSEEK_RANGES,
        DEEPSEEK_CHECK,
    ),
    Rule(
        "learning_rate",
        "Kaplan",
        "Kaplan et al. 2020, arXiv 2001.08361",
        "0.003239 - 0.0001395 ln N",
        lambda s: 0.003239 - 0.0001395 * math.log(s.body),
        (_parameters(1e5, 1.5e9), _tokens(1e10, 2e11)),
        NOT_CHECKED,
    ),
    Rule(
        "learning_rate",
        "GPT-3",
        BROWN,
        "between the rows of the table",
        lambda s: gpt3(s, 1),
        BROWN_RANGES,
        NOT_CHECKED,
    ),
    Rule(
        "batch_tokens",
        "Step Law",
        STEP_LAW,
        "0.58 D^0.571",
        lambda s: 0.58 * s.tokens**0.571,
        STEP_LAW_RANGES,
        STEP_LAW_CHECK,
    ),
    Rule(
        "batch_tokens",
        "DeepSeek",
        DEEPSEEK,
        "0.2920 C^0.3271",
        lambda s: 0.2920 * s.flops**0.3271,
        DEEPSEEK_RANGES,
        DEEPSEEK_CHECK,
    ),
    Rule(
        "batch_tokens",
        "Power Lines",
        POWER_LINES,
        "2048 * 0.0306 D^0.383",
        lambda s: 2048 * 0.0306 * s.tokens**0.383,
        POWER_LINES_RANGES,
        NOT_CHECKED,
    ),
    Rule(
        "batch_tokens",
        "GPT-3",
        BROWN,
        "between the rows of the table",
        lambda s: gpt3(s, 2),
        BROWN_RANGES,
        NOT_CHECKED,
    ),
    Rule(
        "critical_batch",
        "Zhang",
        "Zhang et al. 2024, arXiv 2410.21676",
        "512 * 22.91 (D / 10^6)^0.47",
        lambda s: critical_batch(s.tokens),
        (_parameters(8e7, 1.3e9),),
        "its two laws, of tokens and of parameters, agree at 20 tokens a parameter within 1%",
    ),
    Rule(
        "critical_batch",
        "Power Lines",
        POWER_LINES,
        "2048 * 0.0471 D^0.462",
        lambda s: 2048 * 0.0471 * s.tokens**0.462,
        POWER_LINES_RANGES,
        NOT_CHECKED,
    ),
)


def critical_batch(tokens: float) -> float:
    """Tokens of a batch beyond which more data parallelism costs over 20% (Zhang et al. 2024), after so many
    tokens of training. Their batches are rows of 512, their D millions of tokens."""
    return 512 * 22.91 * (tokens / 1e6) ** 0.47


def timescale(subject: Subject) -> float:
    """Over what share of the run AdamW's weights are averages of its updates (Bergsma et al. 2025)."""
    return float(1.084 * subject.tokens_per_parameter**-0.527)


def estimates(subject: Subject) -> list[Estimate]:
    """What every rule says of a subject; one that says nothing of it (a negative rate) is left out."""
    found = []
    for rule in RULES:
        value = rule.value(subject)
        if value > 0:
            said = [text for own in rule.ranges if (text := own.outside(subject))]
            outside = "; ".join(said) or None
            found.append(
                Estimate(rule.setting, rule.name, value, rule.source, rule.formula, outside, rule.checked)
            )
    return found


def weight_decays(subject: Subject, learning_rate: float, batch: float) -> list[Estimate]:
    """Of weight decay, which depends on the learning rate and batch that are chosen."""
    said = [text for own in POWER_LINES_RANGES if (text := own.outside(subject))]
    by_timescale = batch / (timescale(subject) * learning_rate * subject.tokens)
    return [
        Estimate(
            "weight_decay",
            "timescale",
            by_timescale,
            POWER_LINES,
            "B / (1.084 (D / N)^-0.527 * rate * D)",
            "; ".join(said) or None,
            NOT_CHECKED,
        ),
        Estimate("weight_decay", "usual", 0.1, "GPT-3, Llama, DeepSeek LLM", "0.1", None, NOT_CHECKED),
    ]
