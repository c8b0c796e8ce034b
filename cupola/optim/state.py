"""An optimizer's state, out and in under the parameters' names.

Guarantees: nothing in a checkpoint depends on the order of parameters; state of another model or another
optimizer is refused before anything is changed. What belongs to a parameter, and in which shape, the
optimizer says itself (`AdamW.parts`).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from cupola.optim.adamw import AdamW


def optimizer_state(optimizer: AdamW, module: nn.Module) -> dict[str, Tensor]:
    """The state as "parameter/part" -> tensor: the tensors themselves, not copies. Empty before the first
    step."""
    return {
        f"{name}/{part}": value
        for name, parameter in module.named_parameters()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(optimizer: AdamW, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take over what `optimizer_state` gave; values are copied, in their own dtype.

    Raises:
        ValueError: it is of another model or another optimizer; the optimizer is unchanged.
    """
    expected = _expected(optimizer, module) if state else {}
    if different := expected.keys() ^ state.keys():
        raise ValueError(
            f"the optimizer's state is of another model or another optimizer: {min(different)!r} is "
            f"{'missing' if min(different) in expected else 'not expected'}"
        )
    taken: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in state.items():
        if tuple(value.shape) != expected[key]:
            raise ValueError(
                f"the optimizer's state {key!r} has shape {tuple(value.shape)}, "
                f"where this model's is {expected[key]}"
            )
        name, _, part = key.rpartition("/")
        parameter = module.get_parameter(name)
        # torch's fused kernels want the count of steps on the parameter's device as well.
        taken.setdefault(parameter, {})[part] = value.detach().to(parameter.device, copy=True)
    optimizer.state.clear()
    optimizer.state.update(taken)


def _expected(optimizer: AdamW, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every part, by its key."""
    roles = {p: group["role"] for group in optimizer.param_groups for p in group["params"]}
    return {
        f"{name}/{part}": tuple(shape)
        for name, parameter in module.named_parameters()
        if parameter in roles
        for part, shape in optimizer.parts(roles[parameter], tuple(parameter.shape)).items()
    }
