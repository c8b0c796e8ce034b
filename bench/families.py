"""Models of the three families with equal numbers of parameters, and their peers, as contenders.

The Transformer sets the number. Mamba-2, whose block holds about half of a Transformer's, comes nearest to it
by its number of layers, RWKV-7 by the width of its channel mix.
"""

from collections.abc import Callable
from functools import partial

import torch

from bench.contenders import Contender, PlainLoop, Settings, train_ours
from bench.shapes import Shape
from cupola.models import table
from cupola.recipe.model import Model


def transformer(shape: Shape) -> Model:
    """As the other benchmarks shape it."""
    return Model(layers=shape.layers, width=shape.width, heads=shape.heads)


def mamba2(shape: Shape) -> Model:
    """With the published state of 128 and heads of 64."""
    return _nearest(
        shape, [Model(family="mamba2", layers=n, width=shape.width) for n in range(1, 4 * shape.layers)]
    )


def rwkv7(shape: Shape) -> Model:
    """With heads of 64 and the published ranks."""
    widths = range(32, 8 * shape.width, 32)
    return _nearest(
        shape,
        [Model(family="rwkv7", layers=shape.layers, width=shape.width, feedforward=n) for n in widths],
    )


def _nearest(shape: Shape, models: list[Model]) -> Model:
    wanted = table.count(transformer(shape), shape.vocabulary)
    return min(models, key=lambda model: abs(table.count(model, shape.vocabulary) - wanted))


MODELS: dict[str, Callable[[Shape], Model]] = {
    "transformer": transformer,
    "mamba2": mamba2,
    "rwkv7": rwkv7,
}


def ours(settings: Settings, family: str) -> Contender:
    """A family's model, trained by the parts that a stage of `cupola run` uses."""
    return train_ours(settings, MODELS[family](settings.shape))


def hugging_face_mamba2(settings: Settings) -> Contender:
    """transformers' Mamba-2 of our layers, by its path for CPUs, with its own loss."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    model = mamba2(settings.shape)
    config = Mamba2Config(
        vocab_size=settings.shape.vocabulary,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_heads=model.mamba2.heads(model.width),
        head_dim=model.mamba2.head_width,
        state_size=model.mamba2.state,
        expand=model.mamba2.expansion,
        n_groups=model.mamba2.groups,
        conv_kernel=model.mamba2.convolution,
        tie_word_embeddings=False,
    )

    def loss(module: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = module(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return PlainLoop(Mamba2ForCausalLM(config), loss, settings).contender()


FAMILIES: dict[str, Callable[[Settings], Contender]] = {
    **{family: partial(ours, family=family) for family in MODELS},
    "huggingface-mamba2": hugging_face_mamba2,
}
