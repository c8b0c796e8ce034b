"""Seconds of collectives, by bytes, ways, and the links that they pass.

Devices are numbered with tensor-parallel neighbours next to each other, then those of context, of data, of
the pipeline, so a group with stride 8 in domains of 8 has one member in each. A ring passes a domain's
border once for each member that it has there, so that its members' network cards work together: to gather
S bytes over n devices, g of them in a domain,

    time = max( S (n - 1) / n / link,  S (1 - g / n) / (g network) ) / wire + hops

where the second falls away with one domain, and the first with one member in each (Thakur et al. 2005 for
the ring; the hops are those of a ring, as NCCL's gather and scatter are).
"""

from dataclasses import dataclass

from cupola.plan.causes import CAUSES, Causes
from cupola.plan.hardware import Hardware
from cupola.plan.layout import Layout


@dataclass(frozen=True)
class Group:
    """Devices that exchange something.

    Attributes:
        ways: how many.
        near: how many of them are in one domain.
    """

    ways: int
    near: int
    hardware: Hardware
    causes: Causes = CAUSES

    @property
    def domains(self) -> float:
        """Over how many it is spread."""
        return self.ways / self.near

    @property
    def hops(self) -> float:
        """Seconds of a ring's messages for nothing."""
        across = self.domains if self.domains > 1 else 0.0
        own = self.hardware
        return across * own.network_latency + (self.ways - 1 - max(0.0, across - 1)) * own.link_latency

    def gather(self, size: float) -> float:
        """Seconds until each has `size` bytes, of which it had its share; or reduced them to it."""
        if self.ways == 1 or size == 0:
            return 0.0
        inside = size * (self.ways - 1) / self.ways / self.hardware.link if self.near > 1 else 0.0
        across = size * (1 - self.near / self.ways) / (self.near * self.hardware.network)
        return max(inside, across) / self.causes.wire + self.hops

    def load(self, size: float) -> float:
        """Seconds that a gather of `size` bytes would take on links alone: what it asks of a device, however
        slow the network is."""
        return size * (self.ways - 1) / self.ways / self.hardware.link / self.causes.wire

    def reduce(self, size: float) -> float:
        """Seconds until the sum of `size` bytes lies on each: scattered, then gathered."""
        return 2 * self.gather(size)

    def exchange(self, size: float, copies: int = 1, merged: bool = False) -> float:
        """Seconds until each has sent `size` bytes to members drawn at random, itself as well.

        Args:
            copies: of one and the same, in `size`, each to a member drawn for itself.
            merged: a member and a domain get what several of their own were drawn for but once.
        """
        if self.ways == 1 or size == 0:
            return 0.0
        members = _distinct(self.ways, copies) if merged else copies
        domains = _distinct(self.domains, copies) if merged else copies
        inside = size * members / copies * (self.near - 1) / self.ways / self.hardware.link
        across = size * domains / copies * (1 - 1 / self.domains) / self.hardware.network
        latency = self.hardware.network_latency if self.domains > 1 else self.hardware.link_latency
        return max(inside, across) / self.causes.wire + latency

    def send(self, size: float) -> float:
        """Seconds until a neighbour has `size` bytes."""
        if self.ways == 1 or size == 0:
            return 0.0
        if self.near > 1 and self.domains == 1:
            return size / self.hardware.link / self.causes.wire + self.hardware.link_latency
        return size / self.hardware.network / self.causes.wire + self.hardware.network_latency


def _distinct(places: float, draws: int) -> float:
    """How many places are drawn at least once, on average."""
    return places * (1 - (1 - 1 / places) ** draws)


def group(ways: int, stride: int, hardware: Hardware, causes: Causes = CAUSES) -> Group:
    """Of so many devices, each so many after the last."""
    near = max(1, min(ways, hardware.domain // stride))
    return Group(ways, near, hardware, causes)


def tensor(layout: Layout, hardware: Hardware, causes: Causes = CAUSES) -> Group:
    """Those that share a layer."""
    return group(layout.tensor, 1, hardware, causes)


def context(layout: Layout, hardware: Hardware, causes: Causes = CAUSES) -> Group:
    """Those that share a row."""
    return group(layout.context, layout.tensor, hardware, causes)


def expert(layout: Layout, hardware: Hardware, causes: Causes = CAUSES) -> Group:
    """Those that share a layer's experts."""
    return group(layout.expert, layout.tensor, hardware, causes)


def shards(layout: Layout, hardware: Hardware, causes: Causes = CAUSES, experts: bool = False) -> Group:
    """Those with the same parameters; or with the same experts."""
    if experts:
        return group(max(1, layout.shards // layout.expert), layout.tensor * layout.expert, hardware, causes)
    return group(layout.shards, layout.tensor, hardware, causes)


def pipeline(layout: Layout, hardware: Hardware, causes: Causes = CAUSES) -> Group:
    """The ranks of a pipeline."""
    return group(layout.pipeline, layout.tensor * layout.shards, hardware, causes)
