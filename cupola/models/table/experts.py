"""What a mixture of experts declares.

The routed experts' weights are batches of matrices, (experts, outputs, inputs), of role "matrix": each
expert's matrix is cut, decayed and orthogonalised by itself. So is the router, a matrix of the stack like
any other: decay keeps its logits from growing without bound. (A guess where Muon is concerned: published
mixtures train it either way.)

Tensor parallelism cuts every expert's hidden width. Tokens and their weights enter the experts whole on
every worker, so the gradients of both are to be summed over the workers there; the router then computes the
same on each of them, and is replicated.
"""

from dataclasses import replace

from cupola.models.table import transformer
from cupola.models.table.declaration import Parameter, Part, linear, matrix_flops, vector
from cupola.recipe.model import Experts, Model


def _settings(model: Model) -> Experts:
    assert model.experts is not None
    return model.experts


def _routed(model: Model) -> list[Parameter]:
    settings = _settings(model)
    inwards = (settings.count, settings.width, model.width)
    outwards = (settings.count, model.width, settings.width)
    return [
        Parameter("gate", inwards, "matrix", "colwise"),
        Parameter("up", inwards, "matrix", "colwise"),
        Parameter("down", outwards, "matrix", "rowwise", "residual"),
    ]


def _met_by_all(model: Model, layer: int) -> list[Parameter]:
    """The router, and the shared expert where there is one."""
    settings = _settings(model)
    found = linear("router", settings.count, model.width, "replicate")
    if settings.shared:
        shared = model.model_copy(update={"feedforward": settings.shared})
        found += [replace(p, name=f"shared.{p.name}") for p in transformer.GATED.parameters(shared, layer)]
    return found


def _parameters(model: Model, layer: int) -> list[Parameter]:
    settings = _settings(model)
    found = _routed(model)
    if settings.balance == "bias":
        found.append(replace(vector("balance_bias", settings.count, "zero"), role="buffer"))
    return found + _met_by_all(model, layer)


def _active(model: Model, layer: int) -> int:
    settings = _settings(model)
    routed = sum(p.size for p in _routed(model)) // settings.count * settings.active
    return routed + sum(p.size for p in _met_by_all(model, layer))


def _flops(model: Model, layer: int, sequence_length: int, causal: bool) -> float:
    settings = _settings(model)
    routed = matrix_flops(_routed(model)) / settings.count * settings.active
    return routed + matrix_flops(_met_by_all(model, layer))


EXPERTS = Part(_parameters, _flops, _active)
