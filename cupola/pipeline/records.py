"""What `run.json` and `stage.json` must hold: the one place that says when a record can be used.

Every reader gets a record through `RunFolder.facts` or `StageFolder.facts`, which ask here; so a missing key
or a wrong type is one line about a damaged record, never a KeyError somewhere else. A key that is not yet
written is no fault: a run is recorded piece by piece, and a kill may come between any two.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from cupola.recipe.origin import BEGIN
from cupola.shape import ABSENT, Shape, fault

IMPORTED = "imported"  # the key of run.json, the ledger's event and the one stage of a model from elsewhere
RUNNING, DONE = "running", "done"

Count = Annotated[int, Field(ge=0)]
AFTER_DECISIONS = (
    "heldout",
    "parameters",
    "active_parameters",
    "sources",
    "vocabulary",
    "checked",
    "check",
    "plan",
    IMPORTED,
)
"""What is recorded only when it is known what `auto` means."""


class Precise(Shape):
    """What `auto` means for a model that was imported."""

    precision: Literal["fp32", "bf16"]


class Decided(Precise):
    """What `auto` means in a run of a recipe; `pipeline.decisions` has the rest."""

    microbatch_tokens: Annotated[int, Field(gt=0)]
    threads: Annotated[int, Field(gt=0)]
    device: str
    vocabulary: Count
    muon_dtype: str | None = None
    kernels: dict[str, str] = ABSENT
    peak_flops: Annotated[float, Field(ge=0)]
    why: str


class HeldOut(Shape):
    """Where the held-out text of a source lay in the cache, and what it was."""

    folder: str
    sha256: str


class CheckedStage(Shape):
    """What the dry run found of a stage."""

    name: str
    seconds: float


class Check(Shape):
    """What the dry run found."""

    stages: list[CheckedStage]


class Plan(Shape):
    """What a stage was found to take; `plan.own.StagePlan` has the rest."""

    key: str
    training_seconds: float


class Origin(Shape):
    """Where an imported model came from."""

    sequence_length: Annotated[int, Field(gt=0)]


class RunRecord(Shape):
    """`run.json`; what has no default is there from the first moment."""

    name: str
    decisions: Precise = ABSENT
    versions: dict[str, Any] = ABSENT
    machine: dict[str, Any] = ABSENT
    heldout: dict[str, HeldOut] = ABSENT
    xz_bits_per_byte: dict[str, float | None] = ABSENT
    parameters: Count = ABSENT
    active_parameters: Count = ABSENT
    sources: dict[str, dict[str, Any]] = ABSENT
    vocabulary: Count = ABSENT
    checked: str = ABSENT
    check: Check = ABSENT
    plan: dict[str, Plan] = ABSENT
    imported: Origin = ABSENT


class StageRecord(Shape):
    """`stage.json` of a stage that is under way."""

    name: str
    key: str
    status: Literal["running", "done"]
    compiled: bool = ABSENT


class DoneRecord(StageRecord):
    """`stage.json` of a stage that is done."""

    checkpoint: Annotated[str, Field(pattern=r"^step-\d+$")]
    tokens: Count
    steps: Count
    seconds: float


class TrainedRecord(DoneRecord):
    """`stage.json` of a stage that was trained here to its end."""

    skipped: Count
    final_loss: float | None
    heldout_bits_per_byte: float | None
    heldout: dict[str, dict[str, Any]]
    metrics: dict[str, float] = ABSENT


def run_fault(value: Any) -> str | None:
    """What is wrong with what `run.json` holds."""
    wrong = fault(RunRecord, value)
    if wrong or ("decisions" not in value and not any(key in value for key in AFTER_DECISIONS)):
        return wrong
    if "decisions" not in value:
        return "it has no decisions"
    return decisions_fault(value["decisions"], IMPORTED in value)


def decisions_fault(value: Any, imported: bool = False) -> str | None:
    """What is wrong with what `auto` means."""
    wrong = fault(Precise if imported else Decided, value)
    return wrong and f"decisions: {wrong}"


def stage_fault(value: Any, name: str) -> str | None:
    """What is wrong with what `stage.json` of the stage of that name holds."""
    shape: type[StageRecord] = StageRecord
    if isinstance(value, dict) and value.get("status") == DONE:
        shape = DoneRecord if name in (IMPORTED, BEGIN) else TrainedRecord
    wrong = fault(shape, value)
    if wrong is None and value["name"] != name:
        return f"it is of stage {value['name']}"
    return wrong
