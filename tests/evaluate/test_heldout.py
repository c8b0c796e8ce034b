"""The fixed choice of held-out text, results by source, and the compressor beside them."""

import lzma
import random

import pytest
import torch

from cupola.evaluate import BitsPerByte, choose_texts, combined, heldout_bits, xz_bits
from tests.evaluate.stubs import ByteTokenizer, TinyCausalModel


def documents(count: int) -> list[str]:
    generator = random.Random(3)
    words = ["cupola", "iron", "coke", "slag", "tap", "blast", "hearth", "stack"]
    return [" ".join(generator.choices(words, k=generator.randrange(1, 60))) for _ in range(count)]


def test_choice_is_independent_of_order_and_near_its_size():
    texts = documents(200)
    tokenizer = ByteTokenizer()
    chosen = choose_texts(texts, tokenizer, 2000)
    shuffled = texts.copy()
    random.Random(9).shuffle(shuffled)
    assert choose_texts(iter(shuffled), tokenizer, 2000) == chosen
    assert 1900 <= sum(len(text) for text in chosen) <= 2000
    assert all(any(text.startswith(part) for text in texts) for part in chosen)


def test_no_document_takes_more_than_its_share():
    texts = ["long " * 10_000, *documents(30)]
    chosen = choose_texts(texts, ByteTokenizer(), 800)
    assert len(chosen) >= 8
    assert max(len(text) for text in chosen) <= 100


def test_choice_of_more_than_there_is_takes_everything_once():
    texts = ["one", "two", "one", ""]
    assert sorted(choose_texts(texts, ByteTokenizer(), 10_000)) == ["", "one", "two"]
    assert choose_texts([], ByteTokenizer(), 10) == []


def test_results_by_source_and_combined():
    model = TinyCausalModel(16)
    sources = {"a": documents(5), "b": documents(9)[5:], "nothing": []}
    results = heldout_bits(model, ByteTokenizer(), sources, 16)
    whole = heldout_bits(model, ByteTokenizer(), {"all": sources["a"] + sources["b"]}, 16)["all"]
    together = combined(results)
    assert results["nothing"] == BitsPerByte()
    assert (together.bytes, together.tokens) == (whole.bytes, whole.tokens)
    assert together.bits == pytest.approx(whole.bits, rel=1e-6)
    assert torch.is_grad_enabled()


def test_xz_equals_compressing_everything_at_once():
    texts = documents(300)
    data = "".join(texts).encode()
    result = xz_bits(iter(texts))
    assert result.bytes == len(data)
    assert result.bits == 8 * len(lzma.compress(data, preset=9))
    assert xz_bits([]).bytes == 0
