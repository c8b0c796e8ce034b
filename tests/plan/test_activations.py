"""What layers keep: beside Korthikanti et al.'s closed forms, and beside what torch itself saves."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cupola.plan.activations import Kernels, kept, per_token
from cupola.plan.layout import Layout
from cupola.recipe.loading import load_preset
from cupola.recipe.model import Model

GPT = {
    "activation": "gelu_tanh",
    "norm": "layernorm",
    "positions": "learned",
    "max_positions": 64,
}


def gpt(width: int, heads: int, **settings) -> Model:
    return Model(**GPT | {"layers": 2, "width": width, "heads": heads} | settings)


def of_layer(model, layout, length, **kernels):
    return per_token(model, 0, length, Kernels(**kernels), layout)[0]


@pytest.mark.parametrize(
    ("width", "heads", "length", "tensor"), [*itertools.product((256, 384), (4, 8), (128, 512), (1, 2, 4))]
)
def test_the_closed_forms_of_korthikanti_2022(width, heads, length, tensor):
    """Table 2, bytes for each token of a layer: h (10 + 24 / t + 5 a s / (h t)) and its kin."""
    model = gpt(width, heads)
    core = 5 * heads * length / width

    def found(**settings):
        layout = Layout(tensor=tensor, **settings)
        return of_layer(model, layout, length, flash=False, dropout=True) / width

    assert found(sequence_parallel=False) == pytest.approx(10 + 24 / tensor + core / tensor)
    assert found() == pytest.approx((34 + core) / tensor)
    assert found(checkpointing="selective") == pytest.approx(34 / tensor)
    assert found(checkpointing="selective", sequence_parallel=False) == pytest.approx(10 + 24 / tensor)
    assert found(checkpointing="full", sequence_parallel=False) == pytest.approx(2)
    assert found(checkpointing="full") == pytest.approx(2 / tensor)


class Saved:
    """Bytes that autograd saves, each storage once, of what is no parameter."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.held: list[Tensor] = []
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known and tensor.ndim > 1:
            self.known.add(storage.data_ptr())
            self.held.append(tensor)  # so that its storage isn't given away again
            self.bytes += storage.nbytes()
        return tensor


def drop(x: Tensor, share: float) -> Tensor:
    """Dropout that keeps its mask in bytes, as on a GPU; torch's own on a CPU keeps it in fp32."""
    return torch.where(torch.rand_like(x) > share, x / (1 - share), 0.0) if share else x


def layer(x: Tensor, weights: dict[str, Tensor], model: Model, plain: bool, dropout: float) -> Tensor:
    """A layer in torch's own functions, one by one."""
    sizes = model.sizes()

    def heads(name: str, count: int) -> Tensor:
        return F.linear(normed, weights[name]).view(*x.shape[:2], count, sizes.head_width).transpose(1, 2)

    normed = F.layer_norm(x, x.shape[-1:], weights["one"])
    q, k, v = heads("q", sizes.heads), heads("k", sizes.key_value_heads), heads("v", sizes.key_value_heads)
    if plain:
        scores = F.softmax(q @ k.transpose(-1, -2), -1)
        attended = drop(scores, dropout) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out = F.linear(attended.transpose(1, 2).flatten(2), weights["o"])
    x = x + drop(out, dropout)
    normed = F.layer_norm(x, x.shape[-1:], weights["one"])
    up = F.linear(normed, weights["up"])
    hidden = F.silu(F.linear(normed, weights["gate"])) * up if "gate" in weights else F.gelu(up)
    out = F.linear(hidden, weights["down"])
    return x + drop(out, dropout)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("settings", "plain", "dropout"),
    [
        ({}, True, 0.1),
        ({}, True, 0.0),
        ({}, False, 0.0),
        ({"activation": "swiglu", "norm": "layernorm"}, False, 0.0),
    ],
)
def test_torch_saves_as_much(settings, plain, dropout):
    """To 3%: norms also keep a mean and a deviation of each token."""
    model, length, rows = gpt(128, 4, **settings), 64, 2
    sizes, width = model.sizes(), model.width
    shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
    shapes |= {"up": (sizes.feedforward, width), "down": (width, sizes.feedforward)}
    shapes |= {"gate": (sizes.feedforward, width)} if model.activation == "swiglu" else {}
    weights = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
    weights["one"] = torch.ones(width, requires_grad=True)
    x = torch.randn(rows, length, width, requires_grad=True)
    saved = Saved(list(weights.values()))
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        layer(x, weights, model, plain, dropout).sum()
    kernels = {"element": 4, "flash": not plain, "dropout": dropout > 0, "fused": False}
    expected = of_layer(model, Layout(), length, **kernels) * rows * length
    assert saved.bytes == pytest.approx(expected, rel=0.03)


def test_grouped_queries_keep_fewer_keys_and_values():
    few, many = gpt(256, 8, key_value_heads=2), gpt(256, 8)
    saving = of_layer(many, Layout(), 128) - of_layer(few, Layout(), 128)
    assert saving == 2 * 2 * (256 - 64)
    assert of_layer(few, Layout(), 128, grouped=False) == of_layer(many, Layout(), 128)


def test_gathered_inputs_that_are_kept_are_whole():
    model, layout = gpt(256, 8), Layout(tensor=8)
    assert of_layer(model, layout, 128, regather=False) - of_layer(model, layout, 128) == 2 * 2 * 256 * 7 / 8


def test_every_other_product_and_attentions_answer():
    """torchtitan's policy: of query, key, value, output, gate, up and down the first, third, ... are kept."""
    model = load_preset("llama3-8b")
    found = of_layer(model, Layout(checkpointing="operators"), 8192)
    width, keys, hidden = 4096, 1024, 14336
    assert found == 2 * (width + width + keys + width + hidden + width)


@pytest.mark.parametrize(
    "preset",
    [
        "mamba-130m",
        "mamba2-130m",
        "rwkv7-0.1b",
        "mixtral-8x7b",
        "granite4-h-350m",
        "qwen3-0.6b",
        "gpt2-small",
    ],
)
def test_of_every_family_checkpointing_keeps_less_and_brings_the_rest_back(preset):
    model = load_preset(preset)
    for number in range(model.layers):
        whole = sum(one.size for part in kept(model, number, 2048, Kernels()) for one in part)
        before = whole
        for mode in ("none", "selective", "full"):
            layout = Layout(checkpointing=mode)
            keeps, brings_back, gradients = per_token(model, number, 2048, Kernels(), layout)
            assert keeps + brings_back == pytest.approx(whole)
            assert keeps <= before
            assert 0 < gradients <= whole
            before = keeps
        assert keeps == 2 * model.width


def test_scans_do_not_grow_with_the_row():
    for preset in ("mamba-130m", "mamba2-130m", "rwkv7-0.1b"):
        model = load_preset(preset)
        for flash in (True, False):
            assert of_layer(model, Layout(), 512, flash=flash) == of_layer(
                model, Layout(), 65536, flash=flash
            )


def test_experts_of_a_token_count():
    model = load_preset("mixtral-8x7b")
    sizes = [sum(one.size for one in kept(model, 0, 128, Kernels())[1] if one.name == "product")]
    assert sizes == [2 * 2 * 14336]
