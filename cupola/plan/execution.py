"""How training is computed, as far as it changes the memory that it takes: precision, kernels, loss."""

from dataclasses import dataclass, field
from typing import Literal

from cupola.plan.activations import Kernels

Precision = Literal["bf16", "fp16", "fp32", "fp8", "fp4"]
Loss = Literal["eager", "vocabulary_parallel", "in_place", "compiled", "chunked"]
GIB = 2.0**30

LOGITS: dict[Loss, float] = {"eager": 12, "vocabulary_parallel": 16, "in_place": 8, "compiled": 4}
"""Bytes for each logit where a loss is dearest.

- eager: torch's `cross_entropy` of fp32 logits: log-probabilities, their gradient, the logits' gradient.
- vocabulary_parallel: torch's `loss_parallel`: log-probabilities, zeros like them, exponentials, their sum.
- in_place: Megatron-LM's and nanotron's: fp32 logits, and the softmax that becomes the gradient.
- compiled: 16-bit logits and their gradient.

`chunked`, ours, holds `CHUNK` bytes of logits, and the gradients of its weight and input."""
CHUNK = 256 * 2.0**20
ON_CPU = 0.4 * GIB
"""Bytes of a process with torch, before it has any tensor."""


PEAK = (0.9, 1.18)
"""Between what multiples of a predicted peak 90% of published ones lie (`bench.planner`)."""


@dataclass(frozen=True)
class Execution:
    """How it is computed.

    Attributes:
        gradients: bytes of a gradient that lies there (4 where 16-bit ones are summed in fp32).
        copies: 16-bit weights lie beside fp32 masters also where both are sharded (DeepSpeed's stage 3; FSDP
            has none).
        gather: of sharded parameters, layer by layer, or all of a rank once for a step; by default once where
            there is a pipeline, whose microbatches would gather them again and again.
        fragmentation: as a share of what is allocated.
        overhead: bytes outside the allocator: CUDA's context, NCCL, cuBLAS.
    """

    precision: Precision = "bf16"
    gradients: int = 4
    copies: bool = False
    gather: Literal["layer", "step"] | None = None
    kernels: Kernels = field(default_factory=Kernels)
    loss: Loss = "chunked"
    fragmentation: float = 0.05
    overhead: float = 1.5 * GIB

    @property
    def element(self) -> int:
        """Bytes of a weight as products take it."""
        return 4 if self.precision == "fp32" else 2
