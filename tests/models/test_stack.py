"""The whole model: packed documents, caches, tensor-parallel shards by hand, autocast."""

import pytest
import torch

from cupola.models import attention, build, table
from cupola.models.layer import Carried, Inputs
from tests.models.small_models import ALL, GPT2, LLAMA, QWEN3

VOCABULARY = 61
LENGTHS = [5, 17, 1, 30, 11]


def loud(model, seed=3):
    """Initial weights, but with blocks that matter as much as embeddings."""
    module = build(model, VOCABULARY, seed)
    draws = {p.name: p.draw for p in table.parameters(model, VOCABULARY)}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("blocks") and draws[name] in ("normal", "residual"):
                parameter.mul_(5)
            elif draws[name] == "zero" and parameter.ndim > 1:  # RWKV-7's outputs
                parameter.normal_(0, 0.1, generator=generator)
    return module


def reference(query, key, value, plan):
    return attention.attend_reference(query, key, value, plan)


@pytest.mark.parametrize("path", ["tiled", "recomputed", "reference"])
@pytest.mark.parametrize("name", ALL)
def test_packed_documents_equal_documents_alone(name, path, monkeypatch):
    """Logits of every document, and the gradients of all parameters, summed over the documents."""
    if path == "reference":
        monkeypatch.setattr(attention, "attend", reference)
    else:
        monkeypatch.setattr(attention, "KEPT_BYTES", 0 if path == "recomputed" else 2**30)
        monkeypatch.setitem(attention.TILE, torch.float32, 16)
    module = loud(ALL[name])
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, VOCABULARY, (1, n), generator=generator) for n in LENGTHS]
    weights = [torch.randn(1, n, VOCABULARY, generator=generator) for n in LENGTHS]
    numbers = torch.cat([torch.full((1, n), i, dtype=torch.int32) for i, n in enumerate(LENGTHS)], dim=1)

    packed = module.logits(module.hidden(torch.cat(texts, dim=1), documents=numbers))
    (packed * torch.cat(weights, dim=1)).sum().backward()
    packed_gradients = {n: p.grad.clone() for n, p in module.named_parameters()}
    module.zero_grad()

    alone = [module.logits(module.hidden(text)) for text in texts]
    sum((logits * weight).sum() for logits, weight in zip(alone, weights, strict=True)).backward()
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)
    for n, parameter in module.named_parameters():
        scale = max(1.0, float(parameter.grad.abs().max()))
        torch.testing.assert_close(packed_gradients[n], parameter.grad, rtol=1e-5, atol=1e-5 * scale, msg=n)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_seen_ahead_or_across(name):
    module = loud(ALL[name])
    tokens = torch.randint(0, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(20) >= 12).int().expand(2, 20)
    with torch.no_grad():
        before = module.hidden(tokens, documents=documents)
        changed = tokens.clone()
        changed[:, 5] = (changed[:, 5] + 1) % VOCABULARY
        after = module.hidden(changed, documents=documents)
    # To rounding: the rows of an expert are one product, which a token that comes or goes rounds anew, and
    # RWKV-7 takes decays relative to the middle of a chunk, which lies ahead of half of it.
    same = torch.isclose(before, after, rtol=1e-5, atol=1e-5).all(dim=-1).all(dim=0)
    assert same[:5].all()
    assert not same[5:12].any()
    assert same[12:].all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 1, 5, 6]])
def test_a_cache_gives_the_full_forward(name, pieces):
    module = loud(ALL[name])
    tokens = torch.randint(0, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full = module.hidden(tokens)
        cache = module.cache(columns=24)
        parts = [module.hidden(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_rows_padded_on_the_left_and_selected_equal_rows_alone(name):
    module = loud(ALL[name])
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in (9, 4, 12)]
    with torch.no_grad():
        alone = [module.hidden(row[None])[0] for row in rows]
        cache = module.cache(columns=12, first=torch.tensor([1, 6]))
        prompt = torch.stack(
            [
                torch.cat((torch.zeros(8 - n, dtype=torch.int64), row[:n]))
                for row, n in ((rows[0], 7), (rows[1], 2))
            ]
        )
        hidden = module.hidden(prompt, cache=cache)
        torch.testing.assert_close(hidden[0, 1:], alone[0][:7], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(hidden[1, 6:], alone[1][:2], rtol=1e-5, atol=1e-5)
        both = module.hidden(torch.stack([rows[0][7:9], rows[1][2:4]]), cache=cache)
        torch.testing.assert_close(both[0], alone[0][7:9], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both[1], alone[1][2:4], rtol=1e-5, atol=1e-5)
        cache = module.cache(columns=12, first=torch.tensor([1, 6]))
        module.hidden(prompt, cache=cache)
        cache.select(torch.tensor([1]))
        one = module.hidden(rows[1][None, 2:4], cache=cache)
        torch.testing.assert_close(one[0], alone[1][2:4], rtol=1e-5, atol=1e-5)


def test_a_cache_refuses_a_first_piece_that_a_row_begins_beyond():
    module = build(LLAMA, VOCABULARY, 0)
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    cache = module.cache(10, first=torch.tensor([0, 5]))
    module.hidden(tokens, cache=cache)
    with pytest.raises(ValueError, match="begins at column 5"):
        module.hidden(tokens, cache=cache)


def test_a_cache_refuses_documents_and_overflow():
    module = build(LLAMA, VOCABULARY, 0)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="documents"):
        module.hidden(tokens, documents=tokens.int(), cache=module.cache(8))
    with pytest.raises(ValueError, match="4 columns"):
        module.hidden(tokens, cache=module.cache(4))


def test_learned_positions_end_and_restart():
    module = build(GPT2, VOCABULARY, 0)
    tokens = torch.zeros(1, 65, dtype=torch.int64)
    with pytest.raises(ValueError, match="max_positions 64"):
        module.hidden(tokens)
    documents = (torch.arange(65) >= 30).int()[None]
    assert module.hidden(tokens, documents=documents).shape == (1, 65, 48)


@pytest.mark.parametrize("model", [LLAMA, QWEN3], ids=["llama", "qwen3"])
def test_shards_by_the_table_add_up_to_the_whole(model):
    """Tensor parallelism by hand: each shard is the same block code with its part of every weight."""
    module = loud(model)
    block = module.blocks["0"]
    cuts = {p.name.removeprefix("blocks.0."): p.cut for p in table.parameters(model, VOCABULARY)}
    x = torch.randn(2, 9, model.width)
    prepared = block.mixer.plan(Inputs(2, 9, x.device, None))
    total = torch.zeros_like(x)
    feedforward = torch.zeros_like(x)
    for rank in range(2):
        shard = build(model, VOCABULARY, 0).blocks["0"]
        for name, parameter in block.named_parameters():
            module_name, _, leaf = name.rpartition(".")
            part = parameter.detach()
            if cuts[name] == "colwise":
                part = part.chunk(2, dim=0)[rank]
            elif cuts[name] == "rowwise":
                part = part.chunk(2, dim=1)[rank]
            setattr(shard.get_submodule(module_name), leaf, torch.nn.Parameter(part.clone()))
        total += shard.mixer(x, prepared, None, Carried())[0]
        feedforward += shard.feedforward(x, None, None, Carried())[0]
    torch.testing.assert_close(total, block.mixer(x, prepared, None, Carried())[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        feedforward, block.feedforward(x, None, None, Carried())[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
def test_autocast_is_close_and_trains_fp32_weights(name):
    module = loud(ALL[name])
    tokens = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(40) >= 12).int().expand(2, 40)
    exact = module.logits(module.hidden(tokens, documents=documents))
    exact.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters()}
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module.logits(module.hidden(tokens, documents=documents))
    assert rounded.dtype == torch.bfloat16
    rounded.float().square().mean().backward()
    assert float((rounded - exact).detach().norm() / exact.detach().norm()) < 0.03
    for n, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert float((parameter.grad - gradients[n]).norm()) < 0.1 * float(gradients[n].norm()) + 1e-5, n


def test_a_compiled_block_gives_the_same():
    module, generator = loud(LLAMA), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (2, 40), generator=generator)
    weights = torch.randn(2, 40, LLAMA.width, generator=generator)
    documents = (torch.arange(40) >= 12).int().expand(2, 40)
    expected = module.hidden(tokens, documents=documents)
    (expected * weights).sum().backward()
    gradient = module.embedding.weight.grad.clone()
    module.zero_grad()
    for block in module.blocks.values():
        block.compile(backend="aot_eager")
    got = module.hidden(tokens, documents=documents)
    (got * weights).sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(module.embedding.weight.grad, gradient, rtol=1e-5, atol=1e-5 * scale)
