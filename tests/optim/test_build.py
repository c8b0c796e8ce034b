import copy

import pytest
import torch

from cupola import optim
from cupola.models import build
from cupola.optim import groups
from cupola.recipe.clock import StepValues
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer

KINDS = ["adamw", "muon", "soap"]


@pytest.fixture
def module():
    return build(Model(layers=2, width=16, heads=2, qk_norm=True, attention_bias=True), 40, seed=1)


def give_gradients(module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def steps(module, optimizer, seeds, rate=1e-2, decay=0.1) -> None:
    for seed in seeds:
        give_gradients(module, seed)
        optim.set_values(optimizer, StepValues(rate, decay, 0.95, 0.0))
        optimizer.step()


def values(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_groups_follow_the_declared_roles(module, kind):
    optimizer = optim.build(module, Optimizer(kind=kind, weight_decay=0.3, embedding_scale=0.5))
    optim.set_values(optimizer, StepValues(2.0, 0.3, 0.9, 0.0))
    names = {parameter: name for name, parameter in module.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[parameter]] = (group["role"], group["weight_decay"], group["lr"])
        if kind == "muon":
            assert group["momentum"] == 0.9
    assert set(seen) == set(names.values())
    assert seen["blocks.0.mixer.query.weight"] == ("matrix", 0.3, 2.0)
    assert seen["blocks.1.feedforward.down.weight"] == ("matrix", 0.3, 2.0)
    # Two dimensions each, and yet no matrices.
    assert seen["embedding.weight"] == ("embedding", 0.0, 1.0)
    assert seen["head.weight"] == ("head", 0.0, 1.0)
    assert seen["blocks.0.mixer.query.bias"] == ("vector", 0.0, 1.0)
    assert seen["norm.weight"] == ("vector", 0.0, 1.0)


def test_roles_may_be_given_for_any_module():
    module = torch.nn.Linear(3, 3)
    optimizer = optim.build(module, None, roles={"weight": "embedding", "bias": "vector"})
    assert [group["role"] for group in optimizer.param_groups] == ["embedding", "vector"]


@pytest.mark.oracle
def test_adamw_is_torchs(module):
    theirs = copy.deepcopy(module)
    settings = Optimizer(betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.2)
    decayed = [p for p in theirs.blocks.parameters() if p.ndim == 2]
    rest = [p for p in theirs.parameters() if not any(p is q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), eps=1e-6, foreach=False, fused=False)
    optimizer = optim.build(module, settings)
    for seed in range(5):
        steps(module, optimizer, [seed], decay=0.2)
        give_gradients(theirs, seed)
        reference.step()
    for (name, found), expected in zip(module.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_state_by_name_continues_bit_for_bit(module, kind):
    settings = Optimizer(kind=kind)
    optimizer = optim.build(module, settings)
    steps(module, optimizer, range(3))
    twin = copy.deepcopy(module)
    state = {key: value.clone() for key, value in optim.optimizer_state(optimizer, module).items()}
    steps(module, optimizer, range(3, 6))
    resumed = optim.build(twin, settings)
    optim.load_optimizer_state(resumed, twin, state)
    steps(twin, resumed, range(3, 6))
    for name, value in values(module).items():
        assert torch.equal(value, twin.get_parameter(name)), name
    ended, continued = (optim.optimizer_state(o, m) for o, m in ((optimizer, module), (resumed, twin)))
    assert ended.keys() == continued.keys() == state.keys()
    assert all(torch.equal(ended[key], continued[key]) for key in ended)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_optimizer_in_place_of_the_state_would_be_noticed(module, kind):
    """The test above can fail: without the state the steps differ."""
    optimizer = optim.build(module, Optimizer(kind=kind))
    steps(module, optimizer, range(3))
    twin = copy.deepcopy(module)
    steps(module, optimizer, [3])
    steps(twin, optim.build(twin, Optimizer(kind=kind)), [3])
    assert not torch.equal(module.head.weight, twin.head.weight)
    name = "blocks.0.mixer.query.weight"
    assert not torch.equal(module.get_parameter(name), twin.get_parameter(name))


def test_state_has_the_parameters_names(module):
    optimizer = optim.build(module, Optimizer(kind="muon"))
    assert optim.optimizer_state(optimizer, module) == {}
    steps(module, optimizer, [0])
    state = optim.optimizer_state(optimizer, module)
    assert state["blocks.0.mixer.query.weight/momentum"].shape == (16, 16)
    assert state["embedding.weight/exp_avg_sq"].shape == (40, 16)
    assert float(state["norm.weight/step"]) == 1.0


def test_foreign_state_is_refused(module):
    optimizer = optim.build(module, None)
    steps(module, optimizer, [0])
    state = optim.optimizer_state(optimizer, module)
    with pytest.raises(ValueError, match=r"'gate\.weight/exp_avg' is not expected"):
        optim.load_optimizer_state(optimizer, module, {**state, "gate.weight/exp_avg": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"has shape \(2,\)"):
        optim.load_optimizer_state(optimizer, module, {**state, "norm.weight/exp_avg": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'norm\.weight/step' is missing"):
        optim.load_optimizer_state(
            optimizer, module, {k: v for k, v in state.items() if k != "norm.weight/step"}
        )
    with pytest.raises(ValueError, match="another optimizer"):
        optim.load_optimizer_state(optim.build(module, Optimizer(kind="muon")), module, state)
    assert optim.optimizer_state(optimizer, module).keys() == state.keys()


class OfItsOwnShapes(optim.AdamW):
    """Keeps of a matrix what has another shape, as a preconditioner has."""

    def parts(self, role, shape):
        return {"covariance": (shape[0], shape[0])} if role == "matrix" else super().parts(role, shape)

    def update(self, group, parameters):
        if group["role"] != "matrix":
            super().update(group, parameters)
            return
        for parameter in parameters:
            self.state[parameter]["covariance"] = parameter.grad @ parameter.grad.T


def test_the_optimizer_says_what_it_keeps_and_in_which_shape(module):
    def make(of):
        return OfItsOwnShapes(groups.by_role(of, Optimizer(), groups.roles_of(of)), lr=0.0)

    optimizer = make(module)
    steps(module, optimizer, [0])
    state = optim.optimizer_state(optimizer, module)
    key = "blocks.0.feedforward.down.weight/covariance"
    assert state[key].shape == (16, 16)
    resumed = make(module)
    optim.load_optimizer_state(resumed, module, state)
    assert all(torch.equal(value, state[k]) for k, value in optim.optimizer_state(resumed, module).items())
    with pytest.raises(ValueError, match=r"has shape \(2, 2\), where this model's is \(16, 16\)"):
        optim.load_optimizer_state(resumed, module, {**state, key: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="another optimizer"):
        optim.load_optimizer_state(optim.build(module, None), module, state)
