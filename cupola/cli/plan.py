"""`cupola plan`."""

import math
from pathlib import Path
from typing import Any

import click

from cupola.cli.options import (
    as_typed,
    check_output,
    emit,
    examples,
    in_sections,
    json_option,
    refuse_stated,
    set_option,
)
from cupola.cli.plan_fit import PlanCommand, fit_options, planned_by_fit
from cupola.cli.plan_prices import MONEY, SAVING
from cupola.cli.plan_search import MODES, SCHEDULES, run_search, search_options, wanted
from cupola.errors import InputError

WORKERS = click.IntRange(min=1)
SECTIONS = {
    "What is trained": (
        "overrides",
        "stage",
        "tokens",
        "corpus",
        "inference_tokens",
        "sequence_length",
        "batch_tokens",
    ),
    "Devices and layout": (
        "on",
        "hardware",
        "measure",
        "data",
        "tensor",
        "pipeline",
        "context",
        "expert",
        "shard",
        "rows",
        "schedule",
        "chunks",
        "checkpointing",
        "precision",
        "loss",
        "margin",
    ),
    "Search": ("search", "top", "explain", "why", "deadline"),
    "Saving and interruptions": SAVING,
    "Energy and money": MONEY,
    "A law of one's own": ("fit", "check", "flops", "plot"),
}


@click.command(
    cls=in_sections(SECTIONS, PlanCommand),
    epilog=examples(
        "cupola plan quickstart",
        "cupola plan llama3-8b --on h100:8",
        "cupola plan llama3-8b --on h100:1024 --tokens 15T",
        "cupola plan llama3-8b --on h100:8 --sequence-length 131072 --context 8 --checkpointing full",
        "cupola plan llama3-70b --on h100:64 --tensor 8 --pipeline 2 --batch-tokens 1048576 --json",
        "cupola plan llama3-70b --on h100:1024 --tensor 8 --tokens 2T --stall 30 --restart 900 --what-if",
        "cupola plan gpt3-175b --on a100:1024 --tensor 8 --pipeline 8 --tokens 300B --buy --grid france",
        "cupola plan llama3-70b --on h100:1024 --tensor 8 --pipeline 4 --tokens 2T --html plan.html",
        "cupola plan run.yaml --stage pretrain --on mine:16 --hardware mine.yaml",
        "cupola plan larger.yaml --fit runs/law-* --plot law.svg",
        "cupola plan llama3.1-405b --on h100:16384 --batch-tokens 16777216 --search --explain",
        "cupola plan llama3-70b --on h100:256-4096,b200:256-2048 --tokens 15T --deadline 60d",
    ),
)
@click.argument("recipe", metavar="RECIPE_OR_PRESET", required=False)
@set_option
@click.option("--stage", help="One stage of the recipe (default: all).")
@click.option("--tokens", metavar="N", help="Tokens to train on, such as 15T; by default the recipe's.")
@click.option("--corpus", metavar="N", help="Different tokens that there are: how often they are read.")
@click.option(
    "--inference-tokens",
    metavar="N",
    help="Tokens that the model will read and write in its life: what size is cheapest in all.",
)
@click.option("--sequence-length", type=WORKERS, metavar="N", help="Tokens of a row, in place of a schedule.")
@click.option("--batch-tokens", metavar="N", help="Tokens of a step, such as 4M, in place of a schedule.")
@click.option(
    "--on", "on", default="cpu", show_default=True, metavar="DEVICE:N", help="Devices, as h100:1024."
)
@click.option(
    "--hardware",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Records of devices of your own, or changes to those shipped.",
)
@click.option(
    "--measure", is_flag=True, help="Measure this machine first, some seconds; kept for later plans."
)
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
    type=click.Choice(SCHEDULES),
    help="Of the pipeline.",
)
@click.option("--chunks", type=WORKERS, metavar="N", help="Stages of a pipeline rank, of interleaved.")
@click.option(
    "--checkpointing",
    type=click.Choice(MODES),
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
@click.option("--stall", type=float, metavar="SECONDS", help="That training stands still for a checkpoint.")
@click.option("--restart", type=float, metavar="SECONDS", help="Until it goes on after an interruption.")
@click.option("--interval", type=float, metavar="SECONDS", help="Of work between checkpoints.")
@click.option(
    "--spares", type=click.IntRange(min=0), metavar="N", help="Nodes that stand ready; else enough."
)
@click.option(
    "--simulate",
    type=click.IntRange(0, 100_000),
    metavar="N",
    help="Play the run so many times; 0: none; by default 300 where few interruptions are expected.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="S", help="Of what is played.")
@click.option("--what-if", "show_what_if", is_flag=True, help="Goodput at other stalls and restarts.")
@click.option(
    "--pue", type=float, default=1.1, show_default=True, help="Power of the building over that within."
)
@click.option(
    "--power-fraction", type=float, metavar="X", help="Mean power over rated power; by default 0.76."
)
@click.option(
    "--grid",
    default="us",
    show_default=True,
    metavar="KG",
    help="CO2 of a kWh in kg, or a grid: us, france ...",
)
@click.option(
    "--rent", type=float, metavar="DOLLARS", help="Of a device for an hour; by default the record's."
)
@click.option("--buy", is_flag=True, help="Devices are bought: capital over their lifetime, electricity.")
@click.option(
    "--capital", type=float, metavar="DOLLARS", help="For a device with its share of all around it."
)
@click.option("--electricity", type=float, metavar="DOLLARS", help="For a kWh; by default 0.08.")
@click.option("--lifetime", type=float, metavar="YEARS", help="By default 4.")
@click.option(
    "--html",
    "page_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with tables and pictures.",
)
@fit_options
@search_options
@json_option
def command(
    recipe: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    show_what_if: bool,
    page_file: Path | None,
    **options: Any,
) -> None:
    """What a run needs, takes and costs, before it is started.

    Parameters, FLOPs, memory of each device, the time of a step; and where it is known how many tokens are
    trained on, days, interruptions, energy and dollars, each with the interval that holds it 9 times in 10.

    RECIPE_OR_PRESET is a recipe, or a shipped model such as llama3-8b. No data is read, and nothing is
    measured without --measure. With --fit it is the loss that a recipe will come to, by a scaling law of
    finished runs.
    """
    if planned_by_fit(recipe, overrides, as_json, options):
        return
    assert recipe is not None
    from cupola.cli.planning import plan

    if math.isnan(options["margin"]):
        raise InputError("--margin nan: a share from 0 to 0.9 is expected")
    if wanted(options):
        if page_file is not None:
            raise InputError(f"--html {page_file}: a search has no page; plan one of its layouts with --html")
        return run_search(recipe, overrides, as_json, options)
    if page_file is not None:
        check_output(page_file, "--html", b"<!doctype html")
    refuse_stated(("top",), "is of a search; state --search too")
    planned = plan(recipe, overrides, options, curve=as_json or page_file is not None)
    if planned.run is None:
        refuse_stated((*SAVING, *MONEY), "is of a run whose length isn't known; state --tokens")
    if page_file is not None:
        from cupola import storage
        from cupola.cli.plan_page import page

        storage.write_text(page_file, page(planned, as_typed(click.get_current_context())))
    if as_json:
        from cupola.cli.plan_facts import facts

        emit(facts(planned))
        return
    from cupola.cli.plan_tables import show

    show(planned, show_what_if)
    if page_file is not None:
        click.echo(f"page: {page_file}")
