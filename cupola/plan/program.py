"""What a training program does, as far as it changes the time of a step and not the memory.

`execution` says how things are computed where that decides about memory. The default is what a program of
today does: the newest attention kernels, compiled layers, collectives of shards beside computation, those of
tensor parallelism not.
"""

from dataclasses import dataclass
from typing import Literal

Attention = Literal["flash1", "flash2", "flash3", "flash4"]
ATTENTION: tuple[Attention, ...] = ("flash1", "flash2", "flash3", "flash4")
"""Generations of fused attention kernels (Dao et al. 2022; Dao 2023; Shah et al. 2024; the like for
Blackwell). A device takes the newest that it has a figure of, and none newer than the program's. cuDNN's
count as the newest of a device."""


@dataclass(frozen=True)
class Program:
    """How it is run.

    Attributes:
        attention: generation of its kernels, where `Kernels.flash` holds.
        passes: how often more memory is passed over than with functions fused by a compiler: about 2 where
            each is a kernel of its own, more where norms and positions are computed in fp32 by many.
        graphs: kernels are launched from a recorded graph: the host costs nothing.
        hides_shards: share of data-parallel workers' collectives that runs beside computation.
        hides_tensor: the same of tensor parallelism's.
        hides_experts: of the exchange of experts' tokens.
        merges_copies: a token goes once to each device and node that has some of its experts, not once for
            each expert (DeepEP and its like).
        hides_context: of the exchange of keys and values.
        hides_pipeline: of what is sent between stages.
        gathered: bytes of a parameter as shards are gathered; None: as products take it.
        reduced: bytes of a gradient as it is reduced; None: as it lies there.
        stops_early: recomputation ends where the backward pass has what it needs: a layer's last product is
            not computed again (torch's checkpoints without re-entry, since 2.1).
        one_card: collectives cross from node to node over one network card at a time (DeepSpeed's stage 3 of
            2021, by the time of its steps), not over every member's.
        sends: share of the bandwidth of collectives that sends between stages in different domains reach.
        host: seconds that each microbatch costs on each rank beside what is counted.
    """

    attention: Attention = "flash4"
    passes: float = 1.0
    graphs: bool = False
    hides_shards: float = 1.0
    hides_tensor: float = 0.0
    hides_experts: float = 0.0
    merges_copies: bool = False
    hides_context: float = 0.0
    hides_pipeline: float = 0.5
    gathered: float | None = None
    reduced: float | None = None
    stops_early: bool = True
    one_card: bool = False
    sends: float = 1.0
    host: float = 0.0

    @property
    def compiled(self) -> bool:
        """Whether functions are fused."""
        return self.passes < 1.5


OURS = Program()
