"""Where a matrix is whole: what Muon and SOAP ask before they precondition.

Their mathematics is of the whole matrix: a shard's own orthogonal factor is not a shard of the whole's, nor
is a shard's covariance. Elementwise arithmetic (momentum, weight decay, the addition of the update, all of
AdamW) is the same on shards. So an optimizer works on each process's own tensors, and between the two kinds
of arithmetic a `Layout` gathers matrices and cuts updates:

    whole   = layout.gather(tensors, parameters)     of the matrices that are this process's to work on
    updates = precondition(whole)
    local   = layout.cut(updates, parameters)        this process's part of the update of every parameter

What lies where, for parameters sharded by FSDP2 (rows over the data ranks) or by tensor parallelism (rows or
columns), both as DTensors:

- parameter, gradient, momentum, AdamW's moments: sharded alike; `local` gives this process's tensors, which
  share storage with the DTensors.
- the matrix that is preconditioned: whole, for the length of a step, on the processes that `mine` names.
- state of a whole matrix (SOAP's covariances, eigenbases, and second moments in them): with the process
  whose it is, so `mine` must not change from step to step: it follows from the list's length alone, and the
  list is every parameter of one shape in a group, in order.

Two layouts keep this protocol, and cost, for n matrices of b bytes each on w processes:

- all work on all: `mine` is everything, `gather` an all-gather (each process receives n b (w - 1) / w
  bytes), `cut` a slice without communication. Work and state of whole matrices are repeated w times.
- owners in turn: `mine` is every w-th. `gather` sends each shard to its owner (an all-to-all: each process
  sends and receives n b (w - 1) / w^2), `cut` sends the owner's update back (as much again). Work and state
  are shared out; the last round leaves up to w - 1 processes idle.

The second is the better one wherever the work is not small beside the communication: 2 / w of the traffic
and 1 / w of the work. Which one a mesh gets is for `cupola.parallel` to choose; on one process there is one
layout, `Whole`, which copies nothing.
"""

from typing import Protocol

from torch import Tensor


class Layout(Protocol):
    """How the processes share out the matrices of one shape."""

    def local(self, tensors: list[Tensor]) -> list[Tensor]:
        """This process's own part of each tensor, sharing its storage."""
        ...

    def mine(self, count: int) -> list[int]:
        """Which of so many matrices this process works on, in order; the same at every step."""
        ...

    def gather(self, tensors: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """The whole of the tensors that are `mine`, in that order.

        Args:
            tensors: local parts, one for each parameter and cut like it.
        """
        ...

    def cut(self, updates: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """This process's part of every parameter's update.

        Args:
            updates: whole, of the matrices that are `mine`; not necessarily contiguous.
        """
        ...


class Whole:
    """One process, which has everything: the tensors themselves, not copies."""

    def local(self, tensors: list[Tensor]) -> list[Tensor]:
        """The same list."""
        return tensors

    def mine(self, count: int) -> list[int]:
        """All of them."""
        return list(range(count))

    def gather(self, tensors: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """The same list."""
        return tensors

    def cut(self, updates: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """The same list."""
        return updates


WHOLE = Whole()
