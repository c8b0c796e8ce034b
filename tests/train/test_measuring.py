"""What is measured once: precision, the machine's peak, compiling. No test depends on how fast it is."""

import copy

import numpy as np
import pytest
import torch

from cupola.data.batch import Microbatch
from cupola.models import build
from cupola.objectives import NextToken
from cupola.parallel.engine import LocalEngine
from cupola.recipe.model import Model
from cupola.train import compiling, precision
from cupola.train.compiling import decide_compile
from cupola.train.memory import keep_freed_memory
from cupola.train.peak import matmul_peak
from cupola.train.precision import measure_precision


@pytest.fixture
def module():
    return build(Model(layers=1, width=16, heads=2), 50, seed=1)


@pytest.fixture
def microbatch():
    return Microbatch.of_rows(np.random.default_rng(0).integers(0, 50, (2, 9)))


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, "bf16"), (0.99, "fp32"), (2.0, "fp32")])
def test_the_faster_precision_wins(module, microbatch, monkeypatch, seconds, chosen):
    """bf16 takes `seconds` where fp32 takes one; slow passes don't count."""
    calls = []

    def time_pass(engine, objective, batch):
        calls.append(engine.precision)
        number = calls.count(engine.precision)
        return {1: 100.0, 3: 50.0}.get(number, {"fp32": 1.0, "bf16": seconds}[engine.precision])

    monkeypatch.setattr(precision, "time_pass", time_pass)
    found, ratio = measure_precision(module, NextToken(), microbatch, "cpu")
    assert found == chosen
    assert ratio == pytest.approx(1 / seconds)
    assert calls == ["fp32", "bf16"] * 5


def test_slow_passes_are_not_many(module, microbatch, monkeypatch):
    calls = []
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    monkeypatch.setattr(precision, "time_pass", lambda *_: calls.append(1) or 1.0)
    measure_precision(module, NextToken(), microbatch, "cpu")
    assert len(calls) == 6  # one round to warm up, two that count


def test_measuring_leaves_the_module_as_it_was(module, microbatch):
    before = copy.deepcopy(module.state_dict())
    found, ratio = measure_precision(module, NextToken(), microbatch, "cpu", rounds=1)
    assert found in ("fp32", "bf16")
    assert ratio > 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_peak_is_in_the_range_of_real_machines(name):
    assert 1e8 < matmul_peak(name, "cpu", seconds=0.05) < 1e16


def test_compiling_is_not_tried_on_a_short_run(module, microbatch, monkeypatch):
    engine = LocalEngine(module, "fp32", "cpu")
    monkeypatch.setattr(engine, "compile", lambda: pytest.fail("tried"))
    choice = decide_compile(engine, NextToken(), microbatch, run_seconds=600)
    assert not choice.on
    assert "shorter than 60 minutes" in choice.reason


@pytest.mark.parametrize(("compiled_seconds", "on"), [(0.5, True), (0.999, False), (1.5, False)])
def test_compiling_stays_only_if_it_pays(module, microbatch, monkeypatch, compiled_seconds, on):
    """Passes of a second in eager mode, 4,000 seconds of training; compiling itself takes 100 seconds."""
    engine = LocalEngine(module, "fp32", "cpu")
    state = {"compiled": False, "clock": 0.0}

    def compile_blocks():
        state["compiled"] = True
        state["clock"] += 100

    monkeypatch.setattr(engine, "compile", compile_blocks)
    monkeypatch.setattr(engine, "uncompile", lambda: state.update(compiled=False))
    seconds = lambda *_: compiled_seconds if state["compiled"] else 1.0
    monkeypatch.setattr(compiling, "time_pass", seconds)
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: state["clock"])
    choice = decide_compile(engine, NextToken(), microbatch, run_seconds=4000)
    assert choice.on == state["compiled"] == on
    assert choice.gain == pytest.approx(1 / compiled_seconds)


def test_a_compiler_that_fails_is_done_without(module, microbatch, monkeypatch):
    engine = LocalEngine(module, "fp32", "cpu")

    def fail():
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(engine, "compile", fail)
    choice = decide_compile(engine, NextToken(), microbatch, run_seconds=1e6)
    assert not choice.on
    assert choice.reason == "it fails here (RuntimeError: no C++ compiler)"


def test_keeping_freed_memory_is_safe_to_ask_for_twice():
    assert keep_freed_memory() == keep_freed_memory()
    assert float(torch.ones(3_000_000).sum()) == 3e6
