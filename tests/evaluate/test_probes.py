"""Probes against readers that find everything, nothing, or what is near; loss by position against a loop."""

import math

import numpy as np
import pytest
import torch

from cupola.errors import CupolaError, InputError
from cupola.evaluate import loss_by_position, probe
from cupola.evaluate.long_context import LossByPosition
from cupola.models import build
from cupola.report.long_context import heat_map_svg, position_svg
from tests.evaluate.stubs import DELIMITER, VOCABULARY, ByteTokenizer, Finder
from tests.models.small_models import GPT2, LLAMA, MAMBA2, RWKV7

KINDS = ("passkey", "needle")
DEPTHS = (0.0, 0.5, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_who_finds_everything_scores_one(kind):
    cells = probe(Finder(), ByteTokenizer(), kind, [700, 1100], DEPTHS, 3)
    assert [(cell.length, cell.depth) for cell in cells] == [(n, d) for n in (700, 1100) for d in DEPTHS]
    for cell in cells:
        assert (cell.accuracy, cell.samples, cell.standard_error) == (1.0, 3, 0.0)
        assert cell.log_probability == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_who_finds_nothing_scores_zero(kind):
    for cell in probe(Finder(sees=0), ByteTokenizer(), kind, [700], DEPTHS, 2):
        assert cell.accuracy == 0
        assert cell.log_probability == pytest.approx(-12 * math.log(VOCABULARY))  # six blanks, six digits


def test_who_sees_what_is_near_finds_what_lies_near_the_end():
    near = probe(Finder(sees=400), ByteTokenizer(), "passkey", [1200], (0.0, 1.0), 3)
    assert [cell.accuracy for cell in near] == [0, 1]
    far = probe(Finder(), ByteTokenizer(), "passkey", [1200], (0.0, 1.0), 3)
    assert [cell.accuracy for cell in far] == [1, 1]


def test_one_wrong_digit_is_wrong():
    class Slip(Finder):
        """Takes the last digit for the one after it."""

        def hidden(self, tokens, documents=None, cache=None):
            out = super().hidden(tokens)
            place = out.amax(-1).nonzero()[-1]  # where the last digit of the answer is due
            out[place[0], place[1]] = out[place[0], place[1]].roll(1)
            return out

    right, wrong = (
        probe(model, ByteTokenizer(), "passkey", [700], [0.5], 1)[0] for model in (Finder(), Slip())
    )
    assert (right.accuracy, wrong.accuracy) == (1, 0)
    assert wrong.log_probability == pytest.approx(-30, abs=0.1)


def test_probes_fill_their_length():
    model = Finder()
    probe(model, ByteTokenizer(), "needle", [900], DEPTHS, 5)
    assert max(model.lengths) <= 899  # the last token of the answer is never read
    assert min(model.lengths) > 899 - 120


def test_what_text_cannot_hold_is_never_an_answer():
    class Special(Finder):
        def hidden(self, tokens, documents=None, cache=None):
            out = super().hidden(tokens)
            out[..., DELIMITER + 1] = 90.0
            return out

    assert probe(Special(), ByteTokenizer(), "passkey", [700], [0.5], 2)[0].accuracy == 1


@pytest.mark.parametrize("model", [LLAMA, MAMBA2, RWKV7], ids=["transformer", "mamba2", "rwkv7"])
def test_log_probabilities_are_those_of_one_token_after_another(model, monkeypatch):
    module = build(model, VOCABULARY, seed=1).train()
    seen = []
    original = module.hidden
    monkeypatch.setattr(module, "hidden", lambda tokens: seen.append(tokens.clone()) or original(tokens))
    cells = probe(module, ByteTokenizer(), "needle", [640], [0.5], 3)
    assert module.training
    monkeypatch.undo()
    module.eval()
    expected = []
    for row in torch.cat(seen):
        text = bytes(number for number in row.tolist() if 0 < number < DELIMITER).decode()
        asked = text.rpartition("? The ")[2].partition(" is")[0]
        answer = text.partition(f"The {asked} is")[2].partition(".")[0]
        ids = [DELIMITER, *(text[: text.rindex(" is") + 3] + answer).encode()]
        total = 0.0
        for place in range(len(ids) - 12, len(ids)):
            with torch.no_grad():
                logits = module.logits(module.hidden(torch.tensor([ids[:place]]))[0, -1])
            total += logits.log_softmax(-1)[ids[place]].item()
        expected.append(total)
    assert len(expected) == 3
    assert cells[0].log_probability == pytest.approx(np.mean(expected), abs=1e-3)
    half = probe(module, ByteTokenizer(), "needle", [640], [0.5], 3, precision="bf16")
    assert half[0].log_probability == pytest.approx(cells[0].log_probability, rel=0.02)


def test_batches_do_not_matter(monkeypatch):
    module = build(LLAMA, VOCABULARY, seed=1)
    together = probe(module, ByteTokenizer(), "passkey", [500], DEPTHS, 4)
    monkeypatch.setattr("cupola.evaluate.long_context.BATCH_TOKENS", 1)
    alone = probe(module, ByteTokenizer(), "passkey", [500], DEPTHS, 4)
    for one, other in zip(together, alone, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_lengths_that_cannot_be_are_refused():
    module = build(GPT2, VOCABULARY, seed=1)
    line = "a length of 65 tokens is beyond the model's 64 learned positions; take at most 64"
    with pytest.raises(InputError, match=line):
        probe(module, ByteTokenizer(), "passkey", [65], DEPTHS, 1)
    with pytest.raises(InputError, match=line):
        loss_by_position(module, ByteTokenizer(), ["text" * 50], 65)
    with pytest.raises(
        InputError, match=r"too short for a probe of kind passkey; .* takes at least (\d+)"
    ) as error:
        probe(Finder(), ByteTokenizer(), "passkey", [90], DEPTHS, 1)
    least = int(str(error.value).split()[-1])
    assert probe(Finder(), ByteTokenizer(), "passkey", [least], [0.5], 1)[0].accuracy == 1
    with pytest.raises(InputError, match="too short"):
        probe(Finder(), ByteTokenizer(), "passkey", [least - 1], [0.5], 1)


def test_weights_that_are_not_numbers_are_an_error():
    module = build(LLAMA, VOCABULARY, seed=1)
    with torch.no_grad():
        module.head_weight[3, 3] = math.nan
    with pytest.raises(CupolaError, match="not finite"):
        probe(module, ByteTokenizer(), "passkey", [500], [0.5], 1)
    with pytest.raises(CupolaError, match="not finite"):
        loss_by_position(module, ByteTokenizer(), ["text" * 50], 32)


TEXTS = ["", "too short", "It was the best of times, it was", "x" * 22, "the age of wisdom, the epoch " * 3]


def plain_losses(module, length):
    """(rows, length): each token from its own pass over exactly what stands before it in its row."""
    rows = []
    for text in TEXTS:
        ids = [DELIMITER, *text.encode(), DELIMITER]
        for start in range(0, len(ids), length):
            row = ids[start : start + length + 1]
            if len(row) <= length:
                continue
            losses = []
            for place in range(1, length + 1):
                with torch.no_grad():
                    logits = module.logits(module.hidden(torch.tensor([row[:place]]))[0, -1])
                losses.append(-logits.log_softmax(-1)[row[place]].item())
            rows.append(losses)
    return np.array(rows)


@pytest.mark.parametrize("model", [LLAMA, GPT2, MAMBA2, RWKV7], ids=["rope", "learned", "mamba2", "rwkv7"])
def test_loss_by_position_against_a_plain_loop(model, monkeypatch):
    module = build(model, VOCABULARY, seed=1).eval()
    expected = plain_losses(module, 12)
    assert len(expected) == 2 + 1 + 7
    found = loss_by_position(module, ByteTokenizer(), iter(TEXTS), 12)
    assert found.rows == len(expected)
    monkeypatch.setattr("cupola.evaluate.long_context.BATCH_TOKENS", 30)
    apart = loss_by_position(module, ByteTokenizer(), TEXTS, 12)
    assert np.allclose(apart.sums, found.sums, rtol=1e-5)
    buckets = found.buckets()
    assert [(bucket.first, bucket.last) for bucket in buckets] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 12)]
    for bucket in buckets:
        part = expected[:, bucket.first - 1 : bucket.last]
        assert bucket.tokens == part.size
        assert bucket.loss == pytest.approx(part.mean(), rel=1e-5)
        error = part.mean(1).std(ddof=1) / math.sqrt(len(part))
        assert bucket.standard_error == pytest.approx(error, rel=1e-4)


def test_rows_of_several_sources_are_added():
    module = build(LLAMA, VOCABULARY, seed=1)
    whole = loss_by_position(module, ByteTokenizer(), TEXTS, 16)
    parts = [loss_by_position(module, ByteTokenizer(), texts, 16) for texts in (TEXTS[:3], TEXTS[3:], [])]
    together = parts[0] + parts[1] + parts[2]
    assert together.rows == whole.rows
    assert np.allclose(together.sums, whole.sums, rtol=1e-5)
    assert parts[2].rows == 0
    assert parts[2].facts() == {"rows": 0, "buckets": []}


@pytest.mark.parametrize("length", range(1, 40))
def test_buckets_are_the_powers_of_two_and_what_is_left(length):
    firsts = [1, *(n + 1 for n in (1, 2, 4, 8, 16, 32) if n < length)]
    buckets = LossByPosition(length, np.ones((2, len(firsts)))).buckets()
    assert [bucket.first for bucket in buckets] == firsts
    assert [bucket.last for bucket in buckets] == [*(first - 1 for first in firsts[1:]), length]


def test_a_single_row_has_no_standard_error():
    found = LossByPosition(4, np.array([[1.0, 4.0, 3.0]]))
    assert [(b.first, b.last, b.loss, b.tokens, b.standard_error) for b in found.buckets()] == [
        (1, 1, 1.0, 1, None),
        (2, 2, 4.0, 1, None),
        (3, 4, 1.5, 2, None),
    ]


def test_half_precision_is_near_single():
    module = build(LLAMA, VOCABULARY, seed=1)
    single, half = (
        loss_by_position(module, ByteTokenizer(), TEXTS, 16, precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert np.allclose(single.sums, half.sums, rtol=0.02)
    assert not np.array_equal(single.sums, half.sums)


def test_pictures_show_what_was_measured():
    found = {kind: probe(Finder(), ByteTokenizer(), kind, [700], (0.0, 1.0), 2) for kind in KINDS}
    svg = heat_map_svg(found)
    assert svg.startswith("<svg")
    assert svg.count(">100%</text>") == 2 * 2 + 2  # a cell each, and the lower end of each depth axis
    for words in ("passkey: share of 2 found", "needle: share of 2 found", "700", "depth"):
        assert words in svg
    rows = LossByPosition(4, np.array([[1.0, 4.0, 3.0], [2.0, 4.0, 3.0]]))
    curve = position_svg({"books": rows, "speeches": rows, "none": LossByPosition(4, np.zeros((0, 3)))})
    assert "books" in curve
    assert "speeches" in curve
    assert ">none<" not in curve
    assert position_svg({"none": LossByPosition(4, np.zeros((0, 3)))}) == ""
