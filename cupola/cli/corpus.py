"""`cupola corpus`: gather a recipe's text and conversations, see what the cache holds, read, verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cupola.cli.options import emit, examples, json_option, load_recipe, recipe_argument, set_option
from cupola.display import ConsoleDisplay, count, size

if TYPE_CHECKING:
    from cupola.recipe.schema import Recipe


@click.group(
    epilog=examples(
        "cupola corpus gather recipes/quickstart.yaml",
        "cupola corpus show recipes/quickstart.yaml --source manuals --number 5",
        "cupola corpus list",
    )
)
def command() -> None:
    """Gather a recipe's text and conversations, and show what they hold."""


@command.command(
    epilog=examples(
        "cupola corpus gather recipes/quickstart.yaml",
        "cupola corpus gather recipes/own_text.yaml --source mine --json",
        "cupola corpus gather quickstart --set corpora.manuals.max_bytes=5000000 --refresh",
    )
)
@recipe_argument
@click.option("--source", "chosen", multiple=True, metavar="NAME", help="Only this source; may be repeated.")
@set_option
@click.option(
    "--refresh", is_flag=True, help="Fetch packages again, and try again what a fallback stands for."
)
@json_option
def gather(
    recipe: str, chosen: tuple[str, ...], overrides: tuple[str, ...], refresh: bool, as_json: bool
) -> None:
    """Fetch or make, read, clean and split what RECIPE's sources hold; from the cache if unchanged."""
    from cupola.corpus import gather as gather_source

    loaded = load_recipe(recipe, overrides)
    rows = []
    for name in _names(loaded, chosen):
        gathered = gather_source(name, loaded.corpora[name], ConsoleDisplay(), refresh)
        rows.append({"name": name, "path": str(gathered.path), **gathered.facts})
    if as_json:
        emit({"sources": rows})
        return
    click.echo(f"{'source':<14} {'documents':>9} {'held out':>8} {'text':>8}  taken from")
    for row in rows:
        documents, text = row["documents"], size(sum(row["bytes"].values()))
        total = sum(documents.values())
        click.echo(
            f"{row['name']:<14} {total:>9} {documents['heldout']:>8} {text:>8}  {row['taken']['source']}"
            + (" (fallback)" if row["taken"]["fallback"] else "")
        )


@command.command("list", epilog=examples("cupola corpus list", "cupola corpus list --json"))
@json_option
def list_cache(as_json: bool) -> None:
    """List gathered text and fetched packages in the cache; names and sizes of files are checked."""
    _report(contents=False, as_json=as_json)


@command.command(epilog=examples("cupola corpus verify", "cupola corpus verify --json"))
@json_option
def verify(as_json: bool) -> None:
    """Compare all gathered text and fetched packages with their SHA-256; exit status 1 if one is damaged."""
    from cupola.errors import CupolaError

    damaged = _report(contents=True, as_json=as_json)
    if damaged:
        raise CupolaError(f"{damaged[0]}; delete the folder and gather again")


@command.command(
    epilog=examples(
        "cupola corpus show recipes/quickstart.yaml --source speeches",
        "cupola corpus show recipes/own_text.yaml --source mine --heldout --number 10 --characters 300",
    )
)
@click.argument("place", metavar="RECIPE|PATH")
@click.option("--source", "chosen", metavar="NAME", help="The source; needed where the recipe has several.")
@set_option
@click.option("--heldout", is_flag=True, help="From the held-out text.")
@click.option("--number", default=3, show_default=True, type=click.IntRange(1), help="How many documents.")
@click.option(
    "--characters", default=1500, show_default=True, type=click.IntRange(1), help="How much of each document."
)
@json_option
def show(
    place: str,
    chosen: str | None,
    overrides: tuple[str, ...],
    heldout: bool,
    number: int,
    characters: int,
    as_json: bool,
) -> None:
    """Print documents or conversations, spread evenly over a source of RECIPE or over the gathered text in
    the folder PATH."""
    from cupola.corpus.listing import readable, spread
    from cupola.storage import MANIFEST

    folder = Path(place)
    if not (folder / MANIFEST).exists():
        folder = _gathered(place, chosen, overrides)
    documents = spread(folder, "heldout" if heldout else "train", number)
    if as_json:
        rows = [
            {"id": item.id, "source": item.source, "licence": item.licence}
            | {"text": readable(folder, item)[:characters]}
            for item in documents
        ]
        emit({"path": str(folder), "documents": rows})
        return
    for item in documents:
        text = readable(folder, item)
        click.echo(f"--- {item.id} ({count(len(item.text.encode()))} bytes, {item.licence})")
        click.echo(text[:characters] + ("\n[...]" if len(text) > characters else "") + "\n")


def _gathered(recipe: str, chosen: str | None, overrides: tuple[str, ...]) -> Path:
    from cupola.corpus import gather as gather_source
    from cupola.errors import InputError

    loaded = load_recipe(recipe, overrides)
    names = _names(loaded, (chosen,) if chosen else ())
    if len(names) > 1:
        raise InputError(f"--source: {recipe} has several sources, name one of {', '.join(names)}")
    return gather_source(names[0], loaded.corpora[names[0]], ConsoleDisplay()).path


def _names(recipe: "Recipe", chosen: tuple[str, ...]) -> list[str]:
    from cupola.errors import InputError

    if not recipe.corpora:
        raise InputError(f"corpora: the recipe {recipe.name} names no source of text")
    for name in chosen:
        if name not in recipe.corpora:
            raise InputError(
                f"--source: there is no source {name!r}; the recipe has {', '.join(recipe.corpora)}"
            )
    return list(chosen) or list(recipe.corpora)


def _report(contents: bool, as_json: bool) -> list[str]:
    """Print what the cache holds; returns what is wrong."""
    from cupola.corpus.listing import held

    found = list(held(contents))
    if as_json:
        rows = [
            {"kind": item.kind, "name": item.name, "path": str(item.path), "error": item.error}
            | (
                {key: item.facts.get(key) for key in ("documents", "bytes")}  # null where it is damaged
                if item.kind == "text"
                else {}
            )
            for item in found
        ]
        emit({"folders": rows})
    elif not found:
        click.echo("the cache holds no text yet")
    for item in [] if as_json else found:
        state = "DAMAGED" if item.error else "whole"
        held_bytes = "-" if item.error else size(_bytes(item.facts))
        click.echo(f"{item.kind:<8} {state:<8} {held_bytes:>8}  {item.name}  {item.path}")
    return [item.error for item in found if item.error]


def _bytes(facts: dict[str, Any]) -> int:
    """Bytes of text, or of the files where that is not stated."""
    sizes = facts.get("bytes") or {name: file["bytes"] for name, file in facts["files"].items()}
    return sum(sizes.values())
