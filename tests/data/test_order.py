"""The order against its slow reference, and what it promises whatever the batch, the row and the ranks."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.data.order import Order, epoch_tokens
from cupola.errors import InputError
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Stage
from tests.data.order_reference import WINDOW, slow_rows, small_stage, small_stores

LENGTHS = {name: store.length for name, store in small_stores().items()}

STAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows grow": {"sequence_length": {"0%": 8, "40%": 16, "70%": 32}},
    "rows shrink": {"sequence_length": {"0%": 32, "50%": 8}, "tokens": 7_001},
    "rows grow evenly": {
        "sequence_length": {"points": {"0%": 8, "60%": 32}, "between": "linear"},
        "batch_tokens": {"points": {"0%": 100, "60%": 900}, "between": "linear"},
    },
    "mixture changes evenly": {
        "data": {"points": {"0%": {"a": 1, "b": 1}, "100%": {"b": 1, "c": 2}}, "between": "linear"}
    },
    "batch ramp": {"batch_tokens": {"0%": 64, "30%": 200, "60%": 1_000}},
    "mixture changes": {
        "data": {"0%": {"a": 1, "b": 1}, "30%": {"c": 1}, "60%": {"a": 0.1, "b": 0.2, "c": 0.7}},
        "sequence_length": {"0%": 16, "50%": 32},
    },
    "one source": {"data": "b", "tokens": 9_000},
}


def order_of(stage: Stage, seed: int = 11, name: str = "pretrain", **lengths: int) -> Order:
    return Order(seed, name, {**LENGTHS, **lengths}, Clock(stage), stage.data)


@pytest.mark.parametrize("name", STAGES)
def test_equals_the_slow_reference(name: str) -> None:
    stage = small_stage(**STAGES[name])
    clock = Clock(stage)
    order = order_of(stage)
    expected = slow_rows(11, "pretrain", stage, clock, LENGTHS)
    rows = order.rows(0, clock.end)
    fields = ["entry", "epoch", "span", "column", "length", "offset"]
    got = [
        (order.names[source], *rest)
        for source, rest in zip(rows["source"].tolist(), rows[fields].tolist(), strict=True)
    ]
    assert got == [row[1:] for row in expected]
    assert np.array_equal(np.cumsum(rows["length"]) - rows["length"], [row[0] for row in expected])


@pytest.mark.parametrize("name", STAGES)
def test_any_stretch_is_a_part_of_the_whole(name: str) -> None:
    """Resume at every boundary: the rows from there on are the rows that were still to come."""
    stage = small_stage(**STAGES[name])
    clock = Clock(stage)
    whole = order_of(stage).rows(0, clock.end)
    ends = np.cumsum(whole["length"])
    steps = list(clock.steps())
    assert steps[-1][1] == clock.end
    assert len(steps) > 5
    for start, end in steps:
        fresh = order_of(stage)
        first, last = np.searchsorted(ends, [start, end], side="right")
        assert np.array_equal(fresh.rows(start, end), whole[first:last])
        assert np.array_equal(fresh.rows(start, clock.end), whole[first:])


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0.01, 1), min_size=1),
    st.integers(0, 2**63 - 1),
    st.tuples(*[st.integers(32, 3_000)] * 3),
    st.lists(st.sampled_from([4, 8, 12, 16, 20, 28, 32]), max_size=3),
)
def test_equals_the_slow_reference_for_any_stage(
    weights: dict[str, float], seed: int, sizes: tuple[int, int, int], lengths: list[int]
) -> None:
    shortest = min([*lengths, 32])
    if any(0 < 32 % length < shortest for length in lengths):  # would be refused
        lengths = [length for length in lengths if 32 % length == 0]
    schedule = {f"{20 * number}%": length for number, length in enumerate([*lengths, 32])}
    stage = small_stage(data=weights, tokens=5_000, sequence_length=schedule)
    clock = Clock(stage)
    tokens = dict(zip("abc", sizes, strict=True))
    expected = slow_rows(seed, "pretrain", stage, clock, tokens)
    rows = order_of(stage, seed, **tokens).rows(0, clock.end)
    assert rows["offset"].tolist() == [row[-1] for row in expected]
    assert rows["length"].tolist() == [row[-2] for row in expected]


def places(order: Order, rows: np.ndarray) -> list[tuple[str, int]]:
    """(source, place in the source) of every token of the rows."""
    return [
        (order.names[source], (offset + step) % LENGTHS[order.names[source]])
        for source, offset, length in rows[["source", "offset", "length"]].tolist()
        for step in range(length)
    ]


def test_a_window_holds_the_same_tokens_whatever_the_rows_and_batches() -> None:
    clocks, found = [], []
    for lengths in (
        32,
        {"0": 8, "1000 tokens": 32},
        {"0%": 4, "50%": 16, "80%": 32},
        {"0%": 20, "30%": 8, "60%": 32},
    ):
        for batch in (64, {"0%": 128, "30%": 700}):
            stage = small_stage(sequence_length=lengths, batch_tokens=batch)
            order = order_of(stage)
            clock = order.clock
            clocks.append(clock.sequence_length(0))
            windows = [
                Counter(places(order, order.rows(start, start + clock.window)))
                for start in range(0, clock.total - clock.window, clock.window)
            ]
            found.append(windows)
    assert len(set(clocks)) == 4  # the row lengths did differ
    assert all(windows == found[0] for windows in found)


def test_a_batch_schedule_does_not_touch_the_rows() -> None:
    orders = [order_of(small_stage(batch_tokens=batch)) for batch in (64, 500, {"0%": 64, "50%": 1024})]
    joined = []
    for order in orders:
        steps = list(order.clock.steps())
        joined.append(np.concatenate([order.rows(start, end) for start, end in steps]))
    assert len({len(list(order.clock.steps())) for order in orders}) == 3
    shortest = min(map(len, joined))
    assert shortest * 32 >= 19_900
    assert all(np.array_equal(rows[:shortest], joined[0][:shortest]) for rows in joined)


def test_short_rows_of_a_small_batch_come_from_many_spans() -> None:
    order = order_of(small_stage(sequence_length={"0%": 8, "90%": 32}))
    rows = order.rows(0, WINDOW * 8)
    assert len(set(rows[["source", "entry"]].tolist())) == WINDOW


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_every_token_is_read_once_in_an_epoch(ranks: int) -> None:
    """Up to a tail shorter than a span, and whatever the number of ranks that share the rows."""
    stage = small_stage(tokens=40_000, sequence_length={"0%": 16, "50%": 32})
    order = order_of(stage)
    rows = order.rows(0, order.clock.end // order.clock.window * order.clock.window)
    rows = np.concatenate([rows[rank::ranks] for rank in range(ranks)])
    epochs = 0
    for number, name in enumerate(order.names):
        mine = rows[rows["source"] == number]
        for epoch in range(int(mine["epoch"].max())):  # the last one is not over
            seen = Counter(places(order, mine[mine["epoch"] == epoch]))
            assert set(seen.values()) == {1}
            assert len(seen) == LENGTHS[name] // 32 * 32
            assert LENGTHS[name] - len(seen) < 32
            epochs += 1
    assert epochs > 20


def test_tails_are_seen_in_other_epochs() -> None:
    order = order_of(small_stage(data="c", tokens=6_400))
    rows = order.rows(0, order.clock.end)
    assert len(set(places(order, rows))) == LENGTHS["c"]  # 99 tokens, 96 of them in each epoch


def test_seeds_stages_sources_and_epochs_have_orders_of_their_own() -> None:
    def offsets(seed: int = 1, stage: str = "pretrain", source: str = "a", epoch: int = 0) -> list[int]:
        order = Order(
            seed, stage, {source: 4_001}, Clock(small_stage(data=source)), small_stage(data=source).data
        )
        return order.spans(125 * epoch, 125 * (epoch + 1))["span"].tolist()

    several = [offsets(), offsets(seed=2), offsets(stage="midtrain"), offsets(source="b"), offsets(epoch=1)]
    assert all(sorted(one) == list(range(125)) for one in several)
    for number, one in enumerate(several):
        for other in several[:number]:
            assert sum(x == y for x, y in zip(one, other, strict=True)) < 8  # Poisson(1)


def test_the_order_in_which_a_recipe_lists_sources_does_not_matter() -> None:
    one, other = small_stage(data={"a": 0.7, "b": 0.3}), small_stage(data={"b": 3, "a": 7})
    assert np.array_equal(order_of(one).rows(0, 4096), order_of(other).rows(0, 4096))
    assert order_of(one).fingerprint() == order_of(other).fingerprint()


def test_a_source_shorter_than_a_span_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"source 'c' has 31 tokens, less than one span of 32.*stage 'pretrain'"
    ):
        order_of(small_stage(), c=31)
    order_of(small_stage(), c=32).rows(0, 512)
    order_of(small_stage(data="a"), c=31)  # not in the mixture


def test_a_missing_source_and_a_row_that_does_not_fit_the_span_are_refused() -> None:
    stage = small_stage(data={"a": 1, "d": 1})
    with pytest.raises(InputError, match=r"'d', which is not a source; sources are 'a', 'b', 'c'"):
        order_of(stage)
    with pytest.raises(InputError, match=r"12 does not divide the longest, 32.*such as 8"):
        order_of(small_stage(sequence_length={"0%": 12, "50%": 32}))
    with pytest.raises(InputError, match="not whole rows"):
        order_of(small_stage()).rows(8, 64)


def test_an_empty_stretch_has_no_rows() -> None:
    assert len(order_of(small_stage()).rows(64, 64)) == 0
    assert len(order_of(small_stage()).spans(3, 3)) == 0


def test_epochs_of_counts_how_often_a_source_is_seen() -> None:
    order = order_of(small_stage(tokens=40_960, data={"a": 1, "c": 1}))
    epochs = order.epochs_of(order.clock.end)
    rows = order.rows(0, order.clock.end)
    for number, name in enumerate(order.names):
        tokens = rows["length"][rows["source"] == number].sum()
        assert epochs[name] == tokens / (LENGTHS[name] // 32 * 32)
    assert order.notes() == []
    warnings = order.warnings()
    assert len(warnings) == 2
    assert "20,480 tokens of 'c', which has 99: 213 epochs; up to 4 are nearly as good" in warnings[1]


@pytest.mark.parametrize(("tokens", "said", "warned"), [(9_000, 0, 0), (40_000, 1, 0), (41_024, 0, 1)])
def test_more_than_four_epochs_are_a_warning(tokens: int, said: int, warned: int) -> None:
    """10,016 tokens are 313 spans; 4 times that is 40,064."""
    order = order_of(small_stage(tokens=tokens, data="a"), a=10_016)
    assert (len(order.notes()), len(order.warnings())) == (said, warned)


def test_notes_say_when_a_weight_is_raised() -> None:
    order = order_of(small_stage(tokens=1_000, data={"a": 1, "c": 1e-9}))
    assert order.notes() == [
        "stage 'pretrain' takes 1/4096 of its tokens, the least there is, from each of 'c', "
        "whose weights are below that"
    ]


def test_notes_say_when_a_change_of_weights_has_no_effect() -> None:
    """A window is 512 tokens: the changes at 600 and 700 both come at 1,024, that at 1,100 after the end."""
    data = {"0": {"a": 1}, "600 tokens": {"b": 1}, "700 tokens": {"c": 1}, "1100 tokens": {"b": 1}}
    order = order_of(small_stage(tokens=1_200, data=data))
    assert [order.names[row] for row in order.rows(0, order.clock.end)["source"]] == ["a"] * 32 + ["c"] * 6
    assert "2 of the weights in data have no effect" in order.notes()[-1]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"batch_tokens": {"0%": 64, "50%": 4096}}, True),
        ({"sequence_length": {"0%": 8, "50%": 32}}, True),
        ({"learning_rate": 0.5}, True),
        ({"tokens": 40_000}, True),  # a longer stage goes on from where a shorter one would have ended
        ({"data": {"a": 6, "b": 3, "c": 1}}, True),
        ({"sequence_length": 16}, False),
        ({"data": {"a": 0.6, "b": 0.25, "c": 0.15}}, False),
        ({"data": {"0%": {"a": 0.6, "b": 0.3, "c": 0.1}, "50%": {"a": 1}}}, False),
    ],
)
def test_fingerprint_covers_what_the_order_depends_on(change: dict[str, Any], same: bool) -> None:
    before, after = order_of(small_stage()), order_of(small_stage(**change))
    assert (before.fingerprint() == after.fingerprint()) is same
    if not same:
        assert not np.array_equal(before.spans(0, 640), after.spans(0, 640))


def test_fingerprint_covers_seed_stage_and_stores() -> None:
    stage = small_stage()
    stores = small_stores()
    base = Order.over(11, "pretrain", stores, Clock(stage), stage.data).fingerprint()
    assert Order.over(11, "pretrain", small_stores(), Clock(stage), stage.data).fingerprint() == base
    assert Order.over(12, "pretrain", stores, Clock(stage), stage.data).fingerprint() != base
    assert Order.over(11, "midtrain", stores, Clock(stage), stage.data).fingerprint() != base
    stores["b"].fingerprint = "other"
    assert Order.over(11, "pretrain", stores, Clock(stage), stage.data).fingerprint() != base


def test_the_order_of_version_1_stays_what_it_is() -> None:
    """Whoever changes the arithmetic raises `VERSION`, and this with it."""
    order = order_of(small_stage())
    assert order.rows(0, 32 * 6)["offset"].tolist() == GOLDEN_OFFSETS
    assert order.fingerprint() == GOLDEN_FINGERPRINT


GOLDEN_OFFSETS = [649, 994, 1289, 2954, 1698, 3178]
GOLDEN_FINGERPRINT = "f0db70a8ccd5fe8737d6d6c62938bcd572b9f7fc65ee475a50ec7ba20501b556"


def verify(state: dict[str, Any], order: Order) -> None:
    order.verify_state(json.loads(json.dumps(state)))


def test_a_state_verifies_against_the_same_order_and_other_batches() -> None:
    state = order_of(small_stage()).state(1024)
    assert state["position"] == 1024
    for change in ({}, {"batch_tokens": 64}, {"tokens": 30_000}, {"sequence_length": {"0%": 32, "50%": 16}}):
        verify(state, order_of(small_stage(**change)))


@pytest.mark.parametrize(
    ("order", "line"),
    [
        (order_of(small_stage(), seed=12), "seed 11 -> 12"),
        (order_of(small_stage(), name="midtrain"), "stage pretrain -> midtrain"),
        (order_of(small_stage(), b=1_778), "source 'b' had 1,777 tokens and has 1,778"),
        (order_of(small_stage(data={"a": 1, "b": 1})), "source 'c' is gone"),
        (order_of(small_stage(data={"a": 1, "b": 1, "c": 1})), "the weights of the mixture"),
        (order_of(small_stage(sequence_length=16)), "span 32 -> 16"),
    ],
)
def test_a_changed_order_is_refused(order: Order, line: str) -> None:
    state = order_of(small_stage()).state(1024)
    with pytest.raises(InputError, match=line):
        verify(state, order)


def test_a_changed_store_is_refused_by_name() -> None:
    stage = small_stage()
    stores = small_stores()
    state = Order.over(11, "pretrain", stores, Clock(stage), stage.data).state(1024)
    stores["b"].fingerprint = "other"
    changed = Order.over(11, "pretrain", stores, Clock(stage), stage.data)
    with pytest.raises(InputError, match="the store of source 'b' has other contents"):
        verify(state, changed)


def test_rows_may_not_change_their_length_inside_a_window() -> None:
    """Half a window of short rows is the first columns of its spans, not the first half of them."""
    short = order_of(small_stage(sequence_length={"0%": 8, "50%": 32}))
    long = order_of(small_stage(sequence_length={"0%": 32, "90%": 8}))
    window = short.clock.window
    verify(short.state(window), long)
    with pytest.raises(InputError, match=r"sequence_length 8 -> 32 at 544 tokens, in the middle of a window"):
        verify(short.state(window + 32), long)
    with pytest.raises(InputError, match="puts the position inside a row"):
        verify(short.state(window + 8), long)


def test_epoch_tokens_ends_when_the_first_source_has_been_seen() -> None:
    lengths = {"a": 10_000, "b": 3_000}
    mixture = small_stage(data={"a": 0.5, "b": 0.5}).data
    assert epoch_tokens(lengths, mixture) == 6_000
    assert epoch_tokens(lengths, mixture, span=32) == 2 * (3_000 // 32 * 32)
    assert epoch_tokens(lengths, {"a": 3}, span=32) == 10_000 // 32 * 32
    with pytest.raises(InputError, match="less than one span of 4,000"):
        epoch_tokens(lengths, mixture, span=4_000)


def test_epoch_tokens_where_weights_change() -> None:
    lengths = {"a": 8_192, "b": 4_096}
    shares = {"0%": {"a": 1}, "50%": {"a": 1, "b": 1}}
    assert epoch_tokens(lengths, small_stage(data=shares).data, 32) == pytest.approx(8_192 / 0.75, abs=32)
    at = {"0": {"a": 1}, "4096 tokens": {"a": 1, "b": 1}}
    assert epoch_tokens(lengths, small_stage(data=at).data, 32) == 4_096 + 2 * 4_096
    late = {"0": {"b": 1}, "9000 tokens": {"a": 1}}
    assert epoch_tokens(lengths, small_stage(data=late).data, 32) == 4_096


@pytest.mark.parametrize("name", ["plain", "one source", "mixture changes"])
def test_after_epoch_tokens_one_source_has_been_seen_once(name: str) -> None:
    lengths = {"a": 40_010, "b": 17_770, "c": 9_990}
    stage = small_stage(**STAGES[name])
    whole = small_stage(**{**STAGES[name], "tokens": epoch_tokens(lengths, stage.data, 32)})
    order = order_of(whole, **lengths)
    seen = order.epochs_of(order.clock.end)
    assert max(seen.values()) == pytest.approx(1, abs=0.08)  # 0.05 is a window of source c
