"""The picture of a pipeline: every pass once, in an order that can be, with the published bubbles."""

import itertools

import pytest

from cupola.plan.layout import Layout
from cupola.plan.timeline import timeline

FORWARD, BACKWARD = 1.0, 2.0
ALL = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-h2", 1), ("zb-v", 1)]


def played(schedule, chunks, pipeline=4, microbatches=12, ranks=None):
    layout = Layout(pipeline=pipeline, schedule=schedule, chunks=chunks)
    return layout, timeline(layout, microbatches, ranks or [(FORWARD, BACKWARD)] * pipeline)


@pytest.mark.parametrize(("schedule", "chunks"), ALL)
@pytest.mark.parametrize("ranks", [None, [(1.0, 2.0), (1.5, 2.7), (0.5, 1.1), (1.9, 4.0)]])
def test_every_pass_once_and_after_what_it_waits_for(schedule, chunks, ranks):
    layout, passes = played(schedule, chunks, ranks=ranks)
    where = {
        stage.layers.start: (rank, chunk)
        for rank, own in enumerate(layout.stages(layout.stage_count))  # one layer a stage
        for chunk, stage in enumerate(own)
    }
    split = schedule.startswith("zb")
    times = {(one.rank, one.chunk, one.kind, one.microbatch): one for one in passes}
    assert len(times) == len(passes) == 12 * layout.stage_count * (3 if split else 2)
    for stage, place in where.items():
        for microbatch in range(12):
            forward, backward = (times[(*place, kind, microbatch)] for kind in ("forward", "backward"))
            assert backward.start >= forward.end
            if stage:
                assert forward.start >= times[(*where[stage - 1], "forward", microbatch)].end
                assert times[(*where[stage - 1], "backward", microbatch)].start >= backward.end
            if split:
                assert times[(*place, "weights", microbatch)].start >= backward.end
    for rank in range(4):
        own = sorted((one.start, one.end) for one in passes if one.rank == rank)
        assert all(after[0] >= before[1] - 1e-9 for before, after in itertools.pairwise(own))
        busy = sum(end - start for start, end in own)
        assert busy == pytest.approx(12 * sum((ranks or [(FORWARD, BACKWARD)] * 4)[rank]))


@pytest.mark.parametrize(
    ("schedule", "chunks", "bubble"),
    [
        ("gpipe", 1, 3 * (FORWARD + BACKWARD)),  # (p - 1) (f + b): Huang et al. 2019
        ("1f1b", 1, 3 * (FORWARD + BACKWARD)),
        ("interleaved", 2, 3 * (FORWARD + BACKWARD) / 2),  # a v-th: Narayanan et al. 2021
        ("zb-h1", 1, 3 * FORWARD),  # (p - 1) (f + b - w): Qi et al. 2023
        ("zb-h2", 1, 0.0),  # (p - 1) (f + b - 2w)
    ],
)
def test_bubbles_are_the_published_ones(schedule, chunks, bubble):
    _, passes = played(schedule, chunks)
    own = [one for one in passes if one.rank == 0]
    idle = max(one.end for one in own) - 12 * (FORWARD + BACKWARD)
    assert idle == pytest.approx(bubble)


def test_zb_v_leaves_little_idle():
    _, passes = played("zb-v", 1)
    idle = max(one.end for one in passes) - 12 * (FORWARD + BACKWARD)
    assert 0 <= idle <= 0.5 * FORWARD * 3


@pytest.mark.parametrize(("schedule", "chunks"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-v", 1)])
def test_a_rank_holds_what_the_memory_plan_counts(schedule, chunks):
    layout, passes = played(schedule, chunks)
    freed = "weights" if schedule == "zb-v" else "backward"
    for rank in range(4):
        # A pass of a microbatch that ends frees it; one that begins takes it.
        events = sorted(
            [(one.start, 1) for one in passes if one.rank == rank and one.kind == "forward"]
            + [(one.end, -1) for one in passes if one.rank == rank and one.kind == freed]
        )
        held, most = 0, 0
        for _, change in events:
            held += change
            most = max(most, held)
        counted = sum(layout.in_flight(rank, 12))
        assert most <= counted
        assert most == counted or schedule == "zb-v"
