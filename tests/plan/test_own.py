"""The arithmetic of a plan of our own run, against plain loops, and what is compared of it."""

import json
import random
from dataclasses import replace

import pytest

from cupola.plan.own import CROWDED, Happened, Pair, Phase, StagePlan, compare

PHASES = (
    Phase(128, 2048, 10, 0.25),
    Phase(256, 4096, 20, 0.5),
    Phase(256, 8192, 5, 1.25),
    Phase(256, 512, 1, 0.1),
)
PLAN = StagePlan(800, PHASES, 0.75, {"evaluation": 3.0, "checkpoints": 1.5}, 0.0, ("a note",))


def test_sums_over_phases_are_those_of_a_plain_loop():
    seconds = 0.75
    for phase in PHASES:
        for _ in range(phase.steps):
            seconds += phase.seconds
    assert PLAN.training == pytest.approx(seconds)
    assert PLAN.total == pytest.approx(seconds + 4.5)
    taken = [(p.sequence_length, p.batch_tokens) for p in PHASES for _ in range(p.steps)]
    assert PLAN.expected(taken) == pytest.approx(PLAN.training)
    assert PLAN.steps == len(taken)
    random.Random(1).shuffle(taken)
    assert PLAN.expected(taken) == pytest.approx(PLAN.training)


def test_a_plan_survives_its_json_and_nothing_else_is_one():
    again = StagePlan.from_json(json.loads(json.dumps(PLAN.as_json())))
    assert again == PLAN
    broken = PLAN.as_json()
    del broken["warmup"]
    for other in (None, [], {}, {"memory_bytes": 1}, broken, {**PLAN.as_json(), "phases": [{"steps": 1}]}):
        assert StagePlan.from_json(other) is None


def test_a_stage_in_one_go_is_compared_in_full():
    taken = tuple((p.sequence_length, p.batch_tokens) for p in PHASES for _ in range(p.steps))
    found = compare(PLAN, Happened(taken, 2 * PLAN.training, 400, PLAN.total / 2, 0.0), cores=2)
    assert found.memory.error == pytest.approx(100)
    assert found.step.error == pytest.approx(-50)
    assert found.step.planned == pytest.approx(PLAN.training / 36)
    assert found.total.error == pytest.approx(100)
    assert found.notes == ()
    assert found.as_json()["total_seconds"]["error_percent"] == pytest.approx(100)


def test_of_a_part_only_the_steps_that_were_taken_and_memory_are_compared():
    taken = ((128, 2048),) * 10 + ((256, 4096),) * 3
    found = compare(PLAN, Happened(taken, 5.0, 800, None, None, "it is not done"), cores=2)
    assert found.step == Pair(pytest.approx((0.75 + 10 * 0.25 + 3 * 0.5) / 13), 5.0 / 13)
    assert found.total is None
    assert "it is not done" in found.line("pretrain")
    assert found.as_json()["total_seconds"] is None


def test_steps_of_another_size_are_not_compared():
    found = compare(PLAN, Happened(((128, 4096),), 1.0, None, 3.0), cores=2)
    assert found.step is None
    assert found.memory is None
    assert found.notes == ("its steps are not those of the plan",)


@pytest.mark.parametrize(("elsewhere", "said"), [(1.0, True), (CROWDED / 2, False)])
def test_others_are_named_where_they_took_cores(elsewhere, said):
    found = compare(PLAN, Happened(((128, 2048),), 1.0, 1, 1.0, elsewhere), cores=2)
    assert any("other programs" in note for note in found.notes) is said


def test_the_machines_own_pace_is_told_apart():
    """It took a quarter longer, and the machine was a quarter slower: the plan was right of it."""
    plan = replace(PLAN, pace=0.02)
    taken = tuple((p.sequence_length, p.batch_tokens) for p in PHASES for _ in range(p.steps))
    outcome = Happened(taken, 1.25 * plan.training, 800, 1.25 * plan.total, 0.0, pace=0.025)
    found = compare(plan, outcome, cores=2)
    assert found.total.error == pytest.approx(-20)
    assert found.at_pace(found.total).error == pytest.approx(0)
    assert found.at_pace(found.step).error == pytest.approx(0)
    assert found.as_json()["total_seconds_at_pace"]["error_percent"] == pytest.approx(0)
    assert found.notes == ("the machine was 20% slower than when it was planned; in all +0.0% at its pace",)
    unknown = compare(PLAN, outcome, cores=2)
    assert (unknown.pace, unknown.at_pace(unknown.total), unknown.notes) == (None, None, ())


def test_a_slower_machine_takes_as_many_times_as_long():
    slower = PLAN.slower(1.5)
    assert slower.total == pytest.approx(1.5 * PLAN.total)
    assert slower.training == pytest.approx(1.5 * PLAN.training)
    assert (slower.steps, slower.memory_bytes, slower.notes) == (PLAN.steps, PLAN.memory_bytes, PLAN.notes)


def test_lines_merge_what_differs_by_a_row():
    phases = (
        Phase(128, 1920, 5, 1.0),
        Phase(128, 2048, 15, 2.0),
        Phase(256, 4096, 5, 3.0),
        Phase(256, 700, 1, 0.5),
    )
    lines = StagePlan(10**6, phases).lines("pretrain")
    assert len(lines) == 3
    assert "20 steps of 1.75 s (rows of 128, 2,048 a step)" in lines[1]
