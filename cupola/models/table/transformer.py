"""What the Transformer's layers declare: attention, and feed-forward layers with and without a gate."""

from cupola.models.table.declaration import Parameter, Part, linear, matrix_flops, only_matrices
from cupola.recipe.model import Model


def _attention(model: Model, layer: int) -> list[Parameter]:
    sizes = model.sizes()
    head, bias = sizes.head_width, model.attention_bias
    queries, keys = sizes.heads * head, sizes.key_value_heads * head
    group = sizes.heads // sizes.key_value_heads
    found = linear("query", queries, model.width, "colwise", bias, unit=group * head)
    found += linear("key", keys, model.width, "colwise", bias, unit=head)
    found += linear("value", keys, model.width, "colwise", bias, unit=head)
    if model.qk_norm:
        for name in ("query_norm.weight", "key_norm.weight"):
            found.append(Parameter(name, (head,), "vector", "replicate_by_head", "one"))
    return found + linear("output", model.width, queries, "rowwise", model.output_bias, draw="residual")


def _scores_flops(model: Model, keys: float) -> float:
    """Scores and values of one query against so many keys."""
    sizes = model.sizes()
    return 2 * 2 * sizes.heads * sizes.head_width * keys


def _attention_flops(model: Model, layer: int, sequence_length: int, causal: bool) -> float:
    keys = sequence_length / 2 if causal else sequence_length
    return matrix_flops(_attention(model, layer)) + _scores_flops(model, keys)


def _sliding_flops(model: Model, layer: int, sequence_length: int, causal: bool) -> float:
    assert model.window is not None
    window = min(model.window, sequence_length)
    # The first `window` queries of a row see half of the window on average, the others all of it.
    seen = window - window * window / (2 * sequence_length) if causal else window
    return matrix_flops(_attention(model, layer)) + _scores_flops(model, seen)


def _feedforward(model: Model, gated: bool) -> list[Parameter]:
    hidden, bias = model.sizes().feedforward, model.feedforward_bias
    found = linear("gate", hidden, model.width, "colwise", bias) if gated else []
    found += linear("up", hidden, model.width, "colwise", bias)
    return found + linear("down", model.width, hidden, "rowwise", bias, draw="residual")


ATTENTION = Part(_attention, _attention_flops)
SLIDING_ATTENTION = Part(_attention, _sliding_flops)
GATED = only_matrices(lambda model, layer: _feedforward(model, gated=True))
PLAIN = only_matrices(lambda model, layer: _feedforward(model, gated=False))
