"""The bench's own arithmetic, its peers' sizes, and one measurement of a tiny shape from end to end."""

import importlib.util
import json
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner

from bench import gpu_check
from bench.contenders import CONTENDERS, Settings
from bench.reference import ReferenceGPT
from bench.shapes import SHAPES, Shape
from bench.training_step import command, parse_shape, summarise

TINY = Shape(layers=2, width=64, heads=2, vocabulary=128, sequence=32, batch=2)


def weights(shape: Shape) -> int:
    """Weights of matrices: 12 width^2 a layer where SwiGLU's width comes out even, and embedding and head."""
    feedforward = 3 * shape.width * shape.gated_feedforward
    return shape.layers * (4 * shape.width**2 + feedforward) + 2 * shape.vocabulary * shape.width


def test_shapes_cost_what_the_formula_says():
    for shape in SHAPES.values():
        assert weights(shape) == shape.layers * 12 * shape.width**2 + 2 * shape.vocabulary * shape.width
    assert SHAPES["S"].tokens == 2048
    # 6 N for every token, and half of 12 layers x width x sequence
    matrices = 6 * 12 * 384**2 + 8192 * 384
    assert SHAPES["S"].flops == 2048 * (6 * matrices + 6 * 6 * 384 * 256)


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_are_of_equal_size_and_learn(name):
    if name == "litgpt" and importlib.util.find_spec("litgpt") is None:
        pytest.skip("litgpt is not installed")
    shape = Shape(layers=2, width=192, heads=3, vocabulary=128, sequence=32, batch=2)
    contender = CONTENDERS[name](Settings(shape, "fp32", compiled=False, device="cpu"))
    assert contender.parameters == pytest.approx(weights(shape), rel=0.01)
    tokens = torch.randint(128, (2, 32), generator=torch.Generator().manual_seed(0))
    losses = [contender.step(tokens, tokens.roll(-1, 1)) for _ in range(12)]
    assert losses[0] == pytest.approx(torch.tensor(128.0).log().item(), rel=0.05)
    assert losses[-1] < losses[0] - 0.2


def test_reference_sees_no_future():
    torch.manual_seed(0)
    model = ReferenceGPT(TINY)
    tokens = torch.randint(128, (1, 32))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 128
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def worker(name: str, seconds: list[float]) -> SimpleNamespace:
    turns = [
        {"seconds": s, "cpu_seconds": 2 * s, "loss": 1.0, "peak_bytes": 10, "step_bytes": 4} for s in seconds
    ]
    return SimpleNamespace(
        name=name, ours=name.startswith("cupola"), steps=1, turns=turns, parameters=1, first_seconds=9.0
    )


def test_ratios_are_taken_within_a_round():
    # The machine halves its speed in the second round; ours is 1.5 times the best peer in each.
    workers = [worker("cupola", [1, 2, 1]), worker("slow", [3, 6, 3]), worker("best", [1.5, 3, 1.5])]
    rows = {row["name"]: row for row in summarise(workers, TINY, peak=1e9)}
    assert list(rows) == ["cupola", "best", "slow"]
    assert rows["cupola"]["ratio_to_best_peer"] == pytest.approx(1.5)
    assert rows["best"]["ratio_to_best_peer"] == 1
    assert rows["slow"]["ratio_to_best_peer"] == pytest.approx(0.5)
    assert rows["cupola"]["tokens_per_second"] == 64
    assert (rows["cupola"]["slowest"], rows["cupola"]["fastest"]) == (32, 64)
    assert rows["cupola"]["tokens_per_cpu_second"] == 32
    assert rows["cupola"]["share_of_matmul_peak"] == pytest.approx(TINY.flops / 1e9)


def test_without_peers_there_is_no_ratio():
    rows = summarise([worker("cupola", [1.0])], TINY, peak=1e9)
    assert rows[0]["ratio_to_best_peer"] is None


def test_shapes_are_parsed():
    assert parse_shape("S") == SHAPES["S"]
    assert parse_shape("2,64,2,128,32,2") == TINY
    for text in ("XL", "1,2,3", "a,b,c,d,e,f"):
        with pytest.raises(click.BadParameter):
            parse_shape(text)


def test_measures_who_is_there_and_names_who_is_not():
    only = ["--only", "reference", "--only", "litgpt"]
    options = ["--shape", "2,64,2,128,32,2", "--rounds", "2", "--turn-seconds", "0.05", "--threads", "1"]
    done = CliRunner().invoke(command, [*only, *options, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)["results"][0]
    named = {row["name"] for row in result["contenders"]} | set(result["missing"])
    assert named == {"reference", "litgpt"}
    row = next(row for row in result["contenders"] if row["name"] == "reference")
    assert row["tokens_per_second"] > 0
    assert row["peak_bytes"] > row["step_bytes"] > 0
    if importlib.util.find_spec("litgpt") is None:
        assert "litgpt" in result["missing"]["litgpt"]


def test_gpu_check_says_that_it_ran_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu_check.command, [])
    assert done.exit_code == 0
    assert done.output == "no GPU here: nothing was checked, nothing was measured\n"


def test_gpu_check_fails_on_a_wrong_path(monkeypatch):
    monkeypatch.setattr(gpu_check, "training", lambda device: iter(()))
    done = CliRunner().invoke(gpu_check.command, ["--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "FAILED" not in done.output
    monkeypatch.setattr("cupola.models.attention.attend", lambda q, k, v, plan: 1.1 * q * k.mean() * v.mean())
    done = CliRunner().invoke(gpu_check.command, ["--device", "cpu"])
    assert done.exit_code == 1
    assert "FAILED attention fp32, one document, output" in done.output
    assert not gpu_check.Finding("NaN", float("nan"), 1.0).good
