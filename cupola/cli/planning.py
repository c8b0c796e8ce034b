"""What `cupola plan` works out from its options: requests, layouts, memory, the run and its price."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cupola.cli.options import amount, load_recipe
from cupola.cli.plan_prices import grid_of, power_of, price_of, settings_of
from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.plan.advice import Advice
    from cupola.plan.campaign import Campaign
    from cupola.plan.course import Course
    from cupola.plan.cures import Cure
    from cupola.plan.devices import Point
    from cupola.plan.execution import Execution
    from cupola.plan.figure import Figure
    from cupola.plan.hardware import Hardware
    from cupola.plan.layout import Layout
    from cupola.plan.memory import Memory
    from cupola.plan.request import Request
    from cupola.plan.steptime import StepTime
    from cupola.plan.work import Asked

SPREAD = ("data", "tensor", "pipeline", "context", "expert", "rows", "chunks")
STALLS, RESTARTS = (0.5, 5.0, 30.0, 120.0), (60.0, 180.0, 600.0, 1800.0)
"""Of the table of what-ifs, seconds."""


@dataclass
class Plan:
    """A stage on a layout: what it needs of memory, and how its steps go.

    Attributes:
        asked: as it was asked for; of a shipped model without a batch where none was stated.
        request: with the batch that is planned for.
        course: all its steps; None where its horizon isn't known.
        unknown: why not.
    """

    asked: "Request"
    request: "Request"
    layout: "Layout"
    execution: "Execution"
    hardware: "Hardware"
    devices: int
    margin: float
    course: "Course | None" = None
    unknown: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cures: "list[Cure]" = field(default_factory=list)
    step: "StepTime | None" = None

    def __post_init__(self) -> None:
        from cupola.plan.memory import by_rank

        self.ranks: list[Memory] = by_rank(self.request.run(self.layout, self.execution))
        self.memory: Memory = max(self.ranks, key=lambda memory: memory.total)
        self.fits = self.memory.fits(self.hardware.memory, self.margin)
        self.notes += self.request.notes

    @property
    def memory_figure(self) -> "Figure":
        """Bytes of the fullest rank, with their interval."""
        from cupola.plan.execution import PEAK
        from cupola.plan.figure import Figure

        total = self.memory.total
        return Figure(total, PEAK[0] * total, PEAK[1] * total)


@dataclass
class Planned:
    """Everything that the command shows.

    Attributes:
        run: of the stages whose horizon is known; None where it is of none.
        what_if: (stalls, restarts, goodput at each, by stall), where interruptions are counted.
        curve: the run on other numbers of devices, where that is asked for.
    """

    name: str
    plans: list[Plan]
    run: "Campaign | None" = None
    advice: "Advice | None" = None
    what_if: "tuple[list[float], list[float], list[list[float]]] | None" = None
    curve: "list[Point]" = field(default_factory=list)


def plan(recipe: str, overrides: tuple[str, ...], options: dict[str, Any], curve: bool = False) -> Planned:
    """What the options ask for.

    Args:
        curve: the run on other numbers of devices too.

    Raises:
        InputError: one line, what can't be and what would work.
    """
    from cupola.plan.cures import cures
    from cupola.plan.hardware import catalogue, parse
    from cupola.plan.steptime import step_time

    for name in ("batch_tokens", "tokens", "corpus", "inference_tokens"):
        options[name] = amount(options[name], f"--{name.replace('_', '-')}", "of tokens", "4M")
    if options["measure"]:
        from cupola.plan.host import measure

        measure()
    hardware, devices = parse(options["on"], catalogue(options["hardware"]))
    plans = _plans(recipe, overrides, options, hardware, devices)
    for one in plans:
        if not one.fits:
            one.cures = cures(one.asked, one.layout, one.execution, hardware, devices, one.margin)
    found = Planned(recipe, plans)
    _add_run(found, options, hardware, curve)
    known = iter(found.run.stages if found.run else ())
    for one in plans:
        if one.course is not None:
            one.step = next(known).step
        elif one.request.batch is not None:
            one.step = step_time(one.request.run(one.layout, one.execution), hardware)
    return found


def _plans(
    recipe: str, overrides: tuple[str, ...], options: dict[str, Any], hardware: "Hardware", devices: int
) -> list[Plan]:
    if is_shipped(recipe, overrides, options["stage"]):
        return [_of_preset(recipe, options, hardware, devices)]
    return _of_recipe(recipe, overrides, options, hardware, devices)


def is_shipped(recipe: str, overrides: tuple[str, ...], stage: str | None) -> bool:
    """Whether it is the name of a shipped model, and not a recipe.

    Raises:
        InputError: it is one, and something is stated that only a recipe has; or it is nearly one.
    """
    from cupola.recipe.lookup import presets, shipped_recipes
    from cupola.recipe.structure import did_you_mean

    if recipe in presets() and not Path(recipe).exists():
        if overrides or stage:
            raise InputError(f"{recipe}: is a shipped model; --set and --stage need a recipe")
        return True
    named = "/" not in recipe and not Path(recipe).exists() and recipe not in shipped_recipes()
    here = Path("recipes", f"{recipe}.yaml").exists()
    named = named and not recipe.endswith((".yaml", ".yml"))
    if named and not here and not did_you_mean(recipe, shipped_recipes()):
        close = did_you_mean(recipe, presets())
        there = f"recipes are {', '.join(shipped_recipes())}; models {', '.join(presets())}"
        hint = f"did you mean {close}?" if close else there
        raise InputError(f"{recipe}: no recipe or shipped model of that name; {hint}")
    return False


def _of_preset(name: str, options: dict[str, Any], hardware: "Hardware", devices: int) -> Plan:
    from cupola.plan import course
    from cupola.plan.request import of_preset
    from cupola.recipe.loading import load_preset

    asked = of_preset(name, load_preset(name), options["sequence_length"], options["batch_tokens"])
    layout, execution = _spread(asked, options, hardware, devices)
    (request, notes), length = batched(asked, layout), asked.sequence_length
    assert request.batch is not None
    found = None
    if options["tokens"] is not None:
        found = course.of_model(options["tokens"], request.batch * length, length)
    elif options["corpus"] is not None:
        raise InputError("--corpus: says how often --tokens read it; state --tokens too")
    elif options["inference_tokens"] is not None:
        raise InputError("--inference-tokens: are weighed against --tokens of training; state --tokens too")
    return Plan(asked, request, layout, execution, hardware, devices, options["margin"], found, notes=notes)


def batched(request: "Request", layout: "Layout") -> "tuple[Request, list[str]]":
    """With a usual batch where none is stated, and a note that says so."""
    from cupola.models import table
    from cupola.plan.course import usual_batch

    if request.batch is not None:
        return request, []
    active = table.active_count(request.model, request.vocabulary)
    batch = usual_batch(active, request.sequence_length, layout)
    tokens = batch * request.sequence_length
    return replace(request, batch=batch), [
        f"steps of {tokens:,} tokens are taken; --batch-tokens states others"
    ]


def _of_recipe(
    recipe: str, overrides: tuple[str, ...], options: dict[str, Any], hardware: "Hardware", devices: int
) -> list[Plan]:
    from cupola.plan import course
    from cupola.plan.request import of_stage
    from cupola.plan.stock import stocks

    loaded = load_recipe(recipe, overrides)
    if options["corpus"] is not None:
        raise InputError("--corpus: is for a shipped model; a recipe names its own corpora")
    if options["inference_tokens"] is not None:
        raise InputError("--inference-tokens: is for a shipped model with --tokens")
    names = [options["stage"]] if options["stage"] else list(loaded.stages)
    tokens, length, batch = options["tokens"], options["sequence_length"], options["batch_tokens"]
    if tokens is not None and len(names) > 1:
        raise InputError(f"--tokens: of which stage? state --stage, one of {', '.join(names)}")
    known = stocks(loaded)
    plans = []
    for name in names:
        request = of_stage(loaded, name, length, batch)
        if tokens is not None and loaded.stages[name].samples:
            raise InputError(
                f"--tokens: {name} learns from answers of its own; state its steps in the recipe"
            )
        layout, execution = _spread(request, options, hardware, devices)
        one = Plan(request, request, layout, execution, hardware, devices, options["margin"])
        try:
            one.course = course.of_stage(loaded, name, known, length, batch, tokens)
            _say_repeated(one)
            _refuse_repeated(one, tokens)
            if one.course.answers:
                one.notes.append(
                    f"{name}: the time of sampling is a rule of thumb, every answer at its greatest length"
                )
        except course.UnknownHorizon as error:
            one.unknown = str(error)
        plans.append(one)
    return plans


def _say_repeated(one: Plan) -> None:
    """How often a stage reads its sources; a warning where that is too often."""
    from cupola.plan.advice import WORTHWHILE

    assert one.course is not None
    for seen in one.course.repeated:
        about = "" if seen.stock.counted else "about "
        words = f"{one.request.name}: {about}{seen.epochs:.2g} epochs of {seen.source!r}"
        size = f"{about}{seen.stock.tokens:,} tokens"
        if seen.epochs > WORTHWHILE:
            one.warnings.append(
                f"{words}, which has {size}; up to {WORTHWHILE:.0f} are nearly as good as fresh text"
                " (Muennighoff et al. 2023): add text, or let the stage be shorter"
            )
        else:
            one.notes.append(f"{words} ({size})")


def _refuse_repeated(one: Plan, tokens: int | None) -> None:
    """Tokens that were asked for and are not there: of a corpus read so often nothing comes."""
    from cupola.plan.advice import MOST_PASSES, WORTHWHILE

    assert one.course is not None
    worst = max(one.course.repeated, key=lambda seen: seen.epochs, default=None)
    if tokens is not None and worst is not None and worst.epochs > MOST_PASSES:
        most = int(tokens * WORTHWHILE / worst.epochs)
        raise InputError(
            f"--tokens {tokens}: {worst.epochs:,.0f} passes over {worst.source!r}, which has"
            f" {worst.stock.tokens:,} tokens, and nothing comes of more than {MOST_PASSES:.0f} (Muennighoff"
            f" et al. 2023); up to --tokens {most} are well spent"
        )


def _spread(
    request: "Request", options: dict[str, Any], hardware: "Hardware", devices: int
) -> "tuple[Layout, Execution]":
    from cupola.plan.request import layout_of

    given = {name: options[name] for name in (*SPREAD, "shard", "schedule", "checkpointing")}
    layout = layout_of(
        request.scale, {name: value for name, value in given.items() if value is not None}, devices
    )
    if options["schedule"] not in (None, "1f1b") and layout.pipeline == 1:
        raise InputError(f"--schedule {options['schedule']}: is of a pipeline; state --pipeline too")
    if found := request.faults(layout, devices):
        others = len(found) - 1
        more = f"; and {others} more fault{'s' if others > 1 else ''}" if others else ""
        row = f"; a row is {request.sequence_length:,} tokens" if found[0].startswith("a batch") else ""
        raise InputError(f"{request.name}: {found[0]}{row}{more}")
    return layout, execution_on(request, hardware, options)


def execution_on(request: "Request", hardware: "Hardware", options: dict[str, Any]) -> "Execution":
    """How it is computed there."""
    from cupola.plan.execution import ON_CPU, Execution

    on_cpu = hardware.name == "cpu"
    precision: Any = options["precision"] or request.precision
    if precision == "auto":
        known = [name for name in ("bf16", "fp16") if name in hardware.peak and not on_cpu]
        precision = known[0] if known else "fp32"
    if options["precision"] and not on_cpu and precision not in hardware.peak:
        raise InputError(f"--precision {precision}: {hardware.name} has {', '.join(hardware.peak)}")
    execution = Execution(precision=precision, loss=options["loss"])
    return replace(execution, overhead=ON_CPU) if on_cpu else execution


def _add_run(found: Planned, options: dict[str, Any], hardware: "Hardware", curve: bool) -> None:
    """The run of the stages whose horizon is known; what is wrong with prices is told in any case."""
    from cupola.models import table
    from cupola.plan import campaign
    from cupola.plan.advice import advise
    from cupola.plan.work import Asked

    power, grid = power_of(options, hardware), grid_of(options["grid"])
    price, settings = price_of(options, hardware, power), settings_of(options)
    known = [one for one in found.plans if one.course is not None]
    if not known:
        return
    asked = [
        Asked(one.request, one.layout, one.execution, one.course) for one in known if one.course is not None
    ]
    of_recipe = options["tokens"] is None
    found.run = campaign.campaign(asked, hardware, settings, power, grid, price, of_recipe)
    found.what_if = _what_if(found.run)
    if curve and hardware.name != "cpu":
        from cupola.plan.devices import over_devices

        def again(others: "Sequence[Asked]") -> "Campaign":
            closed = replace(settings, simulate=0)
            return campaign.campaign(others, hardware, closed, power, grid, price, of_recipe)

        room = hardware.memory * (1 - options["margin"])
        found.curve = over_devices(asked, found.run, again, room)
    first = found.plans[0].request
    if options["tokens"] is not None and first.name == found.name:
        active = table.active_count(first.model, first.vocabulary)
        found.advice = advise(active, options["tokens"], options["corpus"], options["inference_tokens"])


def _what_if(run: "Campaign") -> "tuple[list[float], list[float], list[list[float]]] | None":
    from cupola.plan.goodput import what_if

    happened = run.interruptions
    if not happened.counted:
        return None
    own = happened.practice
    stalls, restarts = _around(own.stall, STALLS), _around(own.restart, RESTARTS)
    table = what_if(happened.causes, own, stalls, restarts)
    return stalls, restarts, [[one.goodput for one in row] for row in table]


def _around(own: float, others: tuple[float, ...]) -> list[float]:
    """The plan's own value among others, less those that are nearly the same."""
    return sorted([own, *(one for one in others if abs(one - own) > 0.2 * own)])
