"""What cached log-probabilities of a reference are known by."""

from types import SimpleNamespace

from cupola.pipeline.reference import References
from cupola.recipe.model import Model


def test_other_weights_rotary_positions_precision_or_rows_are_another_reference():
    model = Model(layers=2, width=64, heads=2)
    stretched = model.model_copy(update={"rope": model.rope.model_copy(update={"rope_theta": 500_000.0})})
    store, other = (SimpleNamespace(fingerprint=name) for name in ("a", "b"))
    folders = [
        References("w", model, "fp32", 64).folder(store),
        References("v", model, "fp32", 64).folder(store),
        References("w", stretched, "fp32", 64).folder(store),
        References("w", model, "bf16", 64).folder(store),
        References("w", model, "fp32", 64).folder(other),
    ]
    assert len(set(folders)) == 5
    assert References("w", Model(layers=2, width=64, heads=2), "fp32", 128).folder(store) == folders[0]
