"""What `cupola plan --json` prints; docs/plan.md says what each key is."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cupola.cli.planning import Plan, Planned
    from cupola.plan.campaign import Campaign
    from cupola.plan.devices import Point
    from cupola.plan.figure import Figure
    from cupola.plan.simulation import Simulation
    from cupola.plan.steptime import StepTime
    from cupola.plan.work import StageRun

BINS = 24
"""Of the histogram of days."""


def counts(plan: "Plan") -> dict[str, int]:
    """Parameters: all, those that a token meets, those of the embedding."""
    from cupola.models import table

    model, rows = plan.request.model, plan.request.vocabulary
    embedding = sum(p.size for p in table.parameters(model, rows) if p.role == "embedding")
    return {
        "total": table.count(model, rows),
        "active": table.active_count(model, rows),
        "embedding": embedding,
    }


def flops_of_token(plan: "Plan") -> dict[str, float]:
    """FLOPs of training on one token of the longest rows, under each convention."""
    from cupola.plan.flops import by_convention

    request = plan.request
    found = by_convention(request.model, request.vocabulary, request.sequence_length)
    return {str(name): value for name, value in found.items()}


def facts(planned: "Planned") -> dict[str, Any]:
    """The whole plan as JSON-able values."""
    from cupola.plan.flops import CONVENTIONS

    plans, run = planned.plans, planned.run
    runs = iter(run.stages if run else ())
    found = {
        "name": planned.name,
        "parameters": counts(plans[0]),
        "hardware": plans[0].hardware.model_dump(mode="json"),
        "devices": plans[0].devices,
        "conventions": {name: one.definition for name, one in CONVENTIONS.items()},
        "stages": [_stage(plan, next(runs) if plan.course else None) for plan in plans],
        "run": _run(run) if run else None,
        "by_devices": [_point(point) for point in planned.curve] or None,
        "what_if": None,
        "scaling": asdict(planned.advice) if planned.advice else None,
    }
    if planned.what_if:
        stalls, restarts, goodput = planned.what_if
        found["what_if"] = {"stalls": stalls, "restarts": restarts, "goodput": goodput}
    return found


def _stage(plan: "Plan", run: "StageRun | None") -> dict[str, Any]:
    return {
        "name": plan.request.name,
        "sequence_length": plan.request.sequence_length,
        "batch_rows": plan.request.batch,
        "optimizer": plan.request.optimizer.kind,
        "precision": plan.execution.precision,
        "loss": plan.execution.loss,
        "layout": asdict(plan.layout),
        "rank": plan.memory.rank,
        "memory": plan.memory.components() | {"total": plan.memory.total},
        "memory_total": figure_facts(plan.memory_figure),
        "memory_by_rank": [one.components() | {"total": one.total} for one in plan.ranks],
        "available": plan.hardware.memory,
        "margin": plan.margin,
        "fits": plan.fits,
        "would_fit": [{"options": cure.words, "total": cure.total} for cure in plan.cures],
        "flops_per_token": flops_of_token(plan),
        "step": _step(plan.step) if plan.step else None,
        "run": _work(run) if run else None,
        "unknown": plan.unknown or None,
        "notes": plan.notes,
        "warnings": plan.warnings,
    }


def _step(step: "StepTime") -> dict[str, Any]:
    return {
        "seconds": figure_facts(step.seconds),
        "parts": dict(step.parts),
        "tokens": step.tokens,
        "microbatches": step.microbatches,
        "ranks": [{"forward": forward, "backward": backward} for forward, backward in step.ranks],
        "flops": step.flops,
        "mfu": step.mfu,
    }


def _work(run: "StageRun") -> dict[str, Any]:
    course = run.course
    return {
        "steps": course.steps,
        "tokens": course.tokens,
        "stretches": [
            {
                "steps": one.steps,
                "tokens": one.end - one.start,
                "batch_tokens": one.batch_tokens,
                "sequence_length": one.sequence_length,
            }
            for one in course.stretches
        ],
        "evaluations": course.evaluations,
        "checkpoints": course.saves,
        "seconds": {name: figure_facts(figure) for name, figure in run.seconds.items()},
        "work_seconds": figure_facts(run.work),
        "flops": dict(run.flops),
        "mfu": run.mfu,
        "epochs": [
            {
                "source": one.source,
                "epochs": one.epochs,
                "tokens": one.stock.tokens,
                "counted": one.stock.counted,
            }
            for one in course.repeated
        ],
    }


def _run(run: "Campaign") -> dict[str, Any]:
    happened = run.interruptions
    practice = happened.practice
    return {
        "steps": run.steps,
        "tokens": run.tokens,
        "flops": run.flops,
        "work_days": figure_facts(run.work),
        "days": figure_facts(run.days),
        "goodput": figure_facts(happened.goodput),
        "lost": dict(happened.lost),
        "interruptions": {
            "counted": happened.counted,
            "number": dict(happened.number),
            "per_day": {cause.name: cause.per_day for cause in happened.causes},
        },
        "played": _played(happened.played) if happened.played else None,
        "checkpoint": {
            "bytes": happened.checkpoint_bytes,
            "interval_seconds": practice.interval,
            "why": happened.why,
            "stall_seconds": practice.stall,
            "persist_seconds": practice.persist,
            "restart_seconds": practice.restart,
            "best_interval_seconds": happened.best[0] if happened.best else None,
            "best_goodput": happened.best[1] if happened.best else None,
        },
        "device_hours": figure_facts(run.bill.device_hours),
        "energy_mwh": figure_facts(run.bill.energy),
        "carbon_tonnes": figure_facts(run.bill.carbon),
        "dollars": figure_facts(run.bill.dollars),
    }


def _played(played: "Simulation") -> dict[str, Any]:
    """Calendar days of the runs that were played, in bins of equal width."""
    first, last = played.days[0], played.days[-1]
    width = (last - first) / BINS
    counts = [0] * (BINS if width else 1)
    for days in played.days:
        counts[min(int((days - first) / width), BINS - 1) if width else 0] += 1
    return {
        "times": len(played.days),
        "days": figure_facts(played.figure),
        "mean_days": played.mean_days,
        "edges": [first + number * width for number in range(len(counts))] + [last],
        "counts": counts,
    }


def _point(point: "Point") -> dict[str, Any]:
    run = point.run
    return {
        "devices": point.devices,
        "data": point.data,
        "fits": point.fits,
        "days": figure_facts(run.days),
        "goodput": figure_facts(run.interruptions.goodput),
        "device_hours": figure_facts(run.bill.device_hours),
        "dollars": figure_facts(run.bill.dollars),
        "mfu": [stage.mfu for stage in run.stages],
    }


def figure_facts(figure: "Figure") -> dict[str, float]:
    """A quantity in doubt as `--json` has it."""
    return {"value": figure.value, "low": figure.low, "high": figure.high}
