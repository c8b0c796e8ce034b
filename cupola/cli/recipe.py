"""`cupola recipe`: the resolved recipe, its JSON schema, and what is shipped."""

import json
from pathlib import Path

import click

from cupola.cli.options import emit, examples, json_option, load_recipe, recipe_argument, set_option


@click.group(
    epilog=examples(
        "cupola recipe list", "cupola recipe show quickstart", "cupola recipe schema --out recipe.schema.json"
    )
)
def command() -> None:
    """Show a resolved recipe, the schema, or what is shipped."""


@command.command(
    epilog=examples(
        "cupola recipe show quickstart",
        "cupola recipe show recipes/quickstart.yaml --set stages.pretrain.learning_rate=3e-4",
        "cupola recipe show quickstart --set model=gpt2-small --json",
    )
)
@recipe_argument
@set_option
@json_option
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what a recipe comes to: bases, presets, --set and defaults applied.

    The output is a recipe itself: saved to a file, it loads to the same.
    """
    from cupola.recipe.loading import dump

    resolved = dump(load_recipe(recipe, overrides))
    if as_json:
        emit(resolved)
        return
    import yaml

    click.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=100), nl=False)


@command.command(
    epilog=examples(
        "cupola recipe schema --out recipe.schema.json",
        "# and as the first line of a recipe, for editors with a YAML language server:",
        "# yaml-language-server: $schema=recipe.schema.json",
    )
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead.")
@json_option
def schema(out: Path | None, as_json: bool) -> None:
    """Print the JSON schema by which an editor completes and checks a recipe.

    It is JSON in any case; with --json it is one line.
    """
    from cupola.recipe.json_schema import schema as recipe_schema
    from cupola.storage import write_json

    if out is None and as_json:
        emit(recipe_schema())
        return
    if out is None:
        click.echo(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))
        return
    write_json(out, recipe_schema())
    click.echo(f"{out}: written", err=True)
    if as_json:
        emit({"path": str(out)})


@command.command("list", epilog=examples("cupola recipe list", "cupola recipe list --json"))
@json_option
def list_shipped(as_json: bool) -> None:
    """List the shipped recipes and model presets, with their parameters."""
    from cupola.models.table import active_count, count
    from cupola.recipe.loading import load_preset
    from cupola.recipe.lookup import presets, shipped_recipes, summary

    recipes = [
        {"name": name, "path": str(path.resolve()), "summary": summary(path)}
        for name, path in shipped_recipes().items()
    ]
    models = []
    for name in presets():
        model = load_preset(name)
        rows = model.rows(SMALL_VOCABULARY)
        row = {"name": name, "vocabulary": rows}
        row |= {"parameters": count(model, rows), "active_parameters": active_count(model, rows)}
        models.append(row)
    models.sort(key=lambda row: (str(row["name"]).rpartition("-")[0], row["parameters"]))
    if as_json:
        emit({"recipes": recipes, "models": models})
        return
    click.echo("recipes (cupola run NAME, or `base: NAME`)")
    for recipe in recipes:
        click.echo(f"  {recipe['name']:<16}{recipe['summary']}")
    click.echo("model presets (`model: NAME`, or `base: NAME` in `model:`)")
    for row in models:
        active = row["active_parameters"]
        part = "" if active == row["parameters"] else f" ({active:,} active for a token)"
        click.echo(
            f"  {row['name']:<16}{row['parameters']:>16,} parameters{part}, vocabulary {row['vocabulary']:,}"
        )


SMALL_VOCABULARY = 8192  # with which presets are counted that leave the vocabulary to the tokenizer
