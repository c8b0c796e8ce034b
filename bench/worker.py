"""One contender in a process of its own, so that its peak memory is its own; driven over pipes.

Started with the settings as JSON; answers one JSON line for each line it reads: `{"steps": 3}` gives the
seconds (in all, and of each), CPU seconds and last loss of three steps. The first line it writes says that it
is ready, or that the contender is absent. It ends when its standard input does.
"""

import json
import os
import sys
import time
from itertools import pairwise
from typing import Any

import psutil
import torch

from bench.contenders import CONTENDERS, Settings
from bench.families import FAMILIES
from bench.shapes import Shape
from bench.updates import OPTIMIZERS
from cupola.parallel.device import peak_memory

BATCHES = 8


def batches(shape: Shape, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A few batches of random tokens, the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    size = (BATCHES, shape.batch, shape.sequence + 1)
    rows = torch.randint(shape.vocabulary, size, generator=generator).to(device)
    return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(spec["threads"])
    settings = Settings(Shape(**spec["shape"]), spec["precision"], spec["compiled"], spec["device"])
    torch.manual_seed(0)
    try:
        contender = {**CONTENDERS, **FAMILIES, **OPTIMIZERS}[spec["contender"]](settings)
    except ImportError as error:
        print(json.dumps({"absent": str(error)}), file=answers)
        return
    data = batches(settings.shape, settings.device)
    before = psutil.Process().memory_info().rss if settings.device == "cpu" else 0
    print(json.dumps({"parameters": contender.parameters}), file=answers)
    done = 0
    for line in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        ends = [begun]
        for _ in range(json.loads(line)["steps"]):
            loss = contender.step(*data[done % BATCHES])
            done += 1
            ends.append(time.perf_counter())
        answer = {
            "seconds": ends[-1] - begun,
            "step_seconds": [after - before for before, after in pairwise(ends)],
            "cpu_seconds": time.process_time() - cpu,
            "loss": loss,
            "peak_bytes": peak_memory(torch.device(settings.device)),
            "step_bytes": peak_memory(torch.device(settings.device)) - before,
        }
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
