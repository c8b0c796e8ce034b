"""RWKV-7's layers: the published runtime, documents packed and alone, decoding, shards, bf16."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from cupola.models import build, table
from cupola.models.layer import Carried
from cupola.models.rwkv7 import TimeMix
from cupola.models.segments import Segments
from cupola.models.stack import LanguageModel
from cupola.recipe.model import RWKV7, Model

SMALL = Model(family="rwkv7", layers=3, width=64, rwkv7=RWKV7(head_width=16))
VOCABULARY = 96
TIME_MIX = {
    "x_r": "shift_receptance",
    "x_w": "shift_decay",
    "x_k": "shift_key",
    "x_v": "shift_value",
    "x_a": "shift_rate",
    "x_g": "shift_gate",
    "w0": "decay_bias",
    "a0": "rate_bias",
    "v0": "mix_bias",
    "k_k": "key_scale",
    "k_a": "key_rate",
    "receptance.weight": "receptance.weight",
    "key.weight": "key.weight",
    "value.weight": "value.weight",
    "output.weight": "output.weight",
    "ln_x.weight": "norm.weight",
    "ln_x.bias": "norm.bias",
}
LOW_RANK = {"w": "decay", "a": "rate", "v": "mix", "g": "gate"}
RUNTIME = """
import sys, torch
from rwkv.model import RWKV
path, tokens, out = sys.argv[1:]
model = RWKV(model=path, strategy="cpu fp32")
tokens = torch.load(tokens)
whole, state = model.forward(tokens, None, full_output=True)
single, state = model.forward(tokens[0], None)
torch.save([whole, single], out)
"""


def random_model(model: Model = SMALL, seed: int = 0) -> LanguageModel:
    """Every weight away from its delicate beginning, where half of the layer is multiplied by zero."""
    module = build(model, VOCABULARY, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += noise * (0.3 if parameter.dim() == 1 or "embedding" in name else 0.1)
    return module


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


def published(module: LanguageModel) -> dict[str, Tensor]:
    """The weights under the names, and in the shapes, of the published files."""
    ours = module.state_dict()
    heads = SMALL.width // SMALL.rwkv7.head_width
    found = {"emb.weight": ours["embedding.weight"], "head.weight": ours["head.weight"]}
    pairs = {"ln_out": "norm", "blocks.0.ln0": "embedding_norm"}
    for i in range(SMALL.layers):
        att, ffn, mixer = f"blocks.{i}.att.", f"blocks.{i}.ffn.", f"blocks.{i}.mixer."
        pairs |= {
            f"blocks.{i}.ln1": f"blocks.{i}.mixer_norm",
            f"blocks.{i}.ln2": f"blocks.{i}.feedforward_norm",
        }
        for theirs, name in TIME_MIX.items():
            if mixer + name in ours:
                tensor = ours[mixer + name]
                found[att + theirs] = tensor[None, None] if name.startswith(("shift_", "key_")) else tensor
        for theirs, name in LOW_RANK.items():
            if mixer + f"{name}_down.weight" in ours:
                found[att + theirs + "1"] = ours[mixer + f"{name}_down.weight"].t().contiguous()
                found[att + theirs + "2"] = ours[mixer + f"{name}_up.weight"].t().contiguous()
        found[att + "r_k"] = ours[mixer + "bonus"].view(heads, -1)
        found[ffn + "x_k"] = ours[f"blocks.{i}.feedforward.shift_key"][None, None]
        for name in ("key.weight", "value.weight"):
            found[ffn + name] = ours[f"blocks.{i}.feedforward.{name}"]
    for theirs, name in pairs.items():
        for part in ("weight", "bias"):
            found[f"{theirs}.{part}"] = ours[f"{name}.{part}"]
    return found


@pytest.mark.oracle
def test_logits_equal_the_published_runtimes(tmp_path):
    module, read = random_model(), tokens(1, 70)
    torch.save(published(module), tmp_path / "model.pth")
    torch.save(read[0].tolist(), tmp_path / "tokens")
    subprocess.run(
        [sys.executable, "-c", RUNTIME, tmp_path / "model", tmp_path / "tokens", tmp_path / "out"],
        check=True,
        env=os.environ | {"RWKV_V7_ON": "1", "RWKV_CUDA_ON": "0", "RWKV_JIT_ON": "0"},
        capture_output=True,
    )
    whole, single = torch.load(tmp_path / "out")
    with torch.no_grad():
        logits = module.logits(module.hidden(read))[0]
    # Their constant of the decay is rounded to 0.606531.
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))
    torch.testing.assert_close(logits[0], single, rtol=0, atol=1e-5 * float(single.abs().max()))


def test_the_first_layer_writes_nothing_at_first_and_trains_from_there():
    """The published beginning: what layers add is zero, but its gradient is not."""
    module = build(SMALL, VOCABULARY, seed=1)
    read = tokens(2, 40)
    with torch.no_grad():
        embedded = module.norm(module.embedding_norm(module.embedding(read)))
    hidden = module.hidden(read)
    assert torch.equal(hidden, embedded)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        logits = module.logits(module.hidden(read[:, :-1]))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), read[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 2
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("layers", [1, 2])
def test_few_layers_begin_finite(layers):
    module = build(SMALL.model_copy(update={"layers": layers}), VOCABULARY, seed=0)
    assert all(p.isfinite().all() for p in module.parameters())


def test_packed_documents_equal_each_alone_gradients_too():
    module = random_model().double()
    lengths = [1, 30, 2, 45]
    read = tokens(1, sum(lengths))
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None].to(torch.int32)
    weights = torch.randn(1, sum(lengths), SMALL.width, dtype=torch.float64)
    packed = module.hidden(read, numbers)
    (packed * weights).sum().backward()
    together = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    for columns in torch.arange(sum(lengths)).split(lengths):
        alone = module.hidden(read[:, columns])
        torch.testing.assert_close(packed[:, columns], alone, rtol=0, atol=1e-9)
        (alone * weights[:, columns]).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prefilled", [1, 2, 33])
def test_decoding_continues_the_whole(prefilled):
    module, read = random_model(), tokens(2, 50)
    with torch.no_grad():
        whole = module.hidden(read)
        cache = module.cache(50)
        parts = [module.hidden(read[:, :prefilled], cache=cache)]
        parts.append(module.hidden(read[:, prefilled : prefilled + 7], cache=cache))
        parts += [module.hidden(read[:, t : t + 1], cache=cache) for t in range(prefilled + 7, 50)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)


def test_rows_padded_on_the_left_decode_as_alone_in_any_order():
    module, read = random_model(), tokens(2, 40)
    first = torch.tensor([0, 9])
    with torch.no_grad():
        cache = module.cache(40, first)
        module.hidden(read[:, :30], cache=cache)
        rows = torch.tensor([1, 0, 1])
        cache.select(rows)
        continued = module.hidden(read[rows, 30:], cache=cache)
        for row, source in enumerate(rows.tolist()):
            alone = module.hidden(read[source : source + 1, first[source] :])
            torch.testing.assert_close(continued[row], alone[0, -10:], rtol=0, atol=2e-5)


def test_bf16_stays_near_fp32():
    module, read = random_model(), tokens(2, 64)
    exact = module.hidden(read)
    exact.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module.hidden(read)
    assert rounded.dtype == torch.bfloat16
    rounded.float().square().sum().backward()
    assert (rounded - exact).norm() / exact.norm() < 0.03
    for name, gradient in gradients.items():
        grad = module.get_parameter(name).grad
        assert (grad - gradient).norm() / gradient.norm().clamp_min(1e-3) < 0.2, name


def test_a_layer_that_is_not_the_first_needs_the_values_of_the_first():
    layer = TimeMix(SMALL, 1)
    with pytest.raises(ValueError, match="values of the first time mix"):
        layer(torch.zeros(1, 2, 64), Segments(None), None, Carried())


@pytest.mark.parametrize("block", ["0", "1"])
def test_shards_by_the_table_add_up_to_the_whole(block):
    """Tensor parallelism by hand: the same code with half of the heads, twice; values too are by head."""
    module = random_model()
    whole = module.blocks[block]
    cuts = {p.name: p.cut for p in table.parameters(SMALL, VOCABULARY)}
    generator = torch.Generator().manual_seed(2)
    x, first = (torch.randn(2, 40, SMALL.width, generator=generator) for _ in range(2))
    plan, expected, found = Segments(None), [], [torch.zeros_like(x), torch.zeros_like(x)]
    for layer in (whole.mixer, whole.feedforward):
        expected.append(layer(x, plan, None, Carried(values=first))[0])
    for rank in range(2):
        shard = build(SMALL, VOCABULARY, 0).blocks[block]
        for name, parameter in whole.named_parameters():
            cut = cuts[f"blocks.{block}.{name}"]
            axis = {"colwise": 0, "rowwise": 1}.get(cut)
            part = parameter.detach() if axis is None else parameter.detach().chunk(2, axis)[rank]
            inside, _, leaf = name.rpartition(".")
            setattr(shard.get_submodule(inside), leaf, torch.nn.Parameter(part.clone()))
        values = first.chunk(2, dim=-1)[rank]
        for total, layer in zip(found, (shard.mixer, shard.feedforward), strict=True):
            total += layer(x, plan, None, Carried(values=values))[0]
    for total, want in zip(found, expected, strict=True):
        torch.testing.assert_close(total, want, rtol=0, atol=1e-5 * want.abs().max().item())
