"""A mixture of experts in place of the feed-forward layer (Shazeer et al. 2017; Fedus et al. 2021).

A router scores every expert for each token, the best few work on it, and their results are added with the
scores as weights. Guarantees: no token is dropped, however uneven the loads; nothing depends on the other
tokens of a batch but the losses and biases that even loads; on a GPU nothing waits for the host, and nothing
is added in an order that may change. The router works in fp32, whatever the precision.

The pairs (token, expert) are sorted by expert and each of an expert's matrices is one product of its rows:
torch's grouped product, or a loop over the experts where there is none. It costs 2 copies of every pair's
row besides. Forward and backward of 2048 tokens, width 512, one core of an AMD EPYC, in ms of CPU time
(`python -m bench.experts`: median of interleaved rounds), beside transformers' block in its two ways:

                                     ours   loop   grouped   eager
    fp32   8 experts of 512, 2 active   224    229       228     253
    fp32  64 experts of 128, 8 active   274    293       299     695
    bf16   8 experts of 512, 2 active   118    119       229     147    (its grouped way computes in fp32
    bf16  64 experts of 128, 8 active   174    184       306     619     under autocast)

Loads are evened in one of two ways:

- `auxiliary`, a loss (Fedus et al. 2021, eq. 4): for each layer count * sum_i f_i P_i, where f_i is the share
  of the pairs that went to expert i (they sum to 1) and P_i the mean of the probability that the router gives
  it (sigmoid scores are divided by their sum for this, as in DeepSeek-V3). It is 1 where loads are even,
  whatever the number of active experts. The stack gives `balance_weight` times its mean over the layers,
  times the microbatch's tokens: a sum over tokens, so that divided by a batch's tokens it is the mean over
  microbatches, and the metric `balance` is `balance_weight` where loads are even and every token is a
  target (targets that are left out of the loss make the share of this one larger). f is a microbatch's own,
  so that, unlike the loss of the tokens, this one depends on how a batch is cut: loads are evened within
  each microbatch. Hugging Face's `load_balancing_loss_func` lets the f_i sum to `active`, so its coefficient
  is ours divided by `active`; and it takes f and P over the tokens of all layers together, where an expert
  that is crowded in one layer makes up for its namesake that is idle in another: for one layer both are the
  same, for several ours is the mean of its value for each.
- `bias` (Wang et al. 2024; DeepSeek-V3): experts are chosen by score + bias but weighted by the score alone.
  After each step `rebalance` moves every expert's bias by `bias_rate`, up where its load over the whole
  batch was below the mean and down where it was above. No gradient is disturbed. (The published rate, 0.001,
  is made for sigmoids; softmax scores are about 1 / count, and want a smaller one where experts are many.)
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cupola.models import probe, table
from cupola.models.grouped import Groups, combine, dispatch, grouped_linear, groups_of
from cupola.models.layer import Carried, Pointwise
from cupola.models.layers import Gated, Linear, linear
from cupola.recipe.model import Model

SMALLEST_SUM = 1e-20
"""Of the scores that weights are divided by; only sigmoids of logits below -46 come near it."""


class Routing(NamedTuple):
    """What the router says of (tokens, width)."""

    scores: Tensor
    """(tokens, experts) fp32."""
    chosen: Tensor
    """(tokens, active) int64."""
    weights: Tensor
    """(tokens, active) fp32."""


class Experts(Pointwise, nn.Module):
    """sum over the chosen e of weight_e * down_e(silu(gate_e(x)) * up_e(x)), and the shared expert's.

    Weights of the routed experts are (experts, outputs, inputs).
    """

    balance_bias: Tensor | None

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        assert model.experts is not None
        self.settings = settings = model.experts
        self.gate = nn.Parameter(torch.empty(settings.count, settings.width, model.width))
        self.up = nn.Parameter(torch.empty(settings.count, settings.width, model.width))
        self.down = nn.Parameter(torch.empty(settings.count, model.width, settings.width))
        self.router = Linear(model.width, settings.count, bias=False)
        self.shared: Gated | None = None
        if settings.shared:
            self.shared = Gated(model.model_copy(update={"feedforward": settings.shared}), layer)
        bias = torch.zeros(settings.count) if settings.balance == "bias" else None
        self.register_buffer("balance_bias", bias)
        layers = sum(block.feedforward == "experts" for block in table.blocks(model))
        self.balance_weight = settings.balance_weight / layers if settings.balance == "auxiliary" else 0.0

    def forward(self, x: Tensor, plan: None, state: None, carried: Carried) -> tuple[Tensor, Carried]:
        """x (batch, length, width) -> the same; hands on the loads, and in training the loss that evens
        them."""
        tokens = x.flatten(0, -2)
        routing = self.route(tokens)
        groups = groups_of(routing.chosen, self.settings.count)
        mixed = self.mix(tokens, routing.weights, groups).view_as(x)
        if self.shared is not None:
            mixed = mixed + self.shared(x, None, None, carried)[0]
        loads = groups.loads()
        balance = carried.balance
        if self.training and self.balance_weight:
            own = self.balance_weight * balance_loss(routing.scores, loads)
            balance = own if balance is None else balance + own
        return mixed, carried._replace(balance=balance, loads=(*carried.loads, loads))

    def route(self, tokens: Tensor) -> Routing:
        """tokens (tokens, width)."""
        settings = self.settings
        with torch.autocast(tokens.device.type, enabled=False):
            exact = torch.promote_types(tokens.dtype, torch.float32)
            logits = linear(tokens.to(exact), self.router.weight.to(exact))
        scores = logits.softmax(-1) if settings.score == "softmax" else logits.sigmoid()
        preferred = scores if self.balance_bias is None else scores + self.balance_bias
        chosen = preferred.detach().topk(settings.active).indices
        weights = scores.gather(-1, chosen)
        if settings.normalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)
        return Routing(scores, chosen, weights)

    @torch.compiler.disable
    def mix(self, tokens: Tensor, weights: Tensor, groups: Groups) -> Tensor:
        """The routed experts' weighted sum: (tokens, width) -> the same.

        A weight scales the hidden row, which is narrower than the result and is kept for the backward pass
        anyway. A compiled block calls this as it is: torch's compiler has no grouped product in fp32.
        """
        rows = dispatch(tokens, groups)
        hidden = F.silu(grouped_linear(rows, self.gate, groups)) * grouped_linear(rows, self.up, groups)
        probe.show("expert_hidden", hidden, groups)
        weight = weights.flatten()[groups.order].to(hidden.dtype)
        return combine(grouped_linear(hidden * weight[:, None], self.down, groups), groups)

    @torch.no_grad()
    def rebalance(self, load: Tensor) -> None:
        """Move the bias once, where there is one and the router is trained; load (experts,): how many tokens
        each expert got."""
        if self.balance_bias is not None and self.router.weight.requires_grad:
            load = load.to(self.balance_bias.dtype)
            self.balance_bias += self.settings.bias_rate * torch.sign(load.mean() - load)


def balance_loss(scores: Tensor, loads: Tensor) -> Tensor:
    """tokens * count * sum_i f_i P_i, at least about `tokens`: a scalar; see the module's docstring.

    Args:
        scores: (tokens, experts), not negative.
        loads: (experts,) int64: how many tokens each expert got; no gradient passes.
    """
    probabilities = scores / scores.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)
    shares = loads / loads.sum()
    return loads.numel() * (probabilities.sum(0) * shares).sum()


def rebalance(module: nn.Module, loads: tuple[Tensor, ...]) -> None:
    """Let every mixture of experts in `module` answer to a batch's loads, given in order of the blocks."""
    mixtures = [layer for layer in module.modules() if isinstance(layer, Experts)]
    for mixture, load in zip(mixtures, loads, strict=True):
        mixture.rebalance(load)


def imbalance(loads: tuple[Tensor, ...]) -> Tensor:
    """The load of the most crowded expert of all layers over its layer's mean: a scalar, 1 where even."""
    each = torch.stack(loads).float()
    return (each.amax(1) / each.mean(1)).max()
