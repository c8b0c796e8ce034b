"""Statistics of what layers show, against plain formulas; and that nothing is shown to nobody."""

import contextlib
import math

import pytest
import torch

from cupola.models import attention, probe, statistics
from cupola.models.grouped import groups_of


def plain_scores(query, key, visible):
    """(batch, heads, length, length) of q k^T / sqrt(width), head by head, -inf where not visible."""
    batch, length, heads, width = query.shape
    scores = torch.full((batch, heads, length, length), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            shared = key[b, :, h * key.shape[2] // heads].double()
            whole = query[b, :, h].double() @ shared.T / math.sqrt(width)
            scores[b, h][visible[b]] = whole[visible[b]]
    return scores


def visible_keys(documents, length, window):
    seen = torch.zeros(len(documents), length, length, dtype=torch.bool)
    for b, numbers in enumerate(documents.tolist()):
        for q in range(length):
            for k in range(q + 1):
                seen[b, q, k] = numbers[q] == numbers[k] and (window is None or q - k < window)
    return seen


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("scores", [2**22, 100, 1])
def test_largest_score_is_that_of_all_visible_pairs(monkeypatch, window, documents, scores):
    monkeypatch.setattr(statistics, "SCORES", scores)
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 21, 4, 8, generator=generator)
    key = torch.randn(2, 21, 2, 8, generator=generator)
    key[0, 20] *= 50  # the last key is visible to the last query alone
    numbers = torch.zeros(2, 21, dtype=torch.int32)
    if documents:
        numbers = (torch.rand(2, 21, generator=generator) < 0.2).cumsum(1).int()
    plan = attention.plan(2, 21, numbers if documents else None, torch.device("cpu"), window)
    expected = plain_scores(query, key, visible_keys(numbers, 21, window)).amax()
    assert statistics.largest_score(query, key, plan).item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_that_nobody_sees_do_not_count():
    query, key = torch.ones(1, 3, 1, 4), torch.zeros(1, 3, 1, 4)
    key[0, 2] = 100  # beyond the second query
    query[0, 2] = -1  # whose own score with it is far below 0
    plan = attention.plan(1, 3, None, torch.device("cpu"))
    assert statistics.largest_score(query, key, plan).item() == 0


def test_dead_units_are_those_that_never_fire():
    hidden = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(0))
    hidden[..., 1] = 0
    hidden[..., 2] *= 1e-3
    hidden[..., 5] = 0
    hidden[3, 17, 5] = -2  # seldom is not never
    assert statistics.dead_share(hidden).item() == pytest.approx(2 / 8)
    assert statistics.dead_share(hidden.bfloat16()).dtype == torch.float32
    assert statistics.dead_share(torch.zeros(3, 4)).item() == 1


def test_dead_units_of_experts_are_counted_where_a_token_came():
    chosen = torch.tensor([[0, 2], [2, 0], [2, 3], [0, 2]])  # expert 1 has nothing to do
    groups = groups_of(chosen, 4)
    hidden = torch.ones(8, 5)
    experts = chosen.flatten()[groups.order]
    hidden[experts == 2, 3] = 0
    hidden[experts == 3, :2] = 0
    assert statistics.dead_share_of_experts(hidden, groups).item() == pytest.approx(3 / 15)


@pytest.mark.parametrize("states", [None, 3])
def test_decays_are_geometric_means_of_each_channel(states):
    rate = torch.rand(2, 7, 4, generator=torch.Generator().manual_seed(1))
    a = -torch.arange(1.0, 5.0)
    if states:
        a = a[:, None] * torch.arange(1.0, states + 1)
    each = torch.exp(torch.einsum("btc,c...->btc...", rate, a).flatten(0, 1))
    means = each.log().mean(0).exp()
    smallest, largest = statistics.decay_extremes(rate, a)
    assert smallest.item() == pytest.approx(means.min().item(), rel=1e-5)
    assert largest.item() == pytest.approx(means.max().item(), rel=1e-5)
    logs = rate * a if states is None else None
    if logs is not None:  # the same, given as the logs themselves
        assert statistics.decay_extremes(logs, None)[0].item() == pytest.approx(smallest.item())


def test_root_mean_square_is_fp32():
    x = torch.full((3, 1000), 300.0, dtype=torch.bfloat16)  # whose squares' sum bf16 could not hold
    assert statistics.root_mean_square(x).item() == pytest.approx(300)
    assert math.isnan(statistics.root_mean_square(torch.zeros(0)).item())


def test_only_an_observer_sees_and_the_inner_one_first():
    outer, inner = [], []
    probe.show("x", 1)
    with probe.observing(lambda *parts: outer.append(parts)):
        probe.show("x", 2)
        with contextlib.suppress(ZeroDivisionError), probe.observing(lambda *parts: inner.append(parts)):
            probe.show("x", 3)
            raise ZeroDivisionError
        probe.show("x", 4)
    probe.show("x", 5)
    assert outer == [("x", 2), ("x", 4)]
    assert inner == [("x", 3)]
