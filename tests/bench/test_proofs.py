"""The world of the proofs, whose true score is known, and that their recipes hold."""

import json
import math

import pytest

from bench.proofs import garden
from bench.proofs.__main__ import PROOFS, table
from cupola.recipe.loading import load


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("", 0),
        ("rose stone lily", 2),
        ("rose rose rose", 1 - 2),
        ("stone stone", -1),
        ("rose lily tulip daisy poppy iris violet orchid", 8),
        ("rose lily tulip daisy poppy iris violet orchid stone bench", 8 - 2 * 0.5),
    ],
)
def test_the_true_score(said, score):
    assert garden.score(said) == score
    assert garden.true_score([], [said, "rose"], []) == [score, 1]


def test_people_prefer_the_better_answer_as_often_as_the_difference_says(tmp_path):
    garden.write(tmp_path, seed=1, talks=10, pairs=4000)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    differences = [garden.score(pair["chosen"]) - garden.score(pair["rejected"]) for pair in pairs]
    for size in (1, 2):
        right, wrong = differences.count(size), differences.count(-size)
        assert right + wrong > 400
        expected = 1 / (1 + math.exp(-size))
        error = math.sqrt(expected * (1 - expected) / (right + wrong))
        assert right / (right + wrong) == pytest.approx(expected, abs=4 * error)


def test_the_same_seed_writes_the_same_files(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        garden.write(tmp_path / name, seed, talks=5, pairs=5)
    files = ("talks.jsonl", "pairs.jsonl", "chosen.jsonl")
    a, b, c = ([(tmp_path / name / file).read_text() for file in files] for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("name", PROOFS)
def test_the_recipe_has_the_stages_that_are_compared(name, tmp_path, monkeypatch):
    garden.write(tmp_path, seed=1, talks=5, pairs=5)
    monkeypatch.setenv("GARDEN", str(tmp_path))
    recipe = load(f"bench/proofs/{name}.yaml")
    assert set(PROOFS[name].stages) <= set(recipe.stages)
    first, *others = PROOFS[name].stages
    assert all(recipe.parent_of(stage) == first for stage in others)


def test_the_table_has_means_and_every_seed():
    rows = [{"seed": n, "stage": "rl", "seconds": 10.0 * n, "greedy": n / 10} for n in (1, 2)]
    assert table(rows)[2:] == ["| rl | 15 | 0.150 (0.100, 0.200) |"]
