"""Which parameters a stage trains: what `freeze` leaves, or LoRA's matrices; pure functions, without torch.

Of W x + scale B A x (Hu et al. 2021, arXiv 2106.09685), A is `LAYER.lora_a`, (rank, inputs), and B
`LAYER.lora_b`, (outputs, rank), of the linear layer `LAYER`. Both are matrices in the sense of `declaration`:
they decay, Muon orthogonalises each of them, and SOAP takes each into its eigenbases (with `one_sided_above`,
in most layers of the rank's side alone). While B is 0, as at first, A has no gradient; only decay moves it.

Under a parametrisation they follow the table of `transfer` like any matrix: A has the layer's inputs, so its
learning rate falls with the width; B has `rank` of them, so its own does not. That is what Hayou et al. 2024
(LoRA+, arXiv 2402.12354) derive.

Tensor parallelism cuts B by outputs where W is cut so, and A by inputs where W is; the other of the two is
whole, and works on its worker's part alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cupola.errors import InputError
from cupola.models.table import SCORE, parameters
from cupola.models.table import flops_per_token as flops_of_all
from cupola.models.table.declaration import Cut, Parameter
from cupola.recipe.adapting import Lora
from cupola.recipe.model import Model
from cupola.recipe.schema import Recipe, Stage
from cupola.recipe.structure import did_you_mean

ROLES = ("matrix", "low_rank", "embedding", "head", "vector")
A, B = "lora_a", "lora_b"
ADAPTERS = (f".{A}", f".{B}")
"""How the names of LoRA's matrices end."""
WEIGHT = ".weight"
ROUTER = ".router"
ELSEWHERE = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "out_proj": "output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "in_proj": "gate, input, b, c and dt",
    "c_attn": "query, key and value",
}
"""What other systems call a layer."""


@dataclass(frozen=True)
class Trained:
    """What a stage trains.

    Attributes:
        own: names of the model's own parameters that are trained.
        adapters: LoRA's matrices, A and B of one layer after the other; none without LoRA.
        frozen: the model's parameters that are not trained.
    """

    own: frozenset[str]
    adapters: tuple[Parameter, ...]
    frozen: tuple[Parameter, ...]
    count: int
    """Numbers that are trained."""
    reads_only: bool = False
    """It makes no logits: what it learns is the scalar head's."""

    def words(self) -> str | None:
        """How much is trained, for people; None: everything."""
        if not self.frozen:
            return None
        added = sum(p.size for p in self.adapters)
        own, frozen = self.count - added, sum(p.size for p in self.frozen)
        if not self.adapters:
            return f"trains {own:,} of {own + frozen:,} parameters"
        beside = f" and {own:,} parameters in full" if own else ""
        layers = len(self.adapters) // 2
        return (
            f"trains {added:,} numbers in low-rank updates of {layers} layers{beside}, of a model of"
            f" {own + frozen:,}"
        )


def of_stage(model: Model, vocabulary: int, stage: Stage) -> Trained:
    """What a stage of a model trains.

    A scalar head is always trained, whatever is frozen beside it; where it alone is learnt from, the head of
    words is not.

    Args:
        vocabulary: rows of embedding and head.

    Raises:
        InputError: a name means nothing, or nothing is left to train; begins with the stage's key.
    """
    scalar = {SCORE} if stage.scores else set()
    everything = [p for p in parameters(model, vocabulary, stage.scores) if p.role != "buffer"]
    declared = [p for p in everything if p.name != SCORE]
    adapters: tuple[Parameter, ...] = ()
    if stage.lora is not None:
        adapters = _adapters(declared, stage.lora)
        own = _named(declared, stage.lora.train, "lora.train")
        both = [p for p in adapters if f"{p.name.rpartition('.')[0]}{WEIGHT}" in own]
        if both:
            layer = both[0].name.rpartition(".")[0]
            raise InputError(f"lora.train: {layer} is trained in full and by lora; take it out of either")
    else:
        own = {p.name for p in declared} - _named(declared, stage.freeze, "freeze")
        if not own and not scalar:
            raise InputError("freeze: names all of it, and nothing is left to train")
    reads_only = stage.objective == "reward"
    if reads_only:
        own -= {p.name for p in declared if p.role == "head"}
    own |= scalar
    frozen = tuple(p for p in everything if p.name not in own)
    count = sum(p.size for p in everything if p.name in own) + sum(p.size for p in adapters)
    return Trained(frozenset(own), adapters, frozen, count, reads_only)


def refuse_unknown(recipe: Recipe) -> None:
    """Refuse a recipe in which some stage freezes or adapts what its model does not have.

    Raises:
        InputError: names the stage, its key and the name.
    """
    for name, stage in recipe.stages.items():
        try:
            of_stage(recipe.model, recipe.model.rows(1), stage)
        except InputError as error:
            raise InputError(f"stages.{name}.{error}") from None


def flops_per_token(model: Model, vocabulary: int, part: Trained, sequence_length: int) -> float:
    """`table.flops_per_token` without the weights' gradients that are not made, and with LoRA's products.

    What backward passes save that end above the first block is not taken off.
    """
    active = model.experts.active / model.experts.count if model.experts else 1.0
    words = () if part.reads_only else ("embedding" if model.tied else "head",)
    multiplied = ("matrix", "low_rank", *words)
    spared = 0.0
    for parameter in part.frozen:
        if parameter.role in multiplied and parameter.name != "positions.weight":
            spared += parameter.size * (active if len(parameter.shape) == 3 else 1.0)
    added = 6.0 * sum(p.size for p in part.adapters)
    if part.reads_only:
        added -= 6.0 * vocabulary * model.width
    return flops_of_all(model, vocabulary, sequence_length) - 2.0 * spared + added


def _named(declared: Sequence[Parameter], words: Iterable[str], key: str) -> set[str]:
    """The parameters that roles and patterns of names mean."""
    found: set[str] = set()
    for word in words:
        own = {p.name for p in declared if p.role == word or fnmatchcase(p.name, word)}
        if not own:
            raise InputError(f"{key}: {_nothing(word, declared)}")
        found |= own
    return found


def _nothing(word: str, declared: Sequence[Parameter]) -> str:
    """Why a word means no parameter."""
    roles = [role for role in ROLES if any(p.role == role for p in declared)]
    if word == "head":
        return "the model has no head of its own: it is tied to the embedding"
    if word in ROLES:
        return f"the model has no parameter of role {word}; it has {', '.join(roles)}"
    names = [p.name for p in declared]
    if any(name.startswith(f"{word}.") for name in names):
        return f"{word} is no parameter; did you mean {word}.*?"
    close = did_you_mean(word, [*roles, *names])
    hint = f"did you mean {close}?" if close else f"say {', '.join(roles)}, or a name such as {names[-1]}"
    return f"no parameter is called {word}; {hint}"


def _adapters(declared: Sequence[Parameter], lora: Lora) -> tuple[Parameter, ...]:
    layers = {
        p.name.removesuffix(WEIGHT): p
        for p in declared
        if p.name.startswith("blocks.") and p.name.endswith(WEIGHT) and p.role in ("matrix", "low_rank")
    }
    layers = {name: p for name, p in layers.items() if not name.endswith(ROUTER)}
    chosen = {name for name, p in layers.items() if p.role == "matrix" and not lora.targets}
    for word in lora.targets:
        own = {name for name in layers if _ends_with(name, word)}
        if not own:
            raise InputError(f"lora.targets: {_no_layer(word, layers, declared)}")
        chosen |= own
    if not chosen:
        raise InputError("lora: the model has no linear layer to adapt; remove it")
    return tuple(
        p for name, weight in layers.items() if name in chosen for p in _pair(name, weight, lora.rank)
    )


def _ends_with(name: str, pattern: str) -> bool:
    """Whether a pattern matches a dotted name, or an ending of it that begins after a dot."""
    words = name.split(".")
    return any(fnmatchcase(".".join(words[start:]), pattern) for start in range(len(words)))


def _no_layer(word: str, layers: Iterable[str], declared: Sequence[Parameter]) -> str:
    """Why a word means no layer that can be adapted."""
    experts = [p.name for p in declared if len(p.shape) == 3]
    routers = [p.name.removesuffix(WEIGHT) for p in declared if p.name.endswith(f"{ROUTER}{WEIGHT}")]
    if any(_ends_with(name, word) for name in (*experts, *routers)):
        return f"{word} is of a mixture's experts and routers, which are not adapted; name other layers"
    endings = list(dict.fromkeys(name.split(".", 2)[2] for name in layers))
    short = list(dict.fromkeys(ending.rpartition(".")[2] for ending in endings))
    if word in ELSEWHERE:
        return f"no linear layer of the blocks is called {word}; it is {ELSEWHERE[word]} here"
    if word in ("head", "embedding"):
        return f"{word} is no linear layer of the blocks; to train it in full, name it in lora.train"
    close = did_you_mean(word, [*short, *endings])
    hint = f"did you mean {close}?" if close else f"there are {', '.join(endings)}"
    return f"no linear layer of the blocks is called {word}; {hint}"


def _pair(layer: str, weight: Parameter, rank: int) -> list[Parameter]:
    """A and B of a linear layer."""
    outputs, inputs = weight.shape
    base = weight.base
    # Whole on every worker, it works on that worker's part of the inputs or outputs.
    alone: Cut = "replicate" if weight.cut == "replicate" else "replicate_by_head"
    rowwise = weight.cut == "rowwise"
    a = Parameter(
        f"{layer}.{A}",
        (rank, inputs),
        "matrix",
        "rowwise" if rowwise else alone,
        "fan_in",
        layer=weight.layer,
        base=None if base is None else (rank, base[1]),
    )
    b = Parameter(
        f"{layer}.{B}",
        (outputs, rank),
        "matrix",
        alone if rowwise else weight.cut,
        "zero",
        unit=1 if rowwise else weight.unit,
        layer=weight.layer,
        base=None if base is None else (base[0], rank),
    )
    return [a, b]
