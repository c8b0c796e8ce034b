"""Mixtures of experts in the files of Mixtral and Qwen3-MoE: a name for each matrix of each expert.

transformers 5 holds them fused in memory, but reads and writes these names. Its weight of the balance loss is
ours divided by the number of active experts: see `cupola.models.experts`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cupola.export.config import MOST_EXPERTS, Config
from cupola.export.format import shown
from cupola.export.pairs import Pair, renamed, stacked
from cupola.models import table
from cupola.recipe.model import Experts, Model


def balance_fields(experts: Experts) -> dict[str, float]:
    """The weight of the balance loss as a file states it."""
    weight = experts.balance_weight if experts.balance == "auxiliary" else 0.0
    return {"router_aux_loss_coef": weight / experts.active}


def read_balance(config: Config, active: int) -> dict[str, Any]:
    """The settings of `Experts` that a file's weight says; 0 means that nothing evens the loads."""
    weight = config.number("router_aux_loss_coef", 0.001, zero=True)
    return {"balance": "auxiliary", "balance_weight": weight * active} if weight else {"balance": "none"}


@dataclass(frozen=True)
class Mixture:
    """Names and settings of one of them."""

    layer: str
    """What the names of a layer's router and experts begin with, after `model.layers.N.`."""
    gate: str
    up: str
    down: str
    width: str
    """The field that holds an expert's width."""
    count: tuple[str, ...]
    """The fields that may hold the number of experts; the first is written."""
    defaults: tuple[int, int]
    """Number of experts, and of active ones, of files that don't state them."""
    always_normalised: bool
    dense_layers: bool
    """Some layers may have a plain feed-forward layer."""

    def objections(self, model: Model) -> list[str]:
        """See `Format`."""
        experts = model.experts
        if experts is None:
            return ["experts: a mixture"]
        wanted: dict[str, Any] = {"score": "softmax", "shared": 0}
        if self.always_normalised:
            wanted["normalise"] = True
        if not self.dense_layers:
            wanted["first_dense"] = 0
        found = [
            f"experts.{name}: {shown(value)}"
            for name, value in wanted.items()
            if getattr(experts, name) != value
        ]
        if experts.balance == "bias":  # it chooses the experts
            found.append("experts.balance: auxiliary or none")
        return found

    def fields(self, model: Model) -> dict[str, Any]:
        """The fields of `config.json`."""
        experts = model.experts
        assert experts is not None
        found: dict[str, Any] = {
            self.count[0]: experts.count,
            "num_experts_per_tok": experts.active,
            self.width: experts.width,
            **balance_fields(experts),
        }
        if self.dense_layers:
            found |= {"decoder_sparse_step": 1, "mlp_only_layers": list(range(experts.first_dense))}
        if not self.always_normalised:
            found["norm_topk_prob"] = experts.normalise
        return found

    def read(self, config: Config, layers: int) -> Experts:
        """The settings of a file."""
        active = config.integer("num_experts_per_tok", default=self.defaults[1])
        count = config.integer(*self.count, default=self.defaults[0], least=2, most=MOST_EXPERTS)
        if active > count:
            config.refuse("num_experts_per_tok", active, f"is more than there are, {count}")
        return Experts(
            count=count,
            active=active,
            width=config.integer(self.width),
            first_dense=self._first_dense(config, layers),
            normalise=self.always_normalised or config.flag("norm_topk_prob", False),
            **read_balance(config, active),
        )

    def _first_dense(self, config: Config, layers: int) -> int:
        if not self.dense_layers:
            return 0
        config.only("decoder_sparse_step", 1)
        dense = config.get("mlp_only_layers", [])
        numbers = isinstance(dense, list) and all(type(layer) is int for layer in dense)
        if not numbers or sorted(dense) != list(range(len(dense))) or len(dense) >= layers:
            config.refuse("mlp_only_layers", dense, "is not computed by Cupola (the first layers are)")
        return len(dense)

    def pairs(self, model: Model) -> Iterator[Pair]:
        """See `Format`."""
        assert model.experts is not None
        for number, block in enumerate(table.blocks(model)):
            if block.feedforward != "experts":
                continue
            theirs, ours = f"model.layers.{number}.{self.layer}", f"blocks.{number}.feedforward"
            yield renamed(f"{theirs}.gate.weight", f"{ours}.router.weight")
            for name, part in (("gate", self.gate), ("up", self.up), ("down", self.down)):
                names = [f"{theirs}.experts.{expert}.{part}.weight" for expert in range(model.experts.count)]
                yield stacked(names, f"{ours}.{name}")


QWEN3_MOE = Mixture(
    layer="mlp",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
    width="moe_intermediate_size",
    count=("num_experts", "num_local_experts"),
    defaults=(128, 8),
    always_normalised=False,
    dense_layers=True,
)
MIXTRAL = Mixture(
    layer="block_sparse_moe",
    gate="w1",
    up="w3",
    down="w2",
    width="intermediate_size",
    count=("num_local_experts", "num_experts"),
    defaults=(8, 2),
    always_normalised=True,
    dense_layers=False,
)
