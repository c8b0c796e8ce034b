"""Bits per byte against a loop that scores one token at a time, and against closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch

from cupola.errors import CupolaError, InputError
from cupola.evaluate.bits import BitsPerByte, bits_per_byte, windows
from tests.displays import Heard
from tests.evaluate.stubs import DELIMITER, VOCABULARY, ByteTokenizer, TinyCausalModel


def score_token_by_token(model: TinyCausalModel, text: str, context: int, stride: int) -> float:
    """Bits of a document, each token from its own forward pass over exactly the context it is due."""
    ids = [DELIMITER, *text.encode("utf-8"), DELIMITER]
    targets = len(ids) - 1
    bits = 0.0
    for target in range(1, len(ids)):
        if target <= context:
            start = 0
        else:
            moves = math.ceil((target - context) / stride)
            start = min(context + moves * stride, targets) - context
        hidden = model.hidden(torch.tensor([ids[start:target]]))[0, -1]
        bits -= torch.log_softmax(model.head_weight @ hidden, 0)[ids[target]].item() / math.log(2)
    return bits


CONTEXT = 12
TEXTS = {
    "empty": "",
    "one byte": "a",
    "several bytes a character": "Ünïcødé 東京 🙂 end",
    "one below the context": "x" * (CONTEXT - 2) + "y",
    "the context": "abcdefghijklmnopq"[:CONTEXT],
    "one above the context": "abcdefghijklmnopq"[: CONTEXT + 1],
    "two above the context": "abcdefghijklmnopq"[: CONTEXT + 2],
    "long": "It was the best of times, it was the worst of times, it was the age of wisdom.",
}


@pytest.mark.parametrize("stride", [1, 5, 6, CONTEXT])
@pytest.mark.parametrize("name", TEXTS)
def test_equals_scoring_token_by_token(name, stride):
    model = TinyCausalModel(CONTEXT).eval()
    text = TEXTS[name]
    with torch.no_grad():
        expected = score_token_by_token(model, text, CONTEXT, stride)
    result = bits_per_byte(model, ByteTokenizer(), [text], CONTEXT, stride=stride)
    assert result.bits == pytest.approx(expected, rel=1e-5)
    assert result.bytes == len(text.encode("utf-8"))
    assert result.tokens == result.bytes + 1
    assert model.longest_seen <= CONTEXT


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_batching_and_order_do_not_matter(batch_tokens):
    model = TinyCausalModel(CONTEXT).eval()
    with torch.no_grad():
        expected = sum(score_token_by_token(model, text, CONTEXT, 6) for text in TEXTS.values())
    for texts in (list(TEXTS.values()), list(TEXTS.values())[::-1]):
        result = bits_per_byte(model, ByteTokenizer(), iter(texts), CONTEXT, batch_tokens=batch_tokens)
        assert result.bits == pytest.approx(expected, rel=1e-5)
        assert result.bytes == sum(len(text.encode("utf-8")) for text in texts)


def test_uniform_model_costs_the_logarithm_of_its_vocabulary():
    model = TinyCausalModel(32)
    torch.nn.init.zeros_(model.head_weight)
    text = "Größe " * 40
    result = bits_per_byte(model, ByteTokenizer(), [text], 32)
    assert result.bits == pytest.approx((len(text.encode("utf-8")) + 1) * math.log2(VOCABULARY), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(
        math.log2(VOCABULARY) * result.tokens / result.bytes, rel=1e-6
    )


def test_texts_are_counted_without_bound_on_their_number(monkeypatch):
    """More texts than are encoded or sorted together: none is lost or counted twice."""
    monkeypatch.setattr("cupola.evaluate.bits.CHARACTERS_ENCODED_TOGETHER", 20)
    model = TinyCausalModel(8)
    torch.nn.init.zeros_(model.head_weight)
    lengths = [n % 23 for n in range(300)]
    result = bits_per_byte(model, ByteTokenizer(), ("z" * n for n in lengths), 8, batch_tokens=16)
    assert (result.bytes, result.tokens) == (sum(lengths), sum(lengths) + 300)
    assert result.bits == pytest.approx(result.tokens * math.log2(VOCABULARY), rel=1e-6)


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (4, 1), (4, 3), (4, 4), (7, 2)])
def test_windows_score_every_target_once_with_enough_context(context, stride):
    for length in range(2, 40):
        ids = np.arange(length)
        scored = []
        for window in windows(ids, context, stride):
            assert 1 <= window.length <= context
            for target in range(window.start + window.skip + 1, window.end + 1):
                scored.append(target)
                seen = target - window.start
                assert seen == target or seen > context - stride
        assert scored == list(range(1, length))


def test_model_is_left_in_its_mode_without_gradients():
    model = TinyCausalModel(8).train()
    bits_per_byte(model, ByteTokenizer(), ["abc"], 8)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sums_and_facts():
    total = BitsPerByte(8.0, 4, 2) + BitsPerByte(24.0, 4, 9)
    assert total == BitsPerByte(32.0, 8, 11)
    assert total.facts() == {"bits_per_byte": 4.0, "tokens": 11, "bytes": 8}
    assert math.isnan(BitsPerByte(9.0, 0, 1).bits_per_byte)
    assert BitsPerByte(9.0, 0, 1).facts()["bits_per_byte"] is None


def test_refuses_a_stride_beyond_the_context():
    for stride in (0, 9):
        with pytest.raises(InputError, match="stride must be between 1 and the context of 8 tokens"):
            bits_per_byte(TinyCausalModel(8), ByteTokenizer(), ["abc"], 8, stride=stride)


def test_weights_that_are_not_numbers_are_an_error():
    model = TinyCausalModel(8)
    with torch.no_grad():
        model.head_weight[3, 3] = math.nan
    with pytest.raises(CupolaError, match="not finite"):
        bits_per_byte(model, ByteTokenizer(), ["abc"], 8)


def test_half_precision_is_near_single():
    model = TinyCausalModel(CONTEXT)
    texts = list(itertools.islice(TEXTS.values(), 8))
    single = bits_per_byte(model, ByteTokenizer(), texts, CONTEXT)
    half = bits_per_byte(model, ByteTokenizer(), texts, CONTEXT, precision="bf16")
    assert half.bits == pytest.approx(single.bits, rel=0.02)
    assert half.bits != single.bits


def test_a_tokenizer_that_changes_the_text_is_named():
    class Lowering(ByteTokenizer):
        def encode(self, text):
            return super().encode(text.lower())

    display = Heard()
    bits_per_byte(TinyCausalModel(8), Lowering(), ["abc", "Abc", ""], 8, display=display)
    assert len(display.warnings) == 1
    assert "changes 1 of 3 documents" in display.warnings[0]
    bits_per_byte(TinyCausalModel(8), ByteTokenizer(), ["abc", "Abc"], 8, display=display)
    assert len(display.warnings) == 1
