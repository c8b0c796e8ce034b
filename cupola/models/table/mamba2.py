"""What a Mamba-2 layer declares (Dao and Gu 2024).

The published layer makes z, x, B, C and the step in one matrix; here each has its own, so that a shard is
the same code with fewer heads. The heads of a group share B and C: with one group they lie whole on every
worker, and the norm, which spans a group, sums its squares over the workers.
"""

from cupola.models.table.declaration import Cut, Parameter, Part, linear, matrix_flops, vector
from cupola.recipe.model import Model


def _parameters(model: Model, layer: int) -> list[Parameter]:
    settings, width = model.mamba2, model.width
    heads = settings.heads(width)
    inner, shared = heads * settings.head_width, settings.groups * settings.state
    per_group = heads // settings.groups if settings.groups > 1 else 1
    unit = per_group * settings.head_width
    found = [vector("a_log", heads, "mamba2_a_log", "colwise", per_group)]
    found.append(vector("dt_bias", heads, "mamba_dt_bias", "colwise", per_group))
    found.append(vector("d", heads, "one", "colwise", per_group))
    found += linear("gate", inner, width, "colwise", draw="fan_in", unit=unit)
    found += linear("input", inner, width, "colwise", draw="fan_in", unit=unit)
    shared_cut: Cut = "colwise" if settings.groups > 1 else "replicate_by_head"
    for name in ("b", "c"):
        shape = (shared, width)
        found.append(Parameter(f"{name}.weight", shape, "matrix", shared_cut, "fan_in", settings.state))
    found += linear("dt", heads, width, "colwise", draw="fan_in", unit=per_group)
    for name, channels in (("input", inner), ("b", shared), ("c", shared)):
        cut: Cut = "colwise" if name == "input" else shared_cut
        cut_unit = unit if name == "input" else settings.state
        shape = (channels, settings.convolution)
        for part, size in (("weight", shape), ("bias", (channels,))):
            name_of = f"{name}_convolution.{part}"
            found.append(Parameter(name_of, size, "vector", cut, "convolution", cut_unit))
    found.append(vector("norm.weight", inner, "one", "colwise", unit))
    return found + linear("output", width, inner, "rowwise", draw="fan_in_residual")


def _forward_flops(model: Model, layer: int, sequence_length: int, causal: bool) -> float:
    """Matrices, convolution, and the recurrence as it is written: decay, write and read of each number of
    state, 5 a token. The chunked form does more."""
    settings = model.mamba2
    inner = settings.heads(model.width) * settings.head_width
    channels = inner + 2 * settings.groups * settings.state
    recurrence = 5.0 * inner * settings.state
    return matrix_flops(_parameters(model, layer)) + 2.0 * settings.convolution * channels + recurrence


MAMBA2 = Part(_parameters, _forward_flops)
