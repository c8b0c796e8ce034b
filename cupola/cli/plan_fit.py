"""`cupola plan --fit`: a scaling law of one's own runs, and what it says of a larger one."""

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cupola.cli.options import Command, check_output, emit, load_recipe, refuse_stated, show_table
from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.compare.endings import Asked, Ending
    from cupola.plan.fitting import Fit, Predicted
    from cupola.plan.scaling import Choice

FAR = 10.0
"""Times the compute of the largest run beyond which a prediction is said to be far."""
NAMES = {"floor": "E", "a": "A", "b": "B", "alpha": "alpha", "beta": "beta"}
COUNT = "N is what a token is multiplied with: the head counts, the embedding's table does not"

ENDS = "a run is one point, the end of its stage: before it the learning rate has not decayed yet"
OWN = {"recipe", "overrides", "as_json", "fit", "check", "flops", "plot", "stage"}
"""Parameters of the command that mean something to `--fit`."""


class PlanCommand(click.Command):
    """A command whose `--fit` takes all the runs that stand behind it, as a shell leaves `runs/law-*`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """With `--fit` before each of them."""
        return super().parse_args(ctx, spread(args))


def spread(words: Sequence[str]) -> list[str]:
    """`--fit A B` as `--fit A --fit B`, where B is a folder or a pattern; the same of `--check`."""
    found: list[str] = []
    option = ""
    for place, word in enumerate(words):
        if word.startswith("-"):
            option = word if word in ("--fit", "--check") else ""
        elif option and words[place - 1] != option:
            if Path(word).is_dir() or glob.has_magic(word):
                found.append(option)
            else:
                option = ""
        found.append(word)
    return found


def fit_options(command: Command) -> Command:
    """`--fit`, `--check`, `--flops` and `--plot`."""
    options: tuple[Callable[[Command], Command], ...] = (
        click.option(
            "--fit",
            "fit",
            multiple=True,
            metavar="RUN...",
            help="Fit a scaling law on these finished runs (folders of runs, patterns), instead of a plan;"
            " RECIPE may be left out.",
        ),
        click.option(
            "--check",
            multiple=True,
            metavar="RUN...",
            help="With --fit: runs that are left out, to hold the prediction against.",
        ),
        click.option(
            "--flops",
            multiple=True,
            type=click.FloatRange(min=0, min_open=True),
            metavar="C",
            help="With --fit: the best size for so much compute, as 1e18.",
        ),
        click.option(
            "--plot",
            type=click.Path(path_type=Path, dir_okay=False),
            help="With --fit: draw the law as SVG.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Result:
    """A law, and what was asked of it."""

    runs: list["Ending"]
    held: list["Ending"]
    fitted: "Fit"
    asked: "Asked | None"
    flops: list[float]
    notes: list[str]

    def predict(self, run: "Ending | Asked") -> "Predicted":
        """Of a run that the law was not fitted on."""
        return self.fitted.predict(run.parameters, run.tokens)

    def optima(self) -> list["Choice"]:
        """The best size for each compute that was asked for."""
        return [self.fitted.law.optimum(flops) for flops in self.flops]


def planned_by_fit(recipe: str | None, overrides: tuple[str, ...], as_json: bool, options: Any) -> bool:
    """Do what `--fit` asks for; False without it, when `cupola plan` goes on as usual.

    Args:
        options: of the command; those of `fit_options` are taken out.

    Raises:
        InputError: runs that can't stand in one law, or too few.
    """
    from cupola.recipe.lookup import presets

    texts, held, flops, plot = (options.pop(name) for name in ("fit", "check", "flops", "plot"))
    if not texts:
        if alone := next((n for n, v in (("check", held), ("flops", flops), ("plot", plot)) if v), None):
            raise InputError(f"--{alone}: goes with --fit RUN...")
        if recipe is None:
            raise InputError(
                "RECIPE_OR_PRESET is missing; `cupola plan quickstart`, or --fit RUN... for a law"
            )
        return False
    _refuse_others(recipe, overrides)
    if recipe is not None and recipe in presets() and not Path(recipe).exists():
        raise InputError(
            f"{recipe}: is a shipped model; --fit takes a recipe, with text and tokens of its own"
        )
    if plot is not None:
        check_output(plot, "--plot", b"<svg")
    if wrong := next((one for one in flops if not math.isfinite(one)), None):
        raise InputError(f"--flops {wrong}: a number is expected, such as 1e18")
    result = fit_runs(recipe, overrides, texts, held, list(flops), options.get("stage"))
    if plot is not None:
        draw(result, plot)
    if as_json:
        emit(facts(result))
    else:
        show(result)
    return True


def _refuse_others(recipe: str | None, overrides: tuple[str, ...]) -> None:
    """What a law has no use for is not passed over in silence."""
    others = {parameter.name or "" for parameter in click.get_current_context().command.params} - OWN
    refuse_stated(others, "means nothing to --fit; leave it out")
    if overrides and recipe is None:
        raise InputError(f"--set {overrides[0]}: needs a RECIPE; the runs are as they are")


def fit_runs(
    recipe: str | None,
    overrides: tuple[str, ...],
    texts: Sequence[str],
    held_texts: Sequence[str],
    flops: list[float],
    stage: str | None,
) -> Result:
    """Read the runs and fit; one that is held back is not fitted on, also where `--fit` names its folder."""
    from cupola.compare import endings
    from cupola.plan.fitting import WIDEST, fit

    held_folders = endings.find_folders(held_texts)
    apart = {folder.resolve() for folder in held_folders}
    folders = [folder for folder in endings.find_folders(texts) if folder.resolve() not in apart]
    # In one order, whatever that of the words: the bootstrap draws by place.
    runs = sorted((endings.read(folder, stage) for folder in folders), key=lambda run: (run.flops, run.loss))
    held = [endings.read(folder, stage) for folder in held_folders]
    endings.require_same([*runs, *held])
    asked = endings.asked(load_recipe(recipe, overrides), runs[0]) if recipe is not None and runs else None
    fitted = fit([run.point for run in runs])
    largest = max(run.flops for run in runs)
    if not flops:
        flops = [6.0 * asked.parameters * asked.tokens] if asked else [largest, FAR * largest]
    notes = endings.cautions([*runs, *held])
    foretold = [6.0 * each.parameters * each.tokens for each in (*held, *((asked,) if asked else ()))]
    if far := [each for each in (*foretold, *flops) if each > 1.01 * FAR * largest]:
        notes.append(
            f"{max(far) / largest:.0f} times the compute of the largest run is far: whether the law holds"
            " there is a doubt that no interval has"
        )
    if edge := [name for name in ("alpha", "beta") if getattr(fitted.law, name) in WIDEST]:
        at = getattr(fitted.law, edge[0])
        notes.append(f"{edge[0]} ends at {at:g}, as far as is looked: these runs determine no law")
    if fitted.interval("floor")[0] < 0.05 * fitted.law.floor:
        notes.append("the runs don't tell E from the rest: take longer or larger ones before reading it")
    return Result(runs, held, fitted, asked, flops, notes)


def facts(result: Result) -> dict[str, Any]:
    """The JSON object."""
    law, like = result.fitted.law, result.runs[0]

    def predicted(run: "Ending | Asked") -> dict[str, Any]:
        said = result.predict(run)
        bits = like.bits_per_byte
        return {
            "parameters": run.parameters,
            "tokens": run.tokens,
            "flops": 6.0 * run.parameters * run.tokens,
            "predicted": said.loss,
            "low": said.low,
            "high": said.high,
            "bits_per_byte": {"predicted": bits(said.loss), "low": bits(said.low), "high": bits(said.high)},
        }

    return {
        "stage": like.stage,
        "unit": "nats a token of held-out text",
        "count": COUNT,
        "law": {
            name: _with_interval(getattr(law, name), result.fitted.interval(name))
            for name in (*NAMES, "exponent")
        },
        "runs": [_run(run, law.loss(run.parameters, run.tokens)) for run in result.runs],
        "check": [
            {
                **_run(run, None),
                **{name: value for name, value in predicted(run).items() if name != "bits_per_byte"},
                "inside": inside(result, run),
            }
            for run in result.held
        ],
        "recipe": {"name": result.asked.name, **predicted(result.asked)} if result.asked else None,
        "optima": [
            {
                "flops": best.flops,
                "parameters": _with_interval(best.parameters, result.fitted.best_parameters(best.flops)),
                "tokens": best.tokens,
                "loss": best.loss,
            }
            for best in result.optima()
        ],
        "notes": result.notes,
    }


def _with_interval(value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {"value": value, "low": interval[0], "high": interval[1]}


def _run(run: "Ending", fitted: float | None) -> dict[str, Any]:
    more = {} if fitted is None else {"fitted": fitted, "residual": run.loss / fitted - 1}
    return {
        "run": str(run.folder),
        "parameters": run.parameters,
        "tokens": run.tokens,
        "flops": run.flops,
        "loss": run.loss,
        "bits_per_byte": run.bits_per_byte(run.loss),
        **more,
    }


def inside(result: Result, run: "Ending") -> bool:
    """Whether a run came out within the interval of its prediction."""
    said = result.predict(run)
    return said.low <= run.loss <= said.high


def show(result: Result) -> None:
    """Print it for people."""
    from cupola.display import count

    law, runs = result.fitted.law, result.runs
    click.echo(f"law of {len(runs)} runs, stage {runs[0].stage}: loss = E + A / N^alpha + B / D^beta")
    click.echo("the loss is of held-out text, in nats a token; D is the tokens of the stage")
    click.echo(f"{COUNT}\n{ENDS}\n")
    rows = [[shown, *_interval(result, name)] for name, shown in NAMES.items()]
    show_table(["", "value", "90%"], [*rows, ["best N grows as C to the", *_interval(result, "exponent")]])
    click.echo()
    table = []
    for run in runs:
        loss = law.loss(run.parameters, run.tokens)
        sizes = [count(run.parameters), count(run.tokens), f"{run.flops:.2e}"]
        off = f"{100 * (run.loss / loss - 1):+.2f}%"
        table.append([run.folder.name, *sizes, f"{run.loss:.4f}", f"{loss:.4f}", off])
    show_table(["run", "N", "D", "FLOPs", "loss", "law", "off"], table)
    click.echo()
    for run in result.held:
        apart = 100 * (run.loss / result.predict(run).loss - 1)
        where = "inside" if inside(result, run) else "OUTSIDE"
        click.echo(
            f"left out, {run.folder.name} ({_work(result, run)}): predicted {_said(result, run)},"
            f" came out at {run.loss:.4f}, {apart:+.2f}%, {where}"
        )
    if result.asked:
        wanted = result.asked
        click.echo(f"{wanted.name} ({_work(result, wanted)}): predicted {_said(result, wanted)}")
    for best in result.optima():
        low, high = map(count, result.fitted.best_parameters(best.flops))
        click.echo(
            f"best for {best.flops:.2e} FLOPs: {count(best.parameters)} parameters ({low} to {high}) on"
            f" {count(best.tokens)} tokens ({best.tokens / best.parameters:.3g} each), loss {best.loss:.4f}"
        )
    for note in result.notes:
        click.echo(f"note: {note}")


def _interval(result: Result, name: str) -> list[str]:
    low, high = result.fitted.interval(name)
    return [f"{getattr(result.fitted.law, name):.4g}", f"{low:.4g} to {high:.4g}"]


def _work(result: Result, run: "Ending | Asked") -> str:
    from cupola.display import count

    times = 6.0 * run.parameters * run.tokens / max(each.flops for each in result.runs)
    sizes = f"{count(run.parameters)} parameters, {count(run.tokens)} tokens"
    return f"{sizes}, {times:.2g} times the largest's compute"


def _said(result: Result, run: "Ending | Asked") -> str:
    said, bits = result.predict(run), result.runs[0].bits_per_byte
    return f"{said.loss:.4f} ({said.low:.4f} to {said.high:.4f}; {bits(said.loss):.3f} bits a byte)"


def draw(result: Result, path: Path) -> None:
    """The picture, with what was foretold."""
    from cupola import storage
    from cupola.report.law import Foretold, law_svg

    foretold = [
        Foretold(run.parameters, run.tokens, result.predict(run), getattr(run, "loss", None))
        for run in (*result.held, *((result.asked,) if result.asked else ()))
    ]
    svg = law_svg([run.point for run in result.runs], result.fitted, foretold, standalone=True)
    storage.write_text(path, svg)
