"""The race's contestants differ in what they say and in nothing else; costs are read off the right line."""

import math

import pytest

from bench.time_to_loss import FILE, Race, Run, contestants, cost_at, training_seconds
from cupola.compare.variants import Group, plan_grid
from cupola.models import table


def recipes():
    source, common, entered = contestants(FILE)
    return {
        name: plan_grid([source], [Group(name, tuple(settings))], [], [1], common)[0].recipe
        for name, settings in entered.items()
    }


def test_contestants_change_one_thing_after_another_and_keep_data_and_size():
    found = recipes()
    sizes = [table.count(recipe.model, 4096) for recipe in found.values()]
    assert max(sizes) <= 1.01 * min(sizes)
    first = next(iter(found.values()))
    assert all(list(recipe.stages) == ["pretrain"] for recipe in found.values())
    assert all(recipe.corpora == first.corpora for recipe in found.values())
    assert all(recipe.stages["pretrain"].data == first.stages["pretrain"].data for recipe in found.values())
    stages = {name: recipe.stages["pretrain"] for name, recipe in found.items()}
    assert stages["SOAP in Muon's place"].optimizer.kind == "soap"
    assert stages["nanoGPT-style"].optimizer.kind == stages["architecture"].optimizer.kind == "adamw"
    assert {name for name, recipe in found.items() if recipe.precision == "fp32"} == {"nanoGPT-style"}
    assert {name for name, stage in stages.items() if stage.optimizer.kind == "muon"} == {
        "Muon",
        "growing batch",
        "growing rows",
    }
    assert [len(stage.batch_tokens.values) for stage in stages.values()] == [1, 1, 1, 1, 3, 3, 1]
    assert [len(stage.sequence_length.values) for stage in stages.values()] == [1, 1, 1, 1, 1, 2, 1]


def run(bits, tokens):
    return Run("any", int(tokens), bits, tokens, 3 * tokens, tokens / 1000)


def test_costs_lie_on_the_line_of_loss_against_log_cost():
    runs = [run([2.0, 2.2], 1e6), run([1.8, 1.9], 2e6)]
    assert cost_at(1.975, runs, "tokens") == pytest.approx(math.sqrt(2) * 1e6)
    assert cost_at(1.975, runs, "seconds") == pytest.approx(math.sqrt(2) * 1e3)
    assert cost_at(1.975, runs[1:], "tokens") == 2e6  # nothing to draw a line from


def test_horizons_grow_until_the_target_is_reached(monkeypatch):
    reached = {100: [2.4], 200: [2.1], 400: [1.9], 800: [1.7]}
    race = Race("quickstart", [], [1], FILE, None)
    monkeypatch.setattr(race, "run", lambda name, settings, horizon: run(reached[horizon], float(horizon)))
    finish = race.finish("any", [], [100, 200, 400, 800], target=2.0)
    assert [row.horizon for row in finish.runs] == [100, 200, 400]
    assert finish.tokens == pytest.approx(math.sqrt(2) * 200)
    assert race.finish("any", [], [100, 200], target=2.0).tokens is None


def test_seconds_are_of_the_median_step_of_each_size():
    def row(batch, length, seconds):
        return {"batch_tokens": batch, "sequence_length": length, "seconds": seconds}

    rows = [row(64, 16, 1.0), row(64, 16, 9.0), row(64, 16, 2.0), row(64, 32, 5.0), row(128, 32, 4.0)]
    assert training_seconds(rows) == pytest.approx(3 * 2.0 + 5.0 + 4.0)
