"""Seconds at one pace, whatever the machine's is at the moment."""

import pytest
import torch

from cupola.train import pace
from cupola.train.pace import Pace

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set, and products that take what is said."""

    class Set:
        now, product = 0.0, 0.5

    monkeypatch.setattr(pace.time, "perf_counter", lambda: Set.now)
    monkeypatch.setattr(Pace, "_time", lambda self: Set.product)
    return Set


def test_what_took_twice_as_long_on_a_machine_half_as_fast_counts_the_same(clock):
    found = Pace(CPU, "fp32")
    clock.product = 1.0
    assert found.levelled(6.0, found.probe(), found.probe()) == pytest.approx(3.0)
    assert found.levelled(6.0, 0.5, 1.5) == pytest.approx(3.0)
    assert found.levelled(6.0, 0.5) == pytest.approx(6.0)


def test_the_mean_is_by_the_clock_and_not_by_how_often_it_was_probed(clock):
    found = Pace(CPU, "fp32")
    for second in range(1, 11):  # ten probes in one second of the pace that it began with
        clock.now = second / 10
        found.probe()
    clock.now, clock.product = 4.0, 1.5
    found.probe()
    assert found.mean == pytest.approx((1 * 0.5 + 3 * (0.5 + 1.5) / 2) / 4)


def test_between_steps_it_is_probed_now_and_then(clock):
    found = Pace(CPU, "fp32")
    probes = []
    for _ in range(40):
        clock.now += pace.EVERY / 4
        clock.product += 0.1
        before = found.mean
        found.due()
        probes.append(found.mean != before)
    assert sum(probes) == 10


def test_a_machine_is_probed():
    found = Pace(CPU, "fp32")
    assert 0 < found.unit < 5
    assert found.probe() > 0
    assert found.mean > 0


def test_on_a_gpu_nothing_is(clock):
    found = Pace(torch.device("cuda"), "bf16")
    clock.product = 9.0
    clock.now = 100.0
    found.due()
    assert found.levelled(6.0, found.probe(), found.probe()) == 6.0
    assert found.mean == 1.0
