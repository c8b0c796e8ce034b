"""What is proposed is a stage that loads, within the limits that it states."""

import pytest

from cupola.errors import InputError
from cupola.recipe.clock import Clock
from cupola.recipe.loading import load_preset
from cupola.recipe.schema import Stage
from cupola.suggest import Proposal, propose, subject_of
from cupola.suggest.rules import critical_batch

SIZES = [(1e6, 1e5), (5e6, 2e6), (1e8, 2e9), (1e9, 2e10), (8e9, 1.5e13), (1e12, 1e13), (3e9, 1e6)]


def proposal(body: float, tokens: float, length: int = 256) -> Proposal:
    return propose(subject_of(None, 0, int(body), int(tokens), length, "adamw"))


def stage_of(found: Proposal) -> Stage:
    return Stage.model_validate({"data": {"text": 1}, **found.stage})


@pytest.mark.parametrize(("body", "tokens"), SIZES)
def test_a_proposal_is_a_stage(body, tokens):
    found = proposal(body, tokens)
    stage = stage_of(found)
    clock = Clock(stage)
    assert clock.total == int(tokens)
    sizes = stage.batch_tokens.values
    assert sizes == sorted(sizes)
    assert all(size % 256 == 0 for size in sizes)
    assert sizes[-1] <= max(256, 1.25 * min(critical_batch(tokens), tokens / 100))
    assert (stage.learning_rate.batch_rule == "sqrt") == (len(sizes) > 1)
    assert 0.01 <= stage.optimizer.weight_decay.values[0] <= 0.3
    assert 0 < stage.learning_rate.peak < 0.1


@pytest.mark.parametrize(("body", "tokens"), SIZES)
def test_a_batch_begins_once_the_critical_batch_is_as_large(body, tokens):
    for start, size in stage_of(proposal(body, tokens)).batch_tokens.starts(int(tokens))[1:]:
        assert size <= 1.05 * critical_batch(start) or start >= 0.49 * tokens


def test_rules_that_were_fitted_here_decide():
    found = proposal(1e9, 2e10)
    inside = {one.rule for one in found.estimates if one.setting == "learning_rate" and not one.outside}
    assert inside == {"Step Law", "DeepSeek", "Kaplan"}
    peak = next(choice for choice in found.choices if choice.setting == "learning_rate.peak")
    assert peak.why == "mean of Step Law, DeepSeek, Kaplan"
    assert peak.low < float(peak.value) < peak.high
    values = [one.value for one in found.estimates if one.rule in inside and one.setting == "learning_rate"]
    product = values[0] * values[1] * values[2]
    assert float(peak.value) == pytest.approx(product ** (1 / 3), rel=0.05)


def test_extrapolation_is_said():
    found = proposal(5e6, 2e6)
    peak = next(choice for choice in found.choices if choice.setting == "learning_rate.peak")
    assert "all outside of their range" in peak.why
    assert any("factor of 3" in note for note in found.notes)
    assert any("0.4 tokens a parameter" in note for note in found.notes)


def test_llama3_is_near_what_was_published():
    """Grattafiori et al. 2024, table 3: 3e-4, batches of 4M tokens that grow to 16M."""
    subject = subject_of(load_preset("llama3-8b"), 128256, None, 15 * 10**12, None, "adamw")
    stage = stage_of(propose(subject))
    assert stage.learning_rate.peak == pytest.approx(3e-4, rel=0.15)
    assert stage.sequence_length.values == [8192]
    assert stage.batch_tokens.values[-1] == 2**24


def test_families_and_optimizers_are_noted():
    subject = subject_of(load_preset("mamba2-130m"), 50288, None, 10**10, None, "muon")
    notes = " ".join(propose(subject, "mamba2").notes)
    assert "not on family mamba2" in notes
    assert "muon takes AdamW's learning rate" in notes


def test_rows_that_leave_few_steps_are_noted():
    assert any("20 steps, fewer than 100" in note for note in proposal(1e6, 20_000, 1000).notes)
    assert not any("fewer than" in note for note in proposal(1e6, 20_000, 200).notes)
    with pytest.raises(InputError, match="longer than the budget of 20,000"):
        proposal(1e6, 20_000, 20_001)
