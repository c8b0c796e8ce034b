"""How fast the machine is at the moment: a small fixed product, timed now and then.

Virtual machines share their cores, caches and power with others, and are up to a third slower for tens of
seconds without anyone at work who could be seen. Steps that are bound by products slow down as the probe
does; where others take the memory's bandwidth, they slow down by more. So the dry run reckons all its seconds
at one pace, and a stage can say at which pace it ran; neither makes a noisy machine quiet.

On a GPU nothing is probed, and the pace is always the same.
"""

import statistics
import time

import torch

SIDE, TIMES = 768, 5
"""Of the matrices that are multiplied, and how often: some 20 ms on two cores."""
EVERY = 5.0
"""Seconds between two probes of a stage: some 0.3% of its time."""


class Pace:
    """Probes since it was made; the first one is made here.

    Attributes:
        unit: seconds of the first probe, to which others are levelled.
    """

    def __init__(self, device: torch.device) -> None:
        self._on = device.type == "cpu"
        if self._on:
            self._factor = torch.full((SIDE, SIDE), 1.0 / SIDE)
            self._time()  # cold
        self._probes: list[tuple[float, float]] = []
        self.unit = self.probe()

    def _time(self) -> float:
        """The median: a moment in which another process ran is no pace."""
        spent = []
        for _ in range(TIMES):
            begun = time.perf_counter()
            self._factor @ self._factor
            spent.append(time.perf_counter() - begun)
        return statistics.median(spent)

    @torch.no_grad()
    def probe(self) -> float:
        """Seconds of the product now; 1 where nothing is probed."""
        seconds = self._time() if self._on else 1.0
        self._probes.append((time.perf_counter(), seconds))
        return seconds

    def due(self) -> None:
        """Probe if the last one is some time ago."""
        if self._on and time.perf_counter() - self._probes[-1][0] >= EVERY:
            self.probe()

    def levelled(self, seconds: float, *around: float) -> float:
        """Seconds at the first probe's pace.

        Args:
            around: probes before and after, or between.
        """
        return seconds * self.unit * len(around) / sum(around)

    @property
    def mean(self) -> float:
        """Seconds of the product on average since the first probe, by the clock."""
        spans = list(zip(self._probes, self._probes[1:], strict=False))
        whole = sum(later - earlier for (earlier, _), (later, _) in spans)
        if not whole:
            return self.unit
        return sum((later - earlier) * (a + b) / 2 for (earlier, a), (later, b) in spans) / whole
