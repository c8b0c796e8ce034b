"""`cupola tokenizer`: train a recipe's, look at one, encode and decode by hand, verify a token store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cupola.cli.options import (
    emit,
    examples,
    given_text,
    json_option,
    load_recipe,
    read_text,
    recipe_argument,
    refuse_repeats,
    set_option,
)
from cupola.display import ConsoleDisplay, count
from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.corpus.tokenizer import Tokenizer

tokenizer_argument = click.argument("path", metavar="TOKENIZER")


@click.group(
    epilog=examples(
        "cupola tokenizer train recipes/quickstart.yaml",
        "cupola tokenizer show runs/quickstart",
        'cupola tokenizer encode runs/quickstart --text "It is so ordered."',
    )
    + "\n\nTOKENIZER is a tokenizer.json, a folder that holds one, or a run."
)
def command() -> None:
    """Train a recipe's tokenizer, or look at one."""


@command.command(
    epilog=examples(
        "cupola tokenizer train recipes/quickstart.yaml",
        "cupola tokenizer train quickstart --set tokenizer.vocabulary=32768 --out my-tokenizer",
    )
)
@recipe_argument
@set_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Save it in this folder too.")
@json_option
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Gather RECIPE's text and train its tokenizer; from the cache if nothing has changed."""
    from cupola.corpus import gather
    from cupola.corpus.tokenizer_training import train_for

    display = ConsoleDisplay()
    loaded = load_recipe(recipe, overrides)
    mixture = loaded.tokenizer_mixture()
    texts = {name: gather(name, loaded.corpora[name], display).path for name in mixture}
    tokenizer = train_for(loaded.tokenizer, texts, mixture, display)
    if out is not None:
        tokenizer.save(out)
    _report(tokenizer, as_json)


@command.command(
    epilog=examples(
        "cupola tokenizer show runs/quickstart",
        "cupola tokenizer show tokenizer.json --file README.md --json",
    )
)
@tokenizer_argument
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="FILE",
    help="Measure bytes per token on this text; may be repeated.",
)
@json_option
def show(path: str, files: tuple[str, ...], as_json: bool) -> None:
    """Show size, special tokens, engine and bytes per token (by default on Python's manual: English)."""
    refuse_repeats(files, "--file")
    _report(open_tokenizer(path), as_json, files)


@command.command(
    epilog=examples(
        'cupola tokenizer encode runs/quickstart --text "It is so ordered."',
        "cupola tokenizer encode tokenizer.json --file README.md --json",
        "git log | cupola tokenizer encode runs/quickstart --file -",
    )
)
@tokenizer_argument
@click.option("--text", help="The text.")
@click.option("--file", metavar="FILE", help="A UTF-8 text; - is standard input.")
@json_option
def encode(path: str, text: str | None, file: str | None, as_json: bool) -> None:
    """Print the ids of a text and what each stands for."""
    if (text is None) == (file is None):
        raise InputError("give the text by --text or by --file, one of the two")
    tokenizer = open_tokenizer(path)
    given = read_text(file, "--file") if file is not None else given_text(text or "", "--text")
    ids = tokenizer.encode(given).tolist()
    pieces = [tokenizer.decode([number]) for number in ids]
    size = len(given.encode())
    if as_json:
        emit({"ids": ids, "pieces": pieces, "tokens": len(ids), "bytes": size, "engine": tokenizer.engine})
        return
    for number, piece in zip(ids, pieces, strict=True):
        shown = tokenizer.token_bytes(number) if "\ufffd" in piece else piece
        click.echo(f"{number:>7}  {shown!r}")
    click.echo(f"{len(ids)} tokens, {size} bytes, {size / max(1, len(ids)):.2f} bytes per token", err=True)


@command.command(
    epilog=examples(
        "cupola tokenizer decode runs/quickstart 464 1024 13",
        "cupola tokenizer decode tokenizer.json 0 --json",
    )
)
@tokenizer_argument
@click.argument("ids", type=int, nargs=-1, required=True)
@json_option
def decode(path: str, ids: tuple[int, ...], as_json: bool) -> None:
    """Print the text of IDS."""
    tokenizer = open_tokenizer(path)
    beyond = [number for number in ids if not 0 <= number < tokenizer.size]
    if beyond:
        raise InputError(f"{beyond[0]} is no id of {path}; they run from 0 to {tokenizer.size - 1}")
    text = tokenizer.decode(ids)
    if as_json:
        emit({"text": text})
    else:
        click.echo(text)


@command.command(
    epilog=examples(
        "cupola tokenizer store ~/.cache/cupola/stores/0f3a/train",
        "cupola tokenizer store data/openwebtext_text_document --tokenizer gpt2/tokenizer.json --json",
    )
)
@click.argument("store")
@click.option(
    "--tokenizer",
    "tokenizer_path",
    metavar="TOKENIZER",
    help="What it must have been made with; needed for Megatron's files, which do not say.",
)
@json_option
def store(store: str, tokenizer_path: str | None, as_json: bool) -> None:
    """Verify every byte of a token STORE and show its facts.

    STORE is a folder of the cache, or the prefix of Megatron's .bin and .idx.
    """
    from cupola.data.store import ForeignStore, TokenStore

    display = ConsoleDisplay()
    tokenizer = open_tokenizer(tokenizer_path) if tokenizer_path else None
    path = Path(store).expanduser()
    if path.is_dir():
        opened = TokenStore(path, tokenizer)
    elif not path.with_name(f"{path.name}.idx").exists():
        raise InputError(f"{store}: is neither a folder nor the prefix of a .bin and an .idx")
    elif tokenizer is None:
        raise InputError(f"{store}: Megatron's files do not name their tokenizer; give it by --tokenizer")
    else:
        opened = ForeignStore(path, tokenizer, display)
    opened.verify(display)
    facts: dict[str, Any] = {
        "path": str(path),
        "documents": opened.documents,
        "tokens": opened.length,
        "bytes": opened.bytes,
        "dtype": opened.tokens.dtype.name,
        "vocabulary": opened.vocabulary,
        "delimiter": opened.delimiter,
        "tokenizer_fingerprint": opened.tokenizer_fingerprint,
        "fingerprint": opened.fingerprint,
        "verified": True,
    }
    _print(facts, as_json)


def open_tokenizer(path: str) -> "Tokenizer":
    """The tokenizer of a file, a folder or a run (by path or by name).

    Raises:
        InputError: there is none.
    """
    from cupola.corpus.tokenizer import FILE, Tokenizer

    given = Path(path).expanduser()
    if given.is_file() or (given / FILE).is_file():
        return Tokenizer.load(given)
    from cupola.pipeline.folder import find_run

    try:
        folder = find_run(path).tokenizer
    except InputError:
        raise InputError(f"{path}: is no tokenizer.json, no folder that holds one, and no run") from None
    return Tokenizer.load(folder)


def _report(tokenizer: "Tokenizer", as_json: bool, files: tuple[str, ...] = ()) -> None:
    from cupola.corpus.tokenizer_training import bytes_per_token

    texts = [read_text(file, "--file") for file in files]
    if not files:
        from pydoc_data.topics import topics

        texts = list(topics.values())
    facts = {
        "path": tokenizer.origin,
        "size": tokenizer.size,
        "delimiter": tokenizer.delimiter,
        "special": tokenizer.special,
        "engine": tokenizer.engine,
        "engine_reason": tokenizer.engine_reason,
        "bytes_per_token": round(bytes_per_token(tokenizer, texts), 4),
        "measured_on": list(files) or ["Python's manual"],
        "fingerprint": tokenizer.fingerprint,
    }
    _print(facts, as_json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{token} {number}" for token, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        elif name in ("documents", "tokens", "bytes"):
            value = f"{value} ({count(value)})"
        if value != "":
            click.echo(f"{name.replace('_', ' '):<22} {value}")
