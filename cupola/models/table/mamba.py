"""What a layer of the first Mamba declares (Gu and Dao 2023).

The published layer makes x and z, and the step, B and C, in one matrix each; here each has its own. B, C and
the step come of all channels, so a shard sums them over the workers.
"""

from cupola.models.table.declaration import Parameter, Part, linear, matrix_flops, vector
from cupola.recipe.model import Model


def _parameters(model: Model, layer: int) -> list[Parameter]:
    settings, width = model.mamba, model.width
    inner, state = settings.expansion * width, settings.state
    rank = settings.rank(width)
    found = [Parameter("a_log", (inner, state), "vector", "colwise", "mamba_a_log")]
    found.append(vector("d", inner, "one", "colwise"))
    found += linear("gate", inner, width, "colwise", draw="fan_in")
    found += linear("input", inner, width, "colwise", draw="fan_in")
    shape = (inner, settings.convolution)
    found.append(Parameter("convolution.weight", shape, "vector", "colwise", "convolution"))
    found.append(Parameter("convolution.bias", (inner,), "vector", "colwise", "convolution"))
    found += linear("dt_down", rank, inner, "rowwise", draw="fan_in")
    found += linear("b", state, inner, "rowwise", draw="fan_in")
    found += linear("c", state, inner, "rowwise", draw="fan_in")
    found.append(Parameter("dt.weight", (inner, rank), "matrix", "colwise", "fan_in"))
    found.append(vector("dt.bias", inner, "mamba_dt_bias", "colwise"))
    return found + linear("output", width, inner, "rowwise", draw="fan_in_residual")


def _forward_flops(model: Model, layer: int, sequence_length: int, causal: bool) -> float:
    """Matrices, convolution, and decay, write and read of each number of state."""
    settings = model.mamba
    inner = settings.expansion * model.width
    beyond = 2.0 * settings.convolution * inner + 5.0 * inner * settings.state
    return matrix_flops(_parameters(model, layer)) + beyond


MAMBA = Part(_parameters, _forward_flops)
