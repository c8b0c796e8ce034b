"""Parity and speed on a GPU, where there is one: `python -m bench.gpu_check`.

Every fast path is compared with the plain formula in fp64 on the CPU, and whole training steps with the
same steps on the CPU in fp32. The exit status is 1 if anything is off. Where there is no GPU it says that
it ran nothing and exits with 0. `--device cpu` runs the same comparisons on the CPU, to test them.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import click
import torch
from torch.nn import functional

from bench.contenders import CONTENDERS, Settings
from bench.shapes import SHAPES, Shape
from bench.worker import batches
from cupola.train.peak import matmul_peak

SMALL = Shape(layers=2, width=128, heads=4, vocabulary=512, sequence=128, batch=4)
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 2.5e-2}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
STEPS = 5


@dataclass(frozen=True)
class Finding:
    """One comparison: the largest difference relative to the largest value, and what is allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def good(self) -> bool:
        """False also for NaN."""
        return self.error <= self.tolerance


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    expected = expected.double().cpu()
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max())


def with_gradients(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor], dtype: torch.dtype, device: str
) -> list[torch.Tensor]:
    """The function's value in a dtype on a device, and the gradient of each input.

    The value is weighted by fixed numbers before summing, so that every element matters to the gradients.
    """
    leaves = [tensor.to(device, dtype).requires_grad_() for tensor in inputs]
    value = function(*leaves)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (value.double() * weights.to(device)).sum().backward()
    return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def attention(device: str) -> Iterator[Finding]:
    """The path that a layer takes on this device, with and without documents, with grouped queries."""
    from cupola.models.attention import attend, attend_reference, plan

    generator = torch.Generator().manual_seed(1)
    batch, length, width = 2, 384, 64
    documents = (torch.rand(batch, length, generator=generator) < 0.02).cumsum(1).int()
    for dtype in TOLERANCES:
        for title, numbers in (("one document", None), ("many documents", documents)):
            inputs = [
                torch.randn(batch, length, heads, width, generator=generator).to(dtype).double()
                for heads in (8, 2, 2)
            ]
            on_device = plan(
                batch, length, None if numbers is None else numbers.to(device), torch.device(device)
            )
            on_cpu = plan(batch, length, numbers, torch.device("cpu"))
            found = with_gradients(lambda q, k, v, p=on_device: attend(q, k, v, p), inputs, dtype, device)
            expected = with_gradients(
                lambda q, k, v, p=on_cpu: attend_reference(q, k, v, p), inputs, torch.float64, "cpu"
            )
            for part, one, other in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
                name = f"attention {NAMES[dtype]}, {title}, {part}"
                yield Finding(name, difference(one, other), TOLERANCES[dtype])


def cross_entropy(device: str) -> Iterator[Finding]:
    """The chunked loss against the plain formula, with targets that do not count."""
    from cupola.objectives.cross_entropy import linear_cross_entropy

    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(4096, (700,), generator=generator)
    targets[::9] = -100
    for dtype in TOLERANCES:
        inputs = [
            (torch.randn(rows, 256, generator=generator) / 16).to(dtype).double() for rows in (700, 4096)
        ]
        found = with_gradients(
            lambda hidden, head: linear_cross_entropy(hidden, head, targets.to(device))[0],
            inputs,
            dtype,
            device,
        )
        expected = with_gradients(
            lambda hidden, head: functional.cross_entropy(hidden @ head.T, targets, reduction="sum"),
            inputs,
            torch.float64,
            "cpu",
        )
        for part, one, other in zip(("loss", "d hidden", "d head"), found, expected, strict=True):
            yield Finding(f"cross-entropy {NAMES[dtype]}, {part}", difference(one, other), TOLERANCES[dtype])


def training(device: str) -> Iterator[Finding]:
    """The losses of a few whole steps (forward, backward, clipping, optimizer) against the CPU's in fp32."""
    expected = losses(Settings(SMALL, "fp32", False, "cpu"))
    for dtype, precision in NAMES.items():
        found = losses(Settings(SMALL, precision, False, device))
        error = max(abs(one - other) / other for one, other in zip(found, expected, strict=True))
        yield Finding(f"training {precision}, {STEPS} steps", error, TOLERANCES[dtype])


def losses(settings: Settings) -> list[float]:
    """Cupola's losses on the same batch again and again."""
    step = CONTENDERS["cupola"](settings).step
    tokens, targets = batches(settings.shape, settings.device)[0]
    return [step(tokens, targets) for _ in range(STEPS)]


def speed(device: str) -> None:
    """Tokens a second beside the plain reference; `bench.training_step` measures all peers."""
    for name, shape in SHAPES.items():
        shape = replace(shape, batch=shape.batch * 8)
        peak = matmul_peak("bf16", device)
        for contender in ("cupola", "reference"):
            figure = tokens_per_second(contender, Settings(shape, "bf16", False, device))
            share = figure * shape.flops / shape.tokens / peak
            click.echo(
                f"speed {name} bf16, {contender}: {figure:,.0f} tokens/s, {share:.1%} of the matmul peak"
            )


def tokens_per_second(contender: str, settings: Settings, steps: int = 20) -> float:
    """Median over steps, after three that are not counted."""
    step = CONTENDERS[contender](settings).step
    data = batches(settings.shape, settings.device)
    seconds = []
    for number in range(steps + 3):
        begun = time.perf_counter()
        step(*data[number % len(data)])  # returns a number, so the GPU has finished
        seconds.append(time.perf_counter() - begun)
    return settings.shape.tokens / statistics.median(seconds[3:])


@click.command()
@click.option("--device", help="Check this device (default: the GPU).")
def command(device: str | None) -> None:
    """Compare every fast path with its reference on a GPU, then measure."""
    if device is None and not torch.cuda.is_available():
        click.echo("no GPU here: nothing was checked, nothing was measured")
        return
    device = device or "cuda"
    good = True
    for check in (attention, cross_entropy, training):
        for finding in check(device):
            good = good and finding.good
            verdict = "ok    " if finding.good else "FAILED"
            click.echo(f"{verdict} {finding.name}: {finding.error:.1e} (at most {finding.tolerance:.1e})")
    if device != "cpu":
        speed(device)
    if not good:
        click.echo("some checks failed", err=True)
        sys.exit(1)


if __name__ == "__main__":
    command()
