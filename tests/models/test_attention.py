"""Every path of attention against the plain formula, with gradients; error of bf16 against fp32."""

import pytest
import torch

from cupola.models import attention
from cupola.models.attention import attend, attend_cached, attend_reference, attend_sdpa, attend_tiled, plan

CPU = torch.device("cpu")
SHAPES = [(2, 24, 4, 4, 8), (2, 150, 6, 2, 16), (1, 200, 4, 1, 8), (3, 1, 2, 2, 4)]


def tensors(batch, length, heads, key_heads, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, n, width) for n in (heads, key_heads, key_heads, heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def random_documents(batch: int, length: int, mean: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(mean)
    return (torch.rand(batch, length, generator=generator) < 1 / mean).cumsum(dim=1).to(torch.int32)


def gradients(function, inputs):
    *inputs, weights = inputs
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    (out * weights.detach()).sum().backward()
    return [out.detach(), *(x.grad for x in inputs)]


def assert_equal_to_reference(function, inputs, prepared, tolerance=2e-6):
    expected = gradients(lambda q, k, v: attend_reference(q, k, v, prepared), inputs)
    largest = max(float(want.abs().max()) for want in expected)
    for got, want in zip(gradients(function, inputs), expected, strict=True):
        # A gradient that is 0 (a lone key's) is the difference of numbers as large as the others.
        scale = float(want.abs().max()) or largest
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * scale + 1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [None, 3, 40, 1000])
@pytest.mark.parametrize("kept_bytes", [0, 2**30])
def test_tiles_equal_the_formula(shape, mean, kept_bytes, monkeypatch):
    monkeypatch.setattr(attention, "KEPT_BYTES", kept_bytes)
    batch, length = shape[:2]
    documents = None if mean is None else random_documents(batch, length, mean)
    prepared = plan(batch, length, documents, CPU)
    assert_equal_to_reference(lambda q, k, v: attend_tiled(q, k, v, prepared), tensors(*shape), prepared)


@pytest.mark.parametrize("shape", SHAPES)
def test_torchs_kernel_equals_the_formula(shape):
    prepared = plan(*shape[:2], None, CPU)
    assert_equal_to_reference(attend_sdpa, tensors(*shape), prepared)


@pytest.mark.parametrize("length", [100, 1100, 2100])
@pytest.mark.parametrize("packed", [False, True])
def test_attend_chooses_a_right_path_at_every_length(length, packed):
    documents = random_documents(1, length, 300) if packed else None
    prepared = plan(1, length, documents, CPU)
    inputs = tensors(1, length, 2, 1, 8)
    assert_equal_to_reference(lambda q, k, v: attend(q, k, v, prepared), inputs, prepared)


def test_a_document_begins_where_the_number_changes():
    documents = torch.tensor([[5, 5, 2, 2, 2, 5], [0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    begins = attention.document_begins(documents)
    assert begins.tolist() == [[0, 0, 2, 2, 2, 5], [0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("mean", [2, 10, 60, 200])
def test_tiles_cover_every_visible_pair_once_and_nothing_else(mean):
    length = 300
    prepared = plan(2, length, random_documents(2, length, mean), CPU)
    seen = torch.zeros(2, length, length)
    for tile in prepared.tiles(64):
        visible = torch.ones(tile.end - tile.start, tile.end - tile.first_key)
        visible[:, visible.shape[1] - tile.mask.shape[1] :][tile.mask < 0] = 0
        seen[tile.row : tile.row_end, tile.start : tile.end, tile.first_key : tile.end] += visible
    columns = torch.arange(length)
    expected = (columns <= columns[:, None]) & (columns >= prepared.begins[:, :, None])
    assert torch.equal(seen, expected.float())


def test_short_documents_are_not_attended_in_full():
    """What the tiles are for: the work of packed short documents is a small part of the causal row's."""
    length = 1024
    documents = (torch.arange(length)[None] // 64).to(torch.int32)
    work = lambda p: sum((t.end - t.start) * (t.end - t.first_key) for t in p.tiles(64))
    assert work(plan(1, length, documents, CPU)) == 16 * 64 * 64
    assert work(plan(1, length, None, CPU)) > 8 * 16 * 64 * 64


def test_documents_of_all_lengths_make_few_shapes_of_tiles():
    """Each new shape of a bf16 product costs milliseconds, and steps would meet new ones for ever."""
    length, shapes = 2048, set()
    for mean in range(200, 700, 10):
        prepared = plan(2, length, random_documents(2, length, mean), CPU)
        shapes |= {(tile.end - tile.start, tile.end - tile.first_key) for tile in prepared.tiles(128)}
    assert len(shapes) <= 24
    assert {queries for queries, _ in shapes} == {128}


@pytest.mark.parametrize(("scale", "allowed"), [(1.0, 2.0), (3.0, 10.0)])
@pytest.mark.parametrize("length", [128, 512])
def test_error_of_bf16_scores(length, scale, allowed):
    """Scores are rounded to bf16, which costs the more the larger they are. Against fp32: within 2 times
    the error of torch's kernel (fp32 scores) at scores of deviation 1, within 10 times at 9, and about
    that of the plain formula in bf16 always."""
    query, key, *others = (x.detach() for x in tensors(2, length, 4, 4, 64))
    rounded = [x.bfloat16() for x in (query * scale, key * scale, *others)]
    prepared = plan(2, length, None, CPU)
    formula = lambda q, k, v: attend_reference(q, k, v, prepared)
    want = gradients(formula, [x.float() for x in rounded])
    error = lambda out: [float((x.float() - y).norm() / y.norm()) for x, y in zip(out, want, strict=True)]
    tiled = error(gradients(lambda q, k, v: attend_tiled(q, k, v, prepared), rounded))
    torchs, plain = error(gradients(attend_sdpa, rounded)), error(gradients(formula, rounded))
    for ours, fused, eager in zip(tiled, torchs, plain, strict=True):
        assert ours < allowed * fused
        assert ours < 1.25 * eager


def test_cached_attention_equals_the_formula():
    q, k, v, _ = (x.detach() for x in tensors(2, 30, 6, 2, 8))
    expected = attend_reference(q, k, v, plan(2, 30, None, CPU))
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    one = attend_cached(q[:, 29:], keys, values, None)
    torch.testing.assert_close(one, expected[:, 29:])
    columns = torch.arange(30)
    several = attend_cached(q[:, 20:], keys, values, (columns <= columns[20:, None])[None])
    torch.testing.assert_close(several, expected[:, 20:])
