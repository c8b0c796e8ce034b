"""The loader: the order's rows and nothing else, whatever ranks and resume; errors; no thread left."""

import gc
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cupola.data.batch import FILLER, IGNORED, Batch
from cupola.data.loader import Loader
from cupola.data.order import Order
from cupola.errors import CupolaError, InputError
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Stage
from tests.data.order_reference import ArrayStore, slow_rows, small_stage, small_stores, tokens_of_row

GROWING = {
    "sequence_length": {"0%": 8, "45%": 16, "70%": 32},
    "batch_tokens": {"0%": 100, "30%": 500, "60%": 1_700},
    "data": {"0%": {"a": 0.6, "b": 0.4}, "50%": {"a": 0.2, "b": 0.2, "c": 0.6}},
    "tokens": 12_345,
}


def loader_of(stage: Stage, stores: dict[str, ArrayStore] | None = None, **settings: Any) -> Loader:
    stores = stores or small_stores()
    order = Order.over(11, "pretrain", stores, Clock(stage), stage.data)
    return Loader(order, stores, **{"microbatch_tokens": 64, **settings})


def rows_of(batch: Batch) -> list[tuple[int, list[int], list[int]]]:
    """(source, tokens, targets) of every row but the filler, in order."""
    return [
        row
        for micro in batch.microbatches
        for row in zip(micro.sources.tolist(), micro.tokens.tolist(), micro.targets.tolist(), strict=True)
        if row[0] != FILLER
    ]


def threads() -> int:
    return sum(thread.name.startswith("loader of") for thread in threading.enumerate())


def test_reads_every_row_of_the_stage_in_order() -> None:
    stage, stores = small_stage(**GROWING), small_stores()
    clock = Clock(stage)
    lengths = {name: store.length for name, store in stores.items()}
    expected = []
    for _, source, *_, length, offset in slow_rows(11, "pretrain", stage, clock, lengths):
        tokens = tokens_of_row(stores[source], offset, length + 1)
        expected.append(("abc".index(source), tokens[:-1], tokens[1:]))
    with loader_of(stage) as loader:
        batches = list(loader)
    assert [row for batch in batches for row in rows_of(batch)] == expected
    assert [(batch.start, batch.end) for batch in batches] == list(clock.steps())
    assert any(
        offset + length >= lengths[source]
        for _, source, *_, length, offset in slow_rows(11, "pretrain", stage, clock, lengths)
    ), "no row went around the ring"


def test_counts_of_the_whole_batch() -> None:
    for rank in range(3):
        with loader_of(small_stage(**GROWING), rank=rank, ranks=3) as loader:
            for batch in loader:
                assert batch.valid_tokens == batch.end - batch.start == sum(batch.tokens_by_source.values())
                assert list(batch.tokens_by_source) == ["a", "b", "c"]
    with loader_of(small_stage(**GROWING)) as loader:
        for batch in loader:
            counted: Counter[str] = Counter()
            for source, tokens, _ in rows_of(batch):
                counted["abc"[source]] += len(tokens)
            assert counted == {name: n for name, n in batch.tokens_by_source.items() if n}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_the_ranks_together_read_the_batch(ranks: int) -> None:
    stage = small_stage(**GROWING)
    with loader_of(stage) as loader:
        whole = list(loader)
    shares = []
    for rank in range(ranks):
        with loader_of(stage, rank=rank, ranks=ranks) as loader:
            shares.append(list(loader))
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        union = [row for part in parts for row in rows_of(part)]
        assert sorted(union) == sorted(rows_of(batch))
        assert len({tuple(m.tokens.shape for m in part.microbatches) for part in parts}) == 1
        valid = sum(int((m.targets != IGNORED).sum()) for part in parts for m in part.microbatches)
        assert valid == batch.valid_tokens
        assert all((part.start, part.end) == (batch.start, batch.end) for part in parts)
    lengths = {m.tokens.shape[1] for batch in whole for m in batch.microbatches}
    assert lengths == {8, 16, 32}


def test_ranks_take_every_nth_row() -> None:
    with loader_of(small_stage()) as loader:
        rows = rows_of(next(loader))
    for rank in range(3):
        with loader_of(small_stage(), rank=rank, ranks=3) as loader:
            assert rows_of(next(loader)) == rows[rank::3]


def test_resume_at_every_boundary_gives_the_remaining_batches() -> None:
    stage = small_stage(**GROWING)
    with loader_of(stage) as loader:
        batches = [(batch.start, batch.end, rows_of(batch)) for batch in loader]
    assert len(batches) > 30
    for number, (start, _, _) in enumerate(batches):
        with loader_of(stage, position=start) as loader:
            assert loader.position == start
            rest = [(batch.start, batch.end, rows_of(batch)) for batch in loader]
        assert rest == batches[number:]
    with loader_of(stage, position=Clock(stage).end) as loader:
        assert list(loader) == []


def test_microbatch_and_prefetch_do_not_change_the_rows() -> None:
    stage = small_stage(**GROWING)
    found = []
    for settings in (
        {},
        {"microbatch_tokens": 1},
        {"microbatch_tokens": 10**6},
        {"prefetch": 7},
        {"prefetch": 1},
    ):
        with loader_of(stage, **settings) as loader:
            batches = list(loader)
        found.append([row for batch in batches for row in rows_of(batch)])
        limit = settings.get("microbatch_tokens", 64)
        for micro in (micro for batch in batches for micro in batch.microbatches):
            assert micro.tokens.numel() <= max(limit, micro.tokens.shape[1])
    assert all(rows == found[0] for rows in found)


def test_documents_restart_in_every_row() -> None:
    stores = {"a": ArrayStore(np.arange(1, 1000, dtype=np.uint16) % 10)}  # a document is ten tokens
    with loader_of(small_stage(data="a", tokens=2_000), stores) as loader:
        for micro in (micro for batch in loader for micro in batch.microbatches):
            for tokens, documents in zip(micro.tokens.tolist(), micro.documents.tolist(), strict=True):
                count, expected = 0, []
                for token in tokens:
                    count += token == 0
                    expected.append(count)
                assert documents == expected


def test_state_is_the_position_of_what_comes_next_however_far_it_has_read() -> None:
    stage = small_stage(**GROWING)
    with loader_of(stage, prefetch=20) as loader:
        assert loader.state()["position"] == 0
        for _ in range(3):
            batch = next(loader)
        state = loader.state()
        assert state["position"] == batch.end
        loader.order.verify_state(state)


def test_an_error_while_reading_reaches_the_consumer() -> None:
    stage, stores = small_stage(), small_stores()
    order = Order.over(11, "pretrain", stores, Clock(stage), stage.data)
    real = order.rows

    def failing(start: int, end: int) -> np.ndarray:
        if start >= 1_024:
            raise OSError("the disk is gone")
        return real(start, end)

    order.rows = failing  # type: ignore[method-assign]
    loader = Loader(order, stores, microbatch_tokens=64)
    assert next(loader).start == 0
    assert next(loader).end == 1_024
    with pytest.raises(
        CupolaError, match=r"stage 'pretrain': .* position 1,024 failed: OSError: the disk is gone"
    ):
        next(loader)
    assert threads() == 0
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_leaves_no_thread(taken: int) -> None:
    loader = loader_of(small_stage(tokens=10**9))
    for _ in range(taken):
        next(loader)
    assert threads() == 1
    loader.close()
    assert threads() == 0
    loader.close()
    with pytest.raises(StopIteration):
        next(loader)


def test_a_forgotten_loader_ends_its_thread() -> None:
    loader = loader_of(small_stage(tokens=10**9))
    next(loader)
    thread = loader._thread
    del loader
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_finished_loader_has_no_thread() -> None:
    loader = loader_of(small_stage(tokens=1_000))
    assert len(list(loader)) == 2
    loader._thread.join(timeout=10)
    assert threads() == 0
    assert list(loader) == []


def test_reads_no_further_ahead_than_asked() -> None:
    stage = small_stage(tokens=10**9)
    stores = small_stores()
    order = Order.over(11, "pretrain", stores, Clock(stage), stage.data)
    asked: list[int] = []
    real = order.rows

    def counting(start: int, end: int) -> np.ndarray:
        asked.append(start)
        return real(start, end)

    order.rows = counting  # type: ignore[method-assign]
    with Loader(order, stores, microbatch_tokens=64, prefetch=3) as loader:
        for taken in range(1, 5):
            next(loader)
            time.sleep(0.05)
            assert len(asked) <= taken + 3 + 1  # three waiting, one in hand


def test_stores_that_are_not_the_orders_are_refused() -> None:
    stage, stores = small_stage(), small_stores()
    order = Order.over(11, "pretrain", stores, Clock(stage), stage.data)
    with pytest.raises(InputError, match="source 'b' has no token store"):
        Loader(order, {"a": stores["a"]}, microbatch_tokens=64)
    other = ArrayStore(stores["b"].tokens, fingerprint="other", delimiter=-5)
    with pytest.raises(InputError, match="the store of 'b' is not the one"):
        Loader(order, {**stores, "b": other}, microbatch_tokens=64)
    cut = ArrayStore(stores["b"].tokens[:-1], delimiter=-5)
    with pytest.raises(
        InputError, match=r"the store of 'b' is not the one .* \(1,776 tokens, 1,777 expected\)"
    ):
        Loader(order, {**stores, "b": cut}, microbatch_tokens=64)
    foreign = ArrayStore(stores["b"].tokens, delimiter=7)
    with pytest.raises(InputError, match="different tokenizers"):
        Loader(order, {**stores, "b": foreign}, microbatch_tokens=64)
    with pytest.raises(InputError, match="position 999,999 is beyond its end, 20,000"):
        Loader(order, stores, 999_999, microbatch_tokens=64)
    assert threads() == 0


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_memory_mapped_stores_give_the_same(kind: type, tmp_path: Any) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 3_000).astype(kind)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = ArrayStore(np.memmap(tmp_path / "tokens.bin", dtype=kind, mode="r"))
    stage = small_stage(data="a", tokens=6_000)
    with loader_of(stage, {"a": mapped}) as one, loader_of(stage, {"a": ArrayStore(tokens)}) as other:
        for left, right in zip(one, other, strict=True):
            assert rows_of(left) == rows_of(right)
