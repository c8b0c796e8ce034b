"""How fast the machine is at the moment: a small fixed piece of work, timed now and then.

Virtual machines share their cores, caches and power with others, and are up to a third slower for tens of
seconds without anyone at work who could be seen. What is timed is a training step in small, a feed-forward
layer there and back and the loss of a few rows: a slow machine is slow at products, at what takes the
memory's bandwidth and at starting operations by different factors, and steps are made of all three. So the
dry run reckons all its seconds at one pace, and a stage can say at which pace it ran; neither makes a noisy
machine quiet.

On a GPU nothing is probed, and the pace is always the same.
"""

import statistics
import time

import torch
from torch.nn import functional

from cupola.parallel.device import Precision, autocast

ROWS, WIDTH, HIDDEN = 1024, 256, 1024
SCORED, VOCABULARY = 256, 4096
TIMES = 3
"""Of which the median counts: some 40 ms in all on two cores."""
EVERY = 5.0
"""Seconds between two probes of a stage: less than a hundredth of its time."""


class _Work:
    """A training step in small."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device, self.precision = device, precision
        self.rows = torch.full((ROWS, WIDTH), 1.0)
        self.up = torch.full((WIDTH, HIDDEN), 1 / WIDTH, requires_grad=True)
        self.down = torch.full((HIDDEN, WIDTH), 1 / HIDDEN, requires_grad=True)
        self.vocabulary = torch.full((WIDTH, VOCABULARY), 1 / WIDTH)

    @torch.enable_grad()
    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            normed = functional.rms_norm(self.rows, (WIDTH,))
            hidden = functional.silu(normed @ self.up) @ self.down
            scores = self.rows[:SCORED] @ self.vocabulary
        scores.float().logsumexp(-1)
        (self.rows + hidden).square().mean().backward()
        self.up.grad = self.down.grad = None


class Pace:
    """Probes since it was made; the first one is made here.

    Attributes:
        unit: seconds of the first probe, to which others are levelled.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self._work = _Work(device, precision) if device.type == "cpu" else None
        if self._work is not None:
            self._time()  # cold
        self._span = self._area = 0.0
        self.unit = self._last = self._measured()
        self._at = time.perf_counter()

    def _time(self) -> float:
        """The median: a moment in which another process ran is no pace."""
        assert self._work is not None
        spent = []
        for _ in range(TIMES):
            begun = time.perf_counter()
            self._work()
            spent.append(time.perf_counter() - begun)
        return statistics.median(spent)

    def _measured(self) -> float:
        return 1.0 if self._work is None else self._time()

    def probe(self) -> float:
        """Seconds of the work now; 1 where nothing is probed."""
        seconds, now = self._measured(), time.perf_counter()
        self._span += now - self._at
        self._area += (now - self._at) * (self._last + seconds) / 2
        self._at, self._last = now, seconds
        return seconds

    def due(self) -> None:
        """Probe if the last one is some time ago."""
        if time.perf_counter() - self._at >= EVERY:
            self.probe()

    def levelled(self, seconds: float, *around: float) -> float:
        """Seconds at the first probe's pace.

        Args:
            around: probes before and after, or between.
        """
        return seconds * self.unit * len(around) / sum(around)

    @property
    def mean(self) -> float:
        """Seconds of the work on average since the first probe, by the clock."""
        return self._area / self._span if self._span else self.unit
