"""RWKV-7's layers ("Goose", Peng et al. 2025): time mix, the mixer, and channel mix, the feed-forward layer.

Both see each token mixed with the one before it, channel by channel (the token shift). Time mix keeps a
matrix for each head, changed by the generalised delta rule (`delta_rule`): its decay, its in-context
learning rate and its gate are low-rank maps of the token; from the second such layer on, its values are
mixed with those of the first, which `Carried` hands on. Nothing grows with the length of a document: while
decoding, a layer remembers its last input and its matrices.

A tensor-parallel shard is this code with fewer heads. Low-rank maps are cut at their outputs; everything
after `receptance`, `key` and `value` is by head, and shapes are read from what they return.

Parameters are named by what they do; `models.table.rwkv7` gives the published names beside them.
"""

import math
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from cupola.models import delta_rule, probe
from cupola.models.layer import Carried, Inputs, State
from cupola.models.layers import Linear
from cupola.models.segments import Segments
from cupola.models.table.rwkv7 import SHIFTS, is_first
from cupola.models.token_mix import exact, gated_output, keys, mix, squared_relu
from cupola.recipe.model import Model

FASTEST_DECAY = -math.exp(-0.5)
"""The lowest log decay: that of a channel whose decay map is saturated."""


class TimeMixState(State):
    """What time mix remembers of a batch: its last inputs, (batch, 1, width), and its matrices, (batch,
    heads, head_width, head_width) fp32, values by keys."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.matrices: Tensor | None = None


class ChannelMixState(State):
    """What channel mix remembers of a batch: its last inputs, (batch, 1, width)."""

    def __init__(self) -> None:
        self.last: Tensor | None = None


class Shifting:
    """The protocol's part that both layers share."""

    plan_key: Hashable = "segments"

    def plan(self, inputs: Inputs) -> Segments:
        """Where documents begin."""
        return Segments(inputs.documents)


class HeadNorm(nn.Module):
    """Normalisation of each head (GroupNorm); the weights are `gated_output`'s."""

    epsilon = 64e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))


class TimeMix(Shifting, nn.Module):
    """The mixer. (batch, length, width) -> the same."""

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        width, ranks = model.width, model.rwkv7.ranks(model.width)
        self.head_width, self.is_first = model.rwkv7.head_width, is_first(model, layer)
        for name in SHIFTS:
            self.register_parameter(f"shift_{name}", nn.Parameter(torch.empty(width)))
        self.decay_bias = nn.Parameter(torch.empty(width))
        self.rate_bias = nn.Parameter(torch.empty(width))
        self.mix_bias = None if self.is_first else nn.Parameter(torch.empty(width))
        self.key_scale = nn.Parameter(torch.empty(width))
        self.key_rate = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(width))
        self.receptance = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.decay_down = Linear(width, ranks.decay, bias=False)
        self.decay_up = Linear(ranks.decay, width, bias=False)
        self.rate_down = Linear(width, ranks.rate, bias=False)
        self.rate_up = Linear(ranks.rate, width, bias=False)
        self.mix_down = None if self.is_first else Linear(width, ranks.value, bias=False)
        self.mix_up = None if self.is_first else Linear(ranks.value, width, bias=False)
        self.gate_down = Linear(width, ranks.gate, bias=False)
        self.gate_up = Linear(ranks.gate, width, bias=False)
        self.norm = HeadNorm(width)
        self.output = Linear(width, width, bias=False)

    def state(self, columns: int) -> TimeMixState:
        """An empty state."""
        return TimeMixState()

    def forward(
        self, x: Tensor, plan: Segments, state: TimeMixState | None, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """See `layer.Layer`."""
        shifts = [getattr(self, f"shift_{name}") for name in SHIFTS]
        last = None if state is None else state.last
        for_receptance, for_decay, for_key, for_value, for_rate, for_gate = mix(x, last, plan, shifts)
        receptance, key = self.receptance(for_receptance), self.key(for_key)
        value, carried = self._value(for_value, carried)
        decay = self.decay_up(torch.tanh(self.decay_down(for_decay)))
        log_decay = FASTEST_DECAY * torch.sigmoid(exact(decay) + self.decay_bias)
        rate = torch.sigmoid(exact(self.rate_up(self.rate_down(for_rate))) + self.rate_bias)
        by_head = (*x.shape[:2], -1, self.head_width)
        key, removed, added = keys(key.view(by_head), rate.view(by_head), self.key_scale, self.key_rate)
        receptance, value = receptance.view(by_head), value.view(by_head)
        gate = self.gate_up(torch.sigmoid(self.gate_down(for_gate))).view(by_head)
        y, matrices = self._scan(receptance, log_decay.view(by_head), key, value, removed, added, plan, state)
        probe.show("recurrence", log_decay, None, matrices)
        if state is not None:
            state.last, state.matrices = x[:, -1:].clone(), matrices
        norm = self.norm
        y = gated_output(y, receptance, key, value, gate, self.bonus, norm.weight, norm.bias, norm.epsilon)
        return self.output(y.flatten(2)), carried

    def _value(self, x: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        value = self.value(x)
        if self.mix_down is None or self.mix_up is None or self.mix_bias is None:
            return value, carried._replace(values=value)
        if carried.values is None:
            raise ValueError("the values of the first time mix were not handed on")
        share = torch.sigmoid(exact(self.mix_up(self.mix_down(x))) + self.mix_bias).to(value.dtype)
        return torch.lerp(value, carried.values, share), carried

    @staticmethod
    def _scan(
        r: Tensor,
        log_decay: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        plan: Segments,
        state: TimeMixState | None,
    ) -> tuple[Tensor, Tensor]:
        before = None if state is None else state.matrices
        if before is None or r.shape[1] > 1:
            return delta_rule.scan(r, log_decay, k, v, a, b, plan, before)
        y, after = delta_rule.step(r[:, 0], log_decay[:, 0], k[:, 0], v[:, 0], a[:, 0], b[:, 0], before)
        return y[:, None], after


class ChannelMix(Shifting, nn.Module):
    """The feed-forward layer, value(relu(key(x))^2). (batch, length, width) -> the same."""

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        hidden = model.sizes().feedforward
        self.shift_key = nn.Parameter(torch.empty(model.width))
        self.key = Linear(model.width, hidden, bias=False)
        self.value = Linear(hidden, model.width, bias=False)

    def state(self, columns: int) -> ChannelMixState:
        """An empty state."""
        return ChannelMixState()

    def forward(
        self, x: Tensor, plan: Segments, state: ChannelMixState | None, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """See `layer.Layer`."""
        (mixed,) = mix(x, None if state is None else state.last, plan, [self.shift_key])
        if state is not None:
            state.last = x[:, -1:].clone()
        hidden = squared_relu(self.key(mixed))
        probe.show("hidden", hidden)
        return self.value(hidden), carried
