"""One contender in a process of its own: `bench.turns.Worker` starts it and talks to it over pipes.

The first line that it writes has the number of parameters and what the weights made of the data before the
first step, or says that the contender is absent; `gate` does the rest.
"""

import json
import os
import sys
from collections.abc import Callable

import torch

from bench.posttraining.gate import Gate
from bench.posttraining.task import Task

Contender = Callable[[Task, Gate], None]


def find(kind: str, side: str) -> Contender:
    """The function of a contender.

    Raises:
        ImportError: TRL is not installed.
    """
    if side == "ours":
        from bench.posttraining import ours as module
    else:
        from bench.posttraining import theirs as module  # type: ignore[no-redef]
    found: Contender = getattr(module, kind)
    return found


def main() -> None:
    spec = json.loads(sys.argv[1])
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    kind, side = spec["kinds"][spec["contender"]]
    gate = Gate(answers, 0)
    try:
        contender = find(kind, side)
    except ImportError as error:
        gate.say(absent=str(error))
        return
    contender(Task.of(spec), gate)


if __name__ == "__main__":
    main()
