"""A language model: embedding, a stack of declared blocks, a norm, a head.

What a block consists of stands in `models.table.blocks`; the modules of each kind are looked up in
`MIXERS` and `FEEDFORWARDS`. Another kind is a module that keeps the protocol `layer.Layer` and one entry
here: the stack never asks what a layer is. What all layers of a kind need alike in a forward pass (rotary
tables, tiles of attention, where documents begin) is made once, by the first of them, and handed to the
others.

Blocks are held by number in a dict, so that a pipeline stage may hold some of them under their own names.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cupola.models import table
from cupola.models.attention import document_begins
from cupola.models.experts import Experts
from cupola.models.layer import Carried, Inputs, Layer, State
from cupola.models.layers import Gated, Linear, Plain, linear, norm
from cupola.models.mamba import Mamba
from cupola.models.mamba2 import Mamba2
from cupola.models.rwkv7 import ChannelMix, TimeMix
from cupola.models.transformer import Attention
from cupola.recipe.model import Model

MIXERS: dict[str, Callable[[Model, int], Any]] = {
    "attention": Attention,
    "sliding_attention": lambda model, layer: Attention(model, layer, model.window),
    "mamba": Mamba,
    "mamba2": Mamba2,
    "rwkv7": TimeMix,
}
FEEDFORWARDS: dict[str, Callable[[Model, int], Any]] = {
    "gated": Gated,
    "plain": Plain,
    "experts": Experts,
    "channel_mix": ChannelMix,
}
"""By the names of `models.table`: (model, number of the block) -> module."""


class Output(NamedTuple):
    """What a forward pass gives."""

    hidden: Tensor
    """(batch, length, width) after the last norm, for the head: the parameters' dtype, or autocast's."""
    balance: Tensor | None
    """To be added to a sum of losses: see `layer.Carried`."""
    loads: tuple[Tensor, ...]
    """See `layer.Carried`: of all layers."""


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Within it a module is read; after it, it is in the mode that it was in."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


class Cache:
    """The states of all blocks while decoding a batch, filled from column 0 on, all rows alike.

    Rows of different length are padded on the left, so that all of them grow at the same column: `first`
    says where each begins.
    """

    def __init__(self, states: dict[str, list[State | None]], columns: int, first: Tensor | None) -> None:
        self.states, self.columns, self.first = states, columns, first
        self.position = 0
        self.padding = 0 if first is None else int(first.max())
        """Columns of padding that the most padded row begins with."""

    def advance(self, columns: int) -> None:
        """So many more columns are filled."""
        self.position += columns

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        if self.first is not None:
            self.first = self.first[rows]
        for states in self.states.values():
            for state in states:
                if state is not None:
                    state.select(rows)


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + feedforward(norm(x)) where there is one."""

    def __init__(self, model: Model, kinds: table.Block, layer: int) -> None:
        super().__init__()
        self.residual = model.multipliers().residual
        self.mixer_norm = norm(model)
        self.mixer: Any = MIXERS[kinds.mixer](model, layer)
        self.feedforward_norm, self.feedforward = None, None
        if kinds.feedforward is not None:
            self.feedforward_norm = norm(model)
            self.feedforward = FEEDFORWARDS[kinds.feedforward](model, layer)

    def layers(self) -> list[Layer]:
        """The mixer and, where there is one, the feed-forward layer."""
        return [self.mixer] if self.feedforward is None else [self.mixer, self.feedforward]

    def forward(
        self, x: Tensor, plans: list[Any], states: list[Any], carried: Carried
    ) -> tuple[Tensor, Carried]:
        """plans, states: one for each of `layers`."""
        mixed, carried = self.mixer(self.mixer_norm(x), plans[0], states[0], carried)
        x = torch.add(x, mixed, alpha=self.residual)
        if self.feedforward is not None and self.feedforward_norm is not None:
            fed, carried = self.feedforward(self.feedforward_norm(x), plans[1], states[1], carried)
            x = torch.add(x, fed, alpha=self.residual)
        return x, carried


class LanguageModel(nn.Module):
    """See the module's docstring. Parameters are declared in `cupola.models.table`; nothing here
    initialises them (`cupola.models.init.build` does).

    Args:
        scores: with the scalar head of a reward model or a critic beside the head of words.
    """

    def __init__(self, model: Model, vocabulary: int, scores: bool = False) -> None:
        super().__init__()
        self.settings, self.vocabulary = model, vocabulary
        self.adapters: tuple[table.Parameter, ...] = ()
        """Parameters that `lora` has added to those of the table."""
        self.multipliers = model.multipliers()
        self.embedding = nn.Embedding(vocabulary, model.width)
        self.embedding_norm = norm(model) if model.embedding_norm else None
        self.positions: nn.Embedding | None = None
        if model.positions == "learned":
            assert model.max_positions is not None
            self.positions = nn.Embedding(model.max_positions, model.width)
        self.blocks = nn.ModuleDict(
            {str(i): Block(model, kinds, i) for i, kinds in enumerate(table.blocks(model))}
        )
        self.norm = norm(model)
        self.head = None if model.tied else Linear(model.width, vocabulary, bias=False)
        self.score = Linear(model.width, 1, bias=False) if scores else None

    def numbered_blocks(self) -> Iterable[tuple[str, Block]]:
        """The blocks that this module holds, under their numbers in the whole stack."""
        return cast(Iterable[tuple[str, Block]], self.blocks.items())

    def declared(self) -> list[table.Parameter]:
        """What is declared of every parameter, those that were added included."""
        own = table.parameters(self.settings, self.vocabulary, scores=self.score is not None)
        return [*own, *self.adapters]

    @property
    def head_weight(self) -> Tensor:
        """(vocabulary, width); the embedding's where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def max_positions(self) -> int | None:
        """The longest document that positions reach, or None: any."""
        return None if self.positions is None else self.positions.num_embeddings

    def forward(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Output:
        """Hidden states after the last norm, and what mixtures of experts add to the loss.

        Args:
            tokens: (batch, length) int64.
            documents: (batch, length) int32, a number for each token's document; nothing is seen across a
                change of number, and learned positions restart there. None: each row is one document.
            cache: decoding: the tokens continue what it holds, and are added to it.

        Raises:
            ValueError: documents together with a cache; learned positions or the cache too short.
        """
        inputs = self._inputs(tokens, documents, cache)
        x = self.embedding(tokens)
        if self.multipliers.embedding != 1:
            x = x * self.multipliers.embedding
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.positions is not None:
            x = x + self.positions(self._columns(inputs))
        plans: dict[Hashable, Any] = {}
        carried = Carried()
        loads: tuple[Tensor, ...] = ()
        for name, block in self.numbered_blocks():
            layers = block.layers()
            for layer in layers:
                if layer.plan_key not in plans:
                    plans[layer.plan_key] = layer.plan(inputs)
            states = [None] * len(layers) if cache is None else cache.states[name]
            x, carried = block(x, [plans[layer.plan_key] for layer in layers], states, carried)
            # Taken out, so that a compiled block meets the same structure in every layer.
            loads += carried.loads
            carried = carried._replace(loads=())
        if cache is not None:
            cache.advance(tokens.shape[1])
        hidden = self.norm(x)
        if self.multipliers.logits != 1:
            hidden = hidden / self.multipliers.logits
        return Output(hidden, carried.balance, loads)

    def hidden(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The hidden states of `forward` alone."""
        output: Output = self(tokens, documents, cache)
        return output.hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary)."""
        return linear(hidden, self.head_weight)

    def scores(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (...), of the parameters' dtype, under autocast too.

        Raises:
            ValueError: the module has no scalar head.
        """
        if self.score is None:
            raise ValueError("the module has no scalar head")
        weight = self.score.weight[0]
        return (hidden.to(weight.dtype) * weight).sum(-1)

    def cache(self, columns: int, first: Tensor | None = None) -> Cache:
        """An empty cache for rows of up to `columns` tokens.

        Args:
            first: (batch,) int64: the columns of the rows' first tokens, where they are padded on the left.
        """
        states = {
            name: [layer.state(columns) for layer in block.layers()] for name, block in self.numbered_blocks()
        }
        return Cache(states, columns, first)

    def _inputs(self, tokens: Tensor, documents: Tensor | None, cache: Cache | None) -> Inputs:
        batch, length = tokens.shape
        if cache is None:
            return Inputs(batch, length, tokens.device, documents)
        if documents is not None:
            raise ValueError("a cache holds one document a row: `documents` can't be given with it")
        if cache.position + length > cache.columns:
            raise ValueError(f"the cache has {cache.columns} columns, {cache.position + length} are needed")
        if 0 < cache.position <= cache.padding:
            raise ValueError(
                f"a row begins at column {cache.padding}, beyond the {cache.position} columns that the first"
                " piece held: let the first piece reach the first token of every row"
            )
        if cache.position == 0 and cache.first is not None:
            columns = torch.arange(length, device=tokens.device)
            documents = (columns >= cache.first[:, None]).to(torch.int32)
        return Inputs(batch, length, tokens.device, documents, cache.position, cache.first)

    def _columns(self, inputs: Inputs) -> Tensor:
        """Indices of the learned table: (length,) or (batch, length) int64."""
        assert self.positions is not None
        columns = torch.arange(inputs.start, inputs.start + inputs.length, device=inputs.device)
        if inputs.first is not None:
            columns = (columns - inputs.first[:, None]).clamp_(min=0)
        elif inputs.documents is not None:
            columns = columns - document_begins(inputs.documents)
        limit = self.positions.num_embeddings
        if inputs.start + inputs.length > limit and int(columns.max()) >= limit:
            raise ValueError(f"a document of {int(columns.max()) + 1} tokens exceeds max_positions {limit}")
        return columns
