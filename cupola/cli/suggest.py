"""`cupola suggest`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cupola.cli.options import amount, emit, examples, json_option, load_recipe, read_origin, set_option
from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.recipe.schema import Recipe
    from cupola.suggest import Proposal, Subject

LARGE = ("of at least 1000", "1.5B", 1000)
"""What is asked of `--tokens` and `--parameters`."""
SETTINGS = {
    "learning_rate": "learning rate",
    "batch_tokens": "batch (tokens)",
    "critical_batch": "critical batch",
    "weight_decay": "weight decay",
}


@click.command(
    epilog=examples(
        "cupola suggest quickstart",
        "cupola suggest --preset llama3-8b --tokens 15T",
        "cupola suggest --parameters 1B --optimizer muon --json",
        "cupola suggest quickstart --write tuned.yaml",
    )
)
@click.argument("recipe", metavar="[RECIPE]", required=False)
@set_option
@click.option("--preset", help="A shipped model instead of a recipe.")
@click.option("--parameters", help="A number of parameters instead of a model, such as 1B.")
@click.option("--tokens", help="The budget, such as 15T; by default the stage's, or 20 a parameter.")
@click.option("--stage", help="The stage of the recipe (default: the first).")
@click.option("--optimizer", type=click.Choice(["adamw", "muon", "soap"]), help="By default the stage's.")
@click.option("--sequence-length", type=click.IntRange(min=1), help="Tokens of a row.")
@click.option(
    "--write", type=click.Path(path_type=Path, dir_okay=False), help="Write a recipe on top of RECIPE."
)
@json_option
def command(
    recipe: str | None,
    overrides: tuple[str, ...],
    preset: str | None,
    parameters: str | None,
    tokens: str | None,
    stage: str | None,
    optimizer: str | None,
    sequence_length: int | None,
    write: Path | None,
    as_json: bool,
) -> None:
    """Propose learning rate, batch and schedule for a model and a budget of tokens.

    Each published rule is shown with its source; one that was fitted at other sizes is marked and does not
    enter the proposal, unless all are.
    """
    given = {"RECIPE": recipe, "--preset": preset, "--parameters": parameters}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise click.UsageError(
            f"give one of RECIPE, --preset and --parameters, not {' and '.join(named) or 'none'}"
        )
    if recipe is None and (overrides or stage or write):
        raise click.UsageError("--set, --stage and --write need a RECIPE")
    from cupola.suggest import propose

    budget = amount(tokens, "--tokens", *LARGE)
    loaded = now = None
    if recipe is not None:
        loaded = load_recipe(recipe, overrides)
        stage = stage or next(iter(loaded.stages))
        subject = _of_recipe(loaded, stage, budget, sequence_length, optimizer)
        now = loaded.stages[stage]
    else:
        size = amount(parameters, "--parameters", *LARGE)
        subject = _of_size(preset, size, budget, sequence_length, optimizer or "adamw")
    proposal = propose(subject, _family(loaded, preset), now)
    if write is not None and loaded is not None and recipe is not None:
        from cupola.suggest.overlay import write_recipe

        for note in write_recipe(write, recipe, overrides, loaded, stage or "", proposal, read_origin):
            click.echo(f"note: {note}", err=True)
        click.echo(f"{write}: written", err=True)
    if as_json:
        emit(_facts(proposal))
    else:
        _show(proposal, stage or "pretrain")


def _of_recipe(
    loaded: "Recipe", name: str, budget: int | None, sequence_length: int | None, optimizer: str | None
) -> "Subject":
    from cupola.suggest import subject_of

    if name not in loaded.stages:
        raise InputError(f"--stage {name}: there is none of that name; there are {', '.join(loaded.stages)}")
    stage = loaded.stages[name]
    assert stage.sequence_length is not None
    assert stage.optimizer is not None
    if budget is None:
        budget = _budget(stage, name)
    rows = loaded.model.rows(loaded.tokenizer.vocabulary)
    length = sequence_length or max(stage.sequence_length.values)
    return subject_of(loaded.model, rows, None, budget, length, optimizer or stage.optimizer.kind)


def _budget(stage: Any, name: str) -> int:
    if stage.tokens.unit == "epochs":
        raise InputError(f"stages.{name}.tokens: {stage.tokens} depend on the corpus; state --tokens")
    from cupola.recipe.clock import Clock

    return Clock(stage).total


def _of_size(
    preset: str | None,
    parameters: int | None,
    budget: int | None,
    sequence_length: int | None,
    optimizer: str,
) -> "Subject":
    from cupola.recipe.loading import load_preset
    from cupola.suggest import subject_of

    model = None if preset is None else load_preset(preset)
    rows = 0 if model is None else model.rows(SMALL_VOCABULARY)
    return subject_of(model, rows, parameters, budget, sequence_length, optimizer)


def _family(loaded: "Recipe | None", preset: str | None) -> str:
    if loaded is not None:
        return loaded.model.family
    if preset is None:
        return "transformer"
    from cupola.recipe.loading import load_preset

    return load_preset(preset).family


def _facts(proposal: "Proposal") -> dict[str, Any]:
    return {
        "subject": asdict(proposal.subject) | {"flops": proposal.subject.flops},
        "estimates": [asdict(one) for one in proposal.estimates],
        "choices": [asdict(one) for one in proposal.choices],
        "stage": proposal.stage,
        "notes": list(proposal.notes),
    }


def _show(proposal: "Proposal", stage: str) -> None:
    from cupola.display import count
    from cupola.suggest.overlay import as_yaml
    from cupola.suggest.rules import NOT_CHECKED

    subject = proposal.subject
    click.echo(
        f"{count(subject.parameters)} parameters ({count(subject.body)} in blocks), {count(subject.tokens)}"
        f" tokens in rows of {subject.sequence_length}, {subject.flops:.1e} FLOPs, {subject.optimizer}\n"
    )
    before = ""
    for one in proposal.estimates:
        setting = SETTINGS[one.setting] if one.setting != before else ""
        value = count(one.value) if "batch" in one.setting else f"{one.value:.2g}"
        mark = "*" if one.outside else " "
        click.echo(f"{setting:<15} {one.rule:<12} {value:>8}{mark}  {one.formula:<39} {one.source}")
        before = one.setting
    outside = dict.fromkeys(f"{one.rule} ({one.outside})" for one in proposal.estimates if one.outside)
    if outside:
        click.echo(f"* not fitted at this size: {', '.join(outside)}")
    unchecked = dict.fromkeys(one.rule for one in proposal.estimates if one.checked == NOT_CHECKED)
    click.echo(f"{NOT_CHECKED}: {', '.join(unchecked)}")
    click.echo("\nproposal")
    for choice in proposal.choices:
        click.echo(f"  {choice.setting:<24}{choice.value:<14}  {choice.why}")
    for note in proposal.notes:
        click.echo(f"note: {note}")
    click.echo(f"\n{as_yaml({'stages': {stage: proposal.stage}})}", nl=False)


SMALL_VOCABULARY = 8192  # with which presets are counted that leave the vocabulary to the tokenizer
