"""Cross-entropy of a linear head, without ever holding all logits.

Guarantees: `linear_cross_entropy` is F.cross_entropy(F.linear(hidden, weight), targets) in value and
gradients (fp32: to rounding). Under autocast the matrix products are in its dtype; maximum, exponential,
sum and loss are in fp32, and the gradient of the weight is summed over the chunks in fp32.
Costs: one chunk of logits (`CHUNK_BYTES`, or `CHUNK_ROWS` rows if that is more) instead of tokens x
vocabulary, and the gradients of hidden and weight from the forward pass on. The three matrix products of
the plain formula, none twice: gradients are made while the chunk's logits are there, and the backward pass
only scales them. So it can be differentiated once, by the one scalar that it returns first.
Trade-off: large chunks, because each adds to the whole gradient of the weight; small blocks of rows inside
for the softmax, so that on CPU its passes stay in the cache. Measured on one core (forward and backward,
against the plain formula, which rounds its gradient of the logits alike): 2048 x 384 -> 8192 fp32 422 ms
against 553, bf16 219 against 370; 1024 x 768 -> 32768 fp32 1786 against 2003, bf16 941 against 1228.
Chunks of 128 rows cost 15 to 45% more.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cupola.data.batch import IGNORED
from cupola.models.layers import compute_dtype

CHUNK_BYTES = 64 * 2**20
"""Logits held at once, on CPU."""

CHUNK_BYTES_ON_GPU = 256 * 2**20
"""The same on a GPU, where products of few rows are slow (a guess: not measured yet)."""

CHUNK_ROWS = 256
"""At least so many rows in a chunk, so that adding to the weight's gradient does not dominate."""

ROWS = 64
"""On CPU a bf16 product gets rows of zeros up to a multiple of so many: answers have any number of tokens,
and oneDNN makes code for each number that it meets, in 10 to 25 ms for the three products of 256 -> 4096."""

BLOCK_BYTES = 2 * 2**20
"""fp32 logits of one softmax on CPU: what a core's cache holds."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over the tokens of -log softmax(hidden weight^T)[target].

    Args:
        hidden: (N, width).
        weight: (vocabulary, width).
        targets: (N,) int64; negative ones (-100) are ignored.
        z_loss: weight of the squared log-normaliser, added to the loss (PaLM; Chowdhery et al. 2022).

    Returns:
        What to differentiate, with the z-loss in it; the cross-entropy alone; the sum of the squared
        log-normalisers. Three fp32 scalars, sums over the tokens; only the first has a gradient.
    """
    dtype = compute_dtype(hidden)
    return _LinearCrossEntropy.apply(hidden, weight, targets, z_loss, dtype)


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(hidden weight^T)[target] of each token, for evaluation: no gradient, chunked as well.

    Args:
        hidden: (N, width).
        weight: (vocabulary, width).
        targets: (N,) int64; negative ones are ignored.

    Returns:
        (N,) fp32; 0 where the target is ignored.
    """
    dtype = compute_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        losses, _ = _Chunks(hidden, weight, targets, 0.0, dtype).run()
    return losses


def token_log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden weight^T)[target] of each token, with a gradient for each, chunked as well.

    What a loss makes of sums over whole answers (preferences, policies) is known only once all of them are
    there, so the backward pass makes each chunk's logits a second time: four matrix products, not three.

    Args:
        hidden: (N, width); divided by a temperature, where there is one.
        weight: (vocabulary, width).
        targets: (N,) int64; negative ones are ignored.

    Returns:
        (N,) fp32; 0 where the target is ignored. To be differentiated once.
    """
    return _TokenLogProbabilities.apply(hidden, weight, targets, compute_dtype(hidden))


class _TokenLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.dtype = dtype
        with torch.autocast(hidden.device.type, enabled=False):
            losses, _ = _Chunks(hidden, weight, targets, 0.0, dtype).run()
        return losses.neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden, weight, targets, 0.0, ctx.dtype, -gradient)
            chunks.run(*ctx.needs_input_grad[:2])
        parts = (chunks.hidden_gradient, hidden), (chunks.weight_gradient, weight)
        return *(None if part is None else part.to(whole.dtype) for part, whole in parts), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden, weight, targets, z_loss, dtype)
            losses, normalisers = chunks.run(*ctx.needs_input_grad[:2])
            cross_entropy, z = losses.sum(), normalisers.square_().sum()
        ctx.gradients = chunks.hidden_gradient, chunks.weight_gradient
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(cross_entropy, z)
        return cross_entropy + z_loss * z, cross_entropy, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy can be differentiated once: its gradients are used up")
        # Scaled in place, after the cast: they are as large as the head, and nobody else holds them.
        scaled = [
            None if part is None else part.to(dtype).mul_(gradient)
            for part, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return *scaled, None, None, None


class _Chunks:
    """One pass over the tokens; holds the buffers that all chunks share.

    The gradients are those of the sum over the tokens; with `factors` (N,) fp32, of what each loss times its
    factor comes to.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        factors: Tensor | None = None,
    ) -> None:
        on_cpu = hidden.device.type == "cpu"
        self.count, vocabulary = len(hidden), weight.shape[0]
        self.hidden, self.weight = hidden.detach().to(dtype), weight.detach().to(dtype)
        self.targets, self.z_loss, self.factors = targets, z_loss, factors
        if on_cpu and dtype == torch.bfloat16 and (missing := -self.count % ROWS):
            self.hidden = F.pad(self.hidden, (0, 0, 0, missing))
            self.targets = F.pad(targets, (0, missing), value=IGNORED)
            self.factors = None if factors is None else F.pad(factors, (0, missing))
        self.hidden_gradient: Tensor | None = None
        self.weight_gradient: Tensor | None = None
        fitting = (CHUNK_BYTES if on_cpu else CHUNK_BYTES_ON_GPU) // (vocabulary * dtype.itemsize)
        self.rows = max(1, min(len(self.hidden), max(CHUNK_ROWS, fitting)))
        self.block_rows = max(1, BLOCK_BYTES // (vocabulary * 4)) if on_cpu else self.rows
        self.logits = hidden.new_empty(self.rows, vocabulary, dtype=dtype)
        # Where the logits are fp32 already, the softmax is in place.
        self.scratch = (
            None
            if dtype == torch.float32
            else self.logits.new_empty(min(self.block_rows, self.rows), vocabulary, dtype=torch.float32)
        )

    def run(self, hidden_gradient: bool = False, weight_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """(N,) fp32 losses and log-normalisers, 0 where ignored; gradients are left in the attributes."""
        count = len(self.hidden)
        losses = self.hidden.new_empty(count, dtype=torch.float32)
        normalisers = torch.empty_like(losses)
        if hidden_gradient:
            self.hidden_gradient = torch.empty_like(self.hidden)
        for begin in range(0, count, self.rows):
            chunk = slice(begin, begin + self.rows)
            inputs = self.hidden[chunk]
            logits = torch.mm(inputs, self.weight.t(), out=self.logits[: len(inputs)])
            for first in range(0, len(inputs), self.block_rows):
                block = slice(begin + first, min(begin + first + self.block_rows, begin + len(inputs)))
                part = logits[first : first + self.block_rows]
                losses[block], normalisers[block] = self._softmax(
                    part, block, hidden_gradient or weight_gradient
                )
            if self.hidden_gradient is not None:
                torch.mm(logits, self.weight, out=self.hidden_gradient[chunk])
            if weight_gradient:
                self.weight_gradient = _add_product(self.weight_gradient, logits, inputs)
        if self.hidden_gradient is not None:
            self.hidden_gradient = self.hidden_gradient[: self.count]
        return losses[: self.count], normalisers[: self.count]

    def _softmax(self, logits: Tensor, block: slice, gradient: bool) -> tuple[Tensor, Tensor]:
        """Losses and log-normalisers of a block; with `gradient`, its logits become their gradients."""
        targets = self.targets[block]
        valid = targets >= 0
        indices = targets.clamp(min=0)[:, None]
        chosen = logits.gather(1, indices).float()
        peak = logits.amax(1, keepdim=True).float()
        if self.scratch is None:
            exact = logits
        else:
            exact = self.scratch[: len(logits)]
            exact.copy_(logits)
        probabilities = torch.softmax(exact, 1, out=exact)
        # The largest probability is 1 / sum(exp(logits - peak)), so no second sum over the row is needed.
        normaliser = peak - probabilities.amax(1, keepdim=True).log_()
        keep = valid[:, None]
        losses = torch.where(keep, normaliser - chosen, 0.0)
        normaliser = torch.where(keep, normaliser, 0.0)
        if gradient:
            factor = keep.float() if self.factors is None else keep * self.factors[block, None]
            scale = factor * (1 + 2 * self.z_loss * normaliser)
            probabilities.mul_(scale).scatter_add_(1, indices, -factor)
            if exact is not logits:
                logits.copy_(exact)
        return losses[:, 0], normaliser[:, 0]


def _add_product(total: Tensor | None, logits: Tensor, inputs: Tensor) -> Tensor:
    """total + logits^T inputs; of several chunks the sum is in fp32, whatever the products' dtype."""
    if total is None:
        return logits.t() @ inputs
    if logits.dtype == total.dtype == torch.float32:
        return total.addmm_(logits.t(), inputs)
    return total.float().add_(logits.t() @ inputs)
