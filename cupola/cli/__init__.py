"""The command line: parse, call, print; and the contract of errors and exit statuses.

Guarantees: 0 done; 1 the run failed; 2 the input is wrong; 130 interrupted. Every failure is one line, the
last on standard error (progress and warnings may stand before it), that begins with `error:`
(`interrupted:` for 130); a traceback only with `--debug`, which is accepted anywhere among the options.
`cupola --help` imports click and nothing heavier: a command's module is loaded when that command is called,
and what it computes with only inside its function.

A command is a module `cupola/cli/<name>.py` that holds a click command or group named `command`, and a
line in `COMMANDS`.
"""

import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

import click

from cupola import __version__
from cupola.errors import CupolaError, Interrupted

COMMANDS = {
    "run": "Run a recipe from raw text to a trained model; go on if begun.",
    "check": "Check a recipe before spending: shapes, loss, memory, time.",
    "suggest": "Propose learning rate, batch and schedule, with sources.",
    "plan": "Say what a run needs, takes and costs on given devices.",
    "compare": "Train variants of a recipe over seeds and compare them.",
    "sweep": "Find the best value of a setting by successive halving.",
    "corpus": "Gather a recipe's text and show what it holds.",
    "tokenizer": "Train a recipe's tokenizer, or look at one.",
    "eval": "Measure bits per byte on held-out text or on files.",
    "generate": "Continue a prompt.",
    "chat": "Talk with a model that has learnt to answer.",
    "export": "Write a run's weights as a Hugging Face folder or RWKV's .pth.",
    "import": "Make a run of a Hugging Face folder or RWKV's .pth.",
    "checkpoint": "List or verify the checkpoints of a run.",
    "recipe": "Show a resolved recipe, the schema, or what is shipped.",
    "runs": "List the runs and how far they are.",
    "health": "Show the last look at the numbers inside a run's model.",
}
SPINS = "2000"
"""How long torch's CPU threads wait for each other busily before they sleep, for libgomp, which reads it
when torch is loaded. Its default is milliseconds: where one other program wanted a core, a training step
on two cores was ten times slower (796 tokens/s against 8,700); with this it is half as fast, and where it
is alone about as fast as before."""
LONGEST_LINE = 3000  # of an error, in characters
BROKEN_PIPE_STATUS = 141  # what a shell reports for a program that SIGPIPE ended


class LazyGroup(click.Group):
    """A group that knows its commands by name and loads only the one that is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"cupola.cli.{name}").command
        command.name = name
        _accept_debug(command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
            close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"unknown command {arguments[0]!r}; {hint}", context)
        return super().resolve_command(context, arguments)


def _debug_option() -> click.Option:
    # `main` looks for the flag itself, since it must know of it even where parsing fails.
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show tracebacks.")


def _accept_debug(command: click.Command) -> None:
    """Let a command, and every command below it, take `--debug` among its own options."""
    if not any("--debug" in parameter.opts for parameter in command.params):
        command.params.append(_debug_option())
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            _accept_debug(subcommand)


@click.group(
    "cupola",
    cls=LazyGroup,
    params=[_debug_option()],
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nStart here:\n  cupola run recipes/quickstart.yaml",
)
@click.version_option(__version__, message="cupola %(version)s")
@click.pass_context
def command_line(context: click.Context) -> None:
    """Train a foundation model: one recipe, one command, from raw text to a model that speaks."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; nothing that goes wrong escapes as an exception.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does: a path may not be text
    try:
        # Not click's own `main`, which takes an EOFError (a truncated file) for the user's Ctrl-C.
        with command_line.make_context("cupola", arguments) as context:
            command_line.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
    except BrokenPipeError:
        # The reader went away; nothing that is still buffered may raise when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_STATUS
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            traceback.print_exc()
        line, status = explain(error)
        print(line, file=sys.stderr)
        return status
    return 0


def explain(error: BaseException) -> tuple[str, int]:
    """The one line and the exit status of an error."""
    if isinstance(error, KeyboardInterrupt | click.Abort | Interrupted):
        return f"interrupted: {_one_line(error)}".removesuffix(": "), Interrupted.exit_status
    if isinstance(error, CupolaError):
        return f"error: {_one_line(error)}", error.exit_status
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "cupola"
        return f"error: {' '.join(error.format_message().split())} (see {path} --help)", 2
    if isinstance(error, click.ClickException):
        return f"error: {' '.join(error.format_message().split())}", error.exit_code
    name = type(error).__name__
    return f"error: unexpected {name}: {_one_line(error)} (run again with --debug for the traceback)", 1


def _one_line(error: BaseException) -> str:
    """Begins with what and where, ends with the cure; what lies between may quote a whole file."""
    line = " ".join(str(error).split())
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE * 2 // 3]} ... {line[-LONGEST_LINE // 3 :]}"
