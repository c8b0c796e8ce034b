"""Published rules against published runs, and where they say that they were not fitted."""

import pytest

from cupola.models import table
from cupola.recipe.loading import load_preset
from cupola.recipe.model import Model
from cupola.recipe.parametrisation import Parametrisation
from cupola.suggest import Subject, estimates, subject_of
from cupola.suggest.rules import GPT3, critical_batch, timescale, weight_decays

VOCABULARY = 102_400
DEEPSEEK = {
    "7B": Model(layers=30, width=4096, heads=32, feedforward=11008),
    "67B": Model(layers=95, width=8192, heads=64, key_value_heads=8, feedforward=22016),
}


def said(subject: Subject, setting: str, rule: str) -> float:
    return next(one.value for one in estimates(subject) if (one.setting, one.rule) == (setting, rule))


def of_size(body: float, tokens: float) -> Subject:
    return subject_of(None, 0, int(body), int(tokens), 2048, "adamw")


@pytest.mark.parametrize(("name", "rate", "rows"), [("7B", 4.2e-4, 2304), ("67B", 3.2e-4, 4608)])
def test_deepseek_gives_the_settings_of_its_own_models(name, rate, rows):
    """DeepSeek-AI 2024, table 2: 2T tokens in rows of 4096."""
    subject = subject_of(DEEPSEEK[name], VOCABULARY, None, 2 * 10**12, 4096, "adamw")
    assert said(subject, "learning_rate", "DeepSeek") == pytest.approx(rate, rel=0.1)
    assert said(subject, "batch_tokens", "DeepSeek") == pytest.approx(rows * 4096, rel=0.1)


@pytest.mark.parametrize(
    ("body", "tokens", "rate", "rows"),
    [(1.07e9, 2e10, 1.381e-3, 256), (2.68e8, 8e10, 3.906e-3, 512), (5.37e8, 2.84e10, 1.95e-3, 192)],
)
def test_step_law_gives_the_best_of_its_published_runs(body, tokens, rate, rows):
    """The lowest smoothed loss among the runs of its authors' table, in rows of 2048."""
    subject = of_size(body, tokens)
    assert said(subject, "learning_rate", "Step Law") == pytest.approx(rate, rel=0.5)
    assert said(subject, "batch_tokens", "Step Law") == pytest.approx(rows * 2048, rel=0.5)


def test_gpt3_is_its_table_and_nothing_beyond_it():
    for size, rate, batch in GPT3:
        subject = of_size(size, 3e11)
        assert said(subject, "learning_rate", "GPT-3") == pytest.approx(rate)
        assert said(subject, "batch_tokens", "GPT-3") == pytest.approx(batch)
    between = said(of_size(500e6, 3e11), "learning_rate", "GPT-3")
    assert 2.5e-4 < between < 3e-4
    for size in (1e6, 1e12):
        assert "GPT-3" not in {one.rule for one in estimates(of_size(size, 3e11))}


def test_critical_batches_of_tokens_and_of_parameters_agree():
    """Zhang et al. 2024 fit 93.20 N^0.47 at 20 tokens a parameter, N in millions, in rows of 512."""
    for millions in (85, 302, 1200):
        by_parameters = 512 * 93.20 * millions**0.47
        assert critical_batch(20 * millions * 1e6) == pytest.approx(by_parameters, rel=0.01)


def test_weight_decay_gives_the_timescale_back():
    subject = of_size(1e9, 2e10)
    rate, batch = 1e-3, 2**19
    decay = weight_decays(subject, rate, batch)[0].value
    assert batch / (rate * decay * subject.tokens) == pytest.approx(timescale(subject))
    longer = of_size(1e9, 2e11)
    assert timescale(longer) < timescale(subject)


def test_what_lies_outside_is_said():
    small = {one.rule: one.outside for one in estimates(of_size(5e6, 2e6)) if one.setting == "learning_rate"}
    assert (
        small["Step Law"] == "parameters in blocks 5.0e+06 is below 2.1e+08; tokens 2.0e+06 is below 4.0e+09"
    )
    assert "FLOPs 6.0e+13 is below" in small["DeepSeek"]
    inside = {one.rule: one.outside for one in estimates(of_size(1e9, 2e10)) if one.setting == "batch_tokens"}
    assert inside["Step Law"] is None


def test_quantities_of_a_model():
    model = load_preset("mixtral-8x7b")
    rows = model.rows(32000)
    subject = subject_of(model, rows, None, None, None, "muon")
    assert subject.parameters == table.count(model, rows) == 46_702_792_704
    assert subject.body == pytest.approx(
        12.9e9 - 2 * rows * model.width, rel=0.01
    )  # 13B active, as published
    assert subject.tokens == 20 * subject.parameters
    # DeepSeek's M: 72 layers width^2 + 12 layers width length, where the shape is GPT-2's.
    plain = Model(layers=12, width=768, heads=12, feedforward=3072, activation="gelu")
    expected = 72 * 12 * 768**2 + 12 * 12 * 768 * 1024
    assert subject_of(plain, 50304, None, 10**9, 1024, "adamw").flops_per_token == pytest.approx(expected)


def test_under_a_parametrisation_the_base_is_asked_about():
    base = Model(layers=4, width=256, heads=4)
    own = Parametrisation(kind="completep", base_width=256, base_layers=4)
    wide = Model(layers=16, width=1024, heads=16, parametrisation=own)
    asked, direct = (subject_of(model, 8192, None, 10**9, 512, "adamw") for model in (wide, base))
    assert (asked.body, asked.flops) == (direct.body, direct.flops)
    assert "256 wide, 4 layers" in asked.notes[0]
