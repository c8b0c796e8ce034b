"""The clock's promises, as properties of random stages, and its learning rate against other code."""

import bisect
import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cupola.errors import InputError
from cupola.recipe.clock import SPANS_PER_WINDOW, Clock
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Stage


def stage(tokens="100k tokens", sequence_length=16, batch_tokens=64, learning_rate=1e-3, **more):
    return Stage(
        data="text",
        tokens=tokens,
        sequence_length=sequence_length,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        **more,
    )


def at_positions(draw, values):
    """The values at 0% and at random increasing percentages."""
    starts = draw(
        st.lists(st.integers(1, 999), min_size=len(values) - 1, max_size=len(values) - 1, unique=True)
    )
    return {f"{start / 10}%": value for start, value in zip([0, *sorted(starts)], values, strict=True)}


def fits(lengths):
    """Whether no row length leaves a scrap of the longest."""
    return not any(0 < max(lengths) % length < min(lengths) for length in lengths)


def row_ends(clock, until):
    """Where rows end, one after the other: column by column in each window of 16 spans."""
    position, ends = 0, []
    while position < until:
        full = clock.sequence_length(position)
        for left in range(clock.span, 0, -full):
            for _ in range(16):
                position += min(full, left)
                ends.append(position)
    return ends


TOKENS = st.integers(1, 20_000)


@st.composite
def clocks(draw, horizon=TOKENS):
    """Clocks with rows of 8 to 64 tokens and batches of 64 to 1000, up and down at random positions.

    Where a row does not divide the longest, what is left is at least as long as the shortest.
    """
    lengths = draw(
        st.one_of(
            st.lists(st.sampled_from([8, 16, 32, 64]), min_size=1, max_size=4),
            st.permutations([8, 64, 24, 40, 56]).map(lambda order: order[:4]).filter(fits),
            st.permutations([6, 21, 33, 12]).filter(fits),
        )
    )
    sizes = draw(st.lists(st.integers(64, 1000), min_size=1, max_size=4))
    return Clock(
        stage(
            tokens=draw(horizon),
            sequence_length=at_positions(draw, lengths),
            batch_tokens=at_positions(draw, sizes),
        )
    )


@given(clocks())
def test_batches_tile_the_stage_on_the_grid_of_rows(clock):
    position = 0
    for start, end in clock.steps():
        assert start == position < end
        assert clock.begins_row(end)
        position = end
    ends = {0, *row_ends(clock, clock.end)}
    assert {end for _, end in clock.steps()} <= ends
    inside = range(0, clock.end, 7)
    assert [clock.begins_row(p) for p in inside] == [p in ends for p in inside]
    assert position == clock.end
    assert abs(clock.end - clock.total) <= max(clock.sequence_length(clock.end), clock.sequence_length(0))


@given(clocks(), st.data())
def test_a_restart_anywhere_gives_the_same_tail(clock, data):
    steps = list(clock.steps())
    assert len(steps) == clock.step_count
    done = data.draw(st.integers(0, len(steps)))
    position = clock.boundary(done)
    assert list(clock.steps(position)) == steps[done:]
    if done < len(steps):
        start, end = steps[done]
        assert (position, clock.next_boundary(start)) == (start, end)
        inside = data.draw(st.integers(start, end - 1))
        assert (clock.step_at(inside), clock.next_boundary(inside)) == (done, end)


def value_at(schedule, position, total):
    """The value at a position of a stage of `total` tokens."""
    before = [value for start, value in schedule.starts(total) if start <= max(0, position)]
    return before[-1]


@given(clocks(horizon=st.integers(1, 4000)))
def test_no_batch_is_much_smaller_or_larger_than_asked(clock):
    """A batch's ends are each within half a row of the ideal ones, and so is where it looks for its size."""
    asked = clock.stage.batch_tokens
    for start, end in list(clock.steps())[:-1]:
        row = max(clock.sequence_length(max(0, p)) for p in (start - 1, start, end - 1, end))
        begins = range(start - row // 2, start + row // 2 + 1)
        assert end - start >= min(value_at(asked, position, clock.total) for position in begins) - row
        assert end - start <= max(asked.values) + row


def walk(stage, total):
    """The ideal ends of the batches, one after another: the rule as a loop."""
    sizes = stage.batch_tokens.starts(total)
    position, phase = 0, 0
    while position < total:
        while phase + 1 < len(sizes):
            asked, next_size = sizes[phase + 1]
            grows = next_size > sizes[phase][1]
            if asked >= position + sizes[phase][1] if grows else asked > position:
                break
            phase += 1
        position = min(total, position + sizes[phase][1])
        yield position


@given(clocks())
def test_boundaries_are_the_rows_nearest_to_those_of_a_plain_loop(clock):
    rows = [0, *row_ends(clock, clock.total + clock.span)]
    nearest = []
    for ideal in walk(clock.stage, clock.total):
        after = bisect.bisect_right(rows, ideal)
        later_wins = 2 * ideal >= rows[after - 1] + rows[after]
        nearest.append(rows[after] if later_wins else rows[after - 1])
    nearest[-1] = max(nearest[-1], rows[1])
    if nearest[-2:-1] == nearest[-1:]:
        nearest.pop()
    assert [end for _, end in clock.steps()] == nearest


@given(
    st.sampled_from([8, 16, 64]),
    st.integers(64, 1000),
    st.integers(1000, 100_000),
)
def test_with_one_size_every_prefix_is_exact_to_a_row(row, size, total):
    clock = Clock(stage(tokens=total, sequence_length=row, batch_tokens=size))
    for number, (_, end) in enumerate(itertools.islice(clock.steps(), clock.step_count - 1), 1):
        assert abs(end - number * size) <= row / 2


@given(clocks(horizon=st.integers(1, 300).map("{} steps".format)))
def test_a_horizon_in_steps_is_exact(clock):
    steps = list(clock.steps())
    assert len(steps) == clock.stage.tokens.amount
    start, end = steps[-1]
    assert end - start > min(clock.stage.batch_tokens.values) - clock.span  # a whole batch as well


@given(clocks(), st.integers(1, 5000))
def test_an_interval_in_tokens_is_due_once_for_each_multiple(clock, interval):
    quantity = Quantity(interval, "tokens")
    reached = 0
    for start, end in clock.steps():
        multiples = [m for m in range(interval, end + 1, interval) if m > start]
        assert clock.due(quantity, start, end) == bool(multiples)
        reached += len(multiples)
    assert reached == clock.end // interval


@given(clocks(), st.integers(1, 30))
def test_an_interval_in_steps_is_due_at_its_multiples(clock, interval):
    due = [clock.due(Quantity(interval, "steps"), start, end) for start, end in clock.steps()]
    assert due == [step % interval == 0 for step in range(1, clock.step_count + 1)]


@pytest.mark.parametrize(("every", "times"), [("10%", 10), ("25%", 4), ("100%", 1)])
def test_an_interval_in_percent(every, times):
    clock = Clock(stage(tokens=64 * 1000))
    due = [end for start, end in clock.steps() if clock.due(Quantity.parse(every), start, end)]
    assert len(due) == times
    assert due[-1] == clock.end


@given(clocks())
@example(Clock(stage(tokens=700, sequence_length={"0%": 16, "0.1%": 8, "0.2%": 16}, batch_tokens=64)))
def test_length_changes_between_windows_and_is_never_longer_than_asked(clock):
    asked = clock.stage.sequence_length
    for begin in range(0, clock.end, clock.window):
        in_window = {clock.sequence_length(p) for p in (begin, begin + 1, begin + clock.window - 1)}
        assert len(in_window) == 1
        wanted = {value_at(asked, position, clock.total) for position in range(begin, begin + clock.window)}
        assert in_window == {min(wanted)}
    assert clock.window == SPANS_PER_WINDOW * max(asked.values)


@given(
    clocks(),
    st.sampled_from(["cosine", "linear", "1-sqrt", "constant", "inverse_sqrt"]),
    st.sampled_from(["0%", "10%", "100%", "3 steps"]),
    st.sampled_from([None, "20%", "90%", "1 step"]),
    st.sampled_from([0.0, 0.1]),
)
def test_learning_rate_is_never_0_nor_above_the_peak(clock, decay, warmup, decay_over, final):
    if decay == "inverse_sqrt" and warmup == "0%":
        warmup = "10%"
    if warmup in ("100%", "3 steps"):
        decay_over = None  # both together would be longer than the stage
    if warmup == "3 steps":
        warmup = f"{min(3, clock.step_count)} steps"  # a longer one than the stage is refused
    settings = {"peak": 1e-3, "warmup": warmup, "decay": decay, "final": final}
    if decay_over == "1 step":
        assume(clock.boundary(clock.step_count - 1) >= clock.total / 10)
    settings |= {"decay_over": decay_over} if decay_over and decay != "constant" else {}
    clock = Clock(
        clock.stage.model_copy(update={"learning_rate": stage(learning_rate=settings).learning_rate})
    )
    rates = [clock.learning_rate(start, end) for start, end in clock.steps()]
    assert all(0 < rate <= 1e-3 * (1 + 1e-12) for rate in rates)
    if warmup == "0%":
        assert rates == sorted(rates, reverse=True)


def test_learning_rate_stays_above_0_at_the_end_of_a_very_long_run():
    clock = Clock(stage(tokens="100T tokens", sequence_length=1024, batch_tokens=4096))
    assert clock.learning_rate(clock.end - 4096, clock.end) > 0


THEIRS = {
    "cosine": ("get_cosine_schedule_with_warmup", {}, {}),
    "linear": ("get_linear_schedule_with_warmup", {}, {}),
    "inverse_sqrt": ("get_inverse_sqrt_schedule", {}, {}),
    **{
        f"wsd {shape}": (
            "get_wsd_schedule",
            {"num_decay_steps": 80, "decay_type": shape, "min_lr_ratio": 0.0},
            {"decay_over": "40 steps"},
        )
        for shape in ("linear", "cosine", "1-sqrt")
    },
}
"""Name of the schedule in transformers, its settings, and ours besides."""


@pytest.mark.oracle
@pytest.mark.parametrize("name", THEIRS)
def test_learning_rate_equals_transformers(name):
    """Their step k is our position: the middles of our steps are the odd ones of twice as many steps."""
    function, settings, ours_besides = THEIRS[name]
    decay = name.removeprefix("wsd ")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    steps, warmup = 200, 15
    clock = Clock(
        stage(
            tokens=f"{64 * steps} tokens",
            learning_rate={"peak": 3e-3, "warmup": f"{warmup} steps", "decay": decay, **ours_besides},
        )
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    if decay != "inverse_sqrt":
        settings = {**settings, "num_training_steps": 2 * steps}
    schedule = getattr(transformers, function)(optimizer, num_warmup_steps=2 * warmup, **settings)
    theirs = []
    for _ in range(2 * steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = [clock.learning_rate(start, end) for start, end in clock.steps()]
    assert ours == pytest.approx(theirs[1::2], rel=1e-9)


def test_shares_of_the_peak_at_positions():
    decay = {"points": {"0%": 1, "50%": 0.5, "100%": 0}, "between": "linear"}
    clock = Clock(stage(tokens=6400, learning_rate={"peak": 2.0, "warmup": "10%", "decay": decay}))
    found = [clock.learning_rate(start, end) for start, end in clock.steps()]
    expected = [2.0 * min(1, x / 0.1) * (1 - x) for x in (np.arange(100) + 0.5) / 100]
    assert found == pytest.approx(expected)
    steps = Clock(stage(tokens=6400, learning_rate={"peak": 2.0, "decay": {"0%": 1, "60%": 0.3}}))
    assert {steps.learning_rate(start, end) for start, end in steps.steps()} == {2.0, 0.6}


@pytest.mark.parametrize(("rule", "power"), [("none", 0), ("sqrt", 0.5), ("linear", 1)])
def test_the_rate_follows_the_batch_by_the_rule_asked_for(rule, power):
    sizes = {"0%": 64, "20%": 160, "60%": 256}
    settings = {"peak": 1e-2, "decay": "constant", "batch_rule": rule}
    clock = Clock(stage(tokens=64_000, batch_tokens=sizes, learning_rate=settings))
    seen = set()
    for start, end in list(clock.steps())[:-1]:
        size = min(sizes.values(), key=lambda size: abs(size - (end - start)))
        assert clock.learning_rate(start, end) == pytest.approx(1e-2 * (size / 256) ** power)
        seen.add(size)
    assert seen == set(sizes.values())


@pytest.mark.parametrize("tokens", ["20M tokens", "19_999_999 tokens", "5M tokens"])
@pytest.mark.parametrize(("warmup", "decay_over"), [("10%", "90%"), ("0%", "100%"), ("20%", "80%")])
def test_warmup_and_decay_may_be_the_whole_stage_wherever_its_last_row_ends(tokens, warmup, decay_over):
    settings = {"peak": 1.0, "warmup": warmup, "decay": "linear", "decay_over": decay_over}
    clock = Clock(stage(tokens=tokens, sequence_length=1024, batch_tokens=65536, learning_rate=settings))
    assert clock.decay_start == clock.warmup
    assert 0 < clock.learning_rate(clock.boundary(clock.step_count - 1), clock.end) < 0.02


@pytest.mark.parametrize("tokens", range(65, 130))
@pytest.mark.parametrize("warmup", [10, 25, 50])
def test_percentages_that_make_up_a_stage_fit_however_they_are_rounded(tokens, warmup):
    settings = {"peak": 1.0, "warmup": f"{warmup}%", "decay": "linear", "decay_over": f"{100 - warmup}%"}
    clock = Clock(stage(tokens=tokens, learning_rate=settings))
    assert 0 <= clock.decay_start - clock.warmup <= 1


@pytest.mark.parametrize("end", ["100%", "20480 tokens"])
def test_a_way_may_end_where_the_stage_does(end):
    start = "0%" if end == "100%" else "0 tokens"
    growing = {"points": {start: 64, end: 256}, "between": "linear"}
    clock = Clock(stage(tokens=20480, sequence_length=growing, batch_tokens={**growing, "multiple": 32}))
    sizes = {end - start for start, end in clock.steps()}
    assert max(sizes) < 256 + 192
    assert clock.sequence_length(clock.end - 1) in (128, 192)
    assert clock.span >= 192


def test_every_setting_that_may_change_does():
    curve = {"points": {"0%": 0.5, "100%": 0.9}, "between": "linear"}
    clock = Clock(
        stage(
            tokens=6400,
            z_loss={"0%": 0.1, "50%": 0.0},
            optimizer={"kind": "muon", "momentum": curve, "weight_decay": curve},
        )
    )
    middles = (np.arange(100) + 0.5) / 100
    found = [clock.values(start, end) for start, end in clock.steps()]
    assert [values.momentum for values in found] == pytest.approx(0.5 + 0.4 * middles)
    assert [values.weight_decay for values in found] == pytest.approx(0.5 + 0.4 * middles)
    assert [values.z_loss for values in found] == [0.1] * 50 + [0.0] * 50


def test_rows_and_batches_grow_evenly():
    """From 512 to 4096 in steps of 512, and a batch that is never less than a row."""
    clock = Clock(
        stage(
            tokens="10M tokens",
            sequence_length={"points": {"0%": 512, "50%": 4096}, "between": "linear"},
            batch_tokens={"points": {"0%": 8192, "50%": 65536}, "between": "linear"},
        )
    )
    lengths = [clock.sequence_length(start) for start, _ in clock.steps()]
    assert lengths == sorted(lengths)
    assert set(lengths) == set(range(512, 4097, 512))
    sizes = [end - start for start, end in list(clock.steps())[:-1]]
    assert {round(size / 8192) for size in sizes} == set(range(1, 9))


def test_final_is_a_share_of_the_peak():
    clock = Clock(stage(learning_rate={"peak": 1.0, "final": 0.1}))
    *_, (start, end) = clock.steps()
    assert clock.learning_rate(start, end) == pytest.approx(0.1, rel=1e-4)
    assert clock.learning_rate(start, end) > 0.1


def test_a_horizon_in_epochs_needs_the_size_of_the_corpus():
    two = stage(tokens="2 epochs")
    assert Clock(two, epoch_tokens=50_000).end == 100_000
    with pytest.raises(InputError, match="size of the corpus"):
        Clock(two)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_tokens": 8}, "batch_tokens 8 at 0% is less than one row of 16 tokens"),
        (
            {"batch_tokens": 20, "sequence_length": {"0%": 16, "40%": 32}},
            "batch_tokens 20 at 40% is less than one row of 32 tokens; let batch_tokens be at least 32",
        ),
        (
            {"tokens": "100 steps", "batch_tokens": {0: 64, 5000: 128}},
            "batch_tokens: with a horizon in steps, positions are percentages",
        ),
        ({"learning_rate": {"peak": 1, "warmup": "1M tokens"}}, "longer than the stage"),
        ({"learning_rate": {"peak": 1, "decay_over": "1M tokens"}}, "a decay of 1,000,000 tokens is longer"),
        ({"learning_rate": {"peak": 1, "decay_over": "9999 steps"}}, "a decay of 9999 steps is longer"),
        (
            {"learning_rate": {"peak": 1, "warmup": "30%", "decay_over": "80%"}},
            "warm-up and decay together are longer than the stage.* shorten either",
        ),
        ({"learning_rate": {"peak": 1, "decay": "inverse_sqrt"}}, "needs a warm-up"),
        (
            {"batch_tokens": {0: 64, 200_000: 128}},
            "batch_tokens changes at 200000 tokens, but the stage ends at 100,000 tokens; move the change",
        ),
        ({"sequence_length": {0: 16, 200_000: 64}}, "sequence_length changes at 200000"),
        ({"optimizer": {"weight_decay": {0: 0.1, 200_000: 0.2}}}, "weight_decay changes at 200000"),
        ({"data": {0: {"a": 1}, 200_000: {"b": 1}}}, "data changes at 200000"),
        (
            {"sequence_length": {"0%": 24, "50%": 32}, "batch_tokens": 64},
            "24 does not divide the longest, 32",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    made = stage(**{key: value for key, value in settings.items() if key != "data"})
    if "data" in settings:
        made = Stage.model_validate({**made.model_dump(mode="json"), "data": settings["data"]})
    with pytest.raises(InputError, match=message):
        Clock(made)


def test_a_batch_that_is_no_multiple_of_the_row_is_said_as_it_is():
    clock = Clock(stage(tokens="100k tokens", sequence_length=256, batch_tokens={"0%": 5000, "50%": 5120}))
    assert clock.notes() == [
        "batch_tokens 5000 is no multiple of the row of 256: batches alternate between 19 and 20 rows"
    ]
    sizes = {(end - start) // 256 for start, end in clock.steps() if end < 50_000}
    assert sizes == {19, 20}


def test_notes_follow_the_row_as_it_grows():
    clock = Clock(stage(sequence_length={"0%": 16, "50%": 48}, batch_tokens=64))
    assert clock.notes() == [
        "batch_tokens 64 is no multiple of the row of 48: batches alternate between 1 and 2 rows"
    ]
    assert Clock(stage(sequence_length={"0%": 16, "50%": 64}, batch_tokens=64)).notes() == []


def test_a_large_ramp_by_hand():
    """3.3 batches of 100 up to 1/3: the larger size begins with the batch in which its position falls."""
    clock = Clock(stage(tokens=1000, sequence_length=10, batch_tokens={"0%": 100, "33%": 200}))
    assert [end for _, end in clock.steps()] == [100, 200, 300, 500, 700, 900, 1000]
    falling = Clock(stage(tokens=1000, sequence_length=10, batch_tokens={"0%": 200, "33%": 100}))
    assert [end for _, end in falling.steps()] == [200, 400, 500, 600, 700, 800, 900, 1000]


def test_questions_cost_the_same_at_the_end_of_a_long_stage():
    """A trillion tokens in a billion steps: closed form, or this test never ends."""
    clock = Clock(stage(tokens="1T tokens", sequence_length=512, batch_tokens={"0%": 1024, "10%": 2048}))
    assert math.isclose(clock.step_count, 1e11 / 1024 + 9e11 / 2048, rel_tol=1e-6)
    assert clock.next_boundary(clock.boundary(clock.step_count - 1)) == clock.end
    assert clock.due(Quantity(1, "steps"), clock.end - 2048, clock.end)


def test_a_stage_of_one_batch_and_a_decay_that_never_comes_are_said():
    assert Clock(stage(tokens="6400 tokens", batch_tokens=64 * 1000)).notes() == [
        "a batch of 64,000 tokens is more than the stage has, 6,400: it is one step"
    ]
    rate = {"peak": 1e-3, "warmup": "100%", "decay": "cosine"}
    assert Clock(stage(learning_rate=rate)).notes() == [
        "the warm-up takes the whole stage, and nothing is left for the decay"
    ]
    assert Clock(stage(learning_rate={**rate, "decay": "constant"})).notes() == []
