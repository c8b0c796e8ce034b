"""The same run on other numbers of devices: which are possible, and what comes of them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cupola.errors import InputError
from cupola.plan import course
from cupola.plan.devices import factors, over_devices, widened
from cupola.plan.execution import Execution
from cupola.plan.layout import Layout
from cupola.plan.request import of_preset
from cupola.plan.work import Asked
from cupola.recipe.loading import load_preset


def asked(layout: Layout, rows: int = 256, name: str = "llama3-8b") -> Asked:
    request = replace(of_preset(name, load_preset(name), 4096, None), batch=rows)
    return Asked(request, layout, Execution(), course.of_model(10**9, rows * 4096, 4096))


def test_workers_divide_the_batch():
    one = asked(Layout(data=12, tensor=2), rows=144)
    found = factors([one])
    assert 1.0 in found
    assert len(found) == len(set(found))
    for factor in found:
        layout = widened(one.layout, factor)
        assert layout.data == pytest.approx(12 * factor)
        assert 144 % layout.data == 0
        assert not one.request.faults(layout, layout.devices)


def test_about_each_doubling():
    assert factors([asked(Layout(data=32))]) == [2.0**power for power in range(-5, 4)]  # up to 256 rows


def test_of_several_stages_what_suits_all():
    stages = [asked(Layout(data=8), rows=64), asked(Layout(data=8), rows=16)]
    assert [8 * factor for factor in factors(stages)] == [1, 2, 4, 8, 16]


def test_chunks_ask_for_whole_rounds_of_microbatches():
    one = asked(Layout(data=4, pipeline=4, schedule="interleaved", chunks=2), rows=64)
    assert [4 * factor for factor in factors([one])] == [1, 2, 4, 8, 16]


def test_what_does_not_get_on_is_left_out_and_what_does_not_fit_is_marked():
    one = asked(Layout(data=8, shard=3), rows=64)

    def again(stages):
        if stages[0].layout.data == 64:
            raise InputError("the run would not get on")
        return SimpleNamespace(devices=stages[0].layout.devices)

    own = SimpleNamespace(devices="asked")
    points = over_devices([one], own, again, 60 * 2**30)
    assert [point.devices for point in points] == [1, 2, 4, 8, 16, 32]
    assert next(point for point in points if point.devices == 8).run is own
    assert [point.fits for point in points] == sorted(point.fits for point in points)
    assert not points[0].fits
    assert points[-1].fits
