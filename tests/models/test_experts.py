"""Mixtures of experts: the layer against plain formulas and Hugging Face's, and what evens its loads."""

import pytest
import torch
import torch.nn.functional as F

from cupola.models import build, experts, grouped, table
from cupola.models.experts import Experts, balance_loss, imbalance
from cupola.models.grouped import Groups, grouped_linear, groups_of, looped_linear
from cupola.models.layer import Carried
from cupola.recipe.model import Experts as Settings
from cupola.recipe.model import Model
from tests.models.small_models import EXPERTS, EXPERTS_BIAS, LLAMA, MIXTURES

VOCABULARY = 61


def model(**settings) -> Model:
    defaults = {"count": 8, "active": 2, "width": 24}
    return Model(layers=1, width=48, heads=4, experts=Settings(**(defaults | settings)))


def layer(seed: int = 0, **settings) -> Experts:
    generator = torch.Generator().manual_seed(seed)
    module = Experts(model(**settings), 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def tokens(count: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, count // 2, 48, generator=torch.Generator().manual_seed(seed))


def forward(module: Experts, x: torch.Tensor) -> torch.Tensor:
    return module(x, None, None, Carried())[0]


def with_gradients(call, x: torch.Tensor, parameters) -> list[torch.Tensor]:
    """The result, and the gradients of x and of the parameters, under random weights."""
    x = x.detach().clone().requires_grad_()
    out = call(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *parameters])]


def close(found, expected, tolerance=1e-5) -> None:
    for left, right in zip(found, expected, strict=True):
        scale = max(1.0, float(right.detach().abs().max()))
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * scale)


def plain(module: Experts, x: torch.Tensor) -> torch.Tensor:
    """Token by token, expert by expert."""
    settings = module.settings
    rows = []
    for token in x.flatten(0, 1):
        logits = module.router.weight @ token
        scores = logits.softmax(0) if settings.score == "softmax" else logits.sigmoid()
        preferred = scores if module.balance_bias is None else scores + module.balance_bias
        chosen = preferred.argsort(descending=True)[: settings.active].tolist()
        total = sum(scores[e] for e in chosen) if settings.normalise else 1.0
        row = torch.zeros_like(token)
        for e in chosen:
            hidden = F.silu(module.gate[e] @ token) * (module.up[e] @ token)
            row = row + scores[e] / total * (module.down[e] @ hidden)
        if module.shared is not None:
            shared = module.shared
            hidden = F.silu(shared.gate.weight @ token) * (shared.up.weight @ token)
            row = row + shared.down.weight @ hidden
        rows.append(row)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("balance", "shared"), [("auxiliary", 0), ("bias", 16)])
def test_is_the_formula(score, normalise, balance, shared):
    module = layer(score=score, normalise=normalise, balance=balance, shared=shared, active=3)
    if module.balance_bias is not None:
        module.balance_bias.copy_(torch.linspace(-0.3, 0.3, 8))
    parameters = list(module.parameters())
    found = with_gradients(lambda x: forward(module, x), tokens(), parameters)
    close(found, with_gradients(lambda x: plain(module, x), tokens(), parameters))


def copied_to(block, module: Experts) -> None:
    with torch.no_grad():
        block.gate.weight.copy_(module.router.weight)
        block.experts.gate_up_proj.copy_(torch.cat((module.gate, module.up), 1))
        block.experts.down_proj.copy_(module.down)


def oracle(kind: str, module: Experts):
    """Hugging Face's block with the same weights."""
    import transformers
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    settings = module.settings
    sizes = {"hidden_size": 48, "num_experts_per_tok": settings.active}
    if kind == "mixtral":
        config = transformers.MixtralConfig(
            **sizes, intermediate_size=settings.width, num_local_experts=settings.count
        )
        block_of = MixtralSparseMoeBlock
    else:
        sizes |= {"moe_intermediate_size": settings.width, "norm_topk_prob": settings.normalise}
        if kind == "qwen3":
            config = transformers.Qwen3MoeConfig(**sizes, num_experts=settings.count)
            block_of = Qwen3MoeSparseMoeBlock
        else:
            config = transformers.DeepseekV3Config(
                **sizes,
                n_routed_experts=settings.count,
                n_shared_experts=1,
                n_group=1,
                topk_group=1,
                routed_scaling_factor=1.0,
            )
            block_of = DeepseekV3MoE
    config._experts_implementation = "eager"
    block = block_of(config)
    copied_to(block, module)
    if module.shared is not None and module.balance_bias is not None:
        with torch.no_grad():
            block.gate.e_score_correction_bias.copy_(module.balance_bias)
            for name in ("gate", "up", "down"):
                weight = getattr(module.shared, name).weight
                getattr(block.shared_experts, f"{name}_proj").weight.copy_(weight)
    return block


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mixtral", {}),
        ("qwen3", {"active": 3}),
        ("qwen3", {"normalise": False}),
        ("deepseek", {"score": "sigmoid", "balance": "bias", "shared": 24}),
    ],
)
def test_equals_hugging_faces_block(kind, settings):
    module = layer(**settings)
    if module.balance_bias is not None:
        module.balance_bias.copy_(torch.linspace(-0.3, 0.3, 8))
    block = oracle(kind, module)
    found = with_gradients(
        lambda x: forward(module, x), tokens(), [module.router.weight, module.gate, module.up, module.down]
    )
    theirs = [block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj]
    out, d_x, d_router, d_gate_up, d_down = with_gradients(block, tokens(), theirs)
    d_gate, d_up = d_gate_up.chunk(2, dim=1)
    close(found, [out, d_x, d_router, d_gate, d_up, d_down])


ROUTES = {
    "spread": torch.randint(0, 8, (40, 2), generator=torch.Generator().manual_seed(0)),
    "all to one": torch.full((40, 1), 5),
    "empty ones first and last": torch.tensor([[3, 4], [4, 6], [3, 6]]),
    "one token": torch.tensor([[7, 0, 2]]),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_equal_the_loop(route, dtype):
    chosen = ROUTES[route]
    groups = groups_of(chosen, 8)
    assert groups.loads().tolist() == chosen.flatten().bincount(minlength=8).tolist()
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(chosen.numel(), 16, generator=generator).to(dtype)
    weight = torch.randn(8, 24, 16, generator=generator).to(dtype).requires_grad_()
    found = with_gradients(lambda x: grouped_linear(x, weight, groups), rows, [weight])
    expected = with_gradients(lambda x: looped_linear(x, weight, groups), rows, [weight])
    close(found, expected, 1e-5 if dtype == torch.float32 else 2e-2)
    idle = groups.loads() == 0
    assert not found[2][idle].any()


@pytest.mark.parametrize(("inputs", "outputs"), [(20, 24), (24, 20), (3, 5), (1, 1), (12, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_width(inputs, outputs, dtype):
    """torch's product takes rows of whole 16 bytes alone."""
    groups = groups_of(ROUTES["spread"], 8)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(80, inputs, generator=generator).to(dtype)
    weight = torch.randn(8, outputs, inputs, generator=generator).to(dtype).requires_grad_()
    found = with_gradients(lambda x: grouped_linear(x, weight, groups), rows, [weight])
    expected = with_gradients(lambda x: looped_linear(x, weight, groups), rows, [weight])
    assert [tensor.shape for tensor in found] == [(80, outputs), (80, inputs), (8, outputs, inputs)]
    close(found, expected, 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(("width", "expert"), [(48, 20), (44, 24), (30, 13)])
def test_a_mixture_of_any_width_in_bf16_is_the_formula(width, expert):
    settings = Settings(count=4, active=2, width=expert)
    module = Experts(Model(layers=1, width=width, heads=2, experts=settings), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    x = torch.randn(1, 30, width, generator=generator)

    def in_bf16(x):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(module, x)

    parameters = list(module.parameters())
    expected = with_gradients(lambda x: plain(module, x), x, parameters)
    for left, right in zip(with_gradients(in_bf16, x, parameters), expected, strict=True):
        assert float((left - right).norm() / right.norm()) < 0.02


def test_the_loop_serves_where_torch_has_no_grouped_product(monkeypatch):
    module = layer()
    parameters = list(module.parameters())
    expected = with_gradients(lambda x: forward(module, x), tokens(), parameters)
    monkeypatch.setattr(grouped, "_GROUPED_MM", None)
    close(with_gradients(lambda x: forward(module, x), tokens(), parameters), expected)


@pytest.mark.parametrize("route", ROUTES)
def test_dispatch_and_combine_are_each_others_transpose(route):
    chosen = ROUTES[route]
    groups, (count, active) = groups_of(chosen, 8), chosen.shape
    x = torch.randn(count, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(count * active, 5, dtype=torch.float64, requires_grad=True)
    sent = grouped.dispatch(x, groups)
    experts_of_rows, _ = chosen.flatten().sort(stable=True)
    for expert in range(8):
        expected = x[(chosen == expert).nonzero()[:, 0]]
        assert torch.equal(sent[experts_of_rows == expert], expected)
    for function, argument in ((grouped.dispatch, x), (grouped.combine, rows)):
        assert torch.autograd.gradcheck(lambda a, f=function: f(a, groups), argument)
    assert torch.allclose((sent * rows).sum(), (x * grouped.combine(rows, groups)).sum())


def test_a_gradient_that_is_not_contiguous():
    groups = groups_of(ROUTES["spread"], 8)
    weight = torch.randn(8, 24, 16, requires_grad=True)
    rows = torch.randn(80, 16, requires_grad=True)
    grouped_linear(rows, weight, groups).sum().backward()
    torch.testing.assert_close(rows.grad, weight.detach().sum(1)[ROUTES["spread"].flatten().sort()[0]])


def test_shards_of_every_experts_hidden_width_add_up():
    whole = layer()
    parts = {p.name: p.cut for p in table.FEEDFORWARDS["experts"].parameters(model(), 0)}
    total = torch.zeros_like(tokens())
    for rank in range(2):
        shard = layer()
        for name, axis in (("gate", 1), ("up", 1), ("down", 2)):
            assert parts[name] == ("colwise" if axis == 1 else "rowwise")
            part = getattr(whole, name).detach().chunk(2, dim=axis)[rank]
            setattr(shard, name, torch.nn.Parameter(part.clone()))
        total += forward(shard, tokens())
    torch.testing.assert_close(total, forward(whole, tokens()), rtol=1e-5, atol=1e-5)


def test_the_router_works_in_fp32_whatever_the_precision():
    module = layer()
    x = tokens().bfloat16()
    exact = module.route(x.flatten(0, 1).float())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module.route(x.flatten(0, 1))
        out = forward(module, x).detach()
    assert torch.equal(rounded.scores, exact.scores)
    assert out.dtype == torch.bfloat16
    expected = forward(module, x.float()).detach()
    assert float((out - expected).norm() / expected.norm()) < 0.02


def logits_of(module: Experts, x: torch.Tensor) -> torch.Tensor:
    return module.router(x.flatten(0, 1))


@pytest.mark.oracle
@pytest.mark.parametrize("active", [1, 3])
def test_the_auxiliary_loss_is_hugging_faces_over_active(active):
    """For one layer, value and gradient."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = load_balancing_loss_func((logits,), 8, active) / active
    scores = logits.softmax(-1)
    loads = scores.topk(active).indices.flatten().bincount(minlength=8)
    found = balance_loss(scores, loads) / 50
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


def test_the_auxiliary_loss_is_one_where_loads_are_even():
    even = torch.full((32, 8), 1 / 8)
    assert float(balance_loss(even, torch.full((8,), 8))) / 32 == pytest.approx(1)
    crowded = torch.eye(8)[torch.zeros(32, dtype=torch.int64)]
    loads = torch.tensor([32] + [0] * 7)
    assert float(balance_loss(crowded, loads)) / 32 == pytest.approx(8)
    assert float(balance_loss(crowded * 0.4, loads)) / 32 == pytest.approx(8)  # sigmoids need not sum to 1


@pytest.mark.oracle
def test_the_stack_adds_its_weight_times_the_mean_over_layers():
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    module = build(EXPERTS, VOCABULARY, seed=0)
    seen = []
    for block in module.blocks.values():
        block.feedforward.register_forward_pre_hook(lambda m, args: seen.append(logits_of(m, args[0])))
    ids = torch.randint(0, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))
    output = module(ids)
    settings = EXPERTS.experts
    each = [load_balancing_loss_func((logits,), settings.count, settings.active) for logits in seen]
    expected = settings.balance_weight * torch.stack(each).mean() / settings.active
    torch.testing.assert_close(output.balance / ids.numel(), expected, rtol=1e-5, atol=0)
    assert len(output.loads) == len(each) == 2
    for loads, logits in zip(output.loads, seen, strict=True):
        chosen = logits.topk(settings.active).indices
        assert torch.equal(loads, chosen.flatten().bincount(minlength=settings.count))
    module.eval()
    assert module(ids).balance is None


@pytest.mark.parametrize("kind", ["bias", "none"])
def test_without_an_auxiliary_loss_none_is_made(kind):
    assert layer(balance=kind)(tokens(), None, None, Carried())[1].balance is None


def test_the_bias_moves_against_the_load_and_never_into_the_weights():
    module = layer(balance="bias", bias_rate=0.25)
    before = module.route(tokens().flatten(0, 1))
    experts.rebalance(module, (torch.tensor([5, 5, 0, 10, 5, 5, 5, 5]),))
    assert module.balance_bias.tolist() == [0, 0, 0.25, -0.25, 0, 0, 0, 0]
    module.balance_bias[2] = 10.0
    after = module.route(tokens().flatten(0, 1))
    assert (after.chosen == 2).any(1).all()
    assert torch.equal(after.scores, before.scores)
    expected = before.scores.gather(1, after.chosen)
    torch.testing.assert_close(after.weights, expected / expected.sum(1, keepdim=True))


def test_the_bias_evens_loads():
    """A router that prefers some experts strongly, and tokens that stay as they are."""
    module = layer(balance="bias", bias_rate=0.01, score="sigmoid")
    x = tokens(800) + torch.ones(48)

    def loads():
        with torch.no_grad():
            return module(x, None, None, Carried())[1].loads

    assert float(imbalance(loads())) > 2
    for _ in range(150):
        experts.rebalance(module, loads())
    assert float(imbalance(loads())) < 1.15


def test_the_auxiliary_loss_evens_loads():
    module = layer()
    x = tokens(800) + torch.ones(48)
    first = float(imbalance(module(x, None, None, Carried())[1].loads))
    optimizer = torch.optim.Adam([module.router.weight], lr=0.01)
    for _ in range(60):
        carried = module(x, None, None, Carried())[1]
        (gradient,) = torch.autograd.grad(carried.balance / 800, [module.router.weight])
        module.router.weight.grad = gradient
        optimizer.step()
    assert first > 2
    assert float(imbalance(carried.loads)) < 1.5


def test_imbalance_is_of_the_worst_layer():
    loads = (torch.tensor([4, 4, 4, 4]), torch.tensor([0, 0, 12, 4]))
    assert float(imbalance(loads)) == 3


def test_rebalancing_reaches_the_layers_in_the_order_of_their_loads():
    module = build(EXPERTS_BIAS, VOCABULARY, seed=0)
    ids = torch.randint(0, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))
    loads = module(ids).loads
    experts.rebalance(module, loads)
    for number, load in zip("12", loads, strict=True):
        bias = module.blocks[number].feedforward.balance_bias
        assert torch.equal(bias, 0.01 * torch.sign(load.float().mean() - load))
    with pytest.raises(ValueError):
        experts.rebalance(module, loads[:1])


def test_counts_by_hand():
    held = 3 * 8 * 16 * 32
    idle = 3 * 5 * 16 * 32
    dense = EXPERTS_BIAS.model_copy(update={"experts": None})
    difference = table.count(EXPERTS_BIAS, VOCABULARY) - table.count(dense, VOCABULARY)
    ordinary = 3 * 32 * dense.sizes().feedforward
    assert difference == 2 * (held + 8 * 32 + 3 * 24 * 32 - ordinary)
    assert table.count(EXPERTS_BIAS, VOCABULARY) - table.active_count(EXPERTS_BIAS, VOCABULARY) == 2 * idle
    assert table.active_count(LLAMA, VOCABULARY) == table.count(LLAMA, VOCABULARY)
    module = build(EXPERTS_BIAS, VOCABULARY, seed=0)
    assert table.count(EXPERTS_BIAS, VOCABULARY) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", MIXTURES)
def test_flops_are_those_of_the_active_experts(name, monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(grouped, "_GROUPED_MM", None)  # which torch's counter does not know
    settings = MIXTURES[name]
    number = settings.layers - 1
    module = Experts(settings, number)
    x = torch.randn(2, 16, settings.width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        forward(module, x).sum().backward()
    expected = 3 * table.FEEDFORWARDS["experts"].forward_flops(settings, number, 16, True) * 32
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("experts", "aot_eager"),
        pytest.param("experts-bias", "aot_eager", marks=pytest.mark.slow),
        pytest.param("experts", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_block_gives_the_same(name, backend):
    module = build(MIXTURES[name], VOCABULARY, seed=0)
    ids = torch.randint(0, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))
    parameters = list(module.blocks.parameters())

    def run():
        output = module(ids)
        total = output.hidden.square().mean()
        if output.balance is not None:
            total = total + output.balance / ids.numel()
        return output, torch.autograd.grad(total, parameters)

    expected, gradients = run()
    list(module.blocks.values())[-1].compile(backend=backend)
    found, compiled = run()
    assert all(torch.equal(*pair) for pair in zip(found.loads, expected.loads, strict=True))
    close([found.hidden], [expected.hidden])
    close(compiled, gradients)


@pytest.mark.slow
def test_deeper_stacks_compile_no_more_graphs():
    """Beyond eight graphs of one function torch gives up compiling it."""
    from torch._dynamo.utils import counters

    graphs = []
    for layers in (3, 10):
        torch._dynamo.reset()
        counters.clear()
        module = build(EXPERTS.model_copy(update={"layers": layers}), VOCABULARY, seed=0)
        for block in module.blocks.values():
            block.compile(backend="aot_eager")
        module(torch.zeros(2, 30, dtype=torch.int64))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_as_on_a_cpu(dtype):
    module = layer(active=3, shared=16)
    there = layer(active=3, shared=16).cuda()
    expected = with_gradients(lambda x: forward(module, x), tokens(), list(module.parameters()))

    def call(x):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            return forward(there, x.cuda()).float().cpu()

    found = with_gradients(call, tokens(), list(there.parameters()))
    for left, right in zip(found, expected, strict=True):
        error = (left.cpu() - right).norm() / right.norm()
        assert float(error) < (1e-4 if dtype == torch.float32 else 0.05)


def test_groups_are_a_permutation_and_its_inverse():
    groups: Groups = groups_of(ROUTES["spread"], 8)
    assert torch.equal(groups.order[groups.places], torch.arange(80))
    assert groups.ends.dtype == torch.int32
