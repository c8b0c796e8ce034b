"""What the blocks of a recipe must agree on, beyond what each field can know by itself.

Every check yields the key at fault and one line that says the rule and the mend. `loading.load` has all of
them run before anything is spent; what depends on data (is there enough text?) is the pipeline's to say.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cupola.errors import InputError
from cupola.recipe import adapting, parametrisation, rotary
from cupola.recipe.alignment import Policy, Preference
from cupola.recipe.clock import Clock, length_fault
from cupola.recipe.corpora import CALLED, KINDS, Corpus, Format
from cupola.recipe.curve import Curve
from cupola.recipe.document import Key
from cupola.recipe.model import ATTENTION_ONLY, FAMILIES, Experts, Model
from cupola.recipe.rotary import Rope
from cupola.recipe.schema import LARGEST_BF16_DECAY, LearningRate, Optimizer, Recipe, Stage
from cupola.recipe.structure import did_you_mean

MOST_POLAR_EXPRESS_STEPS = 4
"""In bf16 more of them magnify the rounding of a matrix of low rank without end."""
STAND_IN_EPOCH = 10**12  # tokens; the size of the corpus is not known yet, and no check here depends on it


class Problem(NamedTuple):
    """A key of the recipe and what is wrong with it."""

    path: tuple[Key, ...]
    message: str


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything that is wrong with a recipe whose stages are filled in (`defaults.fill_stages`)."""
    for name, corpus in recipe.corpora.items():
        yield from _corpus(("corpora", name), corpus)
    yield from _tokenizer(recipe)
    yield from model_problems(recipe.model)
    yield from _scale(recipe)
    if not recipe.stages:
        yield Problem(("stages",), "a recipe needs at least one stage, such as pretrain")
    for name, stage in recipe.stages.items():
        yield from _parent(recipe, name, stage)
        parent = recipe.parent_of(name)
        yield from _stage(recipe, name, stage, recipe.stages.get(parent) if parent else None)


def _corpus(path: tuple[str, ...], corpus: Corpus) -> Iterator[Problem]:
    kinds = corpus.read_from()
    if not corpus.kinds():
        yield Problem(path, f"names no source; give one of {', '.join(KINDS)}")
    if len(kinds) > 1:
        yield Problem(path, f"names {' and '.join(kinds)}; a corpus has one source, so make it two corpora")
    if corpus.subset and not corpus.huggingface:
        yield Problem((*path, "subset"), "only a huggingface source has subsets; remove it")
    for key, message in corpus.generation_faults():
        yield Problem((*path, key), message)
    if corpus.holds() != "text":
        yield from _records(path, corpus)
    if corpus.fallback:
        if corpus.fallback.holds() != corpus.holds():
            line = (
                f"holds {corpus.fallback.holds()} and stands in for {corpus.holds()}; take one of one format"
            )
            yield Problem((*path, "fallback"), line)
        yield from _corpus((*path, "fallback"), corpus.fallback)


def _records(path: tuple[str, ...], corpus: Corpus) -> Iterator[Problem]:
    called = CALLED[corpus.holds()]
    if corpus.python and not corpus.generate:
        yield Problem((*path, "format"), f"what Python carries are no {called}; remove it")
    for key in ("text_field", "min_document_bytes"):
        if getattr(corpus, key) != Corpus.model_fields[key].default:
            yield Problem((*path, key), f"has no effect on {called}, which are read whole; remove it")


def _known_sources(path: tuple[str, ...], names: set[str], recipe: Recipe) -> Iterator[Problem]:
    for name in sorted(names - set(recipe.corpora)):
        close = did_you_mean(name, recipe.corpora)
        hint = f"did you mean {close}?" if close else f"corpora has {', '.join(recipe.corpora) or 'none'}"
        yield Problem((*path, name), f"there is no corpus {name}; {hint}")


def _read_by(
    reader: str, wanted: Format, path: tuple[str, ...], names: Iterable[str], recipe: Recipe
) -> Iterator[Problem]:
    """Sources whose documents are not what an objective, or the tokenizer's training, reads."""
    for name in names:
        if name in recipe.corpora and (held := recipe.corpora[name].holds()) != wanted:
            yield Problem(
                (*path, name), f"its documents are {held}, and {reader} reads {wanted}; leave it out"
            )


def _tokenizer(recipe: Recipe) -> Iterator[Problem]:
    tokenizer = recipe.tokenizer
    if tokenizer.kind == "file" and not tokenizer.path:
        yield Problem(("tokenizer", "path"), "kind file needs the path of a tokenizer.json")
    if tokenizer.kind == "bpe" and not tokenizer.train_on and recipe.stages:
        first, stage = next(iter(recipe.stages.items()))
        if stage.reads != "text":
            yield Problem(
                ("tokenizer", "train_on"),
                f"is missing: stage {first} reads no text; name text, or take `kind: file`",
            )
    if tokenizer.kind == "bpe" and tokenizer.path:
        yield Problem(("tokenizer", "path"), "has no effect on kind bpe; add `kind: file`, or remove it")
    train_on = sorted(tokenizer.train_on or {})
    yield from _known_sources(("tokenizer", "train_on"), set(train_on), recipe)
    yield from _read_by("the tokenizer's training", "text", ("tokenizer", "train_on"), train_on, recipe)
    rows = recipe.model.vocabulary
    if tokenizer.kind == "bpe" and rows and rows < tokenizer.vocabulary:
        yield Problem(
            ("model", "vocabulary"),
            f"{rows} is less than the tokenizer's {tokenizer.vocabulary}; raise it, or lower "
            f"tokenizer.vocabulary to {rows}",
        )


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
        yield from _rope(("model", "rope"), model.rope, model)
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


def _rope(path: tuple[str, ...], rope: Rope, model: Model) -> Iterator[Problem]:
    if not model.is_rotary():
        yield Problem(path, "has no effect: the model has no rotary attention; remove it")
        return
    for key, message in rotary.faults(rope, model.sizes().head_width):
        yield Problem((*path, key) if key else path, message)


def _scale(recipe: Recipe) -> Iterator[Problem]:
    for name in ("data", "tensor", "pipeline", "context"):
        workers = getattr(recipe.scale, name)
        if workers not in (1, "auto"):
            yield Problem(
                ("scale", name), f"{workers} workers: parallel layouts are not built yet; leave it at 1"
            )


def _stage(recipe: Recipe, name: str, stage: Stage, before: Stage | None) -> Iterator[Problem]:
    path = ("stages", name)
    assert stage.sequence_length is not None
    yield from _known_sources((*path, "data"), set(stage.sources()), recipe)
    yield from _read_by(stage.objective, stage.reads, (*path, "data"), stage.sources(), recipe)
    if stage.optimizer and (before is None or stage.optimizer != before.optimizer):
        yield from _optimizer((*path, "optimizer"), stage.optimizer)
    if stage.rope and (before is None or stage.rope != before.rope):
        yield from _rope((*path, "rope"), stage.rope, recipe.model)
    yield from _carry(path, stage, before)
    for key, message in adapting.faults(stage, before):
        yield Problem((*path, key), message)
    if stage.reads != "text":
        yield from _packed(path, stage)
    yield from _preference(path, stage, before)
    yield from _policy(path, stage, before)
    if fault := length_fault(stage.sequence_length.values):
        yield Problem((*path, "sequence_length"), fault)
        return
    longest = stage.longest_row()
    positions = recipe.model.max_positions
    if recipe.model.positions == "learned" and positions and longest > positions:
        yield Problem(
            (*path, "sequence_length"),
            f"{longest} is beyond the {positions} learned positions; raise model.max_positions or shorten it",
        )
    microbatch = recipe.scale.microbatch_tokens
    if microbatch != "auto" and microbatch < longest:
        yield Problem(
            ("scale", "microbatch_tokens"),
            f"{microbatch} is less than one row of {longest} tokens of stage {name}; raise it, or say auto",
        )
    yield from _learning_rate((*path, "learning_rate"), stage.learning_rate)
    if stage.tokens is None:
        yield Problem(path, 'tokens is missing: how long the stage is, such as "20M tokens" or "1000 steps"')
        return
    try:
        Clock(stage.on_clock(), STAND_IN_EPOCH)
    except InputError as error:
        yield Problem(path, str(error))


def _packed(path: tuple[str, ...], stage: Stage) -> Iterator[Problem]:
    assert stage.sequence_length is not None
    if len(stage.sequence_length.values) > 1:
        yield Problem(
            (*path, "sequence_length"), f"{CALLED[stage.reads]} are packed into rows of one length; give one"
        )
    if not stage.document_mask:
        yield Problem((*path, "document_mask"), "an answer must not see its neighbours; remove it")


def _preference(path: tuple[str, ...], stage: Stage, parent: Stage | None) -> Iterator[Problem]:
    settings, loss = stage.preference, stage.preference.loss
    if stage.objective != "dpo":
        if settings != Preference():
            yield Problem((*path, "preference"), "has no effect without objective dpo; remove it")
        return
    for key, losses in Preference.only.items():
        if loss not in losses and getattr(settings, key) != Preference.model_fields[key].default:
            yield Problem(
                (*path, "preference", key),
                f"has no effect on loss {loss} (only on {', '.join(losses)}); remove it",
            )
    if settings.needs_reference and (parent is None or "weights" not in stage.carry):
        yield Problem(
            (*path, "objective"),
            f"dpo with loss {loss} compares with the weights of a stage before it, and there are none; put it"
            " after another stage, and carry weights",
        )


def _policy(path: tuple[str, ...], stage: Stage, parent: Stage | None) -> Iterator[Problem]:
    settings = stage.policy
    if not stage.samples:
        if settings != Policy():
            yield Problem((*path, "policy"), "has no effect without objective grpo; remove it")
        return
    if settings.prompts % settings.updates:
        yield Problem(
            (*path, "policy", "updates"),
            f"{settings.prompts} prompts can't be shared among {settings.updates} steps; take a divisor",
        )
    elif stage.batch_tokens and stage.batch_tokens.values != [settings.prompts // settings.updates]:
        yield Problem((*path, "batch_tokens"), "grpo counts questions: give policy.prompts, and remove it")
    if stage.tokens and stage.tokens.unit in ("", "tokens"):
        yield Problem(
            (*path, "tokens"),
            f'{stage.tokens}: grpo counts steps; say "100 steps", or "1 epoch" of its questions',
        )
    assert stage.sequence_length is not None
    if settings.max_completion_length >= max(stage.sequence_length.values):
        yield Problem(
            (*path, "policy", "max_completion_length"),
            f"{settings.max_completion_length} leaves no room for a question in rows of "
            f"{max(stage.sequence_length.values)} tokens; shorten it, or raise sequence_length",
        )
    if settings.loss == "cispo" and settings.epsilon_high is None:
        yield Problem((*path, "policy", "epsilon_high"), "is missing: the largest weight of a token of cispo")
    if settings.delta is not None and (settings.loss == "cispo" or settings.delta <= 1 + settings.clip_high):
        yield Problem((*path, "policy", "delta"), "must be above 1 + epsilon_high, and cispo has none")
    if settings.beta and (parent is None or "weights" not in stage.carry):
        yield Problem(
            (*path, "policy", "beta"),
            "the KL is to the weights of a stage before it, and there are none; take 0",
        )


def _parent(recipe: Recipe, name: str, stage: Stage) -> Iterator[Problem]:
    names = list(recipe.stages)
    before = names[: names.index(name)]
    if stage.parent is not None and stage.parent not in before:
        path = ("stages", name, "parent")
        close = did_you_mean(stage.parent, before)
        hint = f"did you mean {close}?" if close else f"before it come {', '.join(before) or 'none'}"
        yield Problem(path, f"{stage.parent} is no stage before this one; {hint}")


def _learning_rate(path: tuple[str, ...], settings: LearningRate) -> Iterator[Problem]:
    if settings.decay == "constant" or isinstance(settings.decay, Curve):
        kind = "constant" if settings.decay == "constant" else "given by shares of the peak"
        for key in ("decay_over", "final"):
            if getattr(settings, key):
                yield Problem((*path, key), f"has no effect where decay is {kind}; remove it")


def _carry(path: tuple[str, ...], stage: Stage, before: Stage | None) -> Iterator[Problem]:
    if "optimizer" not in stage.carry:
        return
    path = (*path, "carry")
    if before is None:
        yield Problem(path, "there is no stage before this one; remove optimizer")
    elif "weights" not in stage.carry:
        yield Problem(path, "the optimizer's state belongs to the weights; carry both")
    elif before.optimizer and stage.optimizer and before.optimizer.kind != stage.optimizer.kind:
        yield Problem(
            path,
            f"{stage.optimizer.kind} can't go on from the state of {before.optimizer.kind}; remove optimizer",
        )
    elif before.optimizer and stage.optimizer:
        for key in ("largest_preconditioned", "one_sided_above"):
            if getattr(stage.optimizer, key) != getattr(before.optimizer, key):
                yield Problem(path, f"the state may be of other sides: {key} differs; remove optimizer")


def _optimizer(path: tuple[str, ...], optimizer: Optimizer) -> Iterator[Problem]:
    fields = type(optimizer).model_fields
    for key, kinds in Optimizer.only.items():
        if optimizer.kind not in kinds and getattr(optimizer, key) != fields[key].default:
            has, no = ", ".join(kinds), optimizer.kind
            yield Problem((*path, key), f"has no effect on kind {no} (only on {has}); remove it")
    steps = optimizer.newton_schulz_steps
    if optimizer.newton_schulz == "polar_express" and steps is not None and steps > MOST_POLAR_EXPRESS_STEPS:
        yield Problem(
            (*path, "newton_schulz_steps"),
            f"{steps} steps of polar_express magnify what bf16 rounds; take at most "
            f"{MOST_POLAR_EXPRESS_STEPS}, or newton_schulz: quintic",
        )
    decay = max(*optimizer.betas, optimizer.covariance_decay or 0.0)
    if optimizer.state_dtype == "bf16" and optimizer.kind == "soap" and decay > LARGEST_BF16_DECAY:
        yield Problem(
            (*path, "state_dtype"),
            f"averages in bf16 stand still with a decay rate of {decay}; take fp32, or rates up to "
            f"{LARGEST_BF16_DECAY}",
        )
