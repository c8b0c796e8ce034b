"""Seconds of an optimizer's step on a device: what it reads and writes, and the products of Muon and SOAP.

Whatever lies there of a parameter is read and written once; the norm of the gradients reads these once more.
Products are taken to be shared out over the workers that shard the states, as they are with sharding.
"""

from collections.abc import Iterable

from cupola.models.table import Parameter
from cupola.models.table.states import rotated_sides
from cupola.plan.compute import Setting
from cupola.plan.layout import declared
from cupola.plan.products import product
from cupola.plan.standing import Group, standing
from cupola.recipe.schema import Optimizer

STEPS = {"polar_express": 3, "quintic": 5}
"""Of Muon's iteration, where the recipe doesn't say."""
BASIS = 12.0
"""Products of a covariance with a matrix of its size that a renewal of its basis takes: a QR step (4/3 n^3
each for the factors) is far from the rate of products. An assumption."""


def update(setting: Setting, group: Group) -> float:
    """On the devices of a rank that hold this group of parameters."""
    run = setting.run
    layout, execution = run.layout, run.execution
    parameters, gradients, masters, states = standing(group, layout, execution)
    sharded = group.sharded(layout) if layout.shard >= 1 else group.whole
    written = parameters if layout.shard in (0, 3) else execution.element * sharded.weights
    reduced = gradients if layout.shard in (0, 2, 3) else execution.gradients * sharded.trained
    if execution.precision == "fp32":  # these are the masters
        written *= 2
    trained = sharded.trained / sharded.weights if sharded.weights else 0.0
    moved = 2 * states + trained * (2 * masters + written) + 2 * reduced
    return setting.stream(moved) + products(setting) / layout.pipeline


def products(setting: Setting) -> float:
    """Of all matrices, shared out over tensor-parallel workers and shards."""
    run, optimizer = setting.run, setting.run.optimizer
    if optimizer.kind == "adamw":
        return 0.0
    trained = (
        p
        for p in declared(run.model, run.vocabulary, run.scores)
        if p.role == "matrix" and p.name not in run.frozen
    )
    one = _muon if optimizer.kind == "muon" else _soap
    seconds = one(setting, trained, optimizer)
    workers = run.layout.tensor * (run.layout.shards if run.layout.sharded else 1)
    return seconds / workers


def _muon(setting: Setting, parameters: Iterable[Parameter], optimizer: Optimizer) -> float:
    """X X', its square, and their product with X, at each step; the shorter side m of (m, n)."""
    steps = optimizer.newton_schulz_steps or STEPS[optimizer.newton_schulz]
    found = 0.0
    for shape, count in _shapes(parameters).items():
        m, n = sorted(shape)
        found += count * steps * (2 * _product(setting, m, m, n) + _product(setting, m, m, m))
    return found


def _soap(setting: Setting, parameters: Iterable[Parameter], optimizer: Optimizer) -> float:
    """Into the bases and back (gradient, moment and update), covariances, and now and then new bases."""
    found = 0.0
    for (rows, columns), count in _shapes(parameters).items():
        sides = rotated_sides((rows, columns), optimizer.largest_preconditioned, optimizer.one_sided_above)
        for side, other, rotated in zip((rows, columns), (columns, rows), sides, strict=True):
            if rotated:
                basis = BASIS * _product(setting, side, side, side) / optimizer.precondition_every
                found += count * (4 * _product(setting, side, side, other) + basis)
    return found


def _product(setting: Setting, m: int, n: int, k: int) -> float:
    return product(m, n, k, setting.hardware, setting.exact, setting.causes)


def _shapes(parameters: Iterable[Parameter]) -> dict[tuple[int, int], int]:
    """How many matrices there are of each shape."""
    found: dict[tuple[int, int], int] = {}
    for parameter in parameters:
        *batch, rows, columns = parameter.shape
        found[rows, columns] = found.get((rows, columns), 0) + (batch[0] if batch else 1)
    return found
