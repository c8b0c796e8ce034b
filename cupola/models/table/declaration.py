"""The words in which a layer declares its parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cupola.recipe.model import Model

Role = Literal["matrix", "low_rank", "embedding", "head", "vector", "buffer"]
Cut = Literal["colwise", "rowwise", "vocabulary", "replicate", "replicate_by_head"]


@dataclass(frozen=True)
class Parameter:
    """One parameter as it is built.

    `role` is how it is trained: a matrix decays and may be orthogonalised, embedding, head and vectors do
    neither; a buffer is kept and saved, but no gradient moves it. A matrix is (outputs, inputs) as in
    `torch.nn.Linear`; one of three axes, (experts, outputs, inputs), is a batch of matrices, and each of them
    is cut and orthogonalised by itself.

    `fused` names the rows of each of the matrices that are one parameter, row below row (query, key and
    value; gate and up): each is orthogonalised by itself. Empty, as with all of ours so far: it is one
    matrix.

    `cut` is how tensor parallelism shards it, in Megatron-LM's terms (Shoeybi et al. 2019):

    - colwise: by outputs, the last axis but one (a bias's only axis), in whole multiples of `unit` rows, so
      that heads stay together, and with grouped queries the whole group of a key/value head.
    - rowwise: by inputs, the last axis; the outputs are summed over the workers.
    - vocabulary: by rows of the vocabulary.
    - replicate: whole on every worker, which computes with it on the whole residual stream.
    - replicate_by_head: whole on every worker, but applied to that worker's heads only, so its gradient
      must be summed over the workers. Treated as plain `replicate` it trains wrong without an error.

    `draw` names its initial distribution, a key of `cupola.models.init.DRAWS`; `layer` is the number of its
    block (0 outside the blocks), on which the distribution may depend. `base` is the shape that it has in the
    base model of the parametrisation (`cupola.recipe.parametrisation`), None where there is none.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    cut: Cut
    draw: str = "normal"
    unit: int = 1
    layer: int = 0
    fused: tuple[int, ...] = ()
    base: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Part:
    """What one kind of mixer or feed-forward layer declares; names are relative to the part."""

    parameters: Callable[[Model, int], list[Parameter]]
    """(model, number of the block) -> its parameters, in the order of the built module."""
    forward_flops: Callable[[Model, int, int, bool], float]
    """(model, number of the block, sequence length, causal) -> FLOPs of the forward pass per token, its
    matrices included."""
    active: Callable[[Model, int], int] | None = None
    """(model, number of the block) -> parameters that one token meets; None: all of them."""


def vector(name: str, length: int, draw: str, cut: Cut = "replicate", unit: int = 1) -> Parameter:
    """One number for each channel or head."""
    return Parameter(name, (length,), "vector", cut, draw, unit)


def linear(
    name: str,
    outputs: int,
    inputs: int,
    cut: Literal["colwise", "rowwise", "replicate"],
    bias: bool = False,
    draw: str = "normal",
    unit: int = 1,
    role: Role = "matrix",
) -> list[Parameter]:
    """The weight (outputs, inputs) of a linear map, and its bias where it has one."""
    found = [Parameter(f"{name}.weight", (outputs, inputs), role, cut, draw, unit)]
    if bias:
        # A rowwise map adds its bias once, after the sum over the workers.
        bias_cut: Cut = "colwise" if cut == "colwise" else "replicate"
        bias_unit = unit if cut == "colwise" else 1
        found.append(vector(f"{name}.bias", outputs, "zero", bias_cut, bias_unit))
    return found


def matrix_flops(part: list[Parameter]) -> float:
    """2 FLOPs per element of each matrix, low-rank ones included, per token, forward."""
    return 2.0 * sum(p.size for p in part if p.role in ("matrix", "low_rank"))


def only_matrices(parameters: Callable[[Model, int], list[Parameter]]) -> Part:
    """A part whose work is its matrices."""

    def forward_flops(model: Model, layer: int, sequence_length: int, causal: bool) -> float:
        return matrix_flops(parameters(model, layer))

    return Part(parameters, forward_flops)
