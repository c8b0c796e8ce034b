"""The figures of docs/plan.md about known runs: each command is run, and the table renewed in one go.

.venv/bin/python -m bench.planner.examples                   # print it
.venv/bin/python -m bench.planner.examples --into docs/plan.md
"""

import contextlib
import io
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cupola.cli import main as cupola
from cupola.display import count

BEGIN, END = "<!-- examples: python -m bench.planner.examples --into docs/plan.md -->", "<!-- /examples -->"


@dataclass(frozen=True)
class Example:
    """A statement, the command that makes a plan of it, and what was published of that run."""

    statement: str
    command: str
    published: str


EXAMPLES = (
    Example(
        "GPT-3, 300 billion tokens",
        "cupola plan gpt3-175b --tokens 300B --on v100:10000 --tensor 8 --pipeline 10 --batch-tokens 3072000"
        " --checkpointing full --grid us-2020-cloud",
        "3.14e23 FLOPs (Brown et al. 2020); 14.8 days, 1,287 MWh, 552 t (arXiv:2104.10350)",
    ),
    Example(
        "LLaMA 2 7B, 2 trillion",
        "cupola plan llama2-7b --tokens 2T --on a100:1024 --batch-tokens 4194304",
        "184,320 hours, 31 t (model card)",
    ),
    Example(
        "LLaMA 2 70B, 2 trillion",
        "cupola plan llama2-70b --tokens 2T --on a100:2048 --tensor 8 --pipeline 4 --shard 1"
        " --schedule interleaved --chunks 4 --batch-tokens 4194304",
        "1,720,320 hours, 291 t (model card)",
    ),
    Example(
        "LLaMA 3 8B, over 15 trillion",
        "cupola plan llama3-8b --tokens 15T --on h100:1024",
        "1.3M hours, 390 t (model card)",
    ),
    Example(
        "LLaMA 3 70B, over 15 trillion",
        "cupola plan llama3-70b --tokens 15T --on h100:4096 --tensor 8 --pipeline 4 --shard 1"
        " --schedule interleaved --chunks 4 --batch-tokens 16777216",
        "6.4M hours, 1,900 t (model card)",
    ),
    Example(
        "LLaMA 3.1 405B, over 15 trillion",
        "cupola plan llama3.1-405b --tokens 15.6T --on h100:16384 --tensor 8 --pipeline 16 --context 2"
        " --schedule interleaved --chunks 4 --sequence-length 8192 --batch-tokens 16777216",
        "3.8e25 FLOPs, goodput over 90% (arXiv:2407.21783); 30.84M hours, 8,930 t (model card)",
    ),
    Example(
        "10^25 FLOPs, rented",
        "cupola plan llama3.1-405b --tokens 4.1T --on h100:4096 --tensor 8 --pipeline 16 --context 2"
        " --schedule interleaved --chunks 4 --sequence-length 8192 --batch-tokens 16777216",
        '"thousands of GPUs running for months", "tens of millions of dollars"',
    ),
    Example(
        "10^25 FLOPs, bought",
        "cupola plan llama3.1-405b --tokens 4.1T --on h100:4096 --tensor 8 --pipeline 16 --context 2"
        " --schedule interleaved --chunks 4 --sequence-length 8192 --batch-tokens 16777216 --buy",
        '"in electricity and hardware alone"',
    ),
)
HEAD = ("statement", "6 N D", "fits", "MFU", "days", "goodput", "device-hours", "MWh", "t CO2e", "dollars")


def planned(command: str) -> dict[str, Any]:
    """What a command says with `--json`.

    Raises:
        SystemExit: it failed.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = cupola([*shlex.split(command)[1:], "--json"])
    if status:
        raise SystemExit(f"{command}: exit status {status}")
    found: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return found


def row(example: Example) -> list[str]:
    """A line of the table."""
    plan = planned(example.command)
    run, (stage,) = plan["run"], plan["stages"]
    return [
        example.statement,
        f"{run['flops']['6nd']:.3g}",
        "yes" if stage["fits"] else "no",
        f"{stage['run']['mfu']:.0%}",
        *(
            _shown(run[name])
            for name in ("days", "goodput", "device_hours", "energy_mwh", "carbon_tonnes", "dollars")
        ),
    ]


def _shown(figure: dict[str, float]) -> str:
    value, low, high = (_number(figure[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _number(value: float) -> str:
    if value <= 1:
        return f"{value:.1%}"
    return count(float(f"{value:.3g}"))


def document() -> str:
    """The table, and under it the commands with what was published."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(row(example))} |" for example in EXAMPLES]
    lines += [
        "",
        "Commands, and what is published of these runs (in the last two the article's own words):",
        "",
    ]
    for example in EXAMPLES:
        lines += [f"- {example.statement}: {example.published}", "", f"      {example.command}", ""]
    return "\n".join(lines)


@click.command()
@click.option("--into", type=click.Path(path_type=Path, exists=True), help="Renew it in this document.")
def main(into: Path | None) -> None:
    """The examples of docs/plan.md."""
    made = document()
    if into is None:
        click.echo(made)
        return
    text = into.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        raise SystemExit(f"{into}: has no {BEGIN} ... {END}")
    into.write_text(f"{before}{BEGIN}\n{made}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
