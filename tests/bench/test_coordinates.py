"""The coordinate check: under muP what an update changes does not depend on the width."""

import pytest

from bench.coordinates import FAMILIES, measure, model_of, slope, slopes

WIDTHS, STEPS = (64, 128, 256), 3


def cases() -> list[tuple[str, str]]:
    """Every family with AdamW; the other optimizers where their matrices differ."""
    others = [("transformer", "muon"), ("mamba2", "muon"), ("transformer", "soap")]
    return [(family, "adamw") for family in FAMILIES] + others


@pytest.mark.parametrize(("family", "optimizer"), cases())
def test_activations_do_not_grow_with_the_width_under_mup(family, optimizer):
    mup = slopes(family, "mup", optimizer, WIDTHS, STEPS)
    standard = slopes(family, "standard", optimizer, WIDTHS, STEPS)
    # The logits' random part falls with width^-1/2 and is small; nothing may grow.
    assert all(-0.3 < value < 0.15 for value in mup.values()), mup
    assert all(abs(value) < 0.2 for name, value in mup.items() if name != "logits"), mup
    assert standard["logits"] > 0.35, standard


@pytest.mark.parametrize("kind", ["depth_mup", "completep"])
def test_the_residual_stream_does_not_grow_with_the_depth(kind):
    depths = [2, 4, 8]

    def last(kind: str) -> float:
        base = None if kind == "standard" else 2
        models = [model_of("transformer", 64, kind, layers, base) for layers in depths]
        rows = [measure(model, "adamw", STEPS) for model in models]
        return slope(depths, [row[f"blocks.{n - 1}"] for row, n in zip(rows, depths, strict=True)])

    assert abs(last(kind)) < 0.2
    assert last("standard") > 0.3
