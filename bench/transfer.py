"""Does the best learning rate stay where it is when the width grows?

    python -m bench.transfer --json transfer.json

A Transformer is trained at several widths with a grid of learning rates, under standard and muP, on tokens of
a random second-order source (each pair of tokens prefers a few successors), whose entropy is known. The table
is the mean loss of the last steps; under muP its minimum stays in one row. Some minutes on one core.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.coordinates import model_of
from cupola import optim
from cupola.models import build
from cupola.recipe.clock import StepValues
from cupola.recipe.schema import Optimizer

VOCABULARY, SUCCESSORS = 32, 4
WIDTHS = (64, 128, 256)
RATES = tuple(2.0**power for power in range(-10, -3))
STEPS, WARMUP, LAST = 120, 12, 12
ROWS, LENGTH = 8, 32


def source(seed: int) -> Tensor:
    """(V, V, V) probabilities of the next token after each pair."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(VOCABULARY, VOCABULARY, VOCABULARY, generator=generator)
    best = logits.topk(SUCCESSORS, dim=-1)
    return torch.zeros_like(logits).scatter_(-1, best.indices, 1 / SUCCESSORS)


def rows_of(probabilities: Tensor, seed: int) -> Tensor:
    """(ROWS, LENGTH + 1) tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    for column in range(2, LENGTH + 1):
        likely = probabilities[tokens[:, column - 2] % 8, tokens[:, column - 1]]
        tokens[:, column] = torch.multinomial(likely, 1, generator=generator)[:, 0]
    return tokens


def train(kind: str, width: int, rate: float, optimizer: str, batches: list[Tensor]) -> float:
    """The mean loss of the last steps, in nats; inf where it diverges."""
    module = build(model_of("transformer", width, kind), VOCABULARY, seed=0)
    update = optim.build(module, Optimizer(kind=optimizer))  # type: ignore[arg-type]
    losses = []
    for step, tokens in enumerate(batches):
        logits = module.logits(module.hidden(tokens[:, :-1])).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        own = rate * min((step + 1) / WARMUP, (len(batches) - step) / (len(batches) - WARMUP))
        optim.set_values(update, StepValues(own, 0.1, 0.95, 0.0))
        update.step()
        update.zero_grad()
        losses.append(float(loss.detach()))
    mean = sum(losses[-LAST:]) / LAST
    return mean if math.isfinite(mean) else math.inf


def survey(optimizer: str) -> list[dict[str, Any]]:
    """Every width and rate under both parametrisations, printed as they come."""
    probabilities = source(seed=1)
    batches = [rows_of(probabilities, seed) for seed in range(STEPS)]
    found = []
    for kind in ("standard", "mup"):
        print(f"{optimizer}, {kind}: loss by width (across) and learning rate (down)")
        print(" " * 10 + "".join(f"{width:>8}" for width in WIDTHS))
        for rate in RATES:
            losses = [train(kind, width, rate, optimizer, batches) for width in WIDTHS]
            found.append({"optimizer": optimizer, "kind": kind, "rate": rate, "losses": losses})
            print(f"{rate:<10.5f}" + "".join(f"{loss:8.3f}" for loss in losses), flush=True)
        rows = [row for row in found if row["kind"] == kind]
        best = [min(rows, key=lambda row: row["losses"][n])["rate"] for n in range(len(WIDTHS))]
        print(f"{'best':<10}" + "".join(f"{rate:8.4f}" for rate in best))
    return found


def main() -> None:
    """Train and print."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--optimizer", action="append", choices=["adamw", "muon", "soap"])
    parser.add_argument("--json", type=Path, help="write the losses here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for kind in arguments.optimizer or ["adamw"] for row in survey(kind)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
