"""What the settings of a model must agree on, by themselves."""

from collections.abc import Iterator

from cupola.recipe import parametrisation, rotary
from cupola.recipe.model import ATTENTION_ONLY, FAMILIES, Experts, Model
from cupola.recipe.problem import Problem
from cupola.recipe.rotary import Rope


def model_problems(model: Model) -> Iterator[Problem]:
    """What is wrong with a model's settings by themselves."""
    yield from _pattern(model)
    mixers = set(model.mixers())
    if mixers & {"attention", "sliding_attention"}:
        yield from _attention(model, mixers)
    else:
        yield from _without_effect(model, sorted(ATTENTION_ONLY), "attention")
    yield from _feedforward(model)
    for kind in sorted({"mamba", "mamba2", "rwkv7"} - mixers):
        yield from _without_effect(model, [kind], f"a block of {kind}")
    if "mamba2" in mixers:
        yield from _mamba2(model)
    if "rwkv7" in mixers and model.width % model.rwkv7.head_width:
        yield _indivisible(
            ("model", "rwkv7", "head_width"), "width", model.width, model.rwkv7.head_width, "head_width"
        )
    if model.experts is not None:
        yield from _experts(model, model.experts)
    yield from _parametrisation(model)


def _feedforward(model: Model) -> Iterator[Problem]:
    kinds = set(model.feedforwards())
    # Published configurations of mixtures state a width for dense layers that they don't have.
    if model.experts is None and not kinds & {"gated", "plain", "channel_mix"}:
        yield from _without_effect(model, ["feedforward"], "a dense feed-forward layer")
    if not kinds & {"gated", "plain", "experts"}:
        yield from _without_effect(model, ["activation", "feedforward_bias"], "a feed-forward layer")


def _without_effect(model: Model, keys: list[str], needed: str) -> Iterator[Problem]:
    for key in keys:
        if getattr(model, key) != type(model).model_fields[key].default:
            yield Problem(("model", key), f"has no effect without {needed} in the model; remove it")


def _indivisible(path: tuple[str, ...], whole: str, size: int, part: int, name: str) -> Problem:
    return Problem(path, f"{whole} {size} is not divisible by {name} {part}; take {_near(size, part)}")


def _near(size: int, part: int) -> str:
    """The divisors of a size that are nearest to one that does not divide it."""
    below = next(divisor for divisor in range(min(part, size), 0, -1) if size % divisor == 0)
    above = next((divisor for divisor in range(part + 1, min(size, 2 * part) + 1) if size % divisor == 0), 0)
    return f"{below} or {above}" if above else str(below)


def _pattern(model: Model) -> Iterator[Problem]:
    path = ("model", "pattern")
    if model.pattern is None:
        if model.family == "hybrid":
            yield Problem(path, "family hybrid needs its blocks, such as [mamba2 * 3, attention]")
        return
    for name in dict.fromkeys(model.pattern):
        if name not in FAMILIES[model.family]:
            yield Problem(path, f"family {model.family} has no {name}; take family hybrid, or remove it")
    if model.layers % len(model.pattern):
        yield Problem(
            path,
            f"{model.layers} layers are no whole repetitions of {len(model.pattern)} blocks; change either",
        )


def _attention(model: Model, mixers: set[str]) -> Iterator[Problem]:
    if model.heads is None:
        yield Problem(("model", "heads"), "is missing (the number of attention's query heads)")
        return
    if model.head_width is None and model.width % model.heads:
        below = model.width // model.heads * model.heads
        near = f"{below} or {below + model.heads}" if below else f"{model.heads}"
        yield Problem(
            ("model", "heads"),
            f"width {model.width} is not divisible by {model.heads} heads; "
            f"take a width of {near}, or state head_width",
        )
    elif model.positions == "rope" and model.sizes().head_width % 2:
        width = model.sizes().head_width
        yield Problem(
            ("model", "head_width" if model.head_width else "heads"),
            f"rotary positions need an even head width, not {width}; change width, heads or head_width",
        )
    if model.heads % model.sizes().key_value_heads:
        yield Problem(
            ("model", "key_value_heads"),
            f"{model.heads} heads can't be shared among {model.key_value_heads} key/value heads; "
            "take a divisor of heads",
        )
    if "sliding_attention" in mixers and model.window is None:
        yield Problem(("model", "window"), "is missing (how many tokens sliding_attention sees)")
    if "sliding_attention" not in mixers and model.window is not None:
        yield Problem(("model", "window"), "has no effect without sliding_attention; remove it")
    if model.positions == "learned":
        yield from _learned(model)
    elif model.positions == "rope":
        yield from rope_problems(("model", "rope"), model.rope, model)
    elif "rope" in model.model_fields_set:
        yield Problem(("model", "rope"), "has no effect with positions none; remove it")


def _mamba2(model: Model) -> Iterator[Problem]:
    settings = model.mamba2
    path = ("model", "mamba2")
    inner = settings.expansion * model.width
    if inner % settings.head_width:
        yield _indivisible(
            (*path, "head_width"), "expansion * width", inner, settings.head_width, "head_width"
        )
    elif settings.heads(model.width) % settings.groups:
        yield Problem(
            (*path, "groups"),
            f"{settings.heads(model.width)} heads can't be shared among {settings.groups} groups; "
            "take a divisor",
        )


def _experts(model: Model, experts: Experts) -> Iterator[Problem]:
    path = ("model", "experts")
    if experts.active > experts.count:
        yield Problem((*path, "active"), f"{experts.active} is more than there are, {experts.count}")
    if model.activation != "swiglu":
        yield Problem(("model", "activation"), "experts are gated: take swiglu, or remove experts")
    if model.feedforward_bias:
        yield Problem(("model", "feedforward_bias"), "experts have no biases; remove it, or remove experts")
    if not set(model.mixers()) - {model.family, "rwkv7"}:
        yield Problem(path, f"family {model.family} has no feed-forward layer that they could replace")
    elif "experts" not in model.feedforwards():
        yield Problem((*path, "first_dense"), f"leaves none of {model.layers} layers to experts; lower it")
    if experts.balance != "auxiliary" and experts.balance_weight != 0.01:
        yield Problem((*path, "balance_weight"), "has no effect without balance auxiliary; remove it")
    if experts.balance != "bias" and experts.bias_rate != 0.001:
        yield Problem((*path, "bias_rate"), "has no effect without balance bias; remove it")


def _parametrisation(model: Model) -> Iterator[Problem]:
    faults = list(parametrisation.faults(model))
    for key, message in faults:
        yield Problem(("model", "parametrisation", key), message)
    base = None if faults else parametrisation.base_model(model)
    if base is not None and (problem := next(model_problems(base), None)):
        where = ".".join(str(key) for key in problem.path[1:])
        yield Problem(("model", "parametrisation"), f"the base model's {where}: {problem.message}")


def _learned(model: Model) -> Iterator[Problem]:
    if model.max_positions is None:
        yield Problem(("model", "max_positions"), "learned positions need the number of their rows")
    if "rope" in model.model_fields_set:
        yield Problem(("model", "rope"), "has no effect on learned positions; remove it")


def rope_problems(path: tuple[str, ...], rope: Rope, model: Model) -> Iterator[Problem]:
    if not model.is_rotary():
        yield Problem(path, "has no effect: the model has no rotary attention; remove it")
        return
    for key, message in rotary.faults(rope, model.sizes().head_width):
        yield Problem((*path, key) if key else path, message)
