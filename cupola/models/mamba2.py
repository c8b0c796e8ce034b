"""Mamba-2's layer (Dao and Gu 2024): a convolution, the scan `ssd`, and a gated norm.

The published layer makes gate, input, b, c and dt in one matrix; here each has its own, so that a shard is
this code with fewer heads: shapes are read from what the linear maps return. While decoding, a layer
remembers its last inputs and a matrix for each head, however long the document.

The matrices' products run in the compute dtype, and so do the scan's; dt, decays, the carried state and the
norm are fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cupola.models import probe, ssd
from cupola.models.convolution import Convolution, Convolving, Prepared, history
from cupola.models.gated_norm import GatedNorm
from cupola.models.layer import Carried, State
from cupola.models.layers import Linear
from cupola.recipe.model import Model


class Mamba2State(State):
    """What a layer remembers of a batch: the inputs of its three convolutions that their taps still reach,
    (batch, taps - 1, channels) each, and its states, (batch, heads, head_width, state_width) fp32."""

    def __init__(self) -> None:
        self.histories: list[Tensor] | None = None
        self.states: Tensor | None = None


class Mamba2(Convolving, nn.Module):
    """See the module's docstring; `models.table.mamba2` declares the parameters."""

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        settings, width = model.mamba2, model.width
        heads = settings.heads(width)
        inner, shared = heads * settings.head_width, settings.groups * settings.state
        self.taps, self.head_width, self.state_width = (
            settings.convolution,
            settings.head_width,
            settings.state,
        )
        self.gate = Linear(width, inner, bias=False)
        self.input = Linear(width, inner, bias=False)
        self.b = Linear(width, shared, bias=False)
        self.c = Linear(width, shared, bias=False)
        self.dt = Linear(width, heads, bias=False)
        self.input_convolution = Convolution(inner, self.taps)
        self.b_convolution = Convolution(shared, self.taps)
        self.c_convolution = Convolution(shared, self.taps)
        self.a_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.d = nn.Parameter(torch.empty(heads))
        self.norm = GatedNorm(inner, settings.groups, model.norm_epsilon)
        self.output = Linear(inner, width, bias=False)

    def state(self, columns: int) -> Mamba2State:
        """An empty state; it does not grow."""
        return Mamba2State()

    def forward(
        self, x: Tensor, plan: Prepared, state: Mamba2State | None, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """See `layer.Layer`."""
        gate = self.gate(x)
        inside, b, c = self._convolved([self.input(x), self.b(x), self.c(x)], plan, state)
        inside = inside.unflatten(-1, (-1, self.head_width))
        b, c = (t.unflatten(-1, (-1, self.state_width)) for t in (b, c))
        dt = self.dt(x)
        exact = torch.promote_types(dt.dtype, torch.float32)
        dt = F.softplus(dt.to(exact) + self.dt_bias)
        y = self._scanned(inside, dt, b, c, plan, state)
        return self.output(self.norm(y.flatten(2), gate)), carried

    def _convolved(self, raw: list[Tensor], plan: Prepared, state: Mamba2State | None) -> list[Tensor]:
        convolutions = (self.input_convolution, self.b_convolution, self.c_convolution)
        if state is None:
            return [convolution(t, plan.reach) for convolution, t in zip(convolutions, raw, strict=True)]
        if state.histories is None:
            out = [convolution(t, plan.reach) for convolution, t in zip(convolutions, raw, strict=True)]
            state.histories = [history(t, plan.segments, self.taps) for t in raw]
            return out
        each = list(zip(convolutions, raw, state.histories, strict=True))
        out = [convolution.continued(t, before) for convolution, t, before in each]
        state.histories = [history(t, plan.segments, self.taps, before) for _, t, before in each]
        return out

    def _scanned(
        self, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, plan: Prepared, state: Mamba2State | None
    ) -> Tensor:
        a = -torch.exp(self.a_log.to(dt.dtype))
        entering = None if state is None else state.states
        if entering is not None and x.shape[1] == 1:
            return ssd.step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], entering, self.d)[:, None]
        y, last = ssd.scan(x, dt, a, b, c, plan.segments, entering, self.d)
        probe.show("recurrence", dt, a, last)
        if state is not None:
            state.states = last.detach()
        return y
