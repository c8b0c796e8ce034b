"""Who is measured: one function for each, which builds a model and gives back a training step.

All peers run one plain loop (`PlainLoop`): forward, loss, backward, clip the gradient to norm 1, fused
AdamW with decay of matrices only. They differ in the model and in the loss, each taken as its own project
takes it. A contender whose package is not installed raises ImportError; the caller says so.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench.shapes import Shape

LEARNING_RATE = 3e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0


@dataclass(frozen=True)
class Settings:
    """What is the same for all contenders of one measurement."""

    shape: Shape
    precision: str
    compiled: bool
    device: str


@dataclass(frozen=True)
class Contender:
    """A model ready to train: `step` takes tokens and targets, both (batch, sequence), and gives the loss."""

    parameters: int
    step: Callable[[torch.Tensor, torch.Tensor], float]


class PlainLoop:
    """The loop that a researcher writes in ten lines."""

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
        settings: Settings,
    ) -> None:
        module = module.to(settings.device).train()
        self.parameters = list(module.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
        self.module = torch.compile(module) if settings.compiled else module
        self.loss = loss
        self.settings = settings

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> float:
        autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.settings.precision == "bf16":
            autocast = torch.autocast(self.settings.device, torch.bfloat16)
        with autocast:
            loss = self.loss(self.module, tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def contender(self) -> Contender:
        return Contender(sum(parameter.numel() for parameter in self.parameters), self.step)


def cupola(settings: Settings) -> Contender:
    """A Llama-shaped model, trained by the parts that a stage of `cupola run` uses."""
    from cupola.recipe.model import Model

    shape = settings.shape
    model = Model(
        layers=shape.layers, width=shape.width, heads=shape.heads, feedforward=shape.gated_feedforward
    )
    return train_ours(settings, model)


def train_ours(settings: Settings, model: Any) -> Contender:
    """A model of Cupola, trained by the parts that a stage of `cupola run` uses.

    Args:
        model: a recipe's `model:` block.
    """
    from cupola import objectives, optim
    from cupola.data.batch import Batch, Microbatch
    from cupola.models import build
    from cupola.parallel.engine import LocalEngine
    from cupola.recipe.clock import StepValues
    from cupola.recipe.schema import LearningRate, Optimizer, Stage
    from cupola.train.memory import keep_freed_memory
    from cupola.train.step import train_step

    keep_freed_memory()
    module = build(model, settings.shape.vocabulary, seed=0, device=settings.device)
    optimizer = optim.build(module, Optimizer(betas=BETAS))
    objective = objectives.build(Stage(data="random", learning_rate=LearningRate(peak=LEARNING_RATE)))
    values = StepValues(LEARNING_RATE, WEIGHT_DECAY, momentum=0.0, z_loss=0.0)
    engine = LocalEngine(module, settings.precision, settings.device)
    if settings.compiled:
        engine.compile()

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        microbatch = Microbatch(
            tokens,
            targets,
            torch.zeros_like(tokens, dtype=torch.int32),
            np.zeros(len(tokens), dtype=np.int64),
        )
        batch = Batch(0, tokens.numel(), [microbatch], {"random": tokens.numel()}, tokens.numel())
        return train_step(engine, optimizer, objective, batch, values, CLIP).loss

    return Contender(sum(parameter.numel() for parameter in module.parameters()), step)


def reference(settings: Settings) -> Contender:
    """The plain GPT-2 of `bench.reference`."""
    from bench.reference import ReferenceGPT

    def loss(module: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(module(tokens).flatten(0, 1), targets.flatten())

    return PlainLoop(ReferenceGPT(settings.shape), loss, settings).contender()


def litgpt(settings: Settings) -> Contender:
    """litgpt's GPT as a Llama (RMSNorm, rotary positions, SwiGLU), with the loss of its `pretrain`."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    shape = settings.shape
    config = Config(
        name="bench",
        block_size=shape.sequence,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.gated_feedforward,
    )

    def loss(module: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(module(tokens), targets)

    return PlainLoop(GPT(config), loss, settings).contender()


def hugging_face(settings: Settings) -> Contender:
    """transformers' Llama with its own loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = settings.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.gated_feedforward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.sequence,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )

    def loss(module: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return module(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss

    return PlainLoop(LlamaForCausalLM(config), loss, settings).contender()


CONTENDERS: dict[str, Callable[[Settings], Contender]] = {
    "cupola": cupola,
    "reference": reference,
    "litgpt": litgpt,
    "huggingface": hugging_face,
}
