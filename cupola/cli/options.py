"""What the commands share: the recipe argument, `--set`, `--json`, how texts are read and results printed.

Results go to standard output, everything said on the way to standard error; with `--json` the last line
of standard output is one JSON object.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from cupola import json_lines
from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.recipe.origin import Origin
    from cupola.recipe.quantity import Quantity
    from cupola.recipe.schema import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

recipe_argument = click.argument("recipe", metavar="RECIPE")

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as stages.pretrain.learning_rate=3e-4; may be repeated.",
)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object as the last line of standard output.",
)


def sampling_options(max_tokens: int, temperature: float) -> Callable[[Command], Command]:
    """`--max-tokens`, `--temperature`, `--top-k`, `--top-p` and `--seed`, with a command's own defaults."""
    options = (
        click.option(
            "--max-tokens", type=click.IntRange(min=1), default=max_tokens, show_default=True, metavar="N"
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0),
            default=temperature,
            show_default=True,
            metavar="T",
            help="0 always takes the likeliest token.",
        ),
        click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="Only the K likeliest tokens."),
        click.option(
            "--top-p",
            type=click.FloatRange(min=0, min_open=True, max=1),
            default=1.0,
            show_default=True,
            metavar="P",
            help="Only the likeliest tokens that together reach this probability.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S"),
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def in_sections(
    sections: Mapping[str, Sequence[str]], base: type[click.Command] = click.Command
) -> type[click.Command]:
    """A command whose help shows its options under headings; those that none names come last.

    Args:
        sections: heading -> names of options as functions take them.
        base: what else it does as a command.
    """

    class Sectioned(base):  # type: ignore[misc, valid-type]
        def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
            left = {parameter.name: parameter for parameter in self.get_params(context)}
            named = {title: [left.pop(name) for name in names] for title, names in sections.items()}
            for title, parameters in [*named.items(), ("Others", list(left.values()))]:
                records = [one.get_help_record(context) for one in parameters]
                with formatter.section(title):
                    formatter.write_dl([record for record in records if record is not None])

    return Sectioned


def examples(*lines: str) -> str:
    """The epilog of a command's help: one example on each line, not reflowed."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def as_typed(context: click.Context) -> str:
    """The command that is being carried out, as a shell takes it: what was stated, in the help's order."""
    words: list[str] = []
    named: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if (
            name not in context.params
            or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE
        ):
            continue
        value = context.params[name]
        if not isinstance(parameter, click.Option):
            words.append(str(value))
        elif parameter.is_flag:
            named.append(parameter.opts[0])
        else:
            for one in value if parameter.multiple else (value,):
                named += [parameter.opts[0], str(one)]
    return shlex.join([*context.command_path.split(), *words, *named])


def refuse_stated(names: Iterable[str], reason: str) -> None:
    """What is stated and would do nothing is not passed over in silence.

    Args:
        names: of options, as functions take them.

    Raises:
        InputError: one of them is stated; the reason follows its name.
    """
    context, refused = click.get_current_context(), set(names)
    for parameter in context.command.params:
        name = parameter.name or ""
        stated = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if name in refused and stated:
            raise InputError(f"{parameter.opts[0]}: {reason}")


def check_output(path: Path, option: str, begins: bytes) -> None:
    """That a file can be written there, and that what it replaces is of its own kind; said before any work.

    Args:
        begins: what files of that kind begin with, in lower case.

    Raises:
        InputError: it is a folder or something else, or its folder isn't there.
    """
    try:
        if path.is_dir():
            raise InputError(f"{option} {path}: is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise InputError(f"{option} {path}: is no file that could be written to; name another")
        if not path.parent.is_dir():
            raise InputError(f"{option} {path}: there is no folder {path.parent}")
        if path.exists():
            with path.open("rb") as file:
                found = file.read(len(begins)).lower()
            if found not in (begins, b""):
                raise InputError(f"{option} {path}: is there, and is something else; name another file")
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror})") from error


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output: the first column to the left, figures to the right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        first, *others = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join([first, *others]).rstrip())


def emit(value: dict[str, Any]) -> None:
    """Print a result as one line of strict JSON; a number that is not finite becomes null."""
    click.echo(json_lines.as_line(value))


def read_origin(path: Path, stage: str | None) -> "Origin":
    """`pipeline.origin.read_origin`, loaded when it is needed."""
    from cupola.pipeline import origin

    return origin.read_origin(path, stage)


def load_recipe(recipe: str, overrides: Sequence[str]) -> "Recipe":
    """The recipe that a command is given; what it leaves out is taken from the weights that it begins with.

    Raises:
        InputError: one line, with file, line and key.
    """
    from cupola.recipe.loading import load

    return load(recipe, overrides, read_origin)


def amount(text: str | None, option: str, what: str, example: str, least: int = 1) -> int | None:
    """An amount such as 15T, of tokens or of nothing, as a whole number; None where the option isn't given.

    Args:
        what: ends "a number ..." in the message.

    Raises:
        InputError: it is no such amount, or less than the least.
    """
    if text is None:
        return None
    from cupola.recipe.quantity import Quantity

    try:
        found = Quantity.parse(text)
    except ValueError as error:
        raise InputError(f"{option} {text}: {error}") from None
    if found.unit not in ("", "tokens") or found.amount < least:
        raise InputError(f"{option} {text}: a number {what} is expected, such as {example}")
    return int(found.amount)


def position(text: str, option: str) -> "Quantity":
    """A position on a stage's clock: tokens (a bare number), steps or a percentage.

    Raises:
        InputError: it is no such amount.
    """
    from pydantic import TypeAdapter, ValidationError

    from cupola.recipe.schema import Interval

    try:
        found: Quantity = TypeAdapter(Interval).validate_python(text)
    except ValidationError as error:
        wrong = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{option} {text}: {wrong}") from None
    return found


def refuse_repeats(names: Sequence[str], option: str) -> None:
    """Refuse a file that is named twice: it would count once or twice, and standard input is read once.

    Raises:
        InputError: names it.
    """
    seen: set[str] = set()
    for name in names:
        file = name if name == "-" else os.path.realpath(os.path.expanduser(name))
        if file in seen:
            raise InputError(f"{option} {name}: is given twice; give each file once")
        seen.add(file)


def given_text(text: str, option: str) -> str:
    """A text that an option holds.

    Raises:
        InputError: it is not UTF-8.
    """
    from cupola.recipe.document import is_text

    if not is_text(text):
        raise InputError(f"{option} {text!r}: is not UTF-8 text")
    return text


def read_text(name: str, option: str) -> str:
    """A whole file (or standard input for "-") as text, byte for byte: no newline is changed.

    Args:
        option: which named it, for messages.

    Raises:
        InputError: it can't be read, or is not UTF-8; says where.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{option} {name}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{option} {name}: is not UTF-8 text (byte {error.start}: {error.reason})"
        ) from error
