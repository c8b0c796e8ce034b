"""Whether torch.compile pays for the length of a run: tried, measured, and undone where it does not.

Compiling costs half a minute to two minutes before the first step and, on CPU, brought between -8% and +4%
where it was measured. So nothing is tried on a run that is too short to win it back; on a longer one the
blocks are compiled and both are timed.
"""

import statistics
import time
from dataclasses import dataclass

from cupola.data.batch import Microbatch
from cupola.objectives import Objective
from cupola.parallel.engine import LocalEngine
from cupola.train.precision import time_pass

SHORTEST_RUN = {"cpu": 3600.0, "cuda": 600.0}
"""Seconds of training below which compiling is not even tried."""

ROUNDS = 5


@dataclass(frozen=True)
class CompileChoice:
    """What was decided and why, for the run's record.

    Attributes:
        gain: eager seconds over compiled seconds of a pass; None if not measured.
        cost: seconds that compiling took; None if not measured.
    """

    on: bool
    gain: float | None
    cost: float | None
    reason: str


def decide_compile(
    engine: LocalEngine, objective: Objective, microbatch: Microbatch, run_seconds: float
) -> CompileChoice:
    """Compile the engine's blocks if that shortens a run of `run_seconds`; leaves the engine so.

    Args:
        microbatch: of the shape that most of the run will have; another shape is compiled anew.
        run_seconds: estimated seconds of eager training that are left.
    """
    shortest = SHORTEST_RUN.get(engine.device.type, SHORTEST_RUN["cuda"])
    if run_seconds < shortest:
        return CompileChoice(False, None, None, f"the run is shorter than {shortest / 60:.0f} minutes")
    eager = _median_pass(engine, objective, microbatch)
    begun = time.perf_counter()
    try:
        engine.compile()
        time_pass(engine, objective, microbatch)
    except Exception as error:  # whatever a compiler may raise: the run goes on without it
        engine.uncompile()
        first = (str(error).splitlines() or [""])[0]
        return CompileChoice(False, None, None, f"it fails here ({type(error).__name__}: {first})")
    cost = time.perf_counter() - begun - eager
    gain = eager / _median_pass(engine, objective, microbatch)
    saved = run_seconds * (1 - 1 / gain)
    if saved <= cost:
        engine.uncompile()
        return CompileChoice(False, gain, cost, f"it would save {saved:.0f} s and costs {cost:.0f} s")
    return CompileChoice(True, gain, cost, f"it saves about {saved:.0f} s for {cost:.0f} s")


def _median_pass(engine: LocalEngine, objective: Objective, microbatch: Microbatch) -> float:
    time_pass(engine, objective, microbatch)
    return statistics.median(time_pass(engine, objective, microbatch) for _ in range(ROUNDS))
