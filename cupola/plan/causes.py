"""What step time rests on beside a device's record: each number is one cause, and stands here alone.

A device's own figures (peaks, what large products reach of them, attention kernels, bandwidths, latencies)
are in `catalogue.yaml`. What a program does (kernels, overlap, what it sends) is in `program`. What is left
are these numbers, which are taken to be the same for every device and program. `bench.planner
--cross-validate` fits the ones in `FITTED` anew without the rows of each system in turn.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Causes:
    """The numbers.

    Attributes:
        stream: share of the memory's bandwidth that a kernel reaches which only reads and writes. STREAM on
            A100 and H100: 0.85 to 0.93; kernels with strides and reductions less.
        tile: seconds of a tile of a product outside its inner loop: filling the pipeline, writing it out. Of
            the order of two memory latencies and the time to write 64 KiB.
        tail: part of a wave of tiles for which a product leaves the device idle at its end. Half a wave, were
            the number of tiles random; libraries choose tiles that waste less.
        gap: seconds from one kernel to the next on the device. About 1 us on recent ones, with what a
            kernel's start and end leave idle.
        launch: seconds of the host for a kernel, through Python and the framework's dispatch.
        wire: share of a link's or network's bandwidth that collectives reach. NCCL's own tests: 0.75 to 0.85.
        interference: what a hidden collective costs all the same, in parts of the time that its bytes take on
            links: it takes cores and memory bandwidth from what it hides behind.
        narrow: power of (head width / 128) by which attention kernels slow down on narrower heads.
        scan: share of the 16-bit peak that chunked recurrences (Mamba-2, RWKV-7) reach. An assumption.
        jitter: relative deviation of a device's step from the mean; all wait for the slowest.
        pause: seconds of a step in which devices wait for the host: input, gradient norm, log. An assumption.
    """

    stream: float = 0.80
    tile: float = 2e-6
    tail: float = 0.3
    gap: float = 2e-6
    launch: float = 8e-6
    wire: float = 0.75
    interference: float = 0.45
    narrow: float = 0.15
    scan: float = 0.15
    jitter: float = 0.01
    pause: float = 0.01


CAUSES = Causes()
FITTED = ("stream", "tile", "wire", "interference", "jitter")
"""Which of them published rows say something about, and were chosen with a look at these."""
