"""The optimizers' bench: what it makes of measured steps, and that its contenders make the same update."""

from types import SimpleNamespace

import pytest
import torch

from bench.families import transformer
from bench.optimizers import FAMILIES, summarise
from bench.shapes import Shape
from bench.updates import MAKERS
from cupola.models import build

TINY = Shape(layers=1, width=32, heads=2, vocabulary=64, sequence=16, batch=2)


def worker(name: str, steps: list[list[float]]) -> SimpleNamespace:
    turns = [{"seconds": sum(turn), "step_seconds": turn, "peak_bytes": 1} for turn in steps]
    return SimpleNamespace(name=name, parameters=1, steps=len(steps[0]), turns=turns)


def test_the_ratio_is_of_rounds_and_soaps_of_means():
    mine = worker("muon", [[1.0, 1.0], [4.0, 4.0], [1.0, 1.0]])
    peer = worker("torch muon", [[2.0], [8.0], [4.0]])
    ours, theirs = summarise("muon", [mine, peer])
    assert ours["ratio_to_peer"] == pytest.approx(0.5)
    assert ours["milliseconds"] == pytest.approx(1000)
    assert theirs["ratio_to_peer"] is None
    mine = worker("soap", [[1.0], [1.0]])
    peer = worker("pytorch-optimizer soap", [[1.0], [7.0]])
    ours, theirs = summarise("soap", [mine, peer])
    assert ours["ratio_to_peer"] == pytest.approx(0.25)
    assert theirs["milliseconds"] == pytest.approx(4000)
    assert theirs["largest_to_median"] == pytest.approx(7 / 4)


@pytest.mark.parametrize(
    ("names", "bound"),
    [(FAMILIES["adamw"], 1e-3), (("muon, torch's iteration", "torch muon"), 0.05), (FAMILIES["muon"], 0.2)],
)
def test_contenders_make_the_same_update(names, bound):
    """The same settings, the same split; in bf16, so for Muon only about the same."""
    found = []
    for name in names:
        module = build(transformer(TINY), TINY.vocabulary, seed=0)
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
        for update in MAKERS[name](module):
            update()
        found.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach() - before)
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < bound
