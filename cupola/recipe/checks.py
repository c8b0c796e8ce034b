"""What the blocks of a recipe must agree on, beyond what each field can know by itself.

Every check yields the key at fault and one line that says the rule and the mend. `loading.load` has all of
them run before anything is spent; what depends on data (is there enough text?) is the pipeline's to say.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cupola.errors import InputError
from cupola.recipe.clock import Clock
from cupola.recipe.schema import KINDS, Corpus, Model, Recipe, Rope, Stage
from cupola.recipe.structure import did_you_mean

STAND_IN_EPOCH = 10**12  # tokens; the size of the corpus is not known yet, and no check here depends on it


class Problem(NamedTuple):
    """A key of the recipe and what is wrong with it."""

    path: tuple[str, ...]
    message: str


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything that is wrong with a recipe whose stages are filled in (`defaults.fill_stages`)."""
    for name, corpus in recipe.corpora.items():
        yield from _corpus(("corpora", name), corpus)
    yield from _tokenizer(recipe)
    yield from _model(recipe)
    yield from _scale(recipe)
    if not recipe.stages:
        yield Problem(("stages",), "a recipe needs at least one stage, such as pretrain")
    before = None
    for name, stage in recipe.stages.items():
        yield from _stage(recipe, name, stage, before)
        before = stage


def _corpus(path: tuple[str, ...], corpus: Corpus) -> Iterator[Problem]:
    kinds = corpus.kinds()
    if not kinds:
        yield Problem(path, f"names no source; give one of {', '.join(KINDS)}")
    if len(kinds) > 1:
        yield Problem(path, f"names {' and '.join(kinds)}; a corpus has one source, so make it two corpora")
    if corpus.subset and not corpus.huggingface:
        yield Problem((*path, "subset"), "only a huggingface source has subsets; remove it")
    if corpus.fallback:
        yield from _corpus((*path, "fallback"), corpus.fallback)


def _known_sources(path: tuple[str, ...], names: set[str], recipe: Recipe) -> Iterator[Problem]:
    for name in sorted(names - set(recipe.corpora)):
        close = did_you_mean(name, recipe.corpora)
        hint = f"did you mean {close}?" if close else f"corpora has {', '.join(recipe.corpora) or 'none'}"
        yield Problem((*path, name), f"there is no corpus {name}; {hint}")


def _tokenizer(recipe: Recipe) -> Iterator[Problem]:
    tokenizer = recipe.tokenizer
    if tokenizer.kind == "file" and not tokenizer.path:
        yield Problem(("tokenizer", "path"), "kind file needs the path of a tokenizer.json")
    if tokenizer.kind == "bpe" and tokenizer.path:
        yield Problem(("tokenizer", "path"), "has no effect on kind bpe; add `kind: file`, or remove it")
    yield from _known_sources(("tokenizer", "train_on"), set(tokenizer.train_on or {}), recipe)
    rows = recipe.model.vocabulary
    if tokenizer.kind == "bpe" and rows and rows < tokenizer.vocabulary:
        yield Problem(
            ("model", "vocabulary"),
            f"{rows} is less than the tokenizer's {tokenizer.vocabulary}; raise it, or lower "
            f"tokenizer.vocabulary to {rows}",
        )


def _model(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
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
    if model.positions == "learned":
        yield from _learned(model)
    else:
        yield from _rope(model.rope)


def _learned(model: Model) -> Iterator[Problem]:
    if model.max_positions is None:
        yield Problem(("model", "max_positions"), "learned positions need the number of their rows")
    if "rope" in model.model_fields_set:
        yield Problem(("model", "rope"), "has no effect on learned positions; remove it")


def _rope(rope: Rope) -> Iterator[Problem]:
    path = ("model", "rope")
    if rope.rope_type == "default" and rope.factor != 1:
        yield Problem((*path, "factor"), "has no effect without rope_type linear or llama3")
    if rope.rope_type == "llama3":
        if rope.original_max_position_embeddings is None:
            yield Problem(path, "rope_type llama3 needs original_max_position_embeddings")
        if rope.low_freq_factor >= rope.high_freq_factor:
            yield Problem(
                (*path, "low_freq_factor"), f"must be below high_freq_factor {rope.high_freq_factor}"
            )


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
    yield from _carry(path, stage, before)
    longest = max(stage.sequence_length.values)
    for length in stage.sequence_length.values:
        if longest % length:
            yield Problem(
                (*path, "sequence_length"),
                f"{length} does not divide the longest, {longest}; take lengths that do, such as powers of 2",
            )
            return
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
    if stage.tokens is None:
        yield Problem(path, 'tokens is missing: how long the stage is, such as "20M tokens" or "1000 steps"')
        return
    try:
        Clock(stage, STAND_IN_EPOCH)
    except InputError as error:
        yield Problem(path, str(error))


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
