"""`cupola plan`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cupola.cli.options import emit, examples, json_option, load_recipe, set_option, show_table
from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.plan.cures import Cure
    from cupola.plan.execution import Execution
    from cupola.plan.hardware import Hardware
    from cupola.plan.layout import Layout
    from cupola.plan.memory import Memory
    from cupola.plan.request import Request

GIB = 2.0**30
SPREAD = ("data", "tensor", "pipeline", "context", "expert", "rows", "chunks")
WORKERS = click.IntRange(min=1)


@click.command(
    epilog=examples(
        "cupola plan quickstart",
        "cupola plan llama3-8b --on h100:8",
        "cupola plan llama3-8b --on h100:8 --sequence-length 131072 --context 8 --checkpointing full",
        "cupola plan llama3-70b --on h100:64 --tensor 8 --pipeline 2 --batch-tokens 1M --json",
        "cupola plan run.yaml --stage pretrain --on mine:16 --hardware mine.yaml",
    )
)
@click.argument("recipe", metavar="RECIPE_OR_PRESET")
@set_option
@click.option(
    "--on", "on", default="cpu", show_default=True, metavar="DEVICE:N", help="Devices, as h100:1024."
)
@click.option(
    "--hardware",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Records of devices of your own, or changes to those shipped.",
)
@click.option("--stage", help="One stage of the recipe (default: all).")
@click.option("--sequence-length", type=WORKERS, metavar="N", help="Tokens of a row; by default the longest.")
@click.option("--batch-tokens", metavar="N", help="Tokens of a step, such as 4M; by default the largest.")
@click.option("--data", type=WORKERS, metavar="N", help="Data-parallel workers; by default all that is left.")
@click.option("--tensor", type=WORKERS, metavar="N", help="Tensor-parallel workers.")
@click.option("--pipeline", type=WORKERS, metavar="N", help="Pipeline ranks.")
@click.option("--context", type=WORKERS, metavar="N", help="Context-parallel workers.")
@click.option("--expert", type=WORKERS, metavar="N", help="Expert-parallel workers, among data x context.")
@click.option(
    "--shard",
    type=click.IntRange(0, 3),
    help="Sharded over data x context: 0 nothing, 1 optimizer states, 2 gradients too, 3 all (the default).",
)
@click.option("--rows", type=WORKERS, metavar="N", help="Rows of a microbatch.")
@click.option(
    "--schedule",
    type=click.Choice(["gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v"]),
    help="Of the pipeline.",
)
@click.option("--chunks", type=WORKERS, metavar="N", help="Stages of a pipeline rank, of interleaved.")
@click.option(
    "--checkpointing",
    type=click.Choice(["none", "selective", "operators", "full"]),
    help="What of a layer is made anew in its backward pass.",
)
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32", "fp8"]), help="By default the recipe's."
)
@click.option(
    "--loss",
    type=click.Choice(["eager", "vocabulary_parallel", "in_place", "compiled", "chunked"]),
    default="chunked",
    show_default=True,
    help="How the loss is computed: what of the logits is held.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 0.9),
    default=0.05,
    show_default=True,
    help="Share of the memory to leave.",
)
@json_option
def command(recipe: str, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """What a run needs, before it is started: parameters, and memory on each device by component.

    RECIPE_OR_PRESET is a recipe, or a shipped model such as llama3-8b. Nothing is measured, no data is read.
    """
    from cupola.plan.cures import cures
    from cupola.plan.hardware import catalogue, parse
    from cupola.plan.request import layout_of

    if math.isnan(options["margin"]):
        raise InputError("--margin nan: a share from 0 to 0.9 is expected")
    hardware, devices = parse(options["on"], catalogue(options["hardware"]))
    requests = _requests(recipe, overrides, options)
    given = {name: options[name] for name in (*SPREAD, "shard", "schedule", "checkpointing") if options[name]}
    if options["shard"] == 0:
        given["shard"] = 0
    plans = []
    for request in requests:
        layout = layout_of(request.scale, given, devices)
        if found := request.faults(layout, devices):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise InputError(f"{request.name}: {found[0]}{more}")
        execution = _execution(request, hardware, options)
        plans.append(Plan(request, layout, execution, hardware, devices, options["margin"]))
    for plan in plans:
        if not plan.fits:
            plan.cures = cures(plan.request, plan.layout, plan.execution, hardware, devices, plan.margin)
    if as_json:
        emit(_facts(recipe, plans))
    else:
        _show(recipe, plans)


class Plan:
    """A stage on a layout, and what it needs of memory."""

    def __init__(
        self,
        request: "Request",
        layout: "Layout",
        execution: "Execution",
        hardware: "Hardware",
        devices: int,
        margin: float,
    ) -> None:
        from cupola.plan.memory import by_rank

        self.request, self.layout, self.execution = request, layout, execution
        self.hardware, self.devices, self.margin = hardware, devices, margin
        self.ranks: list[Memory] = by_rank(request.run(layout, execution))
        self.memory: Memory = max(self.ranks, key=lambda memory: memory.total)
        self.fits = self.memory.fits(hardware.memory, margin)
        self.cures: list[Cure] = []


def _requests(recipe: str, overrides: tuple[str, ...], options: dict[str, Any]) -> list["Request"]:
    """A request for each stage of a recipe, or one for a shipped model."""
    from cupola.plan.request import of_preset, of_stage
    from cupola.recipe.lookup import presets, shipped_recipes
    from cupola.recipe.structure import did_you_mean

    length, tokens = options["sequence_length"], _tokens(options["batch_tokens"])
    if recipe in presets() and not Path(recipe).exists():
        if overrides or options["stage"]:
            raise InputError(f"{recipe}: is a shipped model; --set and --stage need a recipe")
        from cupola.recipe.loading import load_preset

        return [of_preset(recipe, load_preset(recipe), length, tokens)]
    named = "/" not in recipe and not Path(recipe).exists() and recipe not in shipped_recipes()
    if named and (close := did_you_mean(recipe, presets())) and not did_you_mean(recipe, shipped_recipes()):
        raise InputError(f"{recipe}: no recipe or shipped model of that name; did you mean {close}?")
    loaded = load_recipe(recipe, overrides)
    names = [options["stage"]] if options["stage"] else list(loaded.stages)
    return [of_stage(loaded, name, length, tokens) for name in names]


def _tokens(text: str | None) -> int | None:
    if text is None:
        return None
    from cupola.recipe.quantity import Quantity

    try:
        amount = Quantity.parse(text)
    except ValueError as error:
        raise InputError(f"--batch-tokens {text}: {error}") from None
    if amount.unit not in ("", "tokens") or amount.amount < 1:
        raise InputError(f"--batch-tokens {text}: a number of tokens is expected, such as 4M")
    return int(amount.amount)


def _execution(request: "Request", hardware: "Hardware", options: dict[str, Any]) -> "Execution":
    from dataclasses import replace

    from cupola.plan.execution import ON_CPU, Execution

    on_cpu = hardware.name == "cpu"
    precision: Any = options["precision"] or request.precision
    if precision == "auto":
        known = [name for name in ("bf16", "fp16") if name in hardware.peak and not on_cpu]
        precision = known[0] if known else "fp32"
    execution = Execution(precision=precision, loss=options["loss"])
    return replace(execution, overhead=ON_CPU) if on_cpu else execution


def _counts(plan: Plan) -> dict[str, int]:
    from cupola.models import table

    model, rows = plan.request.model, plan.request.vocabulary
    embedding = sum(p.size for p in table.parameters(model, rows) if p.role == "embedding")
    return {
        "total": table.count(model, rows),
        "active": table.active_count(model, rows),
        "embedding": embedding,
    }


def _facts(name: str, plans: list[Plan]) -> dict[str, Any]:
    from dataclasses import asdict

    hardware = plans[0].hardware
    return {
        "name": name,
        "parameters": _counts(plans[0]),
        "hardware": hardware.model_dump(mode="json"),
        "devices": plans[0].devices,
        "stages": [
            {
                "name": plan.request.name,
                "sequence_length": plan.request.sequence_length,
                "batch_rows": plan.request.batch,
                "optimizer": plan.request.optimizer.kind,
                "precision": plan.execution.precision,
                "loss": plan.execution.loss,
                "layout": asdict(plan.layout),
                "rank": plan.memory.rank,
                "memory": plan.memory.components() | {"total": plan.memory.total},
                "total_by_rank": [memory.total for memory in plan.ranks],
                "available": hardware.memory,
                "margin": plan.margin,
                "fits": plan.fits,
                "would_fit": [{"options": cure.words, "total": cure.total} for cure in plan.cures],
                "notes": list(plan.request.notes),
            }
            for plan in plans
        ],
    }


def _show(name: str, plans: list[Plan]) -> None:
    from cupola.display import count

    counts, hardware = _counts(plans[0]), plans[0].hardware
    active = f", {count(counts['active'])} met by a token" if counts["active"] < counts["total"] else ""
    click.echo(
        f"{name}: {count(counts['total'])} parameters ({counts['total']:,}){active},"
        f" {count(counts['embedding'])} in the embedding"
    )
    many = f"{plans[0].devices:,} x {hardware.name}" if plans[0].devices > 1 else hardware.name
    click.echo(f"on {many} of {_gib(hardware.memory)}\n")
    rows = [[words, *values] for words, *values in _rows(plans)]
    show_table(["memory of a device", *(plan.request.name for plan in plans)], rows)
    click.echo()
    for plan in plans:
        for line in _verdict(plan):
            click.echo(line)
    for note in dict.fromkeys(note for plan in plans for note in plan.request.notes):
        click.echo(f"note: {note}")


def _rows(plans: list[Plan]) -> list[list[str]]:
    """The table: how it is spread, then bytes; lines in which every stage has nothing are left out."""
    rows = [
        ["row length", *(f"{plan.request.sequence_length:,}" for plan in plans)],
        ["layout", *(_layout(plan.layout) for plan in plans)],
        ["precision, optimizer", *(f"{p.execution.precision}, {p.request.optimizer.kind}" for p in plans)],
    ]
    found = [plan.memory.components() for plan in plans]
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one.get(name, 0.0) for one in found]
        if any(values):
            rows.append([name, *map(_gib, values)])
    return [*rows, ["total", *(_gib(plan.memory.total) for plan in plans)]]


def _layout(layout: "Layout") -> str:
    names = {"data": "dp", "tensor": "tp", "pipeline": "pp", "context": "cp", "expert": "ep"}
    words = [f"{short}{value}" for name, short in names.items() if (value := getattr(layout, name)) > 1]
    words += [f"shard{layout.shard}"] if layout.shards > 1 else []
    words += [f"{layout.schedule}"] if layout.pipeline > 1 else []
    words += [layout.checkpointing] if layout.checkpointing != "none" else []
    return " ".join([*words, f"{layout.rows} row{'s' if layout.rows > 1 else ''}"])


def _verdict(plan: Plan) -> list[str]:
    available, total = plan.hardware.memory, plan.memory.total
    rank = f" on pipeline rank {plan.memory.rank}" if plan.layout.pipeline > 1 else ""
    if plan.fits:
        return [f"{plan.request.name}: fits{rank}, {1 - total / available:.0%} of the memory to spare"]
    if total <= available:
        words = f"{1 - total / available:.1%} to spare{rank}, less than the margin of {plan.margin:.0%}"
    else:
        words = f"{_gib(total - available)} too much{rank}"
    lines = [f"{plan.request.name}: does not fit, {words}"]
    for cure in plan.cures:
        lines.append(f"  would fit, at {_gib(cure.total)}: {cure.words}")
    return (
        lines if plan.cures else [*lines, "  nothing that was tried would fit; take devices with more memory"]
    )


def _gib(number: float) -> str:
    return f"{number / GIB:,.2f} GiB" if number < 10 * GIB else f"{number / GIB:,.1f} GiB"
