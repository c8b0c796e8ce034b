"""A mixture of experts beside Hugging Face's block of the same weights: forward and backward, milliseconds of
CPU time, median of interleaved rounds; in brackets the median ratio to ours. The table of
`cupola/models/experts.py` is read off it.

    python -m bench.experts [--threads 1] [--width 512] [--tokens 2048] [--dtype bf16]

`loop` is ours with a loop over the experts for the grouped product; `hf grouped` and `hf eager` are the two
implementations of transformers' Qwen3MoeSparseMoeBlock. bf16 is autocast over fp32 weights, in which the
former computes in fp32.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

from cupola.models import grouped
from cupola.models.experts import Experts
from cupola.models.layer import Carried
from cupola.recipe.model import Experts as Settings
from cupola.recipe.model import Model
from cupola.train.memory import keep_freed_memory

SHAPES = ((8, 2, 512), (64, 8, 128))
"""Experts, active ones, width of each: equal work, with many rows to an expert and with few."""
ROUNDS = 9
Call = Callable[[Tensor], Tensor]


def contenders(settings: Settings, width: int) -> dict[str, tuple[Call, nn.Module]]:
    """What is measured, with equal weights."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    ours = Experts(Model(layers=1, width=width, heads=1, experts=settings), 0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0.0, 0.05)

    def call(x: Tensor) -> Tensor:
        return ours(x, None, None, Carried())[0]

    def looped(x: Tensor) -> Tensor:
        with mock.patch.object(grouped, "_GROUPED_MM", None):
            return call(x)

    found: dict[str, tuple[Call, nn.Module]] = {"ours": (call, ours), "loop": (looped, ours)}
    for name, implementation in (("hf grouped", "grouped_mm"), ("hf eager", "eager")):
        config = Qwen3MoeConfig(
            hidden_size=width,
            moe_intermediate_size=settings.width,
            num_experts=settings.count,
            num_experts_per_tok=settings.active,
            norm_topk_prob=True,
        )
        config._experts_implementation = implementation
        block = Qwen3MoeSparseMoeBlock(config)
        with torch.no_grad():
            block.gate.weight.copy_(ours.router.weight)
            block.experts.gate_up_proj.copy_(torch.cat((ours.gate, ours.up), 1))
            block.experts.down_proj.copy_(ours.down)
        found[name] = (block, block)
    return found


def measure(found: dict[str, tuple[Call, nn.Module]], x: Tensor, autocast: bool) -> dict[str, list[float]]:
    """Milliseconds of each, round by round."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS + 1):
        for name, (call, module) in found.items():
            module.zero_grad()
            x.grad = None
            begun = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = call(x)
            out.backward(torch.ones_like(out))
            times[name].append(1000 * (time.process_time() - begun))
    return {name: values[1:] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), action="append")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    for dtype in options.dtype or ("fp32", "bf16"):
        for count, active, width in SHAPES:
            settings = Settings(count=count, active=active, width=width)
            x = torch.randn(1, options.tokens, options.width, requires_grad=True)
            times = measure(contenders(settings, options.width), x, dtype == "bf16")
            parts = []
            for name, values in times.items():
                ratio = statistics.median(a / b for a, b in zip(values, times["ours"], strict=True))
                parts.append(f"{name} {statistics.median(values):.0f} ({ratio:.2f})")
            print(f"{dtype} {count} experts of {width}, {active} active:  {'  '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
