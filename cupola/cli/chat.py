"""`cupola chat`."""

import sys
from dataclasses import dataclass, field
from typing import Any

import click

from cupola.cli.options import emit, examples, given_text, json_option, sampling_options
from cupola.display import ConsoleDisplay
from cupola.errors import InputError

COMMANDS = """\
/clear   forget what was said
/undo    forget the last question and its answer
/help    this list
/quit    end, as Ctrl-D does; Ctrl-C ends an answer that is under way"""


@click.command(
    epilog=examples(
        "cupola chat quickstart",
        'cupola chat runs/quickstart --stage sft --system "Answer in one sentence."',
        'cupola chat quickstart --prompt "What is the capital of France?" --temperature 0 --json',
        "cupola chat quickstart < questions.txt",
    )
)
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option("--stage", metavar="NAME", help="Use this stage (default: the newest finished one).")
@click.option("--prompt", metavar="TEXT", help="Ask this alone, and end.")
@click.option("--system", metavar="TEXT", help="The system's message, before the first question.")
@sampling_options(max_tokens=256, temperature=0.7)
@json_option
def command(
    run: str,
    stage: str | None,
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Talk with a model that has learnt to answer.

    Answers are written as they come. Each line of standard input is a question; in a terminal, /help lists
    what else can be typed.
    """
    for option, text in (("--prompt", prompt), ("--system", system)):
        if text is not None:
            given_text(text, option)
    if as_json and prompt is None:
        raise InputError("--json: shows one answer; give the question by --prompt")

    from cupola.generate.sampling import Sampling
    from cupola.pipeline.opening import open_run

    Sampling(**sampling)  # what it refuses is refused before anything is loaded
    display = ConsoleDisplay()
    opened = open_run(run, display, stage)
    if not opened.answers:
        display.warn(
            f"stage {opened.stage} has learnt to continue text, not to answer; `cupola generate` suits it"
        )
    talk = Talk(opened, max_tokens, sampling, system)
    if prompt is None:
        converse(talk)
        return
    text, reason = talk.ask(prompt, show=not as_json)
    if as_json:
        source = {"run": str(opened.folder), "stage": opened.stage, "checkpoint": str(opened.checkpoint)}
        asked = {"system": system, "prompt": prompt, "max_tokens": max_tokens, **sampling}
        emit({**source, **asked, "text": text, "finish_reason": reason})


@dataclass
class Talk:
    """A conversation with an open run; remembers what was said."""

    opened: Any
    max_tokens: int
    sampling: dict[str, Any]
    system: str | None
    said: list[Any] = field(default_factory=list)

    def ask(self, question: str, show: bool = True) -> tuple[str, str]:
        """The answer and why it ended, written to standard output as it comes."""
        from cupola.chat.conversation import Message
        from cupola.cli.generate import Stream
        from cupola.generate import answer

        opened = self.opened
        system = [] if self.system is None else [Message("system", self.system)]
        messages = [*system, *self.said, Message("user", question)]
        stream = Stream(opened.tokenizer) if show else None
        done = answer(
            opened.module,
            opened.tokenizer,
            opened.template,
            [messages],
            self.max_tokens,
            opened.precision,
            stream,
            **self.sampling,
        )[0]
        if stream is not None:
            click.echo(stream.rest())
        self.said += [Message("user", question), Message("assistant", done.text)]
        return done.text, done.finish_reason

    def forget(self, messages: int | None = None) -> None:
        """The last messages, or all."""
        del self.said[-messages if messages else 0 :]


def converse(talk: Talk) -> None:
    """Questions from standard input until it ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(f"stage {talk.opened.stage} of {talk.opened.folder}; /help lists commands", err=True)
    while (line := _line(interactive)) is not None:
        question = line.strip()
        if not question:
            continue
        if question == "/quit":
            return
        if question in ("/clear", "/undo"):
            talk.forget(2 if question == "/undo" else None)
        elif question.startswith("/"):
            click.echo(COMMANDS, err=True)
        else:
            try:
                talk.ask(question)
            except KeyboardInterrupt:
                click.echo()
                if not interactive:
                    raise


def _line(interactive: bool) -> str | None:
    """The next line, or None at the end."""
    if not interactive:
        return sys.stdin.readline() or None
    try:
        return input("> ")
    except EOFError:
        click.echo(err=True)
        return None
