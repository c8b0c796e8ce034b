"""What settings are asked for: the sizes of a model, a budget of tokens, an optimizer. No torch."""

from dataclasses import dataclass

from cupola.models import table
from cupola.recipe.model import Model
from cupola.recipe.parametrisation import base_model

LONG, MIDDLE, SHORT = 2048, 1024, 512
"""Rows where nothing states their length: above 100 million parameters, above 10 million, below."""
LONGEST = 8192
"""Rows at most, unless they are asked for: longer contexts are reached after pre-training."""
CHINCHILLA = 20
"""Tokens a parameter that are compute-optimal, roughly (Hoffmann et al. 2022)."""


@dataclass(frozen=True)
class Subject:
    """The quantities that rules are functions of."""

    parameters: int
    """All of them, embeddings included."""
    body: int
    """Parameters that a token meets in the blocks: without embedding and head, without idle experts."""
    flops_per_token: float
    """Of training, without the head: DeepSeek's M (72 layers width^2 + 12 layers width length for GPT-2's
    shape)."""
    tokens: int
    """The budget."""
    sequence_length: int
    """Tokens of a row."""
    optimizer: str = "adamw"
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """Of the whole budget."""
        return self.flops_per_token * self.tokens

    @property
    def tokens_per_parameter(self) -> float:
        """Of the budget."""
        return self.tokens / self.parameters


def subject_of(
    model: Model | None,
    vocabulary: int,
    parameters: int | None,
    tokens: int | None,
    sequence_length: int | None,
    optimizer: str,
) -> Subject:
    """Of a model, or of a number of parameters alone.

    Args:
        vocabulary: rows of the model's embedding.
        parameters: where there is no model: those of the blocks, which are taken for all.
        tokens: None: 20 for each parameter.
        sequence_length: None: the model's context, or by size.
    """
    if model is None:
        assert parameters is not None
        notes = ["no model: embedding and head are left out, and FLOPs are 6 a parameter and token"]
        whole = body = parameters
        flops, context = 6.0 * parameters, None
    else:
        whole = table.count(model, vocabulary)
        model, notes = _tuned(model)
        parameters, context = table.count(model, vocabulary), model.max_positions
        body = table.active_count(model, vocabulary) - _outside(model, vocabulary)
    length = sequence_length or min(context or default_length(body), LONGEST)
    if model is not None:
        flops = table.flops_per_token(model, vocabulary, length, causal=False)
        flops -= 6.0 * vocabulary * model.width
    if tokens is None:
        tokens = CHINCHILLA * whole
        notes.append("no budget was given: 20 tokens a parameter (Hoffmann et al. 2022)")
    return Subject(parameters, body, flops, tokens, length, optimizer, tuple(notes))


def default_length(body: int) -> int:
    """Tokens of a row where nothing else states them."""
    return LONG if body > 100_000_000 else MIDDLE if body > 10_000_000 else SHORT


def _outside(model: Model, vocabulary: int) -> int:
    """Parameters of embeddings and head."""
    return sum(p.size for p in table.parameters(model, vocabulary) if p.role in ("embedding", "head"))


def _tuned(model: Model) -> tuple[Model, list[str]]:
    """The model for which learning rates are stated: the base, under a parametrisation."""
    base = base_model(model)
    if base is None:
        return model, []
    base = base.model_copy(update={"layers": model.parametrisation.base_layers or model.layers})
    kind, width = model.parametrisation.kind, base.width
    return base, [
        f"parametrisation {kind}: settings are those of the base model ({width} wide, {base.layers} layers)"
    ]
