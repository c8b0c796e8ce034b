"""`model.parametrisation`: what is refused, and what its base is."""

import pytest

from cupola.recipe.model import Experts, Model
from cupola.recipe.model_checks import model_problems
from cupola.recipe.parametrisation import Parametrisation, base_model, folded

MODEL = {"layers": 8, "width": 512, "heads": 8}


def model(kind: str, changes: dict | None = None, **settings: int) -> Model:
    own = {"kind": kind, **settings}
    return Model.model_validate({**MODEL, **(changes or {}), "parametrisation": own})


@pytest.mark.parametrize(
    ("wrong", "key", "words"),
    [
        (model("mup"), "base_width", "needs the width"),
        (model("completep", base_width=128), "base_layers", "needs the layers"),
        (model("mup", base_width=128, base_layers=2), "base_layers", "does not look at depth"),
        (model("standard", base_width=128), "base_width", "no effect on kind standard"),
        (model("mup", base_width=100), "base_width", "no whole number of heads of 64"),
        (model("mup", {"key_value_heads": 2}, base_width=128), "base_key_value_heads", "state how many"),
        (
            model("mup", {"family": "rwkv7", "heads": None}, base_width=128, base_head_width=8),
            "base_head_width",
            "no effect without attention",
        ),
    ],
)
def test_what_is_refused(wrong, key, words):
    (problem,) = model_problems(wrong)
    assert problem.path == ("model", "parametrisation", key)
    assert words in problem.message


def test_a_base_that_is_no_model_is_refused():
    (problem,) = model_problems(model("mup", {"family": "mamba2", "heads": None}, base_width=48))
    assert problem.path == ("model", "parametrisation")
    assert "the base model's mamba2.head_width: expansion * width 96" in problem.message


def test_the_base_is_smaller_in_proportion():
    own = model(
        "mup",
        {
            "key_value_heads": 4,
            "feedforward": 1000,
            "experts": Experts(count=8, active=2, width=100, shared=50),
        },
        base_width=128,
    )
    base = base_model(own)
    assert (base.width, base.heads, base.key_value_heads, base.layers) == (128, 2, 1, 8)
    assert base.sizes().head_width == own.sizes().head_width == 64
    assert base.feedforward == 250
    assert (base.experts.count, base.experts.width, base.experts.shared) == (8, 25, 12)
    assert base_model(Model(**MODEL)) is None


def test_smaller_heads_at_the_base():
    base = base_model(model("mup", base_width=128, base_head_width=16))
    assert (base.heads, base.sizes().head_width) == (8, 16)


def test_standard_is_not_written():
    assert "parametrisation" not in Model(**MODEL).model_dump()
    assert model("mup", base_width=128).model_dump(exclude_none=True)["parametrisation"] == {
        "kind": "mup",
        "base_width": 128,
    }


def test_folded_has_the_multipliers_as_settings():
    plain = folded(model("completep", {"logits_scaling": 3.0}, base_width=128, base_layers=2))
    assert plain.parametrisation == Parametrisation()
    assert (plain.logits_scaling, plain.residual_multiplier, plain.attention_multiplier) == (12.0, 0.25, None)
    assert folded(plain) is plain
