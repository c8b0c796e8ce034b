"""The first Mamba's layer (Gu and Dao 2023): a convolution, a selective scan and a gate.

Here to read published models and go on from them; its recurrence (`selective_scan`) has no form as matrix
products, so a layer trains several times slower than Mamba-2's. While decoding, a layer remembers its last
inputs and (channels x states) numbers, however long the document.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cupola.models import probe
from cupola.models.convolution import Convolution, Convolving, Prepared, history
from cupola.models.layer import Carried, State
from cupola.models.layers import Linear
from cupola.models.selective_scan import scan
from cupola.recipe.model import Model


class MambaState(State):
    """What a layer remembers of a batch: the inputs that its taps still reach, (batch, taps - 1, channels),
    and its state, (batch, channels, states) fp32."""

    def __init__(self) -> None:
        self.history: Tensor | None = None
        self.state: Tensor | None = None


class Mamba(Convolving, nn.Module):
    """See the module's docstring; `models.table.mamba` declares the parameters."""

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        settings, width = model.mamba, model.width
        inner, rank = settings.expansion * width, settings.rank(width)
        self.taps = settings.convolution
        self.a_log = nn.Parameter(torch.empty(inner, settings.state))
        self.d = nn.Parameter(torch.empty(inner))
        self.gate = Linear(width, inner, bias=False)
        self.input = Linear(width, inner, bias=False)
        self.convolution = Convolution(inner, self.taps)
        self.dt_down = Linear(inner, rank, bias=False)
        self.b = Linear(inner, settings.state, bias=False)
        self.c = Linear(inner, settings.state, bias=False)
        self.dt = Linear(rank, inner, bias=True)
        self.output = Linear(inner, width, bias=False)

    def state(self, columns: int) -> MambaState:
        """An empty state; it does not grow."""
        return MambaState()

    def forward(
        self, x: Tensor, plan: Prepared, state: MambaState | None, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """x (batch, length, width) -> the same."""
        raw = self.input(x)
        entering = None
        if state is not None and state.history is not None:
            entering = state.state
            convolved = self.convolution.continued(raw, state.history)
        else:
            convolved = self.convolution(raw, plan.reach)
        # The scan is exact, whatever the products around it are computed in.
        dt, b, c = (
            t.float() for t in (self.dt(self.dt_down(convolved)), self.b(convolved), self.c(convolved))
        )
        inside = convolved.float()
        with torch.autocast(x.device.type, enabled=False):
            a = -torch.exp(self.a_log.float())
            rate = F.softplus(dt)
            y, last = scan(inside, rate, a, b, c, plan.segments, entering)
            probe.show("recurrence", rate, a, last)
            y = y + self.d * inside
        if state is not None:
            state.history = history(raw, plan.segments, self.taps, state.history)
            state.state = last
        return self.output(y.to(raw.dtype) * F.silu(self.gate(x))), carried
