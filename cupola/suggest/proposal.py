"""One set of settings, chosen among the rules, each with its reason.

- Learning rate and batch are geometric means of the rules that were fitted at this size; where there is none,
  of all, which is said. A batch is never above the critical one, nor above 1/100 of the budget.
- Weight decay follows AdamW's timescale (Wang and Aitchison 2024, arXiv 2405.13698; Bergsma et al. 2025),
  within 0.01 to 0.3, or is 0.1 where that rule was not fitted.
- The rate falls linearly to 0 (Bergsma et al. 2025, arXiv 2502.15938). WSD, which can be prolonged, is as
  good where the decay takes 10 to 20% (Hägele et al. 2024, arXiv 2405.18392).
- Warm-up is 2000 steps, as in Llama and DeepSeek LLM, at most 5% of the run.
- The batch grows where the critical batch, which grows with the tokens seen, is smaller at first (McCandlish
  et al. 2018, arXiv 1812.06162; Merrill et al. 2025, arXiv 2505.23971); the rate then follows its root.
- Muon with RMS matching and SOAP take AdamW's learning rate and decay (Liu et al. 2025, arXiv 2502.16982;
  Vyas et al. 2024, arXiv 2409.11321).
"""

import math
from dataclasses import dataclass
from typing import Any

from cupola.errors import InputError
from cupola.recipe.schema import Optimizer, Stage
from cupola.suggest.rules import Estimate, critical_batch, estimates, weight_decays
from cupola.suggest.subject import CHINCHILLA, Subject

FEWEST_STEPS = 100
WARMUP_STEPS, LONGEST_WARMUP = 2000, 0.05
USUAL_DECAY = 0.1
LATEST_GROWTH = 0.5
"""Share of the budget after which the batch grows no more."""
DECAYS = (0.01, 0.3)
"""Smallest and largest weight decay that are proposed."""
DECAY_SHAPE = "Bergsma et al. 2025, arXiv 2502.15938; WSD: Hägele et al. 2024, arXiv 2405.18392"


@dataclass(frozen=True)
class Choice:
    """One proposed setting."""

    setting: str
    value: str
    why: str
    low: float | None = None
    high: float | None = None
    """The range among the rules."""


@dataclass(frozen=True)
class Proposal:
    """What is proposed for a stage."""

    subject: Subject
    estimates: tuple[Estimate, ...]
    choices: tuple[Choice, ...]
    stage: dict[str, Any]
    """The lines of a recipe's stage. Blocks merge key by key, so the learning rate is stated whole, and null
    takes away what the present stage has of another optimizer."""
    notes: tuple[str, ...]


def propose(subject: Subject, family: str = "transformer", now: Stage | None = None) -> Proposal:
    """Settings of a stage for a subject.

    Args:
        family: the model's.
        now: the stage on top of which they are to stand; its optimizer's other settings remain, as far as
            they have an effect on the subject's optimizer.

    Raises:
        InputError: the budget is less than one row.
    """
    if subject.sequence_length > subject.tokens:
        raise InputError(
            f"a row of {subject.sequence_length:,} tokens is longer than the budget of {subject.tokens:,}; "
            "state a shorter --sequence-length, or more --tokens"
        )
    found = estimates(subject)
    rate, rate_why = _between(found, "learning_rate")
    batch, batch_why = _between(found, "batch_tokens")
    limit = min(critical_batch(subject.tokens), subject.tokens / FEWEST_STEPS)
    if batch > limit:
        batch, batch_why = limit, f"{batch_why}, lowered to the critical batch or {FEWEST_STEPS} steps"
    whole = _whole_rows(batch, subject.sequence_length)
    peak = _two_digits(rate)
    found += weight_decays(subject, peak, whole)
    decay, decay_why = _decay(found)
    sizes = _ramp(subject, whole)
    stage: dict[str, Any] = {
        "tokens": f"{_amount(subject.tokens)} tokens",
        "sequence_length": subject.sequence_length,
        "batch_tokens": sizes if len(sizes) > 1 else whole,
        "optimizer": {"kind": subject.optimizer, "weight_decay": decay, **_kept(subject.optimizer, now)},
        "learning_rate": {
            "peak": peak,
            "warmup": _warmup(subject.tokens / whole),
            "decay": "linear",
            "decay_over": None,
            "final": 0.0,
            "batch_rule": "sqrt" if len(sizes) > 1 else "none",
        },
    }
    notes = [*_notes(subject, found, family), *_row_notes(subject, whole, now)]
    choices = _choices(subject, found, stage, (rate_why, batch_why, decay_why), _shown(sizes))
    return Proposal(subject, tuple(found), choices, stage, tuple(notes))


def _choices(
    subject: Subject,
    found: list[Estimate],
    stage: dict[str, Any],
    reasons: tuple[str, str, str],
    growth: str,
) -> tuple[Choice, ...]:
    """What the stage's lines say, with reasons: those of learning rate, batch and weight decay are given."""
    rate_why, batch_why, decay_why = reasons
    rate, decay = stage["learning_rate"], stage["optimizer"]["weight_decay"]
    whole = stage["batch_tokens"]
    largest = max(whole.values()) if isinstance(whole, dict) else whole
    warm_why = f"{WARMUP_STEPS} steps, at most {LONGEST_WARMUP:.0%} of the run"
    length_why = "what is asked for, or the model's context up to 8192"
    return (
        Choice("learning_rate.peak", f"{rate['peak']:g}", rate_why, *_bounds(found, "learning_rate")),
        Choice("batch_tokens", f"{largest:,}", batch_why, *_bounds(found, "batch_tokens")),
        Choice("batch growth", growth, "critical batch of the tokens seen, Zhang et al. 2024"),
        Choice("optimizer.weight_decay", f"{decay:g}", decay_why, *_bounds(found, "weight_decay")),
        Choice("learning_rate.warmup", rate["warmup"], warm_why),
        Choice("learning_rate.decay", "linear to 0", DECAY_SHAPE),
        Choice("sequence_length", str(subject.sequence_length), length_why),
    )


def _kept(kind: str, now: Stage | None) -> dict[str, Any]:
    """The optimizer's other settings: as they are, or null where this kind of optimizer has no such thing."""
    if now is None or now.optimizer is None:
        return {}
    stated = now.optimizer.model_dump(mode="json", exclude_defaults=True, exclude={"kind", "weight_decay"})
    return {key: value if kind in Optimizer.only.get(key, (kind,)) else None for key, value in stated.items()}


def _row_notes(subject: Subject, batch: int, now: Stage | None) -> list[str]:
    """What is to be said of the length of a row."""
    notes, length = [], subject.sequence_length
    if batch == length and length > subject.tokens / FEWEST_STEPS:
        steps, longest = -(-subject.tokens // length), subject.tokens // FEWEST_STEPS
        notes.append(
            f"a batch is one row of {length:,} tokens, so the budget is {steps} steps, fewer than "
            f"{FEWEST_STEPS}: take rows of at most {longest:,}, or more tokens"
        )
    if now is not None and now.sequence_length is not None and len(set(now.sequence_length.values)) > 1:
        notes.append(f"rows are {length:,} tokens from the start; as it is, the stage's length changes")
    return notes


def _between(found: list[Estimate], setting: str) -> tuple[float, str]:
    """The geometric mean of the rules that hold here, or else of all; and which they are."""
    named = [one for one in found if one.setting == setting]
    inside = [one for one in named if one.outside is None]
    chosen = inside or named
    mean = math.exp(sum(math.log(one.value) for one in chosen) / len(chosen))
    names = ", ".join(one.rule for one in chosen)
    how = f"mean of {names}" if len(chosen) > 1 else names
    return mean, how if inside else f"{how}; all outside of their range"


def _bounds(found: list[Estimate], setting: str) -> tuple[float, float]:
    values = [one.value for one in found if one.setting == setting]
    return min(values), max(values)


def _decay(found: list[Estimate]) -> tuple[float, str]:
    """Weight decay, and why."""
    rule = next(one for one in found if one.rule == "timescale")
    if rule.outside:
        return USUAL_DECAY, "as usual; the timescale's rule was not fitted at this size"
    value = min(max(rule.value, DECAYS[0]), DECAYS[1])
    return _two_digits(value), f"AdamW's timescale, within {DECAYS[0]} to {DECAYS[1]}"


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def _whole_rows(batch: float, length: int) -> int:
    """The nearest batch of 1, 1.5, 2, 3, 4, 6, ... rows."""
    power = 2.0 ** math.floor(math.log2(max(batch / length, 1.0)))
    rows = min((power, 1.5 * power, 2 * power), key=lambda count: abs(math.log(batch / length / count)))
    return max(1, math.floor(rows)) * length


def _ramp(subject: Subject, batch: int) -> dict[str, int]:
    """Batches by position: half or a quarter of the last until the critical batch has reached it."""
    rows = batch // subject.sequence_length
    steps = {"0%": batch}
    for divisor in (2, 4):
        share = _reached(subject, batch * 2 / divisor)
        if share < 0.005 or rows % divisor:
            break
        (_, first), *later = steps.items()
        steps = {"0%": batch // divisor, f"{100 * share:.2g}%": first, **dict(later)}
    return steps


def _reached(subject: Subject, batch: float) -> float:
    """The share of the budget after which the critical batch is so large."""
    return min(LATEST_GROWTH, (batch / critical_batch(subject.tokens)) ** (1 / 0.47))


def _shown(sizes: dict[str, int]) -> str:
    if len(sizes) == 1:
        return "none"
    return ", ".join(f"{size:,} from {start}" for start, size in sizes.items())


def _warmup(steps: float) -> str:
    if steps * LONGEST_WARMUP >= WARMUP_STEPS:
        return f"{WARMUP_STEPS} steps"
    return f"{LONGEST_WARMUP:.0%}"


def _amount(tokens: int) -> str:
    for suffix, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= size and tokens * 1000 % size == 0:
            return f"{tokens / size:.10g}{suffix}"
    return str(tokens)


def _notes(subject: Subject, found: list[Estimate], family: str) -> list[str]:
    notes = list(subject.notes)
    ratio = subject.tokens_per_parameter
    if ratio < CHINCHILLA / 2:
        smaller = "a smaller model would be better for the same FLOPs"
        notes.append(
            f"{ratio:.2g} tokens a parameter; about 20 are compute-optimal (Hoffmann et al. 2022): {smaller}"
        )
    else:
        notes.append(f"{ratio:.3g} tokens a parameter; about 20 are compute-optimal (Hoffmann et al. 2022)")
    if family != "transformer":
        notes.append(f"the rules were fitted on Transformers, not on family {family}")
    if subject.optimizer != "adamw":
        notes.append(
            f"{subject.optimizer} takes AdamW's learning rate and decay (updates of one size); "
            "the rules were fitted with AdamW"
        )
    rates = [one for one in found if one.setting == "learning_rate"]
    if all(one.outside for one in rates):
        notes.append("no rule for the learning rate was fitted at this size: try a factor of 3 either way")
    return notes
