"""What is predicted of a published row, by metric.

`PREDICTORS` is where memory, time and cost plug in: a metric's name, and a function from a `Case` to a
`Prediction`, or an `Unpredicted` with the reason. A figure under a convention is predicted under the row's
own.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from bench.planner.derived import figures
from bench.planner.models import Expressed, Inexpressible, express
from bench.planner.rows import Row, rounding
from cupola.models import table
from cupola.plan import flops
from cupola.plan.scaling import CHINCHILLA_2, CHINCHILLA_3, Choice, Frontier, Law
from cupola.recipe.model import Model

PETAFLOPS_DAY = 1e15 * 86400


class Unpredicted(Exception):
    """Why a metric of a row has no prediction: one line."""


@dataclass(frozen=True)
class Prediction:
    """A predicted value and between what it lies.

    Attributes:
        convention: under which it is counted, where it is a count of FLOPs.
        note: what was taken for granted.
    """

    value: float
    low: float
    high: float
    convention: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One metric of one row.

    Attributes:
        slack: what part of the published value its rounding may be.
        rows: all rows of the file: what is fitted is fitted on the others.
    """

    row: Row
    metric: str
    published: float
    slack: float
    rows: Sequence[Row]

    @property
    def expressed(self) -> Expressed:
        """The row's model."""
        try:
            return express(self.row)
        except Inexpressible as reason:
            raise Unpredicted(str(reason)) from reason

    @property
    def routed(self) -> Expressed:
        """The row's model, where it is known what one token meets of it."""
        found = self.expressed
        if not found.routed:
            raise Unpredicted("the row doesn't state how many experts a token meets")
        return found

    def size(self, key: str) -> int:
        """A size that the prediction needs."""
        if (found := self.row.whole(key)) is None:
            raise Unpredicted(self.row.odd.get(key, f"the row states no {key}"))
        return found

    def exactly(self, value: float, convention: str | None = None, note: str = "") -> Prediction:
        """A count: as uncertain as the published figure is rounded."""
        return Prediction(value, value * (1 - self.slack), value * (1 + self.slack), convention, note)


@cache
def _count(model: Model, vocabulary: int) -> int:
    return table.count(model, vocabulary)


@cache
def _flops(model: Model, vocabulary: int, length: int, name: flops.Name) -> float:
    return flops.per_token(model, vocabulary, length, name)


def parameters(case: Case) -> Prediction:
    """All of them, a tied head once."""
    found = case.expressed
    return case.exactly(_count(found.model, found.vocabulary), note="; ".join(found.notes))


def train_flops(case: Case) -> Prediction:
    """Of a whole run: totals are published as 6 N D."""
    tokens = case.size("tokens")
    per_token, note = _six_n(case)
    return case.exactly(per_token * tokens, "6nd", note)


def _six_n(case: Case) -> tuple[float, str]:
    """6 N; where the model can't be expressed, of the N that the row states."""
    try:
        found = case.routed
    except Unpredicted as reason:
        stated = case.row.extra.get("active_params") or case.row.facts.get("params")
        if not isinstance(stated, int | float):
            raise
        return 6.0 * stated, f"{reason}; N as the row states it"
    return _flops(found.model, found.vocabulary, 1, "6nd"), "; ".join(found.notes)


def train_flops_hw(case: Case) -> Prediction:
    """Of a whole run, with what is recomputed."""
    per_token, note = counted(case, "megatron_recompute")
    return case.exactly(per_token * case.size("tokens"), "megatron_recompute", note)


def pf_days(case: Case) -> Prediction:
    """Days at a petaFLOP/s: 6 N D again."""
    found = train_flops(case)
    return case.exactly(found.value / PETAFLOPS_DAY, found.convention, found.note)


CONVENTIONS: tuple[tuple[str, flops.Name], ...] = (
    (r"^\W*(f\s*=\s*)?96\W", "megatron_recompute"),
    (r"^\W*(f\s*=\s*)?72\W", "megatron"),
    (r"^\W*6\s*\*?\s*\(\s*n\s*-\s*input", "bridge"),
    (r"^\W*6\W*n\s*\+\s*12", "palm"),
    (r"^\W*6\W*n\W*d\b", "6nd"),
)
"""How rows write a convention in `flops_convention` or `flops_formula`, in lower case."""
OF_SOURCES: tuple[tuple[str, flops.Name], ...] = (
    (r"nanotron|megascale|korthikanti|mcore", "megatron"),
    (r"palm", "palm"),
    (r"mbridge", "bridge"),
    (r"llama.?3.*t4", "exact"),
    (r"foundry", "palm"),
    (r"gpt3_family", "6nd"),
)
"""Where a row names none: what its source's own code or paper counts. Llama 3's doesn't say; with rows of
131,072 tokens only the causal half leaves a utilisation that its devices can have."""


def convention_of(row: Row, hardware: bool) -> flops.Name:
    """The convention that a row's figures follow.

    Args:
        hardware: they count what is recomputed: only Megatron's formula is published so.

    Raises:
        Unpredicted: neither the row nor its source says.
    """
    for key in ("flops_convention", "flops_formula"):
        if isinstance(said := row.extra.get(key), str):
            for pattern, name in CONVENTIONS:
                if re.match(pattern, said.lower()):
                    return name
            raise Unpredicted(f"{key} {said!r} is no convention that is known here")
    if hardware:
        return "megatron_recompute"
    for pattern, name in OF_SOURCES:
        if re.search(pattern, row.named):
            return name
    raise Unpredicted("neither the row nor its source says how FLOPs are counted")


def counted(case: Case, name: flops.Name) -> tuple[float, str]:
    found = case.routed
    model, notes = found.model, found.notes
    if name == "bridge" and _release(case.row) < (26, 6):
        model, notes = _as_bridge_was(model, case.row, notes)
    return _flops(model, found.vocabulary, case.size("seq"), name), "; ".join(notes)


def _release(row: Row) -> tuple[int, int]:
    said = re.match(r"(\d+)\.(\d+)", str(row.extra.get("release", "")))
    return (int(said[1]), int(said[2])) if said else (99, 0)


def _as_bridge_was(model: Model, row: Row, notes: tuple[str, ...]) -> tuple[Model, tuple[str, ...]]:
    """Before release 26.06 Megatron-Bridge counted every layer's attention in full, and the gate of a
    feed-forward layer only where its activation is plain SiLU, which gpt-oss's isn't."""
    changed: dict[str, object] = {}
    if model.window is not None:
        changed |= {"pattern": None, "window": None}
    if re.search(r"gpt.?oss", row.named) and model.experts is not None:
        width = 2 * model.experts.width // 3
        changed["experts"] = model.experts.model_copy(update={"width": width})
    if not changed:
        return model, notes
    return model.model_copy(update=changed), (*notes, "counted as before release 26.06")


def flops_per_token(case: Case) -> Prediction:
    """What a row's utilisation and its speed say together."""
    name = convention_of(case.row, hardware=case.metric.endswith("_hw"))
    value, note = counted(case, name)
    return case.exactly(value, name, note)


def optimal_flops(case: Case) -> Prediction:
    """The compute for which the row's size is the best choice."""
    return _optimal(case, lambda choice: choice.flops)


def optimal_tokens(case: Case) -> Prediction:
    """And the tokens."""
    return _optimal(case, lambda choice: choice.tokens)


def _optimal(case: Case, figure: Callable[[Choice], float]) -> Prediction:
    law, note = _frontier(case)
    value = figure(law.optimum_of(case.size("params")))
    # What the table's own rows deviate from a power law, as printed.
    slack = case.slack + 0.02
    return Prediction(value, value * (1 - slack), value * (1 + slack), "6nd", note)


def _frontier(case: Case) -> tuple[Frontier | Law, str]:
    source = str(case.row.facts.get("source", "")).lower()
    if "approach 3" in source:
        return CHINCHILLA_3, "the published law of approach 3"
    if "approach 2" in source:
        return CHINCHILLA_2, "approach 2"
    choices = [
        Choice(size, other.metrics["compute_optimal_flops"] / (6.0 * size))
        for other in case.rows
        if other.group == case.row.group
        and (size := other.facts.get("params")) not in (None, case.row.facts.get("params"))
        and "compute_optimal_flops" in other.metrics
    ]
    if len(choices) < 2:
        raise Unpredicted("a power law needs two other rows of the table")
    return Frontier.through(choices, "the table's other rows"), "a power law through the table's other rows"


PREDICTORS: dict[str, Callable[[Case], Prediction]] = {
    "params": parameters,
    "params_exact": parameters,
    "train_flops": train_flops,
    "train_flops_hw": train_flops_hw,
    "pf_days": pf_days,
    "flops_per_token": flops_per_token,
    "flops_per_token_hw": flops_per_token,
    "compute_optimal_flops": optimal_flops,
    "compute_optimal_tokens": optimal_tokens,
}
"""By metric; the two of `flops_per_token` are derived from a row's own figures. `table` adds the others."""


def cases(row: Row, rows: Sequence[Row]) -> Iterator[Case]:
    """Every metric of a row, and what follows from two of them."""
    for metric, published in row.metrics.items():
        yield Case(row, metric, published, rounding(published), rows)
    for metric, figure in figures(row).items():
        yield Case(row, metric, figure.value, figure.slack, rows)
