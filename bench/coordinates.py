"""The coordinate check (Yang et al. 2022, appendix D.1): do activations depend on the width?

    python -m bench.coordinates --svg docs/coordinates.svg --json coordinates.json

A model of every family is made at several widths, trained for some steps on one batch at one learning rate,
and what the steps changed of every block's output, of the last norm's and of the logits is measured: the root
mean square over coordinates of the difference from the fresh model. Under muP it is the same at every width,
so the slope of its logarithm against the width's is about 0; under standard it grows. The two share the model
of the smallest width.

Random tokens: what is measured is arithmetic, not learning. Takes some minutes on one core.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cupola import optim
from cupola.models import build
from cupola.recipe.clock import StepValues
from cupola.recipe.model import RWKV7, Experts, Mamba, Mamba2, Model
from cupola.recipe.parametrisation import Parametrisation
from cupola.recipe.schema import Optimizer

VOCABULARY = 128
BASE_WIDTH = 64
WIDTHS = (64, 128, 256, 512)
STEPS = 6
ROWS, LENGTH = 4, 32
RATES = {"adamw": 4e-3, "soap": 4e-3, "muon": 2e-2}
"""Learning rates at which the base model changes by about as much as it is large."""

FAMILIES: dict[str, Callable[[int], dict[str, Any]]] = {
    "transformer": lambda width: {"heads": width // 16},
    "grouped": lambda width: {"heads": width // 8, "key_value_heads": width // 16, "qk_norm": True},
    "gpt": lambda width: {
        "heads": width // 16,
        "norm": "layernorm",
        "activation": "gelu",
        "positions": "learned",
        "max_positions": LENGTH,
        "attention_bias": True,
        "feedforward_bias": True,
        "tied": True,
    },
    "mixture": lambda width: {
        "heads": width // 16,
        "experts": Experts(count=4, active=2, width=width // 2, shared=width // 2),
    },
    "mamba": lambda width: {"family": "mamba", "mamba": Mamba(state=4)},
    "mamba2": lambda width: {"family": "mamba2", "mamba2": Mamba2(state=16, head_width=16)},
    "rwkv7": lambda width: {
        "family": "rwkv7",
        "rwkv7": RWKV7(head_width=16),
        "norm": "layernorm",
        "embedding_norm": True,
    },
    "hybrid": lambda width: {
        "family": "hybrid",
        "pattern": ("mamba2", "attention"),
        "heads": width // 16,
        "mamba2": Mamba2(state=16, head_width=16),
    },
}
"""What a model of each family needs beside its layers and width; heads are of one width."""


def model_of(family: str, width: int, kind: str, layers: int = 2, base_layers: int | None = None) -> Model:
    """A small model under a parametrisation whose base has `BASE_WIDTH`."""
    own = Parametrisation()
    if kind != "standard":
        own = Parametrisation(kind=kind, base_width=BASE_WIDTH, base_layers=base_layers)  # type: ignore[arg-type]
    return Model(layers=layers, width=width, parametrisation=own, **FAMILIES[family](width))


def measure(model: Model, optimizer: str, steps: int = STEPS, seed: int = 0) -> dict[str, float]:
    """What so many steps change: root mean square by name (`blocks.0`, ..., `norm`, `logits`)."""
    module = build(model, VOCABULARY, seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    update = optim.build(module, Optimizer(kind=optimizer, epsilon=1e-12))  # type: ignore[arg-type]
    before = activations(module, tokens[:, :-1])
    for _ in range(steps):
        output = module(tokens[:, :-1])
        logits = module.logits(output.hidden)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optim.set_values(update, StepValues(RATES[optimizer], 0.0, 0.95, 0.0))
        update.step()
        update.zero_grad()
    after = activations(module, tokens[:, :-1])
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


@torch.no_grad()
def activations(module: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Outputs of every block and of the last norm, and the logits."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    watched = [(f"blocks.{name}", block) for name, block in module.numbered_blocks()]
    handles = [layer.register_forward_hook(keep(name)) for name, layer in [*watched, ("norm", module.norm)]]
    module.eval()
    found["logits"] = module.logits(module.hidden(tokens))
    module.train()
    for handle in handles:
        handle.remove()
    return found


def slope(sizes: list[int], values: list[float]) -> float:
    """Of log(values) against log(sizes), by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def slopes(
    family: str, kind: str, optimizer: str, widths: tuple[int, ...] = WIDTHS, steps: int = STEPS
) -> dict[str, float]:
    """By activation, over the widths."""
    return of_rows([measure(model_of(family, width, kind), optimizer, steps) for width in widths], widths)


def of_rows(rows: list[dict[str, float]], widths: tuple[int, ...]) -> dict[str, float]:
    """By activation, of measurements at these widths."""
    return {name: slope(list(widths), [row[name] for row in rows]) for name in rows[0]}


def survey(optimizers: list[str], kinds: tuple[str, ...] = ("standard", "mup")) -> list[dict[str, Any]]:
    """Every family and parametrisation: what is changed at each width, and the slopes."""
    rows = []
    for optimizer in optimizers:
        for family in FAMILIES:
            for kind in kinds:
                each = [measure(model_of(family, width, kind), optimizer) for width in WIDTHS]
                found = of_rows(each, WIDTHS)
                rows.append({"family": family, "kind": kind, "optimizer": optimizer, "slopes": found})
                rows[-1]["changes"] = {name: [row[name] for row in each] for name in each[0]}
                shown = "  ".join(f"{name} {value:+.2f}" for name, value in found.items())
                print(f"{optimizer:<6} {family:<12} {kind:<9} {shown}", flush=True)
    return rows


def main() -> None:
    """Measure, print the slopes, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--optimizer", action="append", choices=list(RATES), help="may be repeated; default all"
    )
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--svg", type=Path, help="draw the logits and the last block here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = survey(arguments.optimizer or list(RATES))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if arguments.svg:
        from bench.pictures import draw_coordinates

        draw_coordinates(rows, list(WIDTHS), str(arguments.svg))


if __name__ == "__main__":
    main()
