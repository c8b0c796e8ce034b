"""The bench beside TRL: its arithmetic, its turns, and that what its contenders are given is the same.

Everything that needs TRL is in one test, because importing it takes half a minute.
"""

import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.posttraining import ours
from bench.posttraining.__main__ import COMPARISONS, disagreement, parent, summarise
from bench.posttraining.gate import Gate
from bench.posttraining.reward import overlap
from bench.posttraining.task import Task
from cupola.display import Display

SOURCES = {
    "speeches": "{npm: null, files: null, fallback: null, python: documentation, max_bytes: 400000}",
    "quiz": "{npm: null, files: null, generate: copying, items: 48, heldout: 0.1}",
    "pairs": "{npm: null, files: null, generate: copying, items: 48, heldout: 0.1}",
}
TINY = [
    *(f"corpora.{name}={block}" for name, block in SOURCES.items()),
    "tokenizer.vocabulary=400",
    "model={layers: 1, width: 32, heads: 2}",
    "stages.warm.tokens=2 steps",
    "stages.grpo.policy.prompts=2",
    "stages.grpo.policy.completions=4",
    "stages.grpo.policy.max_completion_length=6",
    *(f"stages.{name}.sequence_length=192" for name in ("warm", "sft", "dpo", "grpo")),
    *(f"stages.{name}.batch_tokens=768" for name in ("warm", "sft", "dpo")),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, session_cache: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUPOLA_CACHE", str(session_cache))
        folder = tmp_path_factory.mktemp("posttraining") / "run"
        parent(TINY, folder, Display())
        yield folder


def answers_of(name: str, contender: str, run: Path, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a contender says that is asked for a step, and then for two."""
    from bench.posttraining.worker import find

    comparison = COMPARISONS[name]
    spec = {"settings": TINY, "stage": comparison.stage, "run": str(run), "precision": "fp32", "at_once": 4}
    patch.setattr("sys.stdin", io.StringIO('{"steps": 1}\n{"steps": 2}\n'))
    said = io.StringIO()
    with pytest.raises(SystemExit):
        find(*comparison.kinds[contender])(Task.of(spec), Gate(said, 0))
    return [json.loads(line) for line in said.getvalue().splitlines()]


@pytest.mark.parametrize("name", COMPARISONS)
def test_ours_take_the_steps_that_they_are_asked_for(name, run, monkeypatch):
    for contender, (_, side) in COMPARISONS[name].kinds.items():
        if side == "ours":
            ready, one, two = answers_of(name, contender, run, monkeypatch)
            assert ready["parameters"] > 0
            assert two["units"] == pytest.approx(2 * one["units"])
            assert two["seconds"] > 0


def test_a_batch_counts_the_tokens_of_its_items(run, monkeypatch):
    """Filler left out: of all rows together they are the tokens of all items."""
    spec = {"settings": TINY, "stage": "sft", "run": str(run), "precision": "fp32", "at_once": 4}
    task = Task.of(spec)
    found = ours.Ours(task)
    tokens = sum(len(ids) for ((ids, mask),) in task.sequences())
    assert found.units_of_batch() * found.store.documents / 4 == pytest.approx(tokens)
    assert task.tokens_of_item * len(task.items) == pytest.approx(tokens)


@pytest.mark.oracle
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_both_sides_compute_the_same(run, monkeypatch):
    """Mean losses over all data, log-probabilities of answers; and TRL takes steps one by one as well."""
    for name in ("sft", "dpo"):
        found = {c: answers_of(name, c, run, monkeypatch) for c in COMPARISONS[name].kinds}
        first = {contender: said[0]["first"] for contender, said in found.items()}
        assert disagreement(first, 1e-4) is None
        assert all(len(said) == 3 for said in found.values())
    assert first["TRL"]["loss"] == pytest.approx(0.6931, abs=1e-4)
    said = answers_of("grpo", "TRL", run, monkeypatch)
    assert said[2]["units"] == 16
    assert 1 <= said[2]["figures"]["completion_length"] <= 6


def test_what_differs_is_named():
    same = {"a": {"loss": 2.0, "log_prob": -100.0}, "b": {"loss": 2.0005, "log_prob": -100.05}}
    assert disagreement(same, 1e-3) is None
    assert disagreement({}, 1e-3) is None
    same["b"]["loss"] = 2.01
    assert disagreement(same, 1e-3) == "loss is 2 (a), 2.01 (b)"
    same["b"]["loss"] = float("nan")
    assert disagreement(same, 1e-3) is not None


def test_ratios_are_taken_within_a_round():
    def worker(name: str, seconds: list[float]) -> SimpleNamespace:
        turns = [
            {"seconds": s, "cpu_seconds": 2 * s, "units": 10.0, "figures": {}, "peak_bytes": 1}
            for s in seconds
        ]
        return SimpleNamespace(name=name, ours=name == "cupola", turns=turns, parameters=1, steps=1)

    mine, peer = summarise([worker("cupola", [1, 2, 1]), worker("TRL", [3, 6, 4])])
    assert peer["cupola_to_it"] == pytest.approx(3)
    assert mine["cupola_to_it"] is None
    assert (mine["slowest"], mine["per_second"], mine["per_cpu_second"]) == (5, 10, 5)


def test_the_reward_is_the_share_of_words():
    assert overlap([], ["a b x", ""], ["a b c d", "a"]) == [0.5, 0.0]
