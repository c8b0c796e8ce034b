"""Packed items: whole, each once an epoch, and only what is learnt as a target."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from cupola.data.batch import FILLER, IGNORED
from cupola.data.loader import Loader
from cupola.data.order import Order
from cupola.data.packing import pack
from cupola.data.store import StoreWriter, TokenStore
from cupola.errors import CupolaError, InputError
from cupola.recipe.clock import Clock
from tests.data.order_reference import small_stage

ROW = 32


class Vocabulary:
    size, delimiter, fingerprint = 1_000, 0, "made in a test"

    def token_bytes(self, number: int) -> bytes:
        return b"ab"


def slow_best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """Every row is looked at for every item."""
    rows: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rooms = [row_length - sum(lengths[i] for i in row) for row in rows]
        fitting = [room for room in rooms if room >= lengths[item]]
        if not fitting:
            rows.append([item])
            continue
        # Of rows with the same room, the one whose room became so last.
        rows[max(index for index, room in enumerate(rooms) if room == min(fitting))].append(item)
    return rows


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, ROW - 1, count)


@pytest.mark.parametrize("count", [0, 1, 40, 300])
def test_packs_as_well_as_the_slow_way(count: int) -> None:
    lengths = drawn(count)
    rows = pack(lengths, ROW)
    assert sorted(item for row in rows for item in row) == list(range(count))
    assert all(sum(lengths[item] for item in row) <= ROW for row in rows)
    slow = slow_best_fit(lengths.tolist(), ROW)
    assert sorted(sum(lengths[i] for i in row) for row in rows) == sorted(
        sum(lengths[i] for i in row) for row in slow
    )
    assert pack(lengths, ROW) == rows


@pytest.mark.parametrize("lengths", [[0], [ROW + 1]])
def test_what_does_not_fit_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="rows of 32"):
        pack(np.array(lengths), ROW)


def items(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, learnt) of items, no two alike."""
    generator = np.random.default_rng(5)
    found = []
    for number, length in enumerate(drawn(count, seed=1) + 1):
        tokens = generator.integers(1, 1_000, length - 1)
        tokens[0] = number + 1
        found.append((tokens, generator.random(length - 1) < 0.4))
    return found


def packed_store(folder, count: int) -> TokenStore:
    every = items(count)
    rows = pack(np.array([len(tokens) + 1 for tokens, _ in every]), ROW)
    tokens = np.zeros((len(rows), ROW), dtype=np.int64)
    learnt = np.zeros((len(rows), ROW), dtype=bool)
    for number, row in enumerate(rows):
        place = 0
        for item in row:
            ids, mask = every[item]
            tokens[number, place : place + len(ids)] = ids
            learnt[number, place : place + len(ids)] = mask
            place += len(ids) + 1
    with StoreWriter(folder / "store", Vocabulary(), row_length=ROW) as writer:
        writer.append_rows(tokens, learnt, text_bytes=7)
    return TokenStore(folder / "store")


def packed_stage(**settings):
    changes = {"sequence_length": ROW, "batch_tokens": 5 * ROW, "data": {"a": 1}, "tokens": "2 epochs"}
    return small_stage(**{**changes, **settings})


def clock_of(store: TokenStore, stage) -> Clock:
    return Clock(stage, store.length)


def batches_of(store: TokenStore, stage, **settings):
    clock = clock_of(store, stage)
    order = Order.over(3, "sft", {"a": store}, clock, stage.data)
    with Loader(order, {"a": store}, **{"microbatch_tokens": 2 * ROW, **settings}) as loader:
        return list(loader)


def seen_in(batches) -> Counter:
    """Every stretch between two delimiters, with which of its tokens were targets."""
    found: Counter = Counter()
    for batch in batches:
        for micro in batch.microbatches:
            for row, targets, source in zip(micro.tokens, micro.targets, micro.sources, strict=True):
                if source == FILLER:
                    continue
                ids = np.append(row.numpy(), 0)
                wanted = np.append(False, targets.numpy() != IGNORED)
                assert (targets.numpy()[wanted[1:]] == ids[1:][wanted[1:]]).all()
                ends = np.flatnonzero(ids == 0)
                for start, end in pairwise(ends):
                    if end > start + 1:
                        found[(*ids[start + 1 : end], *wanted[start + 1 : end])] += 1
                assert ids[0] == 0, "a row begins with a delimiter"
    return found


def test_every_item_is_seen_whole_once_an_epoch(tmp_path) -> None:
    store = packed_store(tmp_path, 61)
    expected = {(*tokens, *learnt): 2 for tokens, learnt in items(61)}
    assert seen_in(batches_of(store, packed_stage())) == expected


def test_the_normaliser_counts_what_is_learnt_in_the_whole_batch(tmp_path) -> None:
    store = packed_store(tmp_path, 61)
    alone = batches_of(store, packed_stage())
    shares = [batches_of(store, packed_stage(), rank=rank, ranks=3) for rank in range(3)]
    for number, batch in enumerate(alone):
        counted = sum(int((m.targets != IGNORED).sum()) for m in batch.microbatches)
        assert batch.valid_tokens == counted > 0
        theirs = [share[number] for share in shares]
        assert {part.valid_tokens for part in theirs} == {counted}
        assert counted == sum(int((m.targets != IGNORED).sum()) for p in theirs for m in p.microbatches)


def test_rows_of_another_length_are_refused(tmp_path) -> None:
    store = packed_store(tmp_path, 61)
    for length in (16, {"0%": 16, "50%": ROW}):
        stage = packed_stage(sequence_length=length)
        with pytest.raises(InputError, match="rows of 32 tokens"):
            Order.over(3, "sft", {"a": store}, clock_of(store, stage), stage.data)


def test_what_is_learnt_is_part_of_the_fingerprint(tmp_path) -> None:
    rows, learnt = np.zeros((3, ROW), dtype=np.int64), np.zeros((3, ROW), dtype=bool)
    found = []
    for number in (0, 1):
        learnt[0, number] = True
        with StoreWriter(tmp_path / str(number), Vocabulary(), row_length=ROW) as writer:
            writer.append_rows(rows, learnt, text_bytes=1)
        found.append(TokenStore(tmp_path / str(number)).fingerprint)
    assert found[0] != found[1]


def test_a_store_of_rows_is_verified(tmp_path) -> None:
    store = packed_store(tmp_path, 20)
    store.verify()
    assert store.row_length == ROW
    assert store.bytes == 7
    damaged = tmp_path / "store" / "learnt.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CupolaError, match=r"learnt\.bin"):
        TokenStore(tmp_path / "store")
