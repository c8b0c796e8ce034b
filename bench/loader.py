"""Tokens per second of the data loader, and its share of a training step.

    python bench/loader.py                                # rows of 2,048, batches of 524,288 tokens
    python bench/loader.py --sequence-length 256 --batch-tokens 16384 --step-rate 20000
    python bench/loader.py --json

The loader's thread works while the step does, so what it costs a step at most is its own time: the share is
the tokens/s that training reaches (`--step-rate`) over the loader's. Pages are read from a fresh file, which
the system has in memory; a cold disk is not measured.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupola.data.loader import Loader, Reader
from cupola.data.order import Order
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Stage


@dataclass(frozen=True)
class RawStore:
    """A file of uint16 tokens as a store."""

    path: Path
    tokens: np.ndarray
    delimiter: int = 0
    row_length: None = None
    learnt: None = None

    @classmethod
    def make(cls, path: Path, length: int, seed: int) -> "RawStore":
        """Random tokens below 32,768; a delimiter every 500 tokens on average."""
        generator = np.random.default_rng(seed)
        tokens = generator.integers(1, 32_768, length, dtype=np.uint16)
        tokens[generator.random(length) < 1 / 500] = 0
        tokens.tofile(path)
        return cls(path, np.memmap(path, dtype=np.uint16, mode="r"))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """The file's name will do here."""
        return self.path.name


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds for the order alone, for making batches, and for taking them from the loader's thread."""
    names = [f"source {number}" for number in range(arguments.sources)]
    share = arguments.corpus_tokens // arguments.sources
    stores = {name: RawStore.make(folder / name, share, number) for number, name in enumerate(names)}
    weights = {name: 1 / (1 + number) for number, name in enumerate(names)}
    stage = Stage.model_validate(
        {
            "data": weights,
            "tokens": arguments.tokens,
            "sequence_length": arguments.sequence_length,
            "batch_tokens": arguments.batch_tokens,
            "learning_rate": 1e-3,
        }
    )
    clock = Clock(stage)
    order = Order.over(1, "bench", stores, clock, stage.data)
    steps = list(clock.steps())

    begun = time.perf_counter()
    for start, end in steps:
        order.rows(start, end)
    order_seconds = time.perf_counter() - begun

    reader = Reader(order, stores, arguments.microbatch_tokens, rank=0, ranks=1)
    begun = time.perf_counter()
    for start, end in steps:
        reader.batch(start, end)
    reader_seconds = time.perf_counter() - begun

    begun = time.perf_counter()
    with Loader(order, stores, microbatch_tokens=arguments.microbatch_tokens) as batches:
        tokens = sum(batch.end - batch.start for batch in batches)
    loader_seconds = time.perf_counter() - begun
    return {
        "order_tokens_per_second": tokens / order_seconds,
        "reader_tokens_per_second": tokens / reader_seconds,
        "loader_tokens_per_second": tokens / loader_seconds,
        "share_of_step": arguments.step_rate * loader_seconds / tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=524_288)
    parser.add_argument("--microbatch-tokens", type=int, default=65_536)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="how many to load")
    parser.add_argument("--corpus-tokens", type=int, default=100_000_000)
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--step-rate", type=float, default=100_000, help="tokens/s of the training step")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps({**vars(arguments), **found}))
        return
    for name in ("order", "reader", "loader"):
        print(f"{name:>8}: {found[f'{name}_tokens_per_second'] / 1e6:8.1f} M tokens/s")
    print(f"share of a step at {arguments.step_rate:,.0f} tokens/s: {found['share_of_step']:.3%}")


if __name__ == "__main__":
    main()
