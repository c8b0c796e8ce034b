"""What a look at the numbers inside costs: CPU time relative to a step, and its share of training.

    python -m bench.health [--shape S] [--precision bf16] [--model rwkv7] [--threads 1] [--rounds 12]

Steps with and without a look take turns in one process; the figures are medians. The batch is the shape's own
(2,048 tokens): a larger one makes a step longer, and a look no longer than a quarter of it.
"""

import argparse
import statistics
import time

import torch

from bench.families import MODELS
from bench.shapes import SHAPES, Shape
from bench.worker import batches
from cupola import optim
from cupola.data.batch import Batch, Microbatch
from cupola.models import build
from cupola.objectives import NextToken
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import StepValues
from cupola.recipe.model import Experts, Model
from cupola.recipe.schema import Optimizer
from cupola.train.health import AUTO_STEPS
from cupola.train.look import Look
from cupola.train.step import train_step

VALUES = StepValues(learning_rate=3e-4, weight_decay=0.1, momentum=0.95, z_loss=0.0)
CLIP = 1.0


def models(shape: Shape) -> dict[str, Model]:
    """Every family, and a mixture of 8 experts of which 2 are active."""
    found = {name: model(shape) for name, model in MODELS.items()}
    experts = Experts(count=8, active=2, width=shape.gated_feedforward // 2)
    return {**found, "experts": found["transformer"].model_copy(update={"experts": experts})}


def data_of(shape: Shape) -> list[Batch]:
    """Batches of one microbatch, of random tokens."""
    found = []
    for tokens, targets in batches(shape, "cpu"):
        rows = torch.cat([tokens, targets[:, -1:]], dim=1)
        found.append(Batch(0, shape.tokens, [Microbatch.of_rows(rows)], {}, shape.tokens))
    return found


def measure(model: Model, shape: Shape, precision: str, rounds: int) -> tuple[float, float]:
    """(CPU seconds of a step, of a look)."""
    module = build(model, shape.vocabulary, seed=1)
    optimizer = optim.build(module, Optimizer())
    engine, objective, data = LocalEngine(module, precision, "cpu"), NextToken(), data_of(shape)  # type: ignore[arg-type]
    steps: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * (rounds + 1)):
        batch, looked = data[number // 2 % len(data)], bool(number % 2)
        begun = time.process_time()
        look = Look(engine, optimizer, objective, batch) if looked else None
        result = train_step(engine, optimizer, objective, batch, VALUES, CLIP)
        if look is not None:
            look.finish(result.gradient_norm)
        steps[looked].append(time.process_time() - begun)
    pairs = zip(steps[True][1:], steps[False][1:], strict=True)
    return statistics.median(steps[False][1:]), statistics.median(a - b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--precision", choices=("fp32", "bf16"), action="append")
    parser.add_argument("--model", choices=("transformer", "mamba2", "rwkv7", "experts"), action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    print(f"{'':<18} {'step':>8} {'look':>8} {'look/step':>10} {f'every {AUTO_STEPS}':>10}", flush=True)
    for precision in options.precision or ("fp32", "bf16"):
        chosen = models(shape)
        for name in options.model or chosen:
            model = chosen[name]
            step, look = measure(model, shape, precision, options.rounds)
            share = look / step
            print(
                f"{name + ' ' + precision:<18} {1e3 * step:>5.0f} ms {1e3 * look:>5.0f} ms {share:>10.2f}"
                f" {share / AUTO_STEPS:>10.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
