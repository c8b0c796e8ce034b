"""Does each stage do what it is for? One proof of these, over seeds, with its controls:

    python -m bench.proofs rewards --out proofs           # answers rewarded, more examples, rewards by chance
    python -m bench.proofs preferences --out proofs       # DPO, more of the better halves
    python -m bench.proofs midtraining --out proofs       # another text, with and without replay
    python -m bench.proofs longcontext --out proofs       # rows of 256 tokens, then 2,048, however stretched
    python -m bench.proofs longcontext_mamba2             # the same without positions; and longcontext_rwkv7

A run of each seed is a folder in `--out`; the same command goes on after a stop. The table has every stage's
mean over the seeds, and each seed's figure behind it; NAME.json has the same, NAME.svg draws it, and of
preferences `overoptimisation.svg` has the rewards against the KL.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.proofs import garden, measures
from bench.proofs.pictures import draw_preferences, draw_reach, draw_stages

Figures = dict[str, float]


@dataclass(frozen=True)
class Proof:
    """What is run, and what is measured of its stages.

    Attributes:
        stages: those that are compared, the first being where the others began.
        measure: run and stage -> name -> figure.
        in_the_garden: it reads what `garden` writes.
        draw: all rows, and the file of the picture, beside the runs.
    """

    stages: tuple[str, ...]
    measure: Callable[[Path, str], Figures]
    in_the_garden: bool = False
    draw: Callable[[list[dict[str, Any]], Path], None] = draw_stages

    def run(self, name: str, seed: int, out: Path) -> Iterator[dict[str, Any]]:
        """A seed: a row for each stage."""
        if self.in_the_garden:
            data = out / f"garden-{seed}"
            garden.write(data, seed)
            os.environ["GARDEN"] = str(data.resolve())
        folder = out / f"{name}-{seed}"
        recipe = str(Path(__file__).with_name(f"{name}.yaml"))
        done = measures.cupola("run", recipe, "--set", f"seed={seed}", "--out", str(folder), "--no-check")
        seconds = {stage["name"]: stage["seconds"] for stage in done["stages"]}
        for stage in self.stages:
            figures = self.measure(folder, stage)
            yield {"seed": seed, "stage": stage, "seconds": seconds[stage], **figures}


PROOFS = {
    "rewards": Proof(("sft", "rl", "more", "chance"), measures.sums),
    "preferences": Proof(
        ("sft", "dpo", "more", "free", "held"),
        measures.Taste("sft"),
        in_the_garden=True,
        draw=draw_preferences,
    ),
    "midtraining": Proof(("pretrain", "manuals", "replay", "more"), measures.bits),
    "longcontext": Proof(
        ("short", "plain", "theta", "linear", "dynamic", "yarn", "llama3"), measures.reach, draw=draw_reach
    ),
    "longcontext_mamba2": Proof(("short", "plain"), measures.reach, draw=draw_reach),
    "longcontext_rwkv7": Proof(("short", "plain"), measures.reach, draw=draw_reach),
}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown: a stage a line, of each figure the mean and the seeds' own."""
    names = [name for name in rows[0] if name not in ("seed", "stage")]
    lines = ["| stage | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        cells = [_cell([row[name] for row in own], name) for name in names]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: list[float], name: str) -> str:
    shape = ".0f" if name == "seconds" else ".3f"
    mean = format(statistics.mean(values), shape)
    if len(values) == 1 or name == "seconds":
        return mean
    return f"{mean} ({', '.join(format(value, shape) for value in values)})"


@click.command(
    help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ")
)  # click leaves such a paragraph as it is
@click.argument("name", type=click.Choice(list(PROOFS)))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="1, 2, 3, ...")
@click.option("--out", default="proofs", show_default=True, type=click.Path(path_type=Path))
def main(name: str, seeds: int, out: Path) -> None:
    """Run, measure and print."""
    rows: list[dict[str, Any]] = []
    for seed in range(1, seeds + 1):
        for row in PROOFS[name].run(name, seed, out):
            rows.append(row)
            print(json.dumps(row), flush=True)
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    PROOFS[name].draw(rows, out / f"{name}.svg")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
