"""The engine of one process: the forward and backward passes of a batch, microbatch by microbatch.

The step owns no backward; it asks an engine for the gradients of sum / normaliser, so that a pipeline
schedule or another kind of engine can take this one's place.
Guarantees: gradients are added to what `.grad` holds; nothing waits for the device, so that on a GPU the
microbatches follow each other without a gap.
Precision: "fp32" computes in the parameters' dtype. "bf16" is autocast: matrix products in bf16, norms,
softmax statistics and loss in fp32, weights, gradients and optimizer in fp32. The bf16 copies of the
weights are made once for the batch and not once for each microbatch (the autocast context stays open
across them), at the price of holding them: half the weights' memory.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cupola.data.batch import Microbatch
from cupola.objectives import Objective
from cupola.parallel.device import Precision, autocast


@dataclass(frozen=True)
class PassResult:
    """What a batch came to; it still lies on the device. All but the loads are fp32 scalars.

    Attributes:
        loss: the reported loss, divided by the normaliser.
        total: what was differentiated, divided by the normaliser.
        metrics: the objective's further figures, divided likewise, or by the batch's tokens.
        loads: of each mixture of experts, how many of the batch's tokens each expert got: (experts,) int64.
    """

    loss: Tensor
    total: Tensor
    metrics: dict[str, Tensor]
    loads: tuple[Tensor, ...] = ()


class LocalEngine:
    """Runs a whole module in this process.

    Args:
        module: on `device`.
        precision: "fp32" or "bf16".
    """

    def __init__(self, module: nn.Module, precision: Precision, device: torch.device | str) -> None:
        self.module, self.precision, self.device = module, precision, torch.device(device)

    def forward_backward(
        self, microbatches: Iterable[Microbatch], objective: Objective, normaliser: int, tokens: int = 1
    ) -> PassResult:
        """Add the gradient of the objective's sum over the microbatches, divided by `normaliser`.

        Args:
            normaliser: counted over the whole batch, all workers' parts included.
            tokens: its targets that count, likewise.
        """
        sums: dict[str, Tensor] = {}
        by_token: dict[str, Tensor] = {}
        extremes: dict[str, Tensor] = {}
        loads: tuple[Tensor, ...] = ()
        self.module.train()
        with autocast(self.device, self.precision):
            for microbatch in microbatches:
                parts = objective.loss(self.module, microbatch.to(self.device))
                # A backward pass takes its dtypes from the forward pass and must not be cast again.
                with torch.autocast(self.device.type, enabled=False):
                    (parts.sum / normaliser).backward()
                _add(sums, {"total": parts.sum.detach(), "loss": parts.loss, **parts.metrics})
                _add(by_token, parts.by_token)
                _widen(extremes, parts.extremes)
                loads = tuple(map(torch.add, loads, parts.loads)) if loads else parts.loads
        means = {name: value / normaliser for name, value in sums.items()}
        means |= {name: value / max(1, tokens) for name, value in by_token.items()}
        for name, (smallest, largest) in extremes.items():
            means |= {f"{name}_min": smallest, f"{name}_max": largest}
        return PassResult(means.pop("loss"), means.pop("total"), means, loads)

    def compile(self) -> None:
        """Compile each block by itself: as many graphs as there are kinds of blocks, so that the wait does
        not grow with depth. Names of parameters stay as they are."""
        for block in self._blocks():
            block.compile()

    def uncompile(self) -> None:
        """Go back to eager execution."""
        for block in self._blocks():
            block._compiled_call_impl = None

    @contextlib.contextmanager
    def eager(self) -> Iterator[None]:
        """Within it blocks run uncompiled, so that their hooks fire; what was compiled is kept for after."""
        compiled = [(block, block._compiled_call_impl) for block in self._blocks()]
        self.uncompile()
        try:
            yield
        finally:
            for block, call in compiled:
                block._compiled_call_impl = call

    def _blocks(self) -> Iterable[nn.Module]:
        numbered: Callable[[], Iterable[tuple[str, Any]]] = self.module.numbered_blocks  # type: ignore[assignment]
        return [block for _, block in numbered()]


def _add(sums: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    for name, value in parts.items():
        sums[name] = sums[name] + value if name in sums else value


def _widen(extremes: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    for name, ends in parts.items():
        both = torch.stack([extremes.get(name, ends), ends])
        extremes[name] = torch.stack([both[:, 0].min(), both[:, 1].max()])
