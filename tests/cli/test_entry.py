"""The error contract of the command line, and that its start-up is light."""

import json
import subprocess
import sys

import click
import pytest

import cupola.cli
from cupola.cli import COMMANDS, LazyGroup, main
from cupola.cli.options import emit
from cupola.errors import CupolaError, InputError, Interrupted


@pytest.fixture
def failing(monkeypatch):
    """Make `cupola runs` raise a given error, or call a given function."""

    def install(action):
        @click.command()
        @click.option("--number", type=int)
        def command(number):
            if isinstance(action, BaseException):
                raise action
            action()

        def get_command(self, context, name):
            cupola.cli._accept_debug(command)
            return command

        monkeypatch.setattr(LazyGroup, "get_command", get_command)

    return install


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a.yaml:3: x: unknown key"), 2, "error: a.yaml:3: x: unknown key"),
        (CupolaError("the disk\nis full"), 1, "error: the disk is full"),
        (Interrupted("saved at step 3"), 130, "interrupted: saved at step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            EOFError("truncated file"),
            1,
            "error: unexpected EOFError: truncated file (run again with --debug for the traceback)",
        ),
        (
            ValueError("oops"),
            1,
            "error: unexpected ValueError: oops (run again with --debug for the traceback)",
        ),
    ],
)
def test_every_failure_is_one_line_and_a_status(failing, capsys, error, status, line):
    failing(error)
    assert main(["runs"]) == status
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["--debug", "runs"], ["runs", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(failing, capsys, arguments):
    failing(ValueError("oops"))
    assert main(arguments) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("Traceback")
    assert captured.splitlines()[-1].startswith("error: unexpected ValueError: oops")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["recpe"], "unknown command 'recpe'; did you mean recipe?"),
        (["xyzzy"], "unknown command 'xyzzy'; commands are run, check,"),
        (["--nonsense"], "--nonsense"),
        (["runs", "--number", "many"], "'many' is not a valid integer"),
    ],
)
def test_usage_errors_are_one_line(failing, capsys, arguments, part):
    failing(CupolaError("never reached"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert part in captured.err


def test_without_arguments_it_helps(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_every_command_has_one_short_line_of_help(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in COMMANDS.items():
        assert [line.split() for line in lines if line.startswith(f"  {name} ")] == [[name, *text.split()]]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cupola {cupola.__version__}\n"


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "import click, cupola.cli as cli\n"
        "command = click.Command('runs', callback=lambda: [print('x' * 100) for _ in range(10000)])\n"
        "cli.LazyGroup.get_command = lambda *_: command\n"
        "import sys; sys.exit(cli.main(['runs']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_emit_writes_strict_json(capsys):
    emit({"loss": float("nan"), "stages": [{"name": "é", "tokens": 3}], "bits": 1.5})
    assert capsys.readouterr().out == '{"loss": null, "stages": [{"name": "é", "tokens": 3}], "bits": 1.5}\n'


def test_a_name_that_is_not_text_is_escaped_wherever_it_is_printed(tmp_path):
    """As the shell gives it: a process of its own, whose output is bytes."""
    code = (
        "import sys, click, cupola.cli as cli; from cupola.cli.options import emit\n"
        "def say(): click.echo(sys.argv[1]); emit({'path': sys.argv[1]})\n"
        "cli.LazyGroup.get_command = lambda *_: click.Command('runs', callback=say)\n"
        "sys.exit(cli.main(['runs']))"
    )
    done = subprocess.run([sys.executable, "-c", code, b"a\xff"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    plain, as_json = done.stdout.decode().splitlines()
    assert plain == "a\\udcff"
    assert json.loads(as_json)["path"] == "a\udcff"


def test_an_endless_error_is_cut(failing, capsys):
    failing(InputError(f"a.yaml:3: {'x' * 10**6}; mend it"))
    assert main(["runs"]) == 2
    line = capsys.readouterr().err
    assert len(line) < 4000
    assert line.startswith("error: a.yaml:3: xxx")
    assert line.endswith("xxx; mend it\n")


def test_an_empty_recipe_is_called_an_empty_path(capsys):
    for command in ("run", "check"):
        assert main([command, ""]) == 2
        assert capsys.readouterr().err.startswith("error: an empty path; name a recipe (there are ")


def test_help_loads_nothing_heavy():
    code = (
        "import sys, cupola.cli\ncupola.cli.main(['--help'])\n"
        "print(*sorted({'torch', 'pydantic', 'numpy', 'rich', 'yaml', 'tokenizers'} & set(sys.modules)), "
        "file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == ""
