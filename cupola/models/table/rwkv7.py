"""What RWKV-7's layers declare (Peng et al. 2025): time mix, and channel mix as the feed-forward layer.

Names follow the paper's words, with the published file's in brackets. A low-rank map is two linear maps,
`down` and `up`, (outputs, inputs) as everywhere, where the published file holds their transposes. The first
layer has no value residual: its values are what the others' are mixed with.
"""

from cupola.models.table.declaration import Parameter, Part, linear, matrix_flops, only_matrices, vector
from cupola.recipe.model import Model

SHIFTS = ("receptance", "decay", "key", "value", "rate", "gate")
"""What the token shift mixes, each with a vector of its own (x_r, x_w, x_k, x_v, x_a, x_g)."""


def is_first(model: Model, layer: int) -> bool:
    """Is it the first time mix of the stack?"""
    return "rwkv7" not in model.mixers()[:layer]


def _time_mix(model: Model, layer: int) -> list[Parameter]:
    width, head, ranks = model.width, model.rwkv7.head_width, model.rwkv7.ranks(model.width)
    low_rank = {"decay": ranks.decay, "rate": ranks.rate, "mix": ranks.value, "gate": ranks.gate}
    if is_first(model, layer):
        del low_rank["mix"]
    found = [vector(f"shift_{name}", width, f"rwkv7_shift_{name}") for name in SHIFTS]
    for name in low_rank:
        if name != "gate":
            found.append(vector(f"{name}_bias", width, f"rwkv7_{name}_bias", "colwise", head))
    found.append(vector("key_scale", width, "rwkv7_key_scale", "colwise", head))  # k_k
    found.append(vector("key_rate", width, "rwkv7_key_rate", "colwise", head))  # k_a
    found.append(vector("bonus", width, "rwkv7_bonus", "colwise", head))  # r_k
    for name in ("receptance", "key", "value"):
        found += linear(name, width, width, "colwise", draw=f"rwkv7_{name}", unit=head)
    for name, rank in low_rank.items():
        found += linear(f"{name}_down", rank, width, "replicate", draw="zero", role="low_rank")
        found += linear(f"{name}_up", width, rank, "colwise", draw="rwkv7_up", unit=head, role="low_rank")
    found.append(vector("norm.weight", width, "rwkv7_norm", "colwise", head))  # ln_x
    found.append(vector("norm.bias", width, "zero", "colwise", head))
    return found + linear("output", width, width, "rowwise", draw="zero")


def _time_mix_flops(model: Model, layer: int, sequence_length: int, causal: bool) -> float:
    """Matrices, and the recurrence as it is written: for each number of state decay, S a, its outer product
    with b, that of v and k, and the read, 9 a token. The chunked form does more."""
    return matrix_flops(_time_mix(model, layer)) + 9.0 * model.width * model.rwkv7.head_width


def _channel_mix(model: Model, layer: int) -> list[Parameter]:
    hidden = model.sizes().feedforward
    found = [vector("shift_key", model.width, "rwkv7_shift_channel")]
    found += linear("key", hidden, model.width, "colwise", draw="rwkv7_channel_key")
    return found + linear("value", model.width, hidden, "rowwise", draw="zero")


TIME_MIX = Part(_time_mix, _time_mix_flops)
CHANNEL_MIX = only_matrices(_channel_mix)
