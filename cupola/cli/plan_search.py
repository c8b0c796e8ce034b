"""`cupola plan --search`: the best layouts, why others are not, and time against cost over devices."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cupola.cli.options import Command
from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.plan.candidates import Question
    from cupola.plan.figure import Figure
    from cupola.plan.frontier import Price
    from cupola.plan.layout import Layout
    from cupola.plan.request import Request
    from cupola.plan.steptime import StepTime

STATED = ("data", "tensor", "pipeline", "context", "expert", "rows", "chunks", "shard", "schedule")
SHORT = {"dp": "data", "tp": "tensor", "pp": "pipeline", "cp": "context", "ep": "expert", "shard": "shard"}
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v")
MODES = ("none", "selective", "operators", "full")


def search_options(command: Command) -> Command:
    """The options of the search."""
    options = (
        click.option("--search", is_flag=True, help="The fastest layouts; what is stated beside stays."),
        click.option(
            "--top",
            type=click.IntRange(1, 100),
            default=10,
            show_default=True,
            metavar="N",
            help="How many are shown.",
        ),
        click.option("--explain", is_flag=True, help="Search, and say why each other layout is not taken."),
        click.option(
            "--why", multiple=True, metavar="LAYOUT", help="Why not this one, such as 'tp16 pp4 shard1'."
        ),
        click.option(
            "--deadline", metavar="TIME", help="Of the devices in --on the cheapest by then, such as 30d."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def wanted(options: dict[str, Any]) -> bool:
    """Whether a search is what is asked for."""
    several = "," in options["on"] or "-" in options["on"].partition(":")[2]
    return bool(options["search"] or options["explain"] or options["why"] or options["deadline"] or several)


def run_search(recipe: str, overrides: tuple[str, ...], as_json: bool, options: dict[str, Any]) -> None:
    """Search as the options say, and print what was found."""

    from cupola.cli.options import amount, emit, refuse_stated
    from cupola.cli.plan_prices import MONEY, SAVING
    from cupola.cli.plan_search_tables import facts, points_facts, show, show_points
    from cupola.cli.planning import execution_on
    from cupola.plan.candidates import Question
    from cupola.plan.frontier import cheapest, deadline, places, survey
    from cupola.plan.hardware import catalogue
    from cupola.plan.search import search, thought_of, why

    within = deadline(options["deadline"]) if options["deadline"] else None
    found = places(options["on"], catalogue(options["hardware"]))
    request = request_of(recipe, overrides, options)
    given = {name: options[name] for name in STATED if options[name] is not None}
    if options["checkpointing"] is not None:
        given["checkpointing"] = options["checkpointing"]
    questions = [
        Question(request, execution_on(request, hardware, options), hardware, count, options["margin"], given)
        for hardware, count in found
    ]
    if len(questions) > 1 or within is not None:
        if options["tokens"] is None:
            raise InputError("--tokens: days and dollars are of how many? state it, such as --tokens 15T")
        refuse_stated(("top", "explain", "why"), "is of one kind and number of devices, without --deadline")
        refuse_stated(("show_what_if", "simulate", "seed", "corpus", "inference_tokens"), "is of one plan")
        tokens = amount(options["tokens"], "--tokens", "of tokens", "15T")
        assert tokens is not None
        points = survey(questions, price_on(request, tokens, options))
        best = None if within is None else cheapest(points, within)
        if as_json:
            emit({"name": recipe} | points_facts(points, within, best))
        else:
            show_points(request, points, within, best)
        return
    refuse_stated(
        ("tokens", "corpus", "inference_tokens", *SAVING, *MONEY),
        "a search looks at a step; plan one of its layouts, or name several devices in --on to compare runs",
    )
    question = questions[0]
    asked = [parsed(text) for text in options["why"]]
    answer = search(question, options["top"])
    first = answer.best[0] if answer.best else None
    if options["explain"]:
        asked = [*asked, *(one for one in thought_of(question) if one not in asked)]
    reasons = [(named_settings(one), why(question, one, first)) for one in asked]
    if as_json:
        emit({"name": recipe} | facts(answer, reasons))
    else:
        show(answer, reasons, options["explain"])


def request_of(recipe: str, overrides: tuple[str, ...], options: dict[str, Any]) -> "Request":
    """The one stage, or shipped model, that is searched for, with a batch.

    Raises:
        InputError: a recipe has several stages and none is stated; whatever else is wrong with it.
    """
    from cupola.cli.options import amount, load_recipe
    from cupola.cli.planning import is_shipped
    from cupola.plan.request import of_preset, of_stage
    from cupola.recipe.loading import load_preset

    length = options["sequence_length"]
    batch = amount(options["batch_tokens"], "--batch-tokens", "of tokens", "4M")
    if is_shipped(recipe, overrides, options["stage"]):
        return _batched(of_preset(recipe, load_preset(recipe), length, batch))
    loaded = load_recipe(recipe, overrides)
    names = list(loaded.stages)
    if options["stage"] is None and len(names) > 1:
        raise InputError(f"{recipe}: has several stages; state --stage, one of {', '.join(names)}")
    return _batched(of_stage(loaded, options["stage"] or names[0], length, batch))


def _batched(request: "Request") -> "Request":
    """With a usual batch where none is stated, whatever the layout."""
    from dataclasses import replace

    from cupola.cli.planning import batched
    from cupola.plan.layout import Layout

    found, notes = batched(request, Layout())
    return replace(found, notes=(*found.notes, *notes))


def price_on(request: "Request", tokens: int, options: dict[str, Any]) -> "Callable[[Question], Price]":
    """Days and dollars of the whole run, interruptions included, on a question's devices."""
    from cupola.cli import plan_prices
    from cupola.plan import campaign
    from cupola.plan.course import of_model
    from cupola.plan.work import Asked

    assert request.batch is not None
    course = of_model(tokens, request.batch * request.sequence_length, request.sequence_length)
    grid = plan_prices.grid_of(options["grid"])
    settings = plan_prices.settings_of(options | {"simulate": 0})

    def on(question: "Question") -> "Price":
        hardware, execution = question.hardware, question.execution
        power = plan_prices.power_of(options, hardware)
        price = plan_prices.price_of(options, hardware, power)

        def taken(layout: "Layout", devices: int, step: "StepTime") -> "tuple[Figure, Figure]":
            asked = [Asked(request, layout, execution, course)]
            found = campaign.campaign(asked, hardware, settings, power, grid, price, of_recipe=False)
            return found.days, found.bill.dollars

        return taken

    return on


def parsed(text: str) -> dict[str, Any]:
    """Settings of a layout from its short form, as tables print it: `dp8 tp4 pp2 shard1 zb-h1 2rows full`.

    Raises:
        InputError: a word that is none.
    """
    found: dict[str, Any] = {}
    for word in text.replace(",", " ").split():
        number = re.fullmatch(r"(dp|tp|pp|cp|ep|shard)(\d{1,8})", word)
        rows, chunks = re.fullmatch(r"(\d{1,8})rows?", word), re.fullmatch(r"interleavedx(\d{1,3})", word)
        if number:
            settings: dict[str, Any] = {SHORT[number[1]]: int(number[2])}
        elif rows:
            settings = {"rows": int(rows[1])}
        elif chunks:
            settings = {"schedule": "interleaved", "chunks": int(chunks[1])}
        elif word in SCHEDULES:
            settings = {"schedule": word}
        elif word in MODES:
            settings = {"checkpointing": word}
        else:
            raise InputError(
                f"--why {text}: {word!r} is nothing of a layout; write it as 'dp64 tp8 pp4 cp2 ep8 shard1"
                " interleavedx2 2rows full', or a part of it"
            )
        if twice := next((name for name in settings if name in found), None):
            raise InputError(f"--why {text}: names {twice} twice")
        found |= settings
    if "schedule" in found and found.get("pipeline", 1) == 1:
        raise InputError(f"--why {text}: a schedule is of a pipeline; name its ranks too, as in 'pp4 zb-h1'")
    if not found:
        raise InputError("--why: names no layout; write it as 'tp8 pp4 shard1'")
    if least := [name for name, value in found.items() if value == 0 and name != "shard"]:
        raise InputError(f"--why {text}: {least[0]} 0 can't be; at least 1")
    if found.get("shard", 0) > 3:
        raise InputError(f"--why {text}: shard {found['shard']} can't be; 0 to 3")
    return found


def named_settings(given: dict[str, Any]) -> str:
    """The short form of settings."""
    words = [f"{short}{given[name]}" for short, name in SHORT.items() if name in given]
    if "schedule" in given:
        words.append(given["schedule"] + (f"x{given['chunks']}" if "chunks" in given else ""))
    words += [f"{given['rows']}row{'s' if given['rows'] > 1 else ''}"] if "rows" in given else []
    words += [given["checkpointing"]] if "checkpointing" in given else []
    return " ".join(words)


def named(layout: "Layout") -> str:
    """The short form of a layout: what is 1, or not there, is left out."""
    sizes = {name: getattr(layout, name) for name in SHORT.values()}
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size > 1 and name != "shard"}
    given |= {"shard": layout.shard} if layout.shards > 1 else {}
    given |= {"rows": layout.rows}
    if layout.pipeline > 1:
        given |= {"schedule": layout.schedule} | ({"chunks": layout.chunks} if layout.chunks > 1 else {})
    given |= {"checkpointing": layout.checkpointing} if layout.checkpointing != "none" else {}
    return named_settings(given)
