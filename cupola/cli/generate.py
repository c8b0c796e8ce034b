"""`cupola generate`."""

import codecs
from dataclasses import asdict
from typing import Any

import click

from cupola.characters import shown
from cupola.cli.options import (
    emit,
    examples,
    given_text,
    json_option,
    read_text,
    refuse_repeats,
    sampling_options,
)
from cupola.display import ConsoleDisplay, Display


@click.command(
    epilog=examples(
        'cupola generate runs/quickstart --prompt "The people"',
        'cupola generate quickstart --prompt "We must " --max-tokens 300 --temperature 0.7 --seed 4',
        'cupola generate quickstart --prompt "In the " --prompt "To install " --json',
        "head -c 500 notes.txt | cupola generate quickstart --prompt -",
    )
)
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    required=True,
    metavar="TEXT",
    help="What to continue; may be repeated; - is standard input, without its last newline.",
)
@click.option("--stage", metavar="NAME", help="Use this stage (default: the newest finished one).")
@sampling_options(max_tokens=200, temperature=0.8)
@json_option
def command(
    run: str,
    prompts: tuple[str, ...],
    stage: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    seed: int,
    as_json: bool,
) -> None:
    """Continue prompts, each as the beginning of a document.

    A single prompt is written as it comes, token by token; several are written when all are done.
    """
    refuse_repeats([prompt for prompt in prompts if prompt == "-"], "--prompt")
    texts = [_prompt(prompt) for prompt in prompts]

    from cupola.generate import continue_texts
    from cupola.generate.sampling import Sampling
    from cupola.pipeline.opening import open_run

    display = ConsoleDisplay()
    opened = open_run(run, display, stage)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    Sampling(temperature, top_k, top_p, seed)  # what it refuses is refused before anything is written
    _warn_if_long(opened, texts, max_tokens, display)
    stream = None
    if not as_json and len(texts) == 1:
        click.echo(texts[0], nl=False)
        stream = Stream(opened.tokenizer)
    completions = [
        asdict(done)
        for done in continue_texts(
            opened.module, opened.tokenizer, texts, max_tokens, opened.precision, stream, **sampling
        )
    ]
    if as_json:
        source = {"run": str(opened.folder), "stage": opened.stage, "checkpoint": str(opened.checkpoint)}
        first = {"prompt": texts[0], "text": completions[0]["text"]}
        emit({**source, **sampling, "max_tokens": max_tokens, **first, "completions": completions})
    elif stream is not None:
        click.echo(stream.rest())
    else:
        click.echo("\n\n".join(done["prompt"] + shown(done["text"]) for done in completions))


def _prompt(given: str) -> str:
    return read_text("-", "--prompt").removesuffix("\n") if given == "-" else given_text(given, "--prompt")


class Stream:
    """Writes tokens to standard output as they come; the bytes of a character wait until it is whole."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, index: int, token: int) -> None:
        if token == self.tokenizer.delimiter or token in self.tokenizer.special.values():
            return
        # The head may have more rows than there are tokens.
        data = self.tokenizer.token_bytes(token) if token < self.tokenizer.size else "\ufffd".encode()
        click.echo(shown(self.decoder.decode(data)), nl=False)

    def rest(self) -> str:
        """What is left of a character that was never finished: U+FFFD, or nothing."""
        return self.decoder.decode(b"", final=True)


def _warn_if_long(opened: Any, texts: list[str], max_tokens: int, display: Display) -> None:
    longest = 1 + max(len(opened.tokenizer.encode(text)) for text in texts) + max_tokens
    if longest > opened.sequence_length:
        display.warn(
            f"up to {longest} tokens are asked for; stage {opened.stage} was trained on rows of"
            f" {opened.sequence_length}, and what lies beyond may be poor"
        )
