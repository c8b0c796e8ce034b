"""A look at a step: every figure against a plain computation, and training the same to the bit."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from cupola import optim
from cupola.data.batch import Batch, Microbatch
from cupola.models import build
from cupola.objectives import NextToken
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import StepValues
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer
from cupola.train import look as looking
from cupola.train.look import Look, place_of
from cupola.train.step import train_step
from tests.models.small_models import (
    ALL,
    EXPERTS,
    EXPERTS_BIAS,
    GPT2,
    GRANITE,
    HYBRID,
    LLAMA,
    MAMBA,
    MAMBA2,
    QWEN3,
    RWKV7,
    SLIDING,
)
from tests.models.test_statistics import plain_scores, visible_keys

VOCABULARY, LENGTH, DELIMITER = 60, 16, 0
ATTENTION = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2, "sliding": SLIDING, "granite": GRANITE}


def batch(seed: int = 0) -> Batch:
    """Eight rows, documents in them, in three microbatches; a look sees the first two rows."""
    rows = torch.randint(VOCABULARY, (8, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    rows[:, 6] = DELIMITER
    parts = [Microbatch.of_rows(part, DELIMITER) for part in (rows[:4], rows[4:6], rows[6:])]
    return Batch(0, 8 * LENGTH, parts, {"texts": 8 * LENGTH}, 8 * LENGTH)


def module_of(model: Model, scale: float = 1.0) -> torch.nn.Module:
    module = build(model, VOCABULARY, seed=1)
    with torch.no_grad():
        for parameter in module.parameters():
            # Away from the initial zeros and ones, where a wrong factor would not show.
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter += 0.1 * scale * noise
    return module


def step(module, optimizer, look: bool, precision="fp32", limit=1.0, seed=0):
    engine, objective, data = LocalEngine(module, precision, "cpu"), NextToken(z_loss=1e-4), batch(seed)
    found = Look(engine, optimizer, objective, data) if look else None
    result = train_step(engine, optimizer, objective, data, StepValues(1e-2, 0.1, 0.95, 1e-4), limit)
    return result, found.finish(result.gradient_norm) if found else None


def seen(module, precision="fp32"):
    """The activations' figures of a look, and inputs and outputs of every submodule in the same pass."""
    rows = batch().microbatches[0]
    kept = {}

    def keep(name):
        return lambda _, args, output: kept.__setitem__(name, (args[0] if args else None, output))

    hooks = [part.register_forward_hook(keep(name)) for name, part in module.named_modules() if name]
    engine = LocalEngine(module, precision, "cpu")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        module(rows.tokens[:2], rows.documents[:2])
    for hook in hooks:
        hook.remove()
    look = Look(engine, optim.build(module, Optimizer()), NextToken(), batch())
    assert look.tokens == 2 * LENGTH
    return look.finish(1.0), kept


def rms(x):
    return x.double().square().mean().sqrt().item()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_every_family(name, precision):
    module = module_of(ALL[name], scale=0.3)
    figures, kept = seen(module, precision)
    assert "gradient_norm" not in figures  # no step was made
    places = [f"layer_{number:02d}" for number in range(ALL[name].layers)]
    assert list(figures["residual_rms"]) == ["embedding", *places]
    assert list(figures["mixer_rms"]) == places
    tolerance = {"rel": 1e-5}
    assert figures["residual_rms"]["embedding"] == pytest.approx(rms(kept["blocks.0"][0]), **tolerance)
    for number, place in enumerate(places):
        block = f"blocks.{number}"
        assert figures["residual_rms"][place] == pytest.approx(rms(kept[block][1][0]), **tolerance)
        assert figures["mixer_rms"][place] == pytest.approx(rms(kept[f"{block}.mixer"][1][0]), **tolerance)
        fed = kept.get(f"{block}.feedforward")
        found = figures.get("feedforward_rms", {}).get(place)
        assert found == (None if fed is None else pytest.approx(rms(fed[1][0]), **tolerance))
    recurrent = [p for p, m in zip(places, ALL[name].mixers(), strict=True) if "attention" not in m]
    for statistic in ("decay_min", "decay_max", "state_rms"):
        assert list(figures.get(statistic, {})) == recurrent


def turned(x, theta=10000.0):
    """Rotary positions as products of complex numbers; x (batch, length, heads, width)."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None, None] * rates
    numbers = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat([numbers.real, numbers.imag], dim=-1)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_scores_by_hand(name):
    model = ATTENTION[name]
    module = module_of(model)
    figures, kept = seen(module)
    documents = batch().microbatches[0].documents[:2]
    sizes = model.sizes()
    attending = [n for n, mixer in enumerate(model.mixers()) if "attention" in mixer]
    assert list(figures["attention_logit_max"]) == [f"layer_{n:02d}" for n in attending]
    for number in attending:
        mixer, x = module.blocks[str(number)].mixer, kept[f"blocks.{number}.mixer"][0].double()
        q, k = (
            (x @ part.weight.double().T + (0 if part.bias is None else part.bias.double())).unflatten(
                -1, (-1, sizes.head_width)
            )
            for part in (mixer.query, mixer.key)
        )
        if model.qk_norm:
            q, k = (
                t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
                for t, norm in ((q, mixer.query_norm), (k, mixer.key_norm))
            )
        if model.positions == "rope":
            q, k = turned(q), turned(k)
        window = model.window if model.mixers()[number] == "sliding_attention" else None
        scores = plain_scores(q, k, visible_keys(documents, LENGTH, window)).amax().item()
        if model.attention_multiplier is not None:
            scores *= model.attention_multiplier * sizes.head_width**0.5
        assert figures["attention_logit_max"][f"layer_{number:02d}"] == pytest.approx(scores, rel=1e-4)


def dead(hidden):
    largest = [max(abs(v) for v in column) for column in hidden.flatten(0, -2).T.tolist()]
    return sum(v <= 0.025 * sum(largest) / len(largest) for v in largest) / len(largest)


@pytest.mark.parametrize("model", [LLAMA, GPT2, RWKV7], ids=["gated", "plain", "channel_mix"])
def test_dead_units_by_hand(model):
    module = module_of(model, scale=0.3)
    with torch.no_grad():
        first = module.blocks["0"].feedforward
        for part in [getattr(first, n) for n in ("gate", "up", "key") if hasattr(first, n)]:
            part.weight[::3] = 0
            if part.bias is not None:
                part.bias[::3] = 0
    figures, kept = seen(module)
    for number in range(model.layers):
        layer, prefix = module.blocks[str(number)].feedforward, f"blocks.{number}.feedforward"
        x = kept[f"{prefix}.{'key' if model is RWKV7 else 'up'}"][0]
        if model is RWKV7:
            hidden = F.relu(F.linear(x, layer.key.weight)) ** 2
        elif model is GPT2:
            hidden = F.gelu(F.linear(x, layer.up.weight, layer.up.bias), approximate="tanh")
        else:
            hidden = F.silu(F.linear(x, layer.gate.weight)) * F.linear(x, layer.up.weight)
        assert figures["dead_units"][f"layer_{number:02d}"] == pytest.approx(dead(hidden))
    assert figures["dead_units"]["layer_00"] >= 1 / 3


@pytest.mark.parametrize("model", [EXPERTS, EXPERTS_BIAS], ids=["auxiliary", "bias"])
def test_idle_experts_and_their_units_by_hand(model):
    module = module_of(model, scale=0.3)
    last = model.layers - 1
    mixture = module.blocks[str(last)].feedforward
    with torch.no_grad():
        mixture.up[1, ::2] = 0
    figures, kept = seen(module)
    x = kept[f"blocks.{last}.feedforward"][0].flatten(0, 1)
    chosen = mixture.route(x).chosen
    counts = torch.bincount(chosen.flatten(), minlength=model.experts.count)
    place = f"layer_{last:02d}"
    assert figures["idle_experts"][place] == pytest.approx((counts == 0).float().mean().item())
    rows = []
    for e in range(model.experts.count):
        mine = x[(chosen == e).any(-1)]
        if len(mine):
            rows.append((F.silu(mine @ mixture.gate[e].T) * (mine @ mixture.up[e].T)).abs().amax(0))
    assert figures["dead_expert_units"][place] == pytest.approx(dead(torch.cat(rows)[None]))
    assert ("dead_units" in figures) == bool(model.experts.shared or model.experts.first_dense)


def test_an_expert_without_tokens_is_idle():
    module = build(EXPERTS, VOCABULARY, seed=1)
    with torch.no_grad():
        for block in module.blocks.values():
            block.feedforward.router.weight[2:] = 0  # ties go to the first
            block.feedforward.router.weight[:2] = 0
    figures, _ = seen(module)
    assert figures["idle_experts"] == {"layer_00": pytest.approx(4 / 6), "layer_01": pytest.approx(4 / 6)}


def test_decays_and_states_by_hand():
    module = module_of(HYBRID, scale=0.3)
    figures, kept = seen(module)
    two, seven, one = (module.blocks[n].mixer for n in "013")
    dt = F.softplus(kept["blocks.0.mixer.dt"][1] + two.dt_bias)
    by_layer = {
        "layer_00": (-dt * two.a_log.exp()).flatten(0, 1).mean(0).exp(),
        "layer_01": (-math.exp(-0.5) * torch.sigmoid(kept["blocks.1.mixer.decay_up"][1] + seven.decay_bias))
        .flatten(0, 1)
        .mean(0)
        .exp(),
        "layer_03": (F.softplus(kept["blocks.3.mixer.dt"][1])[..., None] * -one.a_log.exp())
        .flatten(0, 1)
        .mean(0)
        .exp(),
    }
    for place, decays in by_layer.items():
        assert figures["decay_min"][place] == pytest.approx(decays.min().item(), rel=1e-4)
        assert figures["decay_max"][place] == pytest.approx(decays.max().item(), rel=1e-4)
    documents = batch().microbatches[0].documents[:2]
    caches = []
    for model, name in ((MAMBA, "state"), (MAMBA2, "states"), (RWKV7, "matrices")):
        module = module_of(model, scale=0.3)
        rows = batch().microbatches[0]
        last = []  # each row's last document by itself, decoded into a cache
        for row in range(2):
            begin = int((documents[row] == documents[row, -1]).nonzero()[0])
            cache = module.cache(LENGTH)
            with torch.no_grad():
                module(rows.tokens[row : row + 1, begin:], cache=cache)
            last.append(getattr(cache.states["1"][0], name))
        caches.append(rms(torch.cat(last)))
        assert seen(module)[0]["state_rms"]["layer_01"] == pytest.approx(caches[-1], rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "limit"), [("adamw", 0.05), ("muon", 1e3), ("muon", 0.05), ("soap", 0.05), ("torch", 1e3)]
)
def test_updates_and_gradients_by_saved_weights(kind, limit):
    module = module_of(EXPERTS_BIAS, scale=0.3)
    optimizer = optim.build(module, Optimizer(kind="adamw" if kind == "torch" else kind))
    if kind == "torch":
        kept = ("params", "role", "scale", "decay")
        groups = [{key: group[key] for key in kept} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups)
    step(module, optimizer, look=False)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    twin = copy.deepcopy(module).train()
    whole = batch(1)
    for part in whole.microbatches:
        (NextToken(z_loss=1e-4).loss(twin, part).sum / NextToken().normaliser(whole)).backward()
    result, figures = step(module, optimizer, look=True, limit=limit, seed=1)
    assert limit > 1 or result.gradient_norm > limit  # clipped, or not
    squares: dict[str, list[float]] = {}
    ratios: dict[str, list[list[float]]] = {}
    roles = optim.groups.roles_of(module)
    for name, p in module.named_parameters():
        squares.setdefault(place_of(name), []).append(twin.get_parameter(name).grad.norm().item())
        if roles[name] in ("matrix", "embedding", "head"):
            change = (p - before[name]).norm().item()
            ratios.setdefault(place_of(name), []).append([change, before[name].norm().item()])
    assert list(figures["gradient_norm"]) == list(squares)
    for place, norms in squares.items():
        assert figures["gradient_norm"][place] == pytest.approx(math.hypot(*norms), rel=1e-4)
    assert math.hypot(*figures["gradient_norm"].values()) == pytest.approx(result.gradient_norm)
    assert list(figures["update_ratio"]) == list(ratios)
    for place, pairs in ratios.items():
        change, weight = (math.hypot(*column) for column in zip(*pairs, strict=True))
        assert figures["update_ratio"][place] == pytest.approx(change / weight, rel=1e-5)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_rows_stand_for_a_large_matrix(monkeypatch):
    monkeypatch.setattr(looking, "SAMPLED", 1000)
    module = module_of(LLAMA, scale=0.3)
    optimizer = optim.build(module, Optimizer())
    before = module.embedding.weight.detach().clone()
    _, figures = step(module, optimizer, look=True)
    rows = slice(None, None, -(-VOCABULARY * LLAMA.width // 1000))
    change = (module.embedding.weight - before)[rows].norm() / before[rows].norm()
    assert figures["update_ratio"]["embedding"] == pytest.approx(change.item(), rel=1e-5)


def test_a_skipped_step_shows_where_numbers_end():
    module = module_of(LLAMA)
    with torch.no_grad():
        module.blocks["1"].mixer.output.weight[0, 0] = math.inf
    optimizer = optim.build(module, Optimizer())
    result, figures = step(module, optimizer, look=True)
    assert result.skipped
    assert math.isfinite(figures["residual_rms"]["layer_00"])
    assert not math.isfinite(figures["residual_rms"]["layer_01"])
    assert "update_ratio" not in figures
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("model", "kind", "precision"),
    [
        (LLAMA, "adamw", "bf16"),
        (LLAMA, "muon", "fp32"),
        (EXPERTS_BIAS, "soap", "fp32"),
        (EXPERTS_BIAS, "muon", "bf16"),
        (HYBRID, "adamw", "fp32"),
        (HYBRID, "soap", "bf16"),
    ],
)
def test_training_is_the_same_to_the_bit(model, kind, precision):
    def trained(look):
        module = build(model, VOCABULARY, seed=1)
        optimizer = optim.build(module, Optimizer(kind=kind))
        for number in range(3):
            step(module, optimizer, look, precision, seed=number)
        return {**module.state_dict(), **optim.optimizer_state(optimizer, module)}

    plain, watched = trained(False), trained(True)
    assert plain.keys() == watched.keys()
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name


def test_a_compiled_block_is_looked_at_and_stays_compiled():
    torch._dynamo.reset()
    module = module_of(LLAMA, scale=0.3)
    expected, _ = seen(module)
    for _, block in module.numbered_blocks():
        block.compile(backend="eager")
    compiled = [block._compiled_call_impl for _, block in module.numbered_blocks()]
    optimizer = optim.build(module, Optimizer())
    step(module, optimizer, look=False)
    torch._dynamo.utils.counters.clear()
    module.load_state_dict(module_of(LLAMA, scale=0.3).state_dict())
    _, figures = step(module, optimizer, look=True, seed=0)
    for statistic, values in expected.items():
        assert figures[statistic] == pytest.approx(values, rel=1e-4), statistic
    assert [block._compiled_call_impl for _, block in module.numbered_blocks()] == compiled
    assert not torch._dynamo.utils.counters["stats"].get("unique_graphs")  # nothing was compiled anew
    torch._dynamo.reset()
