"""What is written loads as exactly what was proposed, whatever the base says; or nothing is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from cupola.errors import InputError
from cupola.recipe.loading import load
from cupola.recipe.schema import LearningRate, Optimizer, Recipe
from cupola.suggest import Proposal, propose, subject_of
from cupola.suggest.overlay import write_recipe

BASE = """
name: base
corpora: {{mine: {{python: code}}}}
model: {{layers: 2, width: 32, heads: 2, vocabulary: 512}}
tokenizer: {{vocabulary: 512}}
stages:
  first: {{data: mine, tokens: 1M tokens, sequence_length: 64, batch_tokens: 512, {first}}}
  second: {{data: mine, tokens: 500k tokens, sequence_length: 64, learning_rate: {second}}}
"""
PLAIN = "{peak: 1e-3, decay: linear}"
FIRSTS = {
    "final": "optimizer: muon, learning_rate: {peak: 5e-3, warmup: 2%, decay: linear, final: 0.2}",
    "wsd": "learning_rate: {peak: 1e-3, decay: 1-sqrt, decay_over: 20%, final: 0.1}",
    "rule": "batch_tokens: {0%: 512, 50%: 1024}, learning_rate: {peak: 1e-3, batch_rule: linear}",
    "curve": "learning_rate: {peak: 1e-3, warmup: 50 steps, decay: {0%: 1, 50%: 0.1}}",
    "short": "optimizer: soap, learning_rate: 1e-3",
    "muon": "optimizer: {kind: muon, nesterov: false, newton_schulz_steps: 3, embedding_scale: 0.5, "
    "momentum: {points: {0%: 0.85, 5%: 0.95}, between: linear}}, learning_rate: 1e-3",
    "soap": "optimizer: {kind: soap, betas: [0.8, 0.9], state_dtype: bf16, covariance_decay: 0.9, "
    "weight_decay: {0%: 0.1, 50%: 0}}, learning_rate: 1e-3",
}


def base(folder: Path, first: str, second: str = PLAIN) -> str:
    path = folder / "base.yaml"
    path.write_text(BASE.format(first=first, second=second).replace("batch_tokens: 512, batch", "batch"))
    return str(path)


def proposed(recipe: Recipe, stage: str, optimizer: str) -> Proposal:
    model = recipe.model
    subject = subject_of(model, model.rows(512), None, 1_000_000, 64, optimizer)
    return propose(subject, now=recipe.stages[stage])


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap"])
@pytest.mark.parametrize("first", FIRSTS)
def test_it_loads_as_proposed(tmp_path, first, optimizer):
    path, target = base(tmp_path, FIRSTS[first]), tmp_path / "tuned.yaml"
    before = load(path)
    proposal = proposed(before, "first", optimizer)
    write_recipe(target, path, [], before, "first", proposal)
    after = load(target)
    stage, lines = after.stages["first"], proposal.stage
    assert stage.learning_rate == LearningRate(
        peak=lines["learning_rate"]["peak"],
        warmup=lines["learning_rate"]["warmup"],
        decay="linear",
        batch_rule="sqrt" if isinstance(lines["batch_tokens"], dict) else "none",
    )
    assert stage.batch_tokens.dump() == lines["batch_tokens"]
    assert stage.sequence_length.dump() == 64
    now = before.stages["first"].optimizer
    kept = {
        key: getattr(now, key)
        for key in Optimizer.model_fields
        if key not in ("kind", "weight_decay") and optimizer in Optimizer.only.get(key, (optimizer,))
    }
    assert stage.optimizer == Optimizer(
        kind=optimizer, weight_decay=lines["optimizer"]["weight_decay"], **kept
    )
    assert after.stages["second"].learning_rate == before.stages["second"].learning_rate


def test_an_inherited_optimizer_keeps_its_settings(tmp_path):
    path, target = base(tmp_path, FIRSTS["muon"], "{peak: 1e-3, decay_over: 10%}"), tmp_path / "tuned.yaml"
    before = load(path)
    write_recipe(target, path, [], before, "second", proposed(before, "second", "muon"))
    after = load(target)
    assert after.stages["second"].optimizer.embedding_scale == 0.5
    assert after.stages["second"].learning_rate.decay_over is None
    assert after.stages["first"] == before.stages["first"]


def test_later_stages_that_change_are_named(tmp_path):
    path = base(tmp_path, FIRSTS["final"])
    before = load(path)
    notes = write_recipe(
        tmp_path / "tuned.yaml", path, [], before, "first", proposed(before, "first", "soap")
    )
    assert notes == ["stage second takes over batch_tokens, optimizer, which change with it"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.width=64", "seed=3"],
        ["model.width=64", "model=cpu-1m", "model.layers=2"],
        ["model.base=cpu-1m"],
        ["stages.second=null", "corpora.more={python: docstrings}"],
        ["stages.first.optimizer=soap", "stages.first.optimizer.betas=[0.8, 0.9]", "name='yes'"],
        ["stages.second.data={0%: {mine: 1}, 50%: {mine: 2}}", "evaluate.prompts=[no, '1e-3']"],
    ],
)
def test_overrides_are_carried(tmp_path, overrides):
    path, target = base(tmp_path, FIRSTS["final"]), tmp_path / "tuned.yaml"
    before = load(path, overrides)
    write_recipe(target, path, overrides, before, "first", proposed(before, "first", "adamw"))
    after = load(target)
    assert after.name == f"{before.name}-suggested"
    for field in set(Recipe.model_fields) - {"name", "stages"}:
        assert getattr(after, field) == getattr(before, field)
    assert list(after.stages) == list(before.stages)


def test_nothing_is_written_that_means_something_else(tmp_path, monkeypatch):
    path, target = base(tmp_path, FIRSTS["wsd"]), tmp_path / "tuned.yaml"
    before = load(path)
    proposal = proposed(before, "first", "adamw")
    rate = {key: proposal.stage["learning_rate"][key] for key in ("peak", "warmup", "decay")}
    stale = replace(proposal, stage={**proposal.stage, "learning_rate": rate})
    with pytest.raises(InputError, match=r"stages\.first\.learning_rate would not be as proposed"):
        write_recipe(target, path, [], before, "first", stale)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = ["corpora.mine={files: a.txt, python: null}"]
    with pytest.raises(InputError, match="corpora would not be"):
        write_recipe(Path("other/tuned.yaml"), path, relative, load(path, relative), "first", proposal)
    late = ["stages.second.carry=[weights, optimizer]", "stages.second.optimizer=adamw"]
    with pytest.raises(InputError, match="can't go on from the state of muon"):
        write_recipe(
            target, path, late, load(path, late), "first", proposed(load(path, late), "first", "muon")
        )
    assert not target.exists()
    assert not (tmp_path / "other" / "tuned.yaml").exists()


def test_a_shipped_base_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = load("quickstart")
    for name in ("tuned", "quickstart"):  # the second would be its own base
        target = Path(f"{name}.yaml")
        write_recipe(target, "quickstart", [], before, "pretrain", proposed(before, "pretrain", "muon"))
        assert ("base: quickstart\n" in target.read_text()) == (name == "tuned")
        assert load(target).corpora == before.corpora
        if name == "tuned":
            target.unlink()
