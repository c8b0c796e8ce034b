"""The plan of a run on the very machine that runs it, from what a dry run measured, and beside it what came
of it.

A stage's steps fall into phases: all steps of a phase are alike in row length and tokens, so that training
takes the sum over phases of steps x seconds, and what comes first, cold. Beside training stand the parts:
evaluation, samples, checkpoints, looks at numerical health, and what the stage does before its first step.
Only what can be compared is compared: where a stage was paused, interrupted or went on later, the seconds of
the steps that were taken, and memory; the total needs a stage that was done in one go.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cupola.display import duration, size


@dataclass(frozen=True)
class Phase:
    """Steps that are alike.

    Attributes:
        sequence_length: tokens of a row; of a stage that counts questions 1.
        batch_tokens: what one of them moves the stage's clock by, in tokens or questions.
        steps: how many there are.
        seconds: of one.
    """

    sequence_length: int
    batch_tokens: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class StagePlan:
    """What a stage will take.

    Attributes:
        memory_bytes: at its peak; of the process, on a CPU.
        phases: in the order in which they begin.
        warmup: seconds that the first steps take longer than others of their phase.
        parts: seconds of the whole stage by what they go to, beside training.
        elsewhere: cores that other programs used while this was measured.
        notes: what was assumed.
        pace: seconds of the machine's probe at which this holds (`train.pace`); 0 where it isn't known.
    """

    memory_bytes: int
    phases: tuple[Phase, ...]
    warmup: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    elsewhere: float = 0.0
    notes: tuple[str, ...] = ()
    pace: float = 0.0

    def slower(self, factor: float) -> "StagePlan":
        """The same on a machine that takes so many times as long."""
        return replace(
            self,
            phases=tuple(replace(phase, seconds=factor * phase.seconds) for phase in self.phases),
            warmup=factor * self.warmup,
            parts={name: factor * seconds for name, seconds in self.parts.items()},
        )

    @property
    def steps(self) -> int:
        """Of the stage."""
        return sum(phase.steps for phase in self.phases)

    @property
    def training(self) -> float:
        """Seconds of all steps."""
        return self.warmup + sum(phase.steps * phase.seconds for phase in self.phases)

    @property
    def total(self) -> float:
        """Seconds of the stage."""
        return self.training + sum(self.parts.values())

    def expected(self, taken: Iterable[tuple[int, int]]) -> float | None:
        """Seconds that some steps of the stage, its first among them, were to take; None where one of them is
        of no phase.

        Args:
            taken: row length and tokens on the clock of each.
        """
        seconds = {(phase.sequence_length, phase.batch_tokens): phase.seconds for phase in self.phases}
        found = [seconds.get(size) for size in taken]
        if not found or None in found:
            return None
        return self.warmup + math.fsum(second for second in found if second is not None)

    def as_json(self) -> dict[str, Any]:
        """As it is recorded, with its sums."""
        sums = {"training_seconds": self.training, "total_seconds": self.total}
        return {**asdict(self), "parts": dict(self.parts), **sums}

    @classmethod
    def from_json(cls, value: Any) -> "StagePlan | None":
        """What `as_json` gave; None of anything else."""
        try:
            return cls(
                int(value["memory_bytes"]),
                tuple(Phase(**phase) for phase in value["phases"]),
                float(value["warmup"]),
                {str(name): float(seconds) for name, seconds in value["parts"].items()},
                float(value["elsewhere"]),
                tuple(map(str, value["notes"])),
                float(value.get("pace", 0.0)),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def lines(self, name: str) -> list[str]:
        """For people: the stage, and its phases where there are several."""
        parts = {"training": self.training, **self.parts}
        spent = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items() if seconds >= 0.05)
        found = [f"plan {name}: {duration(self.total)} ({spent}), peak memory {size(self.memory_bytes)}"]
        shown = _merged(self.phases)
        for phase in shown:
            rows = f"rows of {phase.sequence_length:,}, " if phase.sequence_length > 1 else ""
            each = f"{rows}{phase.batch_tokens:,} a step"
            found.append(f"  {phase.steps:,} steps of {seconds_of(phase.seconds)} ({each})")
        return found + [f"  {note}" for note in self.notes]


@dataclass(frozen=True)
class Happened:
    """What a stage took, so far.

    Attributes:
        taken: row length and tokens on the clock of each step.
        training: seconds of these steps.
        memory_bytes: at its peak; None if it is not known.
        total: seconds of the stage; None where it was not done in one go.
        elsewhere: cores that other programs used meanwhile; None if it is not known.
        pace: seconds of the machine's probe meanwhile, on average; None if it is not known.
        why: why there is no total.
    """

    taken: tuple[tuple[int, int], ...]
    training: float
    memory_bytes: float | None = None
    total: float | None = None
    elsewhere: float | None = None
    why: str = ""
    pace: float | None = None


@dataclass(frozen=True)
class Pair:
    """A planned figure, and what it came to."""

    planned: float
    happened: float

    @property
    def error(self) -> float:
        """By how many per cent the plan was above (or, negative, below) what happened."""
        return 100 * (self.planned / self.happened - 1) if self.happened else math.nan

    def as_json(self) -> dict[str, float | None]:
        """With the error, which is None against nothing."""
        error = self.error if math.isfinite(self.error) else None
        return {"planned": self.planned, "happened": self.happened, "error_percent": error}


@dataclass(frozen=True)
class Comparison:
    """A stage's plan beside what happened; None where the two can't be compared.

    Attributes:
        step: mean seconds of the steps that were taken.
        pace: seconds of the machine's probe, when the plan was made and while the stage ran.
        notes: why something can't be compared, and who else was at work.
    """

    memory: Pair | None
    step: Pair | None
    total: Pair | None
    notes: tuple[str, ...] = ()
    pace: Pair | None = None

    def at_pace(self, pair: Pair | None) -> Pair | None:
        """Seconds as planned, at the pace that the machine then had; None where that isn't known."""
        if pair is None or self.pace is None:
            return None
        return Pair(pair.planned * self.pace.happened / self.pace.planned, pair.happened)

    def as_json(self) -> dict[str, Any]:
        """Keys `memory_bytes`, `step_seconds`, `total_seconds`, `pace_seconds`, and `notes`; `_at_pace` are
        the plan's seconds at the pace that the machine had while the stage ran."""
        pairs = {
            "memory_bytes": self.memory,
            "step_seconds": self.step,
            "total_seconds": self.total,
            "pace_seconds": self.pace,
            "step_seconds_at_pace": self.at_pace(self.step),
            "total_seconds_at_pace": self.at_pace(self.total),
        }
        found = {name: None if pair is None else pair.as_json() for name, pair in pairs.items()}
        return {**found, "notes": list(self.notes)}

    def line(self, name: str) -> str:
        """For people."""
        shown = [
            _words("peak memory", self.memory, size),
            _words("a step", self.step, seconds_of),
            _words("in all", self.total, duration),
        ]
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{name}: {', '.join(words for words in shown if words)}{notes}"


def compare(plan: StagePlan, happened: Happened, cores: int) -> Comparison:
    """A stage's plan beside what happened.

    Args:
        cores: of the machine, for the note that others were at work.
    """
    memory = None
    if happened.memory_bytes:
        memory = Pair(plan.memory_bytes, happened.memory_bytes)
    step, expected, count = None, plan.expected(happened.taken), len(happened.taken)
    if expected is not None:
        step = Pair(expected / count, happened.training / count)
    total = None if happened.total is None else Pair(plan.total, happened.total)
    pace = Pair(plan.pace, happened.pace) if plan.pace and happened.pace else None
    notes = [happened.why] if happened.why else []
    if happened.taken and expected is None:
        notes.append("its steps are not those of the plan")
    for used, when in ((plan.elsewhere, "the plan was measured"), (happened.elsewhere or 0.0, "it ran")):
        if used > CROWDED:
            notes.append(f"other programs used {used:.1f} of {cores} cores while {when}")
    found = Comparison(memory, step, total, pace=pace)
    return replace(found, notes=(*notes, *_of_pace(found)))


def _of_pace(found: Comparison) -> list[str]:
    """What the machine's own speed had to do with it, where it was another one."""
    told = found.at_pace(found.total or found.step)
    if told is None or found.pace is None or abs(found.pace.error) < STEADY:
        return []
    change = 1 - found.pace.planned / found.pace.happened
    words = f"{abs(change):.0%} {'slower' if change > 0 else 'faster'}"
    what = "in all" if found.total else "a step"
    return [f"the machine was {words} than when it was planned; {what} {told.error:+.1f}% at its pace"]


STEADY = 3.0
"""Per cent by which the machine's pace may differ before it is said."""
CROWDED = 0.25
"""Cores that others may use before it is said; cores that a run leaves free share its memory too."""


def seconds_of(seconds: float) -> str:
    """Of a step, for people."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _words(what: str, pair: Pair | None, shown: Any) -> str:
    if pair is None:
        return ""
    error = f", {pair.error:+.1f}%" if math.isfinite(pair.error) else ""
    return f"{what} {shown(pair.happened)} (planned {shown(pair.planned)}{error})"


def _merged(phases: tuple[Phase, ...]) -> list[Phase]:
    """Phases for people: batches that differ by a row or two, and one that is cut short, count as one."""
    found: list[Phase] = []
    for phase in phases:
        last = found[-1] if found else None
        near = last is not None and last.sequence_length == phase.sequence_length
        if last is not None and near and _alike(last, phase):
            steps = last.steps + phase.steps
            seconds = (last.steps * last.seconds + phase.steps * phase.seconds) / steps
            larger = last if last.steps >= phase.steps else phase
            found[-1] = Phase(phase.sequence_length, larger.batch_tokens, steps, seconds)
        else:
            found.append(phase)
    return found


def _alike(one: Phase, other: Phase) -> bool:
    apart = abs(one.batch_tokens - other.batch_tokens)
    return other.steps == 1 or apart <= max(2 * one.sequence_length, 0.05 * one.batch_tokens)
