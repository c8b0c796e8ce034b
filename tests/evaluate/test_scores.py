"""Figures of a reward model's scores, from numbers that are known."""

import numpy as np
import pytest

from cupola.evaluate.scores import BINS, PairScores


def scores(margins: np.ndarray, lengths: np.ndarray | None = None) -> PairScores:
    rewards = np.stack([margins / 2, -margins / 2], axis=1)
    return PairScores(rewards, np.ones(rewards.shape, dtype=np.int64) if lengths is None else lengths)


def test_who_is_as_sure_as_right_is_calibrated():
    """At a margin of m the chosen answer is preferred with probability sigmoid(m)."""
    generator = np.random.default_rng(0)
    sizes = generator.uniform(0, 4, 200_000)
    right = generator.uniform(size=len(sizes)) < 1 / (1 + np.exp(-sizes))
    honest = np.where(right, sizes, -sizes)
    assert scores(honest).facts()["calibration_error"] < 0.005
    assert scores(3 * honest).facts()["calibration_error"] > 0.1, "too sure of itself"
    assert scores(0.2 * honest).facts()["calibration_error"] > 0.1, "too shy"


def test_calibration_error_is_that_of_a_loop_over_bins():
    margins = np.random.default_rng(1).normal(0.5, 2, 300)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    error = 0.0
    for number in range(BINS):
        low, high = 0.5 + number / (2 * BINS), 0.5 + (number + 1) / (2 * BINS)
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            error += inside.mean() * abs((margins[inside] > 0).mean() - confidence[inside].mean())
    facts = scores(margins).facts()
    assert facts["calibration_error"] == pytest.approx(error)
    assert facts["accuracy"] == pytest.approx((margins > 0).mean())
    assert facts["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean())


def test_a_reward_for_length_is_seen():
    lengths = np.random.default_rng(2).integers(1, 50, (40, 2))
    assert PairScores(0.1 * lengths, lengths).facts()["length_correlation"] == pytest.approx(1)
    assert PairScores(-0.1 * lengths, lengths).facts()["length_correlation"] == pytest.approx(-1)
    assert PairScores(np.zeros(lengths.shape), lengths).facts()["length_correlation"] == 0
    whole = PairScores.of([PairScores(0.1 * lengths, lengths), PairScores(0.1 * lengths, lengths)])
    assert whole.facts()["pairs"] == 80
