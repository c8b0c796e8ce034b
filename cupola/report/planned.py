"""What was planned for each stage of a run, beside what happened, from the files of the run alone."""

from typing import Any

import numpy as np

from cupola.display import duration, size
from cupola.plan.own import Comparison, Happened, Pair, StagePlan, compare, seconds_of
from cupola.report.records import RunRecords, StageRecords

STARTED = ("stage_begun", "stage_resumed")
ENDED = ("stage_done", "stage_paused")


def comparisons(records: RunRecords) -> dict[str, Comparison]:
    """Of each stage that was planned and has taken a step."""
    plans = records.facts.get("plan")
    cores = (records.facts.get("machine") or {}).get("processors") or 1
    found = {}
    for stage in records.stages:
        kept = plans.get(stage.name) if isinstance(plans, dict) else None
        same = isinstance(kept, dict) and kept.get("key") == stage.facts.get("key")
        plan = StagePlan.from_json(kept) if same else None
        if plan is not None and stage.steps:
            found[stage.name] = compare(plan, happened(stage, records.ledger), cores)
    return found


def happened(stage: StageRecords, ledger: list[dict[str, Any]]) -> Happened:
    """What a stage took so far, over all its starts."""
    columns = stage.columns
    tokens = np.diff(columns["tokens"], prepend=0.0)
    whole = np.isfinite(tokens) & np.isfinite(columns["seconds"]) & np.isfinite(columns["sequence_length"])
    sizes = zip(columns["sequence_length"][whole], tokens[whole], strict=True)
    memory = [*columns["memory_bytes"][np.isfinite(columns["memory_bytes"])]]
    starts = 0
    end: dict[str, Any] = {}
    spent: dict[str, Any] = {}
    for event in ledger:
        if event.get("stage") == stage.name:
            if event.get("event") == "stage_set_aside":
                starts, end, spent = 0, {}, {}
            starts += event.get("event") in STARTED
            if event.get("event") in ENDED:
                end, spent = event, event.get("spent") or {}
                memory += [spent["memory_bytes"]] if "memory_bytes" in spent else []
    done = end.get("event") == "stage_done" and stage.facts.get("status") == "done"
    why = "" if done and starts == 1 else f"begun {starts} times" if done else "it is not done"
    return Happened(
        tuple((int(length), int(count)) for length, count in sizes),
        float(columns["seconds"][whole].sum()),
        float(max(memory)) if memory else None,
        spent.get("wall_seconds") if done and starts == 1 else None,
        spent.get("elsewhere"),
        why,
        spent.get("pace") if starts == 1 else None,
    )


def whole_run(found: dict[str, Comparison]) -> Pair | None:
    """Seconds of all stages together; None if one of them has no total."""
    totals = [comparison.total for comparison in found.values()]
    known = [total for total in totals if total is not None]
    if not known or len(known) < len(totals):
        return None
    return Pair(sum(total.planned for total in known), sum(total.happened for total in known))


def rows(records: RunRecords) -> list[dict[str, str]]:
    """The table of the report: a line a stage, and one for all of them where there are several."""
    found = comparisons(records)
    lines = [
        {
            "name": name,
            **_cells("memory", one.memory, size),
            **_cells("step", one.step, seconds_of),
            **_cells("total", one.total, duration),
            "notes": "; ".join(one.notes),
        }
        for name, one in found.items()
    ]
    whole = whole_run(found)
    if whole is not None and len(lines) > 1:
        nothing = {**_cells("memory", None, size), **_cells("step", None, seconds_of)}
        lines.append({"name": "all", **nothing, **_cells("total", whole, duration), "notes": ""})
    return lines


def _cells(what: str, pair: Pair | None, shown: Any) -> dict[str, str]:
    if pair is None:
        return dict.fromkeys((f"{what}_planned", what, f"{what}_error"), "–")
    error = f"{pair.error:+.1f}%" if pair.happened else "–"
    return {f"{what}_planned": shown(pair.planned), what: shown(pair.happened), f"{what}_error": error}
