"""Products by shape and collectives by links: closed forms and limits."""

from dataclasses import replace

import pytest

from cupola.plan import communication
from cupola.plan.causes import CAUSES
from cupola.plan.communication import group
from cupola.plan.hardware import catalogue
from cupola.plan.layout import Layout
from cupola.plan.products import product, three

A100, H100 = catalogue()["a100"], catalogue()["h100"]
QUICK = H100.model_copy(update={"link_latency": 0.0, "network_latency": 0.0})
GIB = 2**30


def reached(m: int, n: int, k: int, device=A100) -> float:
    """Share of the peak."""
    return 2.0 * m * n * k / product(m, n, k, device, "bf16", CAUSES) / device.flops("bf16")


def test_huge_products_reach_what_the_device_attains():
    assert reached(65536, 65536, 65536) == pytest.approx(A100.attained("bf16"), rel=5e-3)


def test_efficiency_grows_with_every_side():
    for small, large in (
        ((256, 4096, 4096), (8192, 4096, 4096)),
        ((8192, 256, 4096), (8192, 4096, 4096)),
        ((8192, 4096, 128), (8192, 4096, 4096)),
    ):
        assert reached(*small) < reached(*large)


def test_a_short_inner_side_costs_a_fast_device_more():
    def loss(device) -> float:
        return reached(16384, 16384, 1024, device) / reached(16384, 16384, 16384, device)

    assert loss(H100) < loss(A100) < 1


def test_products_that_memory_bounds():
    """One row: the matrix has to come."""
    seconds = product(1, 16384, 16384, H100, "bf16", CAUSES)
    assert seconds == pytest.approx(2 * 16384**2 / (H100.bandwidth * CAUSES.stream), rel=1e-3)


def test_few_rows_cost_as_many_as_the_grain():
    assert product(1, 65536, 65536, A100, "bf16", CAUSES) == product(1, 65536, 65536, A100, "bf16", CAUSES)
    free = A100.model_copy(update={"bandwidth": 1e30})
    assert product(1, 4096, 4096, free, "bf16", CAUSES) == product(64, 4096, 4096, free, "bf16", CAUSES)
    assert product(65, 4096, 4096, free, "bf16", CAUSES) > product(64, 4096, 4096, free, "bf16", CAUSES)


def test_the_backward_pass_is_two_products_of_the_same_work():
    bare = replace(CAUSES, tile=0.0, tail=0.0)
    forward, inputs, weights = three(8192, 4096, 16384, H100, "bf16", bare)
    assert forward == pytest.approx(inputs) == pytest.approx(weights)


def test_eight_bits_are_twice_as_fast_at_most():
    large = 32768, 32768, 32768
    share = H100.attained("fp8") / H100.attained("bf16")
    wide = product(*large, H100, "bf16", CAUSES)
    narrow = product(*large, H100, "fp8", CAUSES)
    assert wide / narrow == pytest.approx(1979 / 989 * share, rel=0.02)
    assert product(8192, 2048, 512, H100, "bf16", CAUSES) < 1.7 * product(
        8192, 2048, 512, H100, "fp8", CAUSES
    )


def test_a_ring_inside_a_domain():
    """S (n - 1) / n over the link; the sum of gradients twice that."""
    for ways in (2, 4, 8):
        wanted = GIB * (ways - 1) / ways / 450e9 / CAUSES.wire
        assert group(ways, 1, QUICK).gather(GIB) == pytest.approx(wanted)
        assert group(ways, 1, QUICK).reduce(GIB) == pytest.approx(2 * wanted)
    assert group(1, 1, H100).gather(GIB) == 0


def test_a_ring_over_domains_uses_every_card():
    near = group(64, 1, QUICK)
    assert (near.near, near.domains) == (8, 8)
    assert near.gather(GIB) == pytest.approx(max(63 / 64 / 450e9, 7 / 8 / 400e9) * GIB / CAUSES.wire)
    apart = group(8, 8, QUICK)
    assert apart.near == 1
    assert apart.gather(GIB) == pytest.approx(7 / 8 / 50e9 * GIB / CAUSES.wire)


def test_messages_take_time_for_nothing():
    assert group(8, 1, H100).hops == pytest.approx(7 * 3e-6)
    assert group(512, 1, H100).hops == pytest.approx(64 * 5e-6 + 448 * 3e-6)
    assert group(64, 8, H100).hops == pytest.approx(64 * 5e-6)


def test_experts_tokens():
    inside = group(8, 1, QUICK)
    assert inside.exchange(GIB) == pytest.approx(7 / 8 * GIB / 450e9 / CAUSES.wire)
    across = group(16, 1, QUICK)
    assert across.exchange(GIB) == pytest.approx(1 / 2 * GIB / 50e9 / CAUSES.wire)
    # 8 copies, two domains: on average 2 (1 - 2^-8) of them get one.
    merged = across.exchange(GIB, copies=8, merged=True)
    assert merged / across.exchange(GIB, copies=8) == pytest.approx(2 * (1 - 2**-8) / 8)


def test_who_is_whose_neighbour():
    layout = Layout(data=4, tensor=4, context=2, pipeline=2, expert=4)
    assert communication.tensor(layout, H100).near == 4
    assert communication.context(layout, H100).near == 2
    assert communication.shards(layout, H100).near == 2
    assert communication.shards(layout, H100, experts=True).ways == 2
    assert communication.pipeline(layout, H100).near == 1
    wide = catalogue()["gb200"]
    assert communication.pipeline(layout, wide).near == 2
    size = 1e9
    assert communication.pipeline(layout, wide).send(size) < communication.pipeline(layout, H100).send(size)
